"""The page says what the report says, safely, and the same report gives the same bytes."""

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from porting import PortingError
from porting.errors import ErrorKind
from porting.report import chart, files, page, schema
from tests.report import reports

HOSTILE = '"><script>alert(1)</script><img src=x onerror="alert(2)">&amp;$x^2$\x1b]\u202e'


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    cases = {"verified": reports.verified(), "failed": reports.failed(), "weights only": reports.weights_only()}
    return {name: page.render(report) for name, report in cases.items()}


class Elements(HTMLParser):
    """The page's elements with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self.words += "" if tag == "wbr" else " "  # what stands apart on the page is apart here

    def handle_data(self, data: str) -> None:
        self.words += data

    def tags(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag == name]


def outside(text: str) -> list[str]:
    """What the page would fetch: everything that an element or a style refers to, but for places within the page."""
    referring = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "formaction")
    elements = Elements(text).found
    found = [attributes[name] for _, attributes in elements for name in referring if name in attributes]
    found += re.findall(r"url\(\s*['\"]?([^)'\"]*)", text) + re.findall(r"@import[^;]*", text)
    return [reference for reference in found if not reference.startswith("#")]


def test_the_verdict_comes_first_and_plainly(pages: dict[str, str]) -> None:
    words = {name: " ".join(Elements(text.partition("<main>")[2]).words.split()) for name, text in pages.items()}
    assert words["verified"].startswith(
        "TensorFlow to PyTorch · xception65 Verified tf_xception_65-3e9cec34.pth computes what TensorFlow computes. "
        "662 parameters are equal bit for bit, and each of 2,112 layer outputs is within its bound."
    )
    assert words["failed"].startswith(
        "TensorFlow to PyTorch · xception65 Failed tf_xception_65-3e9cec34.pth does not compute what TensorFlow "
        "computes. 2 of 662 parameters differ; 18 of 2,112 layer outputs are beyond their bound."
    )
    assert words["weights only"].startswith(
        "TensorFlow to PyTorch · xception65 Verified weights only tf_xception_65-3e9cec34.pth holds its source's "
        "weights. 662 parameters are equal bit for bit. Only weights were compared: the network was not run."
    )
    assert "random weights, for trying things out" in words["weights only"]
    assert "random weights" not in words["verified"]


def test_a_failed_page_lists_each_fault_with_its_cause_before_the_chart(pages: dict[str, str]) -> None:
    text = pages["failed"]
    faults = text[text.index("What is wrong") : text.index('class="legend"')]
    words = " ".join(Elements(faults).words.split())
    for fault in reports.failed()["faulty"]:
        for field in ("layer", "module", "variable", "parameter", "expected", "found", "cause"):
            assert fault[field] in words
    assert "Error 3.1e-3" in words
    assert "What is wrong" not in pages["verified"]


def test_faults_without_a_run_do_not_blame_the_network() -> None:
    report = reports.weights_only()
    report["weights"]["differing"] = 1
    report["faulty"] = [reports.failed()["faulty"][1]]
    text = page.render(reports.settled(report))
    assert "does not hold its source&#39;s weights" in text
    assert "TensorFlow computes" not in text
    assert "<figure>" not in text


def test_every_layer_of_the_main_run_is_drawn_and_listed_in_order(pages: dict[str, str]) -> None:
    main = [layer for layer in reports.failed()["layers"] if layer["run"] == 0]
    elements = Elements(pages["failed"])
    assert [row["id"] for row in elements.tags("tr") if "id" in row] == [f"layer-{n}" for n in range(len(main))]
    wrong = [row["id"] for row in elements.tags("tr") if row.get("class") == "wrong" and "id" in row]
    assert wrong == [f"layer-{n}" for n, layer in enumerate(main) if not layer["passed"]]
    svg = pages["failed"][pages["failed"].index('<svg viewBox="0 0 1080') :].partition("</svg>")[0] + "</svg>"
    hints = [html.unescape(hint).split("\n") for hint in re.findall(r"<title>(.*?)</title>", svg, re.DOTALL)]
    assert [hint[0] for hint in hints] == [layer["layer"] for layer in main]
    groups = {group.get("id"): group for group in ElementTree.fromstring(svg).iter("g")}
    drawn = {gid: len(list(groups[gid].iter("use"))) for gid in ("float64", "float32", "failed", "failed32")}
    assert drawn["float64"] == drawn["float32"] == len(main) - 3
    assert drawn["failed"] == drawn["failed32"] == 3


def test_the_chart_puts_errors_at_their_height() -> None:
    """A tenfold error is one decade higher, at the axis' own scale; zero is on the lower edge."""
    layers = [layer for layer in reports.verified()["layers"] if layer["run"] == 1][:4]
    for layer, error in zip(layers, (1e-15, 1e-14, 1e-12, 0.0), strict=True):
        layer["error"] = error
    svg = chart.draw(layers, {}, ["a", "b", "c", "d"])
    marks = svg.partition('<g id="float64">')[2].partition("</g></g>")[0]
    heights = [float(y) for y in re.findall(r'<use [^>]*?\by="([\d.]+)"', marks)]
    decade = heights[0] - heights[1]
    assert decade > 10
    assert heights[1] - heights[2] == pytest.approx(2 * decade, abs=0.01)
    assert heights[3] == max(heights)
    assert 'id="float32"' not in svg


