"""The golden files by name: variables, shapes, endpoints and what the original implementations computed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

FOLDER = Path(__file__).parent / "golden"
ARCHS = ("xception", "xception41", "xception65", "xception71")
# For tests that take long: the deeper networks are built of what xception41 is built of.
DEEPER_ARE_SLOW = (*ARCHS[:2], *(pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHS[2:]))


@lru_cache(None)
def golden(arch: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(FOLDER / f"{arch}.npz") as file:
        return dict(file)


def unpadded(shape: npt.NDArray[Any]) -> tuple[int, ...]:
    """Shapes are stored in rows of four, padded with zeros."""
    return tuple(int(side) for side in shape if side)


@lru_cache(None)
def _variables(arch: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    data = golden(arch)
    shapes = map(unpadded, data["variable_shapes"])
    return tuple(zip(map(str, data["variable_names"]), shapes, strict=True))


def variable_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Every variable of the original implementation, in its own order, classifier last."""
    return dict(_variables(arch))


def stored_classes(arch: str) -> int:
    """Outputs of the original implementation's classifier."""
    return int(golden(arch)["logits"].size)
