"""What a verification found, as data: the faulty layers with their causes, and the report of one port."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from porting import parity
from porting.bitwise import Fault
from porting.parity import LayerResult, finite
from porting.plan import Plan
from porting.proof import Proof
from porting.report.schema import FAILED, SCHEMA_VERSION, VERIFIED
from porting.rules import Table, TracePoint

Faulty = dict[str, Any]


def faulty_layers(plan: Plan, faults: Sequence[Fault], proof: Proof | None) -> list[Faulty]:
    """Every faulty parameter, then every layer that differs although its weights are right, each with its cause."""
    shapes = {layer.module: layer.shape for trace in (proof.traces if proof else ()) for layer in trace.layers}
    result: list[Faulty] = []
    explained = set()
    for fault in faults:
        point = layer_of(plan.table, fault.parameter)
        if point:
            explained.add(point.module)
        result.append(
            {
                "layer": point.name if point else "",
                "module": point.module if point else fault.parameter.rpartition(".")[0],
                "variable": fault.variable,
                "parameter": fault.parameter,
                "shape": list(shapes.get(point.module, ())) if point else [],
                "index": list(fault.index),
                "expected": fault.expected,
                "found": fault.found,
                "error": finite(fault.error),
                "run": None,
                "cause": fault.cause,
            }
        )
    for index, trace in enumerate(proof.traces if proof else ()):
        for layer in trace.faulty:
            if layer.module not in explained:
                explained.add(layer.module)
                result.append(_differing(index, layer))
    return result


def layer_of(table: Table, parameter: str) -> TracePoint | None:
    """The trace point that shows what a parameter does.

    Keras computes a separable convolution in one layer, seen at its pointwise half.
    """
    module = parameter.rpartition(".")[0]
    by_module = {point.module: point for point in table.points}
    return by_module.get(module) or by_module.get(f"{module.rpartition('.')[0]}.pointwise")


def _differing(run: int, layer: LayerResult) -> Faulty:
    cause, error = layer.cause, layer.error
    expected, found = repr(layer.reference), repr(layer.ported)
    if layer.agrees and layer.float32:
        error = layer.float32.error
        cause = f"lost precision: in float32 {error:.2g} off, TensorFlow's own float32 {layer.float32.noise:.2g}"
    elif not layer.index and math.isinf(error):
        expected, found = "an activation of the reference's shape", "none, or another shape"
    return {
        "layer": layer.layer,
        "module": layer.module,
        "variable": "",
        "parameter": "",
        "shape": list(layer.shape),
        "index": list(layer.index),
        "expected": expected,
        "found": found,
        "error": finite(error),
        "run": run,
        "cause": cause or "unknown; the weights are right",
    }


def report(
    plan: Plan,
    faults: Sequence[Fault],
    proof: Proof | None,
    *,
    source: Mapping[str, Any],
    weights: Mapping[str, Any],
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    weights_only: bool = False,
) -> dict[str, Any]:
    """The report of one port or verification (`porting.report.schema` documents every field).

    Args:
        faults: parameters that differ from the source.
        proof: the layers; without it only `weights_only` can be a pass.
        source: name, kind, digest and synthetic, as in a manifest.
        weights: file, sha256, content_digest and variant of what was compared.
    """
    layers: list[Mapping[str, Any]] = []
    runs = []
    for index, trace in enumerate(proof.traces if proof else ()):
        layers += parity.as_json(trace, index)
        worst = {"layer": trace.worst.layer, "error": finite(trace.worst.error)}
        runs.append(
            {**trace.run.as_json(), "worst": worst, "differing": sum(not layer.agrees for layer in trace.layers)}
        )
    passed = not faults and (proof.passed if proof else weights_only)
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": VERIFIED if passed else FAILED,
        "arch": plan.arch,
        "weights": {**weights, "parameters": len(plan.table.rules), "differing": len(faults)},
        "source": {key: source[key] for key in ("name", "kind", "digest", "synthetic")},
        "reference": proof.reference if proof else None,
        "runs": runs,
        "layers": layers,
        "faulty": faulty_layers(plan, faults, proof),
        "notes": list(notes),
        "versions": dict(versions or {}),
    }
