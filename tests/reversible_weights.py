"""Weights files for the way back to TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from porting import rules
from porting.reversible import Reversible, read_reversible
from porting.rules import Head


def hollow(arch: str, classes: int = 1000) -> dict[str, Tensor]:
    """A state dict of the right shapes that takes no room: one number repeated."""
    table = rules.table(arch, Head(classes) if classes else None)
    return {rule.parameter: torch.ones(()).expand(rule.target_shape) for rule in table.rules}


def saved(folder: Path, state: Mapping[str, object], name: str = "weights.pth") -> Path:
    torch.save(dict(state), folder / name)
    return folder / name


def read(weights: Path, arch: str | None = None, backbone_only: bool = False) -> Reversible:
    return read_reversible(weights, arch, backbone_only)
