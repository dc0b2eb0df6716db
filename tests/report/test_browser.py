"""The page in a real browser: headless Chromium opens it as a person would, from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from porting.report import files
from tests.report import reports

Page = Any
ARCH = "xception41"  # the smallest page
MAIN = [layer for layer in reports.failed(ARCH)["layers"] if layer["run"] == 0]
FAULTY = next(number for number, layer in enumerate(MAIN) if layer["module"] == reports.EPSILON)
LAST = len(MAIN) - 1
PHONE = {"width": 390, "height": 844}


@dataclass
class Opened:
    """A page and what went wrong while it was open."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    cases = {"verified": reports.verified(ARCH), "failed": reports.failed(ARCH), "weights": reports.weights_only()}
    return {name: files.write(report, folder, name)[1] for name, report in cases.items()}


@pytest.fixture
def visit(browser: Any, written: dict[str, Path]) -> Iterator[Callable[..., Opened]]:
    """`visit(name, **context)`: a page in a context of its own; leaving the test fails it on any complaint."""
    contexts, seen = [], []

    def open_page(name: str, planted: str = "", **options: Any) -> Opened:
        context = browser.new_context(**options)
        context.set_default_timeout(5000)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        path = written[name]
        if planted:
            path = path.with_name("planted.html")
            path.write_text(written[name].read_text().replace("</main>", f"{planted}</main>"))
        else:
            seen.append(opened)
        opened.page.goto(path.as_uri())
        return opened

    yield open_page
    for context in contexts:
        context.close()
    for opened in seen:
        assert opened.complaints == []
        assert len(opened.requests) == 1


def layer_rows(page: Page) -> Any:
    return page.locator("#layers tbody tr:visible")


@pytest.mark.parametrize("name", ["verified", "weights"])
def test_each_page_opens_without_a_complaint_and_fetches_nothing(name: str, visit: Callable[..., Opened]) -> None:
    page = visit(name).page
    assert page.locator("h1").inner_text().split()[0] == "Verified"
    assert page.locator("svg.chart").count() == (name != "weights")


def test_a_page_that_fetches_or_runs_something_else_is_stopped_and_seen(visit: Callable[..., Opened]) -> None:
    """Negative control of every test here: the policy holds, and the complaints are heard."""
    planted = "<img src='https://example.invalid/x.png'><script>document.title = 'owned'</script>"
    opened = visit("weights", planted)
    opened.page.wait_for_timeout(50)
    assert opened.page.title() != "owned"
    assert len(opened.complaints) >= 2
    assert all("Content Security Policy" in complaint for complaint in opened.complaints)


def test_without_javascript_the_essentials_are_there(visit: Callable[..., Opened]) -> None:
    page = visit("failed", java_script_enabled=False, viewport={"width": 1280, "height": 900}).page
    assert page.locator("h1").is_visible()
    assert page.locator(".faults > li").count() == 3
    assert page.locator("svg.chart #float64 use").count() == len(MAIN) - 3
    assert layer_rows(page).count() == page.locator(".places a title").count() == len(MAIN)
    assert not page.locator("#controls").is_visible()
    assert page.locator("#layers th button").count() == 0
    # A click on a layer in the chart leads to its row.
    page.locator("svg.chart").scroll_into_view_if_needed()
    page.locator(".places a").nth(FAULTY).click()
    assert page.url.endswith(f"#layer-{FAULTY}")
    assert page.locator(f"#layer-{FAULTY}").bounding_box()["y"] < 900


def test_hovering_shows_one_tooltip_and_marks_the_row(visit: Callable[..., Opened]) -> None:
    page = visit("failed", viewport={"width": 1280, "height": 900}).page
    tip = page.locator("#tip")
    assert not tip.is_visible()
    page.locator(".places a").nth(FAULTY).hover()
    assert reports.EPSILON in tip.inner_text()
    assert "float64 error 3.1e-3, bound 1e-10" in tip.inner_text()
    assert page.locator(".places title").count() == 0, "the browser's own tooltip would cover this one"
    assert page.locator("tr.marked").get_attribute("id") == f"layer-{FAULTY}"
    page.locator(".places a").nth(LAST).hover()
    assert "error not finite" in tip.inner_text()
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
    page.locator("h1").hover()
    assert not tip.is_visible()
    assert page.locator("tr.marked").count() == 0


