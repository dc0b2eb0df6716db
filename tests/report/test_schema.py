"""The schema takes good reports, and refuses each kind of broken one with the field's name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from porting import PortingError
from porting.errors import ErrorKind
from porting.report import schema
from tests.report import reports

GOOD = reports.failed("xception41")


@pytest.mark.parametrize("build", [reports.verified, reports.failed, reports.weights_only])
def test_a_good_report_is_taken_as_it_is(build: Callable[[], reports.Report], tmp_path: Path) -> None:
    report = build()
    assert schema.check(report) is report
    (tmp_path / "x.report.json").write_text(json.dumps(report))
    assert schema.read(tmp_path / "x.report.json") == report


def test_the_documentation_names_every_field() -> None:
    def names(value: Any) -> set[str]:
        if isinstance(value, list):
            return names(value[0]) if value else set()
        if not isinstance(value, dict):
            return set()
        return set(value).union(*(names(item) for item in value.values()))

    documented = GOOD | {"versions": {}}
    assert {name for name in names(documented) if f"`{name}`" not in str(schema.__doc__)} == set()
    assert "`invented`" not in str(schema.__doc__)


def broken(path: str, value: object) -> reports.Report:
    """The good report with one value replaced; `...` removes it."""
    report = dict(GOOD)
    place: Any = report
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        place[step] = copy.copy(place[step])
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return report


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", "1", 'schema_version: expected a whole number, 1 or more, found "1"'),
        ("schema_version", True, "schema_version: expected a whole number"),
        ("schema_version", 0, "schema_version: expected a whole number, 1 or more, found 0"),
        ("verdict", "unverified", 'verdict: expected "verified" or "failed", found "unverified"'),
        ("arch", None, "arch: expected text, found null"),
        ("arch", "half \ud800", "arch: expected text"),
        ("weights", [], "weights: expected an object, found a list of 0"),
        ("weights.sha256", "ABCD", "weights.sha256: expected 64 hexadecimal digits"),
        ("weights.content_digest", "g" * 64, "weights.content_digest: expected 64 hexadecimal digits"),
        ("weights.parameters", -1, "weights.parameters: expected a whole number, 0 or more, found -1"),
        ("weights.parameters", 1.5, "weights.parameters: expected a whole number"),
        ("weights.variant.folded", 0, "weights.variant.folded: expected true or false, found 0"),
        ("weights.variant.bn_eps", ..., "weights.variant.bn_eps: expected this field, found nothing"),
        ("source.synthetic", "no", "source.synthetic: expected true or false"),
        ("source.licence", "MIT", 'source."licence": a field that the schema does not have'),
        ("reference", 3, "reference: expected text, found 3"),
        ("runs", {}, "runs: expected a list, found an object of 0"),
        ("runs.1.size", [299], "runs[1].size: expected a list of 2, found a list of 1"),
        ("runs.1.size.0", 0, "runs[1].size[0]: expected a whole number, 1 or more"),
        ("runs.1.input", "photo", 'runs[1].input: expected "image" or "probe"'),
        ("runs.1.worst.error", -0.1, "runs[1].worst.error: expected a finite number, 0 or more"),
        ("layers.5", None, "layers[5]: expected an object, found null"),
        ("layers.5.error", float("nan"), "layers[5].error: expected a finite number, 0 or more"),
        ("layers.5.bound", None, "layers[5].bound: expected a finite number"),
        ("layers.5.found", float("inf"), "layers[5].found: expected a finite number"),
        ("layers.5.expected", 10**400, "layers[5].expected: expected a finite number"),
        ("layers.5.index", [0, -1], "layers[5].index[1]: expected a whole number"),
        ("layers.5.shape", "1x2", "layers[5].shape: expected a list"),
        ("layers.5.float32.noise", None, "layers[5].float32.noise: expected a finite number, 0 or more, found null"),
        ("faulty.0.expected", 2.0, "faulty[0].expected: expected text, found 2.0"),
        ("faulty.0.cause", ..., "faulty[0].cause: expected this field"),
        ("notes", "none", "notes: expected a list"),
        ("versions", [], "versions: expected an object"),
        ("versions.torch", 2, 'versions["torch"]: expected text, found 2'),
        # Contradictions, which no single field shows.
        ("layers.5.passed", False, "layers[5].passed: expected true, from error"),
        ("layers.5.error", None, "layers[5].passed: expected false, from error None"),
        ("layers.5.float32.error", 1.0, "layers[5].float32.passed: expected false"),
        ("layers.5.run", 6, "layers[5].run: expected an index into 6 runs, found 6"),
        ("layers.5.run", 1, "layers[5].float32: expected null, outside the first run"),
        ("runs.0.differing", 2, "runs[0].differing: expected 3, as its layers say, found 2"),
        ("reference", None, "reference: expected null exactly where there are no runs"),
        ("verdict", "verified", 'verdict: expected "failed"'),
    ],
)
def test_a_broken_report_is_refused_by_its_field(path: str, value: object, message: str) -> None:
    with pytest.raises(PortingError) as caught:
        schema.check(broken(path, value), "x.report.json")
    assert caught.value.kind is ErrorKind.CORRUPT
    assert caught.value.file == "x.report.json"
    assert message in str(caught.value)


@pytest.mark.parametrize("part", ["weights", "faulty", "layers", "float32"])
def test_a_verified_report_has_nothing_wrong(part: str) -> None:
    """Each thing that may differ is enough to refuse the verdict."""
    report = reports.verified()
    if part == "weights":
        report["weights"]["differing"] = 1
    elif part == "faulty":
        report["faulty"] = GOOD["faulty"][:1]
    elif part == "layers":
        report["layers"][9]["error"] = 1.0
    else:
        report["layers"][9]["float32"]["error"] = 1.0
    reports.settled(report)
    assert schema.check(report)["verdict"] == "failed"
    report["verdict"] = "verified"
    with pytest.raises(PortingError, match="verdict: expected"):
        schema.check(report)


def test_a_newer_report_is_unsupported_not_corrupt() -> None:
    with pytest.raises(PortingError, match="Update") as caught:
        schema.check({"schema_version": 2, "anything": "else"})
    assert caught.value.kind is ErrorKind.UNSUPPORTED


@pytest.mark.parametrize("value", [None, [], "report", 1, {}])
def test_what_is_no_report_at_all(value: object) -> None:
    with pytest.raises(PortingError) as caught:
        schema.check(value)
    assert caught.value.kind is ErrorKind.CORRUPT


def test_a_report_that_is_broken_throughout_names_a_few_defects() -> None:
    report = copy.deepcopy(GOOD)
    for layer in report["layers"]:
        layer["module"] = None
    with pytest.raises(PortingError) as caught:
        schema.check(report)
    assert len(caught.value.defects) == schema.MAX_DEFECTS


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"{", ErrorKind.CORRUPT),
        (b"\xff\xfe", ErrorKind.CORRUPT),
        (b"[" * 200_000, ErrorKind.CORRUPT),
        (b'{"schema_version": NaN}', ErrorKind.CORRUPT),
        (None, ErrorKind.MISSING),
    ],
)
def test_a_file_that_holds_no_report(data: bytes | None, kind: ErrorKind, tmp_path: Path) -> None:
    path = tmp_path / "x.report.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(PortingError) as caught:
        schema.read(path)
    assert caught.value.kind is kind
    assert caught.value.file == str(path)


def test_a_file_larger_than_any_report_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.report.json"
    path.write_text(json.dumps(GOOD))
    monkeypatch.setattr(schema, "MAX_BYTES", 1000)
    with pytest.raises(PortingError, match="at most 1000 bytes"):
        schema.read(path)
