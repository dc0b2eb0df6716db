"""A report as one HTML page: no network, no other file, and nothing that needs JavaScript but comfort."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from porting import pages
from porting.errors import Defect, ErrorKind, PortingError
from porting.report import chart, schema
from porting.report.schema import Report

# What a page shows of long lists; the JSON file has everything.
FAULTS_OPEN, FAULTS_MAX = 12, 200
OTHER_LAYERS_MAX = 60
WORST_LAYERS = 5
TIMES = "\u00d7"
_INPUTS = {schema.IMAGE: "image", schema.PROBE: "probes"}


def render(report: Report) -> str:
    """The page of a report; the same report gives the same page.

    Args:
        report: a report as `porting.report.schema` describes it.

    Raises:
        PortingError: as `schema.check` says; missing, where Matplotlib or Jinja is not installed.
    """
    schema.check(report)
    try:
        templates = pages.environment("porting.report")
        picture = _chart(report)
    except ImportError as error:
        raise PortingError(
            ErrorKind.MISSING,
            error.name or "a package",
            [Defect("", "not installed, and the report's page needs it")],
            'pip install "matplotlib>=3.8" "jinja2>=3.1", or pip install -e ".[report]"',
        ) from None
    style, script = pages.inlined(templates, "base.css", "page.css"), pages.inlined(templates, "page.js")
    templates.filters |= {"number": _number, "bound": _bound, "value": _value, "ratio": _ratio}
    templates.filters |= {"shape": _shape, "breakable": pages.breakable}
    return templates.get_template("page.html").render(
        report=report,
        style=style,
        script=script,
        script_digest=pages.policy_digest(script),
        chart=picture,
        headline=_headline(report),
        verified=report["verdict"] == schema.VERIFIED,
        tiles=list(_tiles(report)),
        main=[layer for layer in report["layers"] if layer["run"] == 0],
        groups=_groups(report),
        faults_open=FAULTS_OPEN,
        rows_of_faults={number: position for position, number in _flags(report).items()},
        runs=list(_runs(report)),
        inputs=_INPUTS,
        has_float32=any(layer["float32"] for layer in report["layers"]),
        worst_layers=WORST_LAYERS,
    )


def _headline(report: Report) -> dict[str, str]:
    """The verdict in a sentence, and what it rests on in another."""
    weights, runs, layers = report["weights"], report["runs"], report["layers"]
    subject = weights["file"] or f"The {report['arch']} port"
    equal = f"{_parameters(weights['parameters'])} {'is' if weights['parameters'] == 1 else 'are'} equal bit for bit"
    if report["verdict"] == schema.VERIFIED:
        if not runs:
            claim = f"{subject} holds its source's weights."
            ground = f"{equal}. Only weights were compared: the network was not run."
        else:
            claim = f"{subject} computes what TensorFlow computes."
            ground = f"{equal}, and each of {_count(len(layers), 'layer output')} is within its bound."
    else:
        wrong = [layer for layer in layers if not _layer_passed(layer)]
        if runs and (wrong or not weights["differing"]):
            claim = f"{subject} does not compute what TensorFlow computes."
        else:
            claim = f"{subject} does not hold its source's weights."
        grounds = []
        if weights["differing"]:
            grounds.append(f"{weights['differing']:,} of {_parameters(weights['parameters'])} differ")
        else:
            grounds.append(equal)
        if runs:
            grounds.append(f"{len(wrong):,} of {_count(len(layers), 'layer output')} are beyond their bound")
        ground = "; ".join(grounds) + "."
    return {"claim": claim, "ground": ground[0].upper() + ground[1:], "subject": subject}


def _tiles(report: Report) -> Iterator[dict[str, str]]:
    """The few numbers that the verdict rests on: label, value, remark."""
    weights, layers = report["weights"], report["layers"]
    equal = weights["parameters"] - weights["differing"]
    yield {
        "label": "Parameters equal",
        "value": f"{equal:,} of {weights['parameters']:,}",
        "remark": "bit for bit, against the source",
        "bad": "yes" if weights["differing"] else "",
    }
    if not report["runs"]:
        yield {"label": "Layers compared", "value": "none", "remark": "weights only; nothing was run", "bad": ""}
        return
    passed = sum(layer["passed"] for layer in layers)
    yield {
        "label": "Layer outputs within bound",
        "value": f"{passed:,} of {len(layers):,}",
        "remark": f"float64, in {_count(len(report['runs']), 'run')}",
        "bad": "yes" if passed < len(layers) else "",
    }
    worst = max(
        report["runs"], key=lambda run: float("inf") if run["worst"]["error"] is None else run["worst"]["error"]
    )
    bounds = sorted({layer["bound"] for layer in layers})
    yield {
        "label": "Largest float64 error",
        "value": _number(worst["worst"]["error"]),
        "remark": f"of its layer's largest value; bound {' or '.join(map(_bound, bounds[:2]))}",
        "bad": "yes" if worst["differing"] else "",
    }
    singles = [layer["float32"] for layer in layers if layer["float32"]]
    if singles:
        beyond = sum(not single["passed"] for single in singles)
        finite = all(single["error"] is not None for single in singles)
        yield {
            "label": "Largest float32 error",
            "value": _ratio(max(singles, key=_quotient)) if finite else "not finite",
            "remark": "TensorFlow's own float32 noise" + (f"; {beyond} beyond bound" if beyond else ""),
            "bad": "yes" if beyond else "",
        }


def _runs(report: Report) -> Iterator[dict[str, Any]]:
    """Each run with what the page shows of its layers: the main run's have a table of their own."""
    by_run: list[list[Any]] = [[] for _ in report["runs"]]
    for layer in report["layers"]:
        by_run[layer["run"]].append(layer)
    for number, (run, layers) in enumerate(zip(report["runs"], by_run, strict=True)):
        differing = [layer for layer in layers if not layer["passed"]]
        largest = sorted(layers, key=lambda layer: -layer["error"] if layer["error"] is not None else float("-inf"))
        yield run | {
            "number": number,
            "layers": len(layers),
            "failing": differing[:OTHER_LAYERS_MAX],
            "largest": largest[:WORST_LAYERS],
        }


