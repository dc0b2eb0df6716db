"""How far off float32 may be: TensorFlow's own float32 error, where it has enough values to tell."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from porting.reference.frames import Frame

FEW_VALUES = 16  # the largest of fewer differences says little of how large they may be


def yardstick(module: nn.Module, inputs: tuple[Any, ...], frame: Frame, before: Sequence[float]) -> float:
    """TensorFlow's largest float32 error of a layer, absolute.

    A classifier of one output may be exact in TensorFlow by luck. So the yardstick of a layer with few values is no
    less than what an error of the layer before, of the size that TensorFlow's has there, becomes in this one.

    Args:
        module, inputs: the layer, and what it took: (N, features) where it is one that this concerns.
        frame: the reference's output of it.
        before: the yardsticks of the layers before.
    """
    found = frame.noise or 0.0
    if frame.values.size >= FEW_VALUES or not before or inputs[0].dim() != 2:
        return found
    value = inputs[0].double()
    random = torch.Generator().manual_seed(0)
    error = before[-1] * (2 * torch.rand((16, value.shape[1]), generator=random, dtype=torch.float64) - 1)
    copied = copy.deepcopy(module).double()
    moved = copied.forward(value + error) - copied.forward(value)  # past the hooks
    return max(found, float(moved.abs().max()))
