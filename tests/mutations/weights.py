"""Faults in the mapping: every kind of variable, wrong in every way that ports get wrong."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from porting.findings import layer_of
from porting.rules import Rule
from tests.mutations.case import Array, Case


@dataclass(frozen=True)
class WeightMutant:
    """Parameters with other values.

    Attributes:
        kind: of fault.
        changed: the parameters that it touches.
        how: makes their values, from the right ones.
    """

    kind: str
    changed: tuple[str, ...]
    how: str

    def values(self, case: Case) -> Mapping[str, Array]:
        right = [case.arrays[name] for name in self.changed]
        if self.how == "exchange":
            return dict(zip(self.changed, reversed(right), strict=True))
        return {self.changed[0]: np.ascontiguousarray(_CHANGES[self.how](right[0], self._seed()))}

    def _seed(self) -> int:
        return zlib.crc32(f"{self.kind} {self.changed}".encode())

    def layers(self, case: Case) -> set[str]:
        """The layers that must be named."""
        return {point.name for name in self.changed if (point := layer_of(case.plan.table, name))}

    def __str__(self) -> str:
        return f"{self.kind}: {' and '.join(self.changed)}"


def _one_element(values: Array, seed: int) -> Array:
    changed = values.copy()
    flat = changed.reshape(-1)
    at = np.random.Generator(np.random.PCG64(seed)).integers(flat.size)
    flat[at] *= np.float32(1 + 1e-3)
    return changed


_CHANGES = {
    "zeroed": lambda values, _: np.zeros_like(values),
    "negated": lambda values, _: -values,
    "scaled by 1 + 1e-4": lambda values, _: values * np.float32(1 + 1e-4),
    "one element off by 1e-3": _one_element,
    "rounded to float16": lambda values, _: values.astype(np.float16).astype(np.float32),
    "flipped": lambda values, _: values[:, :, ::-1, ::-1],
    "flipped top to bottom": lambda values, _: values[:, :, ::-1],
    "flipped left to right": lambda values, _: values[:, :, :, ::-1],
    "transposed": lambda values, _: values.swapaxes(2, 3),
    "inputs and outputs transposed": lambda values, _: values.swapaxes(0, 1),
    "shifted by one output": lambda values, _: np.roll(values, 1, 0),
}


def weight_mutants(case: Case) -> Iterator[WeightMutant]:
    """Every one, in the table's order."""
    rules = case.rules()
    by_shape: dict[tuple[int, ...], list[Rule]] = {}
    for rule in rules:
        by_shape.setdefault(case.arrays[rule.parameter].shape, []).append(rule)
    for rule in rules:
        shape = case.arrays[rule.parameter].shape
        for how in _CHANGES:
            spatial = len(shape) == 4
            if how.startswith(("flipped", "transposed")) and not spatial:
                continue
            if how.startswith("inputs") and (not spatial or shape[0] != shape[1]):
                continue
            if how.startswith("shifted") and shape[0] != case.plan.classes:
                continue
            yield WeightMutant(how, (rule.parameter,), how)
        for kind, partner in _partners(rule, by_shape[shape]):
            yield WeightMutant(kind, (rule.parameter, partner.parameter), "exchange")


def _partners(rule: Rule, same_shape: list[Rule]) -> Iterator[tuple[str, Rule]]:
    """One partner of each class: the same layer's other roles, and of each role one in the unit and one outside."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(rule.parameter.encode())))
    classes: dict[str, list[Rule]] = {}
    for other in same_shape:
        if other is rule:
            continue
        mine, theirs = _leaf(rule), _leaf(other)
        if _layer(rule) == _layer(other):
            if mine < theirs:  # once a pair
                classes.setdefault(f"role-swapped: {mine} and {theirs}", []).append(other)
        else:
            where = "of the same unit" if _unit(rule) == _unit(other) else "of another unit"
            classes.setdefault(f"{mine} exchanged with {theirs} {where}", []).append(other)
    for kind, others in sorted(classes.items()):
        yield kind, others[int(random.integers(len(others)))]


def _leaf(rule: Rule) -> str:
    return rule.variable.rpartition("/")[2]


def _layer(rule: Rule) -> str:
    return rule.parameter.rpartition(".")[0]


def _unit(rule: Rule) -> str:
    parts = rule.parameter.split(".")
    return ".".join(parts[:2]) if parts[0] in ("blocks", "stem") else parts[0]
