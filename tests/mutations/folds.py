"""Faults in folding: every batch norm of a folded network, folded in every way that goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from porting import folding
from porting.rules import BATCH_NORM_EPSILON
from tests.mutations.case import Array, Case
from tests.mutations.weights import WeightMutant

_WRONG_NORM = "another batch norm folded into it"
_KINDS = (
    "folded with epsilon 1e-5",
    "folded without the moving mean",
    "folded without the moving variance",
    "folded without gamma",
    "folded without beta",
    "not folded",
    "scaled along its inputs, not its outputs",
    _WRONG_NORM,
)


@dataclass(frozen=True)
class FoldMutant(WeightMutant):
    """One convolution with another fold; `how` is the kind, or the other batch norm's path."""

    def values(self, case: Case) -> Mapping[str, Array]:
        conv = self.changed[0].rpartition(".")[0]
        norm = folding.norms(case.arch)[conv]
        parts = _parts(case, conv, norm)
        if self.kind == _WRONG_NORM:
            other = _parts(case, conv, self.how)
            moved = {key.replace(self.how, norm) if key.startswith(self.how) else key: v for key, v in other.items()}
            wrong = folding.fold(case.arch, moved, BATCH_NORM_EPSILON)
        else:
            wrong = dict(folding.wrong_folds(case.arch, parts, BATCH_NORM_EPSILON))[self.kind]
        return {name: value.contiguous().numpy() for name, value in wrong.items()}


def fold_mutants(case: Case) -> Iterator[WeightMutant]:
    """Every one, in the network's order."""
    norms = folding.norms(case.arch)
    widths = {norm: case.plain[f"{norm}.bias"].shape for norm in norms.values()}
    for conv, norm in norms.items():
        kernel = case.arrays[f"{conv}.weight"]
        other = next((one for one in norms.values() if one != norm and widths[one] == widths[norm]), "")
        for kind in _KINDS:
            if kind.startswith("scaled along") and kernel.shape[0] != kernel.shape[1]:
                continue
            if kind == _WRONG_NORM and not other:
                continue
            yield FoldMutant(kind, (f"{conv}.weight", f"{conv}.bias"), other if kind == _WRONG_NORM else kind)


def _parts(case: Case, conv: str, norm: str) -> dict[str, torch.Tensor]:
    names = [f"{conv}.weight", *(f"{norm}.{leaf}" for leaf in folding.LEAVES[:4])]
    return {name: torch.from_numpy(case.plain[name]) for name in names}