def test_the_parts_of_a_network_are_its_top_modules_or_their_numbered_children() -> None:
    modules = ["stem.0.conv", "stem.1.conv", *(f"blocks.{n // 10}.conv{n}" for n in range(30)), "blocks.2", "head.fc"]
    found = [(band.label, band.start, band.stop) for band in chart.bands(modules)]
    blocks = [("blocks.0", 2, 12), ("blocks.1", 12, 22), ("blocks.2", 22, 33)]
    assert found == [("stem", 0, 2), *blocks, ("head", 33, 34)]


def test_names_cannot_become_markup() -> None:
    report = reports.failed()
    layer = next(layer for layer in report["layers"] if layer["module"] == reports.EPSILON)
    layer |= {"layer": HOSTILE, "module": HOSTILE}
    for fault in report["faulty"][:1]:
        fault |= dict.fromkeys(("layer", "module", "variable", "parameter", "expected", "found", "cause"), HOSTILE)
    report |= {"arch": HOSTILE, "reference": HOSTILE, "notes": [HOSTILE], "versions": {HOSTILE: HOSTILE}}
    report["weights"]["file"] = HOSTILE
    report["source"] |= {"name": HOSTILE, "kind": HOSTILE}
    text = page.render(reports.settled(report))
    elements = Elements(text)
    assert len(elements.tags("script")) == 1
    assert elements.tags("img") == []
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert Elements(f"<p>{HOSTILE}</p>").tags("img"), "the name is hostile where it is not escaped"


