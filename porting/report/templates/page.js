"use strict";
{
  // What works without this: everything that the page says. What this adds: one quick tooltip for the mouse and the arrow
  // keys, the layer's row beside it, and a table that sorts and filters.
  const table = document.getElementById("layers");
  const plot = document.getElementById("plot");
  if (table && plot) {
    const rows = [...table.tBodies[0].rows];
    const places = [...plot.querySelectorAll(".places a")];
    const tip = document.getElementById("tip");
    const hints = places.map((place) => {
      const title = place.querySelector("title");
      title.remove(); // the browser's own tooltip would cover ours
      return title.textContent.split("\n");
    });
    let current = -1;

    const mark = (position) => {
      if (current >= 0) {
        rows[current].classList.remove("marked");
        places[current].classList.remove("marked");
      }
      current = position;
      if (current >= 0) {
        rows[current].classList.add("marked");
        places[current].classList.add("marked");
      }
    };

    const show = (position) => {
      mark(position);
      tip.replaceChildren(
        ...hints[position].map((line, number) => {
          const element = document.createElement(number === 0 ? "strong" : "span");
          // A long name may break after its slashes.
          line.split(/(?<=\/)/).forEach((part) => element.append(part, document.createElement("wbr")));
          return element;
        }),
      );
      tip.hidden = false;
      const place = places[position].getBoundingClientRect();
      const visible = plot.getBoundingClientRect();
      const x = place.left + place.width / 2;
      const left = x + 14 + tip.offsetWidth < document.documentElement.clientWidth ? x + 14 : x - 14 - tip.offsetWidth;
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${Math.max(8, visible.top + 34)}px`;
    };
    const hide = () => {
      tip.hidden = true;
      mark(-1);
    };

    places.forEach((place, position) => place.addEventListener("pointerenter", () => show(position)));
    plot.addEventListener("pointerleave", hide);
    addEventListener("scroll", () => (tip.hidden = true), { passive: true }); // it would stay where the chart was
    plot.tabIndex = 0;
    plot.setAttribute("aria-label", "Chart of the error of every layer; arrow keys walk through the layers");
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const last = places.length - 1;
      const at = current < 0 ? -1 : current;
      const next = {
        ArrowRight: Math.min(at + 1, last),
        ArrowLeft: Math.max(at - 1, 0),
        Home: 0,
        End: last,
      }[event.key];
      if (next !== undefined) {
        event.preventDefault();
        show(next);
      } else if (event.key === "Escape") {
        hide();
      } else if (event.key === "Enter" && current >= 0) {
        location.hash = `layer-${current}`;
      }
    });
    rows.forEach((row, position) => {
      row.addEventListener("pointerenter", () => mark(position));
      row.addEventListener("pointerleave", () => mark(-1));
    });

    // A column of numbers sorts by value, "not finite" as the largest and an empty cell as the smallest.
    const value = (row, column) => {
      const text = row.cells[column].textContent.trim();
      if (text === "") return -1;
      return text === "not finite" ? Infinity : parseFloat(text);
    };
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("n");
        // Numbers start with the largest, which is what one looks for; the position and words with the first.
        const first = numeric && column > 0 ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const words = (row) => row.cells[column].textContent;
        const compare = numeric
          ? (a, b) => value(a, column) - value(b, column) || 0
          : (a, b) => words(a).localeCompare(words(b), "en", { numeric: true });
        table.tBodies[0].append(...[...rows].sort((a, b) => sign * compare(a, b)));
      });
    });

    const find = document.getElementById("find");
    const only = document.getElementById("only");
    const shown = document.getElementById("shown");
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, position) => {
        const fits = words.every((word) => texts[position].includes(word));
        row.hidden = !fits || Boolean(only && only.checked && !row.classList.contains("wrong"));
        count += row.hidden ? 0 : 1;
      });
      shown.textContent = count === rows.length ? "" : `${count} of ${rows.length} shown`;
    };
    find.addEventListener("input", filter);
    if (only) only.addEventListener("change", filter);
    addEventListener("hashchange", () => {
      const row = document.getElementById(location.hash.slice(1));
      if (row && row.hidden) {
        find.value = "";
        if (only) only.checked = false;
        filter();
        row.scrollIntoView();
      }
    });
    document.getElementById("controls").hidden = false;
    filter();
    const target = rows.find((row) => `#${row.id}` === location.hash);
    if (target) target.scrollIntoView(); // the controls above it have moved it
  }
}