def test_the_arrow_keys_walk_through_the_layers(visit: Callable[..., Opened]) -> None:
    page = visit("verified").page
    page.locator("#plot").focus()
    for key, expected in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", 0), ("End", LAST)):
        page.keyboard.press(key)
        assert page.locator("tr.marked").get_attribute("id") == f"layer-{expected}"
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_the_table_sorts_and_filters(visit: Callable[..., Opened]) -> None:
    page = visit("failed").page

    def order() -> list[str]:
        return page.evaluate("[...document.querySelectorAll('#layers tbody tr')].map(row => row.id)")

    by_error = sorted(range(len(MAIN)), key=lambda n: -(float("inf") if MAIN[n]["error"] is None else MAIN[n]["error"]))
    header = page.locator("#layers th", has_text="float64 error")
    header.locator("button").click()
    assert order()[:3] == [f"layer-{n}" for n in by_error[:3]]
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("button").click()
    assert order()[-1] == f"layer-{by_error[0]}"
    assert MAIN[int(order()[0].removeprefix("layer-"))]["error"] == 0
    page.locator("#layers th button").first.click()
    assert order() == [f"layer-{n}" for n in range(len(MAIN))]
    page.locator("#only").check()
    assert layer_rows(page).count() == 3
    page.locator("#find").fill("conv2 BATCHNORM")
    assert layer_rows(page).count() == 1
    assert page.locator("#shown").inner_text() == f"1 of {len(MAIN)} shown"
    page.locator("#find").fill("no such layer")
    assert layer_rows(page).count() == 0
    # A link to a row that is filtered away brings it back.
    page.locator("#fault-3 a").click()
    page.locator(f"#layer-{LAST}").wait_for(state="visible")


@pytest.mark.parametrize(("name", "script"), [("failed", True), ("failed", False), ("weights", True)])
def test_on_a_phone_the_page_does_not_scroll_sideways(name: str, script: bool, visit: Callable[..., Opened]) -> None:
    page = visit(name, viewport=PHONE, java_script_enabled=script).page
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    # Negative control: one element that is too wide is seen.
    page.evaluate("document.querySelector('.claim').style.minWidth = '400px'")
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_the_standard_says() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_in_both_schemes(scheme: str, visit: Callable[..., Opened]) -> None:
    """WCAG AA: 4.5 for text, 3 for marks of a chart."""
    page = visit("failed", color_scheme=scheme).page

    def colour(selector: str, which: str = "color") -> str:
        return page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{which}")

    back = colour("body", "backgroundColor")
    assert (luminance(back) < 0.1) == (scheme == "dark")
    for selector in ("h1", "h2", ".claim", ".ground", "figcaption", "td", "td .second", "th", ".ok", "footer"):
        assert contrast(colour(selector), back) >= 4.5, selector
    assert contrast(colour("svg.chart text", "fill"), back) >= 4.5
    for selector in ("#float64 use", "#float32 use", "#failed use"):
        assert contrast(colour(f"svg.chart {selector}", "fill"), back) >= 3, selector
    for selector in ("#noise path", "#bound path"):
        assert contrast(colour(f"svg.chart {selector}", "stroke"), back) >= 3, selector
    wash = colour("tr.wrong", "backgroundColor")
    for selector in ("tr.wrong td", "tr.wrong .second", "tr.wrong .bad", ".detail"):
        assert contrast(colour(selector), wash) >= 4.5, selector


def test_on_paper_the_page_is_light_and_without_controls(visit: Callable[..., Opened]) -> None:
    page = visit("failed", color_scheme="dark").page
    page.emulate_media(media="print")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == pytest.approx(1)
    assert not page.locator("#controls").is_visible()
    assert page.locator("svg.chart").is_visible()
