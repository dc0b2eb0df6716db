"use strict";
{
  // What works without this: every fact, every link, every digest; the model cards hold the code for each file. What this
  // adds: copying, sorting, filtering, and that code in place.
  const $ = (id) => document.getElementById(id);
  const body = document.body;
  body.classList.add("scripted");

  // A site that was not told its address learns it here, unless it is looked at from a disk.
  const root = location.protocol.startsWith("http") ? new URL(body.dataset.root, location.href).href : "URL-OF-THIS-SITE/";
  const addressed = (text) => text.replaceAll("URL-OF-THIS-SITE/", root);
  document.querySelectorAll("pre code").forEach((code) => (code.textContent = addressed(code.textContent)));

  const say = (text) => {
    $("said").textContent = "";
    setTimeout(() => ($("said").textContent = text), 20); // a text that stays the same is not read out again
  };
  const toClipboard = async (text, near) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const field = document.createElement("textarea"); // pages that came over plain http have no clipboard of their own
    field.value = text;
    near.after(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (!done) throw new Error("not copied");
  };
  body.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const what = button.getAttribute("aria-label").replace(/^Copy /, "");
    try {
      await toClipboard((button.closest(".snippet") || button.parentElement).querySelector("code").textContent, button);
      button.classList.add("done");
      setTimeout(() => button.classList.remove("done"), 1500);
      say(`Copied ${what}`);
    } catch {
      say(`Could not copy ${what}`);
    }
    button.focus();
  });

  const table = $("files");
  if (table) {
    const groups = [...table.tBodies].map((element) => ({
      element,
      rows: [...element.rows].slice(1).map((row) => ({ row, text: `${element.dataset.network} ${row.textContent}`.toLowerCase() })),
    }));
    const total = groups.reduce((sum, group) => sum + group.rows.length, 0);

    const filter = () => {
      const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
      const network = $("network").value;
      let count = 0;
      for (const { element, rows } of groups) {
        let here = 0;
        for (const { row, text } of rows) {
          row.hidden = (network && element.dataset.network !== network) || !words.every((word) => text.includes(word));
          here += row.hidden ? 0 : 1;
        }
        element.hidden = here === 0;
        count += here;
      }
      $("shown").textContent = count === total ? "" : `${count} of ${total} shown`;
      $("none").hidden = count > 0;
    };
    $("find").addEventListener("input", filter);
    $("network").addEventListener("change", filter);
    $("clear").addEventListener("click", () => {
      $("find").value = $("network").value = "";
      filter();
      $("find").focus();
    });

    // Rows are sorted within their network, and the networks by their first rows.
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, column) => {
      const cell = row.cells[column];
      return "v" in cell.dataset ? (cell.dataset.v === "" ? -1 : Number(cell.dataset.v)) : cell.textContent.trim();
    };
    const sort = (column, order) => {
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[column].setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
      };
      for (const { element, rows } of groups) {
        rows.sort((one, other) => compare(one.row, other.row));
        element.append(...rows.map(({ row }) => row));
      }
      table.append(...[...groups].sort((one, other) => compare(one.rows[0].row, other.rows[0].row)).map((group) => group.element));
      $("order").value = `${column} ${order}`;
    };
    heads.forEach((head, column) => {
      if ("fixed" in head.dataset) return;
      const name = head.textContent.trim();
      const numeric = head.classList.contains("n");
      // Numbers start with the largest, which is what one looks for; words with the first.
      const first = numeric || name === "Parity" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        sort(column, head.getAttribute("aria-sort") === first ? second : first);
        say(`Sorted by ${name}, ${head.getAttribute("aria-sort")}`);
      });
      for (const order of [first, second]) $("order").append(new Option(`${name}, ${order}`, `${column} ${order}`));
    });
    $("order").prepend(new Option("as listed", "", true, true));
    $("order").addEventListener("change", () => {
      const [column, order] = $("order").value.split(" ");
      if (order) sort(Number(column), order);
    });

    // The same code as on the file's card, without leaving the page.
    const dialog = $("use");
    body.addEventListener("click", (event) => {
      const link = event.target.closest("td.use a");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const row = link.closest("tr");
      const values = JSON.parse(row.dataset.use);
      const ways = $(`kind-${row.dataset.kind}`).content.cloneNode(true);
      ways.querySelectorAll("pre code").forEach((code) => {
        code.textContent = addressed(code.textContent.replace(/%([A-Z0-9]+)%/g, (_, name) => values[name]));
      });
      $("use-name").textContent = row.querySelector(".file code").textContent;
      $("use-card").href = link.href;
      $("use-ways").replaceChildren(ways);
      dialog.showModal();
    });
    $("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // outside of it
    });

    $("controls").hidden = false;
    filter();
  }
}
