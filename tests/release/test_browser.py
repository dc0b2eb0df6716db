"""The downloads page in a real browser: headless Chromium, from `release serve`."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from porting.release import index, serve
from porting.release.description import describe
from porting.release.page import Pages, Site
from tests.release import samples

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
Page = Any
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1400, "height": 900}


@dataclass
class Opened:
    """A page, and what went wrong while it was open."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def addresses(
    mixed_site: Path, hostile_site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    sites = {"mixed": mixed_site, "hostile": hostile_site}
    sites["tampered"] = shutil.copytree(mixed_site, tmp_path_factory.mktemp("tampered") / "site")
    page = sites["tampered"] / "index.html"
    planted = "<img src='https://example.invalid/x.png'><script>document.title = 'owned'</script><p style='color:red'>"
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", f"{planted}</main>"), encoding="utf-8")
    running = {name: serve.server(site) for name, site in sites.items()}
    for server in running.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {name: serve.address(server) for name, server in running.items()}
    for server in running.values():
        server.shutdown()
        server.server_close()


@pytest.fixture
def visit(browser: Any, addresses: dict[str, str]) -> Iterator[Callable[..., Opened]]:
    """`visit(site, path, **context)`: a page; leaving the test fails it on a complaint or a request to elsewhere."""
    contexts, seen = [], []

    def open_page(site: str = "mixed", path: str = "", **options: Any) -> Opened:
        context = browser.new_context(**options)
        context.set_default_timeout(5000)
        contexts.append(context)
        opened = Opened(context.new_page(), addresses[site])
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda one: opened.outside.append(one.url) if opened.address not in one.url else None)
        if site != "tampered":
            seen.append(opened)
        opened.page.goto(opened.address + path)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    for opened in seen:
        assert opened.complaints == []
        assert [url for url in opened.outside if not url.startswith("data:")] == []


def rows(page: Page) -> list[str]:
    """Names of the files that are shown, in their order."""
    return page.locator("#files tr:not(.group):visible .file code").all_inner_texts()


def hears(page: Page, text: str) -> None:
    """Wait until a screen reader is told this."""
    page.locator("#said", has_text=text).wait_for(state="attached")


def card_of(site: Path, pattern: str) -> str:
    return next((site / "cards").glob(pattern)).relative_to(site).as_posix()


def test_a_page_that_fetches_or_runs_something_else_is_stopped_and_seen(visit: Callable[..., Opened]) -> None:
    """Negative control of every test here: the policy holds, and the complaints are heard."""
    opened = visit("tampered")
    opened.page.wait_for_timeout(50)
    assert opened.page.title() != "owned"
    assert len(opened.complaints) >= 3
    assert all("Content Security Policy" in complaint for complaint in opened.complaints)


def test_without_javascript_the_essentials_are_there(visit: Callable[..., Opened]) -> None:
    page = visit(java_script_enabled=False, viewport=DESK).page
    assert len(rows(page)) == 6
    assert not page.locator("#controls").is_visible()
    assert page.locator(".copy:visible").count() == 0
    assert page.locator("td.parity a").first.get_attribute("href").startswith("reports/")
    page.locator("td.use a").first.click()
    assert page.url.endswith(".html#use")
    assert "create_model" in page.locator("pre").first.inner_text()


def test_what_is_sought_is_shown(visit: Callable[..., Opened]) -> None:
    page = visit(viewport=DESK).page
    assert page.locator("#shown").inner_text() == ""
    page.locator("#find").fill("apache XCEPTION_65 folded")
    (name,) = rows(page)
    assert page.locator("#shown").inner_text() == "1 of 6 shown"
    assert page.locator(".group:visible").count() == 1
    page.locator("#find").fill(page.locator(".sum:visible").text_content() or "")
    assert rows(page) == [name], "a whole digest finds its file"
    page.locator("#network").select_option("xception41")
    assert rows(page) == []
    page.locator("#clear").click()
    assert len(rows(page)) == 6
    assert page.evaluate("document.activeElement.id") == "find"
    page.locator("#network").select_option("xception41")
    assert all("_41-" in name for name in rows(page)) and len(rows(page)) == 2


def test_every_column_sorts_both_ways(visit: Callable[..., Opened]) -> None:
    page = visit(viewport=DESK).page
    heads = page.locator("#files thead th")
    assert page.locator("#files thead button").count() == heads.count() - 2

    def values(column: str) -> list[list[float]]:
        groups = page.locator("#files tbody").all()
        return [[float(cell.get_attribute("data-v")) for cell in group.locator(column).all()] for group in groups]

    size = heads.filter(has_text="Size")
    size.locator("button").click()
    assert size.get_attribute("aria-sort") == "descending"
    found = values("td.size")
    assert found == [sorted(group, reverse=True) for group in found], "within each network"
    assert [group[0] for group in found] == sorted((group[0] for group in found), reverse=True), "and the networks"
    assert page.locator("#files tbody tr:first-child.group").count() == 3, "each under its own heading"
    size.locator("button").click()
    assert size.get_attribute("aria-sort") == "ascending"
    assert values("td.size") == [sorted(group) for group in values("td.size")]
    name = heads.filter(has_text="File")
    name.locator("button").focus()
    page.keyboard.press("Enter")
    assert (size.get_attribute("aria-sort"), name.get_attribute("aria-sort")) == (None, "ascending")
    assert rows(page)[0].startswith("tf_xception_41")
    hears(page, "Sorted by File, ascending")


