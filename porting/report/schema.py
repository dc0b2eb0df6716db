"""What a report holds: one JSON object, documented here and checked field by field.

Every field is there, and no other. A change of meaning raises SCHEMA_VERSION. Errors are max |ported - TensorFlow| over
max |TensorFlow| of one layer's output, unless said otherwise; null stands for one that is not finite. Fields:

- `schema_version`: this layout, 1.
- `verdict`: "verified", where nothing differs, or "failed".
- `arch`: the network, such as "xception65".
- `weights`: what was held to the source. `file` (its name, or null for weights in memory), `sha256` of that file or
  null, `content_digest` (`porting.artifact.content_digest`) or null, `parameters` (how many were compared bit for bit),
  `differing` (how many of them differ), and `variant`: `folded`, `dtype` and `bn_eps` of the stored network.
- `source`: what it came from. `name`, `kind` (the container, such as "tf-checkpoint-v2"), `digest` (sha256 over its
  files' bytes) or null, and `synthetic` (random weights).
- `reference`: what TensorFlow computed, in words; null where only weights were compared, and then `runs` is empty.
- `runs`: each time that the network ran beside the reference, the main run first. `size` (height, width),
  `output_stride`, `input` ("image": chained from one image; "probe": every layer was fed its own dense signed random
  numbers in both frameworks, so that nothing hides behind dead channels), `worst` (`layer` and `error` of the largest
  error), and `differing` (how many layers differ in float64).
- `layers`: every layer of every run, in the order of computation. `layer` (the reference's name), `module` (the
  PyTorch module's path), `run` (index into `runs`), `shape` (NHWC, or N and features; empty where there was no output),
  `error` in float64, `bound` (what it may be), `passed`, `index` (where the difference is largest), `found` and
  `expected` (the port's and the reference's value there; null where not finite), and `float32`: null, or the file as
  reloaded and run in float32 against the float64 truth: `error`, `noise` (of TensorFlow's own float32 run), `bound`,
  `passed`. Only the first run has it.
- `faulty`: what is wrong. `layer` (the reference's name, or ""), `module` (the PyTorch module's path), `variable`
  (TensorFlow's name, or ""), `parameter` (the state dict's key, or ""), `shape`, `index` (where the difference is
  largest), `expected` and `found` (as text), `error` (relative to the largest expected value), `run` (index of the run
  that shows it; null where the weights alone do), and `cause`, in words.
- `notes`: what else a reader must know, in sentences.
- `versions`: of what made the report, by package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from porting.errors import Defect, ErrorKind, PortingError, corrupt, unsupported

SCHEMA_VERSION = 1
VERIFIED, FAILED = "verified", "failed"
IMAGE, PROBE = "image", "probe"
MAX_DEFECTS = 20  # named in one error; a report that is broken throughout has thousands
MAX_BYTES = 64 << 20  # of a report's file: a hundred times the largest real one

_SURROGATE = re.compile("[\ud800-\udfff]")

Report = dict[str, Any]
_Check = Callable[[object, str], Iterator[Defect]]  # a value and where it stands, to what is wrong with it


def _a(wanted: str, holds: Callable[[Any], bool]) -> _Check:
    def check(value: object, where: str) -> Iterator[Defect]:
        if not holds(value):
            yield Defect(where, _shown(value), wanted)

    return check


def _is_text(value: object) -> bool:
    # JSON can hold half a surrogate pair, which no UTF-8 file can.
    return isinstance(value, str) and not _SURROGATE.search(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float's range
        return False


_TEXT = _a("text", _is_text)
_FLAG = _a("true or false", lambda value: isinstance(value, bool))
_COUNT = _a("a whole number, 0 or more", _is_count)
_POSITIVE = _a("a whole number, 1 or more", lambda value: _is_count(value) and value > 0)
_NUMBER = _a("a finite number", _is_number)
_SIZE = _a("a finite number, 0 or more", lambda value: _is_number(value) and value >= 0)
_SHA256 = _a(
    "64 hexadecimal digits", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value))
)


def _one_of(*words: str) -> _Check:
    return _a(" or ".join(f'"{word}"' for word in words), lambda value: isinstance(value, str) and value in words)


def _or_null(inner: _Check) -> _Check:
    def check(value: object, where: str) -> Iterator[Defect]:
        if value is not None:
            yield from inner(value, where)

    return check


def _list(inner: _Check, length: int | None = None) -> _Check:
    def check(value: object, where: str) -> Iterator[Defect]:
        if not isinstance(value, list):
            yield Defect(where, _shown(value), "a list")
        elif length is not None and len(value) != length:
            yield Defect(where, f"a list of {len(value)}", f"a list of {length}")
        else:
            for position, item in enumerate(value):
                yield from inner(item, f"{where}[{position}]")

    return check


def _object(**fields: _Check) -> _Check:
    def check(value: object, where: str) -> Iterator[Defect]:
        if not isinstance(value, dict):
            yield Defect(where, _shown(value), "an object")
            return
        inside = f"{where}." if where else ""
        for name, inner in fields.items():
            if name in value:
                yield from inner(value[name], f"{inside}{name}")
            else:
                yield Defect(f"{inside}{name}", "nothing", "this field")
        for name in value:
            if name not in fields:
                yield Defect(f"{inside}{_shown(name)}", "a field that the schema does not have")

    return check


def _by_name(value: object, where: str) -> Iterator[Defect]:
    if not isinstance(value, dict):
        yield Defect(where, _shown(value), "an object")
        return
    for name, item in value.items():
        yield from _TEXT(name, f"{where}, a name")
        yield from _TEXT(item, f"{where}[{_shown(name)}]")


_REPORT = _object(
    schema_version=_POSITIVE,
    verdict=_one_of(VERIFIED, FAILED),
    arch=_TEXT,
    weights=_object(
        file=_or_null(_TEXT),
        sha256=_or_null(_SHA256),
        content_digest=_or_null(_SHA256),
        parameters=_COUNT,
        differing=_COUNT,
        variant=_object(folded=_FLAG, dtype=_TEXT, bn_eps=_SIZE),
    ),
    source=_object(name=_TEXT, kind=_TEXT, digest=_or_null(_SHA256), synthetic=_FLAG),
    reference=_or_null(_TEXT),
    runs=_list(
        _object(
            size=_list(_POSITIVE, length=2),
            output_stride=_POSITIVE,
            input=_one_of(IMAGE, PROBE),
            worst=_object(layer=_TEXT, error=_or_null(_SIZE)),
            differing=_COUNT,
        )
    ),
    layers=_list(
        _object(
            layer=_TEXT,
            module=_TEXT,
            run=_COUNT,
            shape=_list(_COUNT),
            error=_or_null(_SIZE),
            bound=_SIZE,
            passed=_FLAG,
            index=_list(_COUNT),
            found=_or_null(_NUMBER),
            expected=_or_null(_NUMBER),
            float32=_or_null(_object(error=_or_null(_SIZE), noise=_SIZE, bound=_SIZE, passed=_FLAG)),
        )
    ),
    faulty=_list(
        _object(
            layer=_TEXT,
            module=_TEXT,
            variable=_TEXT,
            parameter=_TEXT,
            shape=_list(_COUNT),
            index=_list(_COUNT),
            expected=_TEXT,
            found=_TEXT,
            error=_or_null(_SIZE),
            run=_or_null(_COUNT),
            cause=_TEXT,
        )
    ),
    notes=_list(_TEXT),
    versions=_by_name,
)


def _contradictions(report: Report) -> Iterator[Defect]:
    """What no single field shows. The report's shape is right."""
    runs, layers = report["runs"], report["layers"]
    if (report["reference"] is None) != (not runs):
        yield Defect("reference", _shown(report["reference"]), "null exactly where there are no runs")
    differing = [0] * len(runs)
    for position, layer in enumerate(layers):
        where = f"layers[{position}]"
        if layer["run"] >= len(runs):
            yield Defect(f"{where}.run", str(layer["run"]), f"an index into {len(runs)} runs")
            continue
        differing[layer["run"]] += not layer["passed"]
        yield from _judged(layer, where)
        if layer["float32"] is not None:
            yield from _judged(layer["float32"], f"{where}.float32")
            if layer["run"]:
                yield Defect(f"{where}.float32", "a comparison", "null, outside the first run")
    for position, (run, counted) in enumerate(zip(runs, differing, strict=True)):
        if run["differing"] != counted:
            yield Defect(f"runs[{position}].differing", str(run["differing"]), f"{counted}, as its layers say")
    for position, fault in enumerate(report["faulty"]):
        if fault["run"] is not None and fault["run"] >= len(runs):
            yield Defect(f"faulty[{position}].run", str(fault["run"]), f"null, or an index into {len(runs)} runs")
    if report["verdict"] == VERIFIED:
        faults = report["weights"]["differing"] + len(report["faulty"]) + sum(differing)
        faults += sum(layer["float32"] is not None and not layer["float32"]["passed"] for layer in layers)
        if faults:
            yield Defect("verdict", VERIFIED, f'"{FAILED}", with {faults} things that differ')


