"""One mutant through the verifier's own code, and what the verifier says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from porting.bitwise import Fault, compare_weights
from porting.findings import faulty_layers
from porting.parity import Trace
from porting.plan import Contents, Plan
from porting.proof import Proof
from porting.rules import Layout
from porting.sources.base import TensorSource
from tests.mutations.case import Array, Case, Part, parameter
from tests.mutations.networks import NetworkMutant
from tests.mutations.weights import WeightMutant


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        expected: layers that must be named.
        by_weights, by_layers: those that the bits, and the activations alone, name.
        equivalent: why nothing needs to be named; "" where something does.
        causes: as the verifier words them.
    """

    mutant: str
    kind: str
    expected: frozenset[str]
    by_weights: frozenset[str]
    by_layers: frozenset[str]
    equivalent: str
    causes: tuple[str, ...]

    @property
    def caught(self) -> bool:
        return bool(self.by_weights or self.by_layers or self.equivalent)

    @property
    def named(self) -> bool:
        """Every faulty layer is named, and no innocent one."""
        named = self.by_weights | self.by_layers
        return named <= self.expected if self.equivalent else named == self.expected


class _Arrays:
    """A source that holds the parameters themselves."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    def read(self, name: str) -> Array:
        return self.arrays[name]


def examine(case: Case, mutant: WeightMutant | NetworkMutant) -> Outcome:
    return _weights(case, mutant) if isinstance(mutant, WeightMutant) else _network(case, mutant)


def _weights(case: Case, mutant: WeightMutant) -> Outcome:
    values = mutant.values(case)
    faults = _faults(case, values)
    same = all(np.array_equal(case.arrays[name], value) for name, value in values.items())
    traces: list[Trace] = []
    network = case.networks[32]
    if not same and all(case.arrays[name].shape == value.shape for name, value in values.items()):
        with torch.no_grad():
            for name, value in values.items():
                parameter(network, name).copy_(torch.from_numpy(value))
        try:
            for run in case.runs:
                if run.output_stride == 32:
                    traces += _parts_with(case, values, run)
                    if set(_layers(case.plan, traces)) >= mutant.layers(case):
                        break  # the other runs could only say the same
        finally:
            with torch.no_grad():
                for name in values:
                    parameter(network, name).copy_(torch.from_numpy(case.arrays[name]))
    return _outcome(case, mutant, frozenset(mutant.layers(case)), faults, traces, "the same values" if same else "")


def _parts_with(case: Case, names: Mapping[str, Array], run: Any) -> list[Trace]:
    """Every part that holds one of the parameters."""
    network = case.networks[32]
    changed = {network.get_submodule(name.rpartition(".")[0]) for name in names}
    parts = [part for part in case.parts[32] if changed & set(part.module.modules())]
    return [case.trace(part, run, {point.module for point in part.points}) for part in parts]


def _network(case: Case, mutant: NetworkMutant) -> Outcome:
    traces = []
    for run in case.runs:
        part = case.parts[run.output_stride][mutant.part]
        if run.output_stride != 32 and _settings(part) == _settings(case.parts[32][mutant.part]):
            continue  # the same part, before the strides differ
        with mutant.applied(part):
            traces.append(case.trace(part, run))
    return _outcome(case, mutant, mutant.named, [], traces, mutant.equivalent)


def _settings(part: Part) -> list[object]:
    convolutions = (module for module in part.module.modules() if isinstance(module, torch.nn.Conv2d))
    return [(module.stride, module.dilation) for module in convolutions]


def _faults(case: Case, values: Mapping[str, Array]) -> list[Fault]:
    """The bitwise check on the parameters that changed."""
    table = case.plan.table
    rules = tuple(
        replace(rule, variable=rule.parameter, layout=Layout.SAME, skip=0)
        for rule in table.rules
        if rule.parameter in values
    )
    plan = replace(case.plan, table=replace(table, rules=rules))
    source = cast(TensorSource, _Arrays(case.arrays))
    return compare_weights(plan, source, Contents("mutant", {}), values)


def _layers(plan: Plan, traces: list[Trace]) -> frozenset[str]:
    return frozenset(item["layer"] for item in faulty_layers(plan, [], Proof(tuple(traces), "")))


def _outcome(
    case: Case,
    mutant: WeightMutant | NetworkMutant,
    expected: frozenset[str],
    faults: list[Fault],
    traces: list[Trace],
    equivalent: str,
) -> Outcome:
    found = faulty_layers(case.plan, faults, Proof(tuple(traces), ""))
    by_weights = frozenset(item["layer"] for item in faulty_layers(case.plan, faults, None))
    causes = tuple(item["cause"] for item in found)
    kind = mutant.kind
    return Outcome(str(mutant), kind, expected, by_weights, _layers(case.plan, traces), equivalent, causes)