def test_a_digest_is_copied_whole_and_said_aloud(visit: Callable[..., Opened]) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"], viewport=DESK).page
    button = page.locator("td.sha .copy").first
    button.focus()
    page.keyboard.press("Enter")
    hears(page, "Copied the SHA-256 of")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("td.sha code").first.text_content()
    # Over plain http from elsewhere there is no navigator.clipboard.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    other = page.locator("td.sha").nth(1)
    other.locator(".copy").click()
    hears(page, f"Copied the SHA-256 of {rows(page)[1]}")
    page.evaluate("delete navigator.clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == other.locator("code").text_content()


def test_a_download_has_the_digest_beside_it(visit: Callable[..., Opened], mixed_site: Path) -> None:
    page = visit(accept_downloads=True).page
    row = page.locator("#files tr[data-kind^=pth]").first
    with page.expect_download() as waiting:
        row.locator(".file a").click()
    assert waiting.value.suggested_filename == row.locator(".file code").inner_text()
    assert hashlib.sha256(Path(waiting.value.path()).read_bytes()).hexdigest() == row.locator(".sum").text_content()


def test_the_code_for_a_file_is_on_the_page_and_as_on_its_card(visit: Callable[..., Opened], mixed_site: Path) -> None:
    opened = visit(viewport=DESK)
    page, dialog = opened.page, opened.page.locator("dialog")
    links = page.locator("td.use a")
    other = page.context.new_page()
    kinds = page.eval_on_selector_all("#files tr[data-kind]", "rows => rows.map(row => row.dataset.kind)")
    assert len(set(kinds)) == 5
    for number in [kinds.index(kind) for kind in ("hf-aligned", "pth-aligned", "safetensors-aligned")]:
        card = links.nth(number).get_attribute("href")
        name = page.locator("#files tr:not(.group) .file code").nth(number).inner_text()
        links.nth(number).click()
        assert dialog.is_visible()
        assert page.locator("#use-name").inner_text() == name
        here = dialog.locator("pre code").all_text_contents()
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        assert page.evaluate("document.activeElement.getAttribute('href')") == card, "the focus comes back"
        other.goto(f"{opened.address}{card}")
        way = other.locator("section.way", has=other.locator(f"h3 code:text-is('{name}')"))
        there = way.locator("pre code").all_text_contents()
        assert [text.strip() for text in here] == [text.strip() for text in there]
        assert any(opened.address in text for text in here), "the page knows where it is"


def test_every_link_on_every_page_resolves(visit: Callable[..., Opened], mixed_site: Path) -> None:
    for path in ("", card_of(mixed_site, "*_65*.html")):
        opened = visit("mixed", path)
        links = opened.page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
        inside = [link for link in links if link.startswith(opened.address)]
        assert len(inside) > 3
        for link in set(inside):
            assert opened.page.request.get(link).status == 200, link
        assert opened.page.request.get(f"{opened.address}none").status == 404, "negative control"


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [pytest.param("light", DESK, marks=pytest.mark.slow), ("dark", PHONE)],
    ids=["desk", "phone"],
)
def test_axe_finds_nothing_that_keeps_people_out(
    scheme: str, viewport: dict[str, int], visit: Callable[..., Opened], mixed_site: Path, hostile_site: Path
) -> None:
    def violations(page: Page) -> list[str]:
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in axe.Axe().run(page).response["violations"]]

    options = {"viewport": viewport, "color_scheme": scheme, "bypass_csp": True}  # so that axe itself may run
    page = visit("mixed", **options).page
    assert violations(page) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    page.locator("td.use a").first.click()
    assert violations(page) == []
    page.evaluate("document.getElementById('close').style.color = getComputedStyle(document.body).backgroundColor")
    assert any(text.startswith("color-contrast") for text in violations(page)), "negative control"
    assert violations(visit("hostile", card_of(hostile_site, "*_65*.html"), **options).page) == []


@pytest.mark.parametrize(("site", "path"), [("mixed", ""), ("hostile", ""), ("hostile", "card")])
def test_on_a_phone_nothing_scrolls_sideways(
    site: str, path: str, visit: Callable[..., Opened], hostile_site: Path
) -> None:
    page = visit(site, path and card_of(hostile_site, "*_65*.html"), viewport=PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    if not path:
        page.locator("#order").select_option(label="Size, ascending")
        assert page.locator("#files thead th[aria-sort=ascending]").count() == 1
        assert page.locator("td.use a").first.is_visible()
    page.evaluate("document.querySelector('.claim').style.minWidth = '400px'")  # negative control
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]


def test_five_hundred_files_are_fast(browser: Any, weights: Path, tmp_path: Path) -> None:
    stem = samples.add(weights, "xception65", 1)
    manifest = json.loads((weights / f"{stem}.json").read_bytes())
    stored = index.Stored("weights/x", 1, "00" * 32)
    every = []
    for number in range(500):
        described = describe({**manifest, "licence": f"licence {number}"}, f"{number:03}", stem)
        files = tuple((listed, stored) for listed in described.files)
        every.append(
            index.Weights(described, number, "00" * 32, files, stored, None, index.Stored("cards/x.md", 1, ""))
        )
    page_file = tmp_path / "index.html"
    page_file.write_bytes(Pages(Site("Five hundred", None, "")).index(every))
    page = browser.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("#files tr[data-kind]").count() == 500
    timing = """() => {
        const start = performance.now();
        const find = document.getElementById("find");
        find.value = "licence 499";
        find.dispatchEvent(new Event("input"));
        document.querySelectorAll("thead button")[3].click();
        document.body.offsetHeight;
        return performance.now() - start;
    }"""
    assert page.evaluate(timing) < 1500  # milliseconds; measured: 55
    assert len(rows(page)) == 1
    page.close()