def _judged(result: Report, where: str) -> Iterator[Defect]:
    passed = result["error"] is not None and result["error"] <= result["bound"]
    if result["passed"] != passed:
        comparison = f"error {result['error']} against bound {result['bound']}"
        yield Defect(f"{where}.passed", _shown(result["passed"]), f"{_shown(passed)}, from {comparison}")


def check(value: object, file: object = "report") -> Report:
    """The value itself, if it is a report of this schema and does not contradict itself.

    Args:
        value: decoded JSON.
        file: the name for errors.

    Raises:
        PortingError: unsupported, where a newer version of this project wrote it; corrupt, where it is no report, with
            the first MAX_DEFECTS defects.
    """
    version = value.get("schema_version") if isinstance(value, dict) else None
    if _is_count(version) and isinstance(version, int) and version > SCHEMA_VERSION:
        raise unsupported(
            file, "schema_version", f"{version}, and this version reads {SCHEMA_VERSION}", "Update xception-porting."
        )
    defects = _first(_REPORT(value, ""))
    if not defects and isinstance(value, dict):
        defects = _first(_contradictions(value))
        if not defects:
            return value
    raise PortingError(ErrorKind.CORRUPT, file, defects, "Write the report again, with the command that made it.")


def _first(defects: Iterator[Defect]) -> list[Defect]:
    return [
        Defect(defect.subject or "report", defect.found, defect.expected)
        for defect, _ in zip(defects, range(MAX_DEFECTS), strict=False)
    ]


def read(path: Path) -> Report:
    """A report's file.

    Raises:
        PortingError: missing, corrupt, or as `check` says.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PortingError(
            ErrorKind.MISSING, path, [error.strerror or str(error)], "Name a .report.json file."
        ) from None
    if len(data) > MAX_BYTES:
        raise corrupt(path, "size", "a larger file", f"at most {MAX_BYTES} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, "contents", f"no JSON ({str(error)[:80]})") from None
    return check(value, path)


def _shown(value: object) -> str:
    """A value for an error message, on one short line."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