def _groups(report: Report) -> list[list[tuple[int, Report]]]:
    """The numbered faults, those of one cause together, in the order of the first of each."""
    groups: dict[str, list[tuple[int, Report]]] = {}
    for number, fault in enumerate(report["faulty"][:FAULTS_MAX], 1):
        groups.setdefault(fault["cause"], []).append((number, fault))
    return list(groups.values())


def _flags(report: Report) -> dict[int, int]:
    """Position of a layer in the main run, to the number of its fault on the page: the first one that names it."""
    found: dict[int, int] = {}
    main = [layer for layer in report["layers"] if layer["run"] == 0]
    by_layer = {layer["layer"]: position for position, layer in enumerate(main)}
    by_module = {layer["module"]: position for position, layer in enumerate(main)}
    for number, fault in enumerate(report["faulty"][:FAULTS_MAX], 1):
        position = by_layer.get(fault["layer"], by_module.get(fault["module"]))
        if position is not None:
            found.setdefault(position, number)
    return found


def _chart(report: Report) -> Any:
    from markupsafe import Markup

    main = [layer for layer in report["layers"] if layer["run"] == 0]
    if not main:
        return None
    return Markup(chart.draw(main, _flags(report), [_hint(layer) for layer in main]))


def _hint(layer: Any) -> str:
    lines = [
        layer["layer"],
        layer["module"],
        f"float64 error {_number(layer['error'])}, bound {_bound(layer['bound'])}",
    ]
    single = layer["float32"]
    if single:
        ratio = f" ({_ratio(single)} noise)" if single["error"] is not None else ""
        lines.append(f"float32 error {_number(single['error'])}{ratio}, bound {_bound(single['bound'])}")
    if not _layer_passed(layer):
        lines.append(f"beyond its bound: expected {_value(layer['expected'])}, found {_value(layer['found'])}")
    # A control character has no place in the drawing's XML, and a line break would look like the next line.
    return "\n".join("".join(c if c.isprintable() else "\ufffd" for c in line) for line in lines)


def _layer_passed(layer: Any) -> bool:
    return bool(layer["passed"] and (layer["float32"] is None or layer["float32"]["passed"]))


def _quotient(single: Any) -> float:
    if single["noise"] == 0:
        return 0.0 if single["error"] == 0 else float("inf")
    return float(single["error"] / single["noise"])


def _ratio(single: Any) -> str:
    """A float32 error in units of TensorFlow's own."""
    quotient = _quotient(single)
    return (f"{quotient:.2f}" if quotient < 100 else _plain(f"{quotient:.0e}").replace("inf", "∞")) + TIMES


def _number(error: float | None) -> str:
    """An error to two digits, as a person would write it: 0, 0.37, 3.1e-15."""
    if error is None:
        return "not finite"
    return f"{error:.2g}" if error == 0 or 0.01 <= error < 100 else _plain(f"{error:.1e}")


def _bound(bound: float) -> str:
    return _plain(f"{bound:.2g}")


def _plain(text: str) -> str:
    """A number's text without the exponent's leading zero and plus."""
    return re.sub(r"e([+-])0*(\d)", lambda found: f"e{found[1].lstrip('+')}{found[2]}", text)


def _value(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.12g}"


def _shape(shape: Sequence[int]) -> str:
    return f" {TIMES} ".join(str(length) for length in shape) or "none"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _parameters(number: int) -> str:
    return _count(number, "parameter")