@pytest.mark.parametrize("name", ["failed", "weights only"])
def test_the_page_refers_to_nothing_outside_itself(name: str, pages: dict[str, str]) -> None:
    assert outside(pages[name]) == []
    assert "http" not in pages[name].replace("http-equiv", "")
    (policy,) = [meta["content"] for meta in Elements(pages[name]).tags("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    planted = pages[name].replace("</main>", '<img src="https://example.org/x.png"></main>')
    assert outside(planted) == ["https://example.org/x.png"]


def test_the_same_report_gives_the_same_page(pages: dict[str, str]) -> None:
    assert page.render(reports.failed()) == pages["failed"]
    assert page.render(reports.verified(seed=1)) != pages["verified"]


def test_the_largest_network_in_many_runs_stays_light() -> None:
    report = reports.verified("xception71")
    template = [layer for layer in report["layers"] if layer["run"] == 1]
    for run in range(6, 12):
        report["runs"].append(dict(report["runs"][1]))
        report["layers"] += [layer | {"run": run} for layer in template]
    assert len(page.render(reports.settled(report)).encode()) < 700_000


def test_a_long_list_of_faults_is_cut_short_and_says_so() -> None:
    report = reports.weights_only()
    report["weights"]["differing"] = 662
    report["faulty"] = [reports.failed()["faulty"][1]] * 662
    text = page.render(reports.settled(report))
    assert text.count('id="fault-') == page.FAULTS_MAX
    assert "the JSON file beside this page lists all 662" in text


def test_faults_of_one_cause_are_one_entry() -> None:
    report = reports.failed()
    one, other = report["faulty"][0], report["faulty"][1]
    report["faulty"] = [one, other, one | {"module": "another"}, one | {"module": "a.third"}]
    text = page.render(reports.settled(report))
    assert text.count(f"<h3>{one['cause']}") == 1
    assert "3 layers" in text and "2 more with this cause" in text
    assert (
        text.index('id="fault-1"')
        < text.index('id="fault-3"')
        < text.index('id="fault-4"')
        < text.index('id="fault-2"')
    )


def test_causes_beyond_a_few_are_folded() -> None:
    report = reports.weights_only()
    report["weights"]["differing"] = 20
    fault = reports.failed()["faulty"][1]
    report["faulty"] = [fault | {"cause": f"scaled by {number}"} for number in range(20)]
    text = page.render(reports.settled(report))
    first, last = page.FAULTS_OPEN, page.FAULTS_OPEN + 1
    assert text.index(f'id="fault-{first}"') < text.index("<details>") < text.index(f'id="fault-{last}"')
    assert f"{20 - page.FAULTS_OPEN} more causes" in text


def test_a_report_with_a_single_layer_and_no_noise_is_drawn() -> None:
    report = reports.verified()
    layer = report["layers"][0] | {"module": "réseau", "shape": [], "error": 0.0}
    layer["float32"] |= {"error": 0.0, "noise": 0.0, "bound": 0.0}
    report |= {"layers": [layer], "runs": report["runs"][:1]}
    assert f"0.00{page.TIMES}" in page.render(reports.settled(report))


# --- files ------------------------------------------------------------------------------------------------------------


def test_both_files_are_written_whole_and_read_back(tmp_path: Path, pages: dict[str, str]) -> None:
    report = reports.failed()
    data, shown = files.write(report, tmp_path / "new", "tf_xception_65-3e9cec34")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "tf_xception_65-3e9cec34.report.html",
        "tf_xception_65-3e9cec34.report.json",
    ]
    assert schema.read(data) == report
    assert shown.read_bytes().decode() == pages["failed"]
    lines = data.read_text().splitlines()
    assert sum('"layer": ' in line for line in lines) == len(report["layers"] + report["faulty"] + report["runs"])
    assert json.loads(files.as_text(reports.weights_only())) == reports.weights_only()


@pytest.mark.parametrize("stem", ["../up", "a/b", "", "."])
def test_a_stem_cannot_leave_the_folder(stem: str, tmp_path: Path) -> None:
    with pytest.raises(PortingError) as caught:
        files.write(reports.weights_only(), tmp_path, stem)
    assert caught.value.kind is ErrorKind.OUTPUT
    assert list(tmp_path.rglob("*")) == []


def test_a_bad_report_leaves_an_earlier_one_alone(tmp_path: Path) -> None:
    report = reports.weights_only()
    data, _ = files.write(report, tmp_path, "x")
    with pytest.raises(PortingError) as caught:
        files.write(report | {"verdict": "perhaps"}, tmp_path, "x")
    assert caught.value.kind is ErrorKind.CORRUPT
    assert schema.read(data) == report


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_with_the_command(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PortingError) as caught:
        files.write(reports.verified(), tmp_path, "x")
    assert caught.value.kind is ErrorKind.MISSING
    assert caught.value.file == package
    assert "pip install" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_reading_a_report_needs_nothing_heavy() -> None:
    import subprocess

    code = "import sys, porting.report.schema; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"torch", "numpy", "matplotlib", "jinja2"} == set()
