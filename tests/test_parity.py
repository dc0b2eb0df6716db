"""One comparison: what passes, what fails, and what is reported of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from porting.parity import FLOAT64_BOUND, Trace, compare, float32_output, probe_image
from porting.reference import Activation
from porting.rules import TracePoint

POINT = TracePoint("layer", "module")
SIZE = (65, 70)


def activation(*values: float) -> Activation:
    return np.array(values, np.float64)


def test_equal_activations_pass() -> None:
    result = compare(POINT, activation(1.0, -2.0), activation(1.0, -2.0))
    assert (result.error, result.passed, result.bound) == (0.0, True, FLOAT64_BOUND)


def test_the_error_is_relative_to_the_largest_reference_value() -> None:
    result = compare(POINT, activation(1.0, -8.0, 2.5), activation(1.0, -8.0, 2.0))
    assert result.error == 0.5 / 8
    assert (result.index, result.ported, result.reference) == ((2,), 2.5, 2.0)
    assert not result.passed


def test_a_difference_as_large_as_the_bound_passes_and_the_next_number_fails() -> None:
    reference = activation(1.0)
    assert compare(POINT, activation(1.25), reference, bound=0.25).passed
    assert not compare(POINT, activation(math.nextafter(1.25, 2)), reference, bound=0.25).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["ported", "reference", "both"])
def test_a_value_that_is_not_finite_fails(value: float, side: str) -> None:
    ported, reference = activation(1.0, 2.0, 3.0), activation(1.0, 2.0, 3.0)
    if side != "reference":
        ported[1] = value
    if side != "ported":
        reference[1] = value
    result = compare(POINT, ported, reference, bound=math.inf)
    assert not result.passed
    assert not math.isfinite(result.error)
    assert result.index == (1,)


@pytest.mark.parametrize("shape", [(2, 3), (3,), (1, 3, 2), (0,)])
def test_another_shape_fails(shape: tuple[int, ...]) -> None:
    assert not compare(POINT, np.ones(shape), np.ones((3, 2)), bound=1e9).passed


def test_nothing_is_not_equal_to_nothing() -> None:
    assert not compare(POINT, np.ones((0, 3)), np.ones((0, 3))).passed


def test_a_reference_of_zeros_is_met_by_zeros_alone() -> None:
    assert compare(POINT, activation(0.0, -0.0), activation(0.0, 0.0)).passed
    assert not compare(POINT, activation(0.0, 1e-300), activation(0.0, 0.0)).passed


def test_the_worst_layer_is_the_one_that_is_not_a_number() -> None:
    layers = [compare(POINT, activation(value), activation(1.0)) for value in (1.5, math.nan, 1.25)]
    trace = Trace(SIZE, tuple(layers), activation(1.0))
    assert math.isnan(trace.worst.error)
    assert trace.first_wrong is layers[0]


@pytest.mark.parametrize("size", [(65, 70), (1, 1), (97, 130)])
def test_the_probe_is_the_same_everywhere(size: tuple[int, int]) -> None:
    image = probe_image(*size)
    assert (image.shape, image.dtype) == ((1, *size, 3), np.float32)
    assert -1 <= image.min() <= image.max() <= 1
    np.testing.assert_array_equal(image, probe_image(*size))
    assert not np.array_equal(image, probe_image(*size, seed=1))


class Fixed(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = torch.tensor([values])

    def forward(self, _: Tensor) -> Tensor:
        return self.values


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ((1.0, 0.99999), True),
        ((1.0 + 1e-5, 0.99999), True),
        ((1.0 + 3e-5, 0.99999), False),  # beyond the bound
        ((0.99999, 1.0), False),  # within it, but another class
        ((math.nan, 0.99999), False),
        ((1.0, -math.inf), False),
        ((1.0, 0.99999, 0.0), False),
    ],
)
def test_float32_output_needs_the_bound_and_the_class(values: tuple[float, ...], passed: bool) -> None:
    result = float32_output(Fixed(*values), probe_image(3, 3), np.array([[1.0, 0.99999]]))
    assert result.passed is passed
