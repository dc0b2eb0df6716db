"""One comparison: what passes, what fails, and what is reported of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from porting.parity import FLOAT64_BOUND, Trace, absent, as_json, compare, with_float32
from porting.reference import Activation
from porting.rules import TracePoint
from porting.runs import Run

POINT = TracePoint("layer", "module")
RUN = Run((65, 70))


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


@pytest.mark.parametrize("shape", [(1, 149, 149, 32), (2, 7, 9, 4000), (300_000,), (2, 70_000), (1, 3, 1, 100_000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_activation_is_compared_whole_in_any_layout(shape: tuple[int, ...], dtype: type) -> None:
    random = np.random.default_rng(len(shape))
    reference = random.normal(size=shape)
    ported = np.moveaxis(np.ascontiguousarray(np.moveaxis(reference, -1, 0).astype(dtype)), 0, -1)
    for _ in range(4):
        index = tuple(int(random.integers(side)) for side in shape)
        changed = ported.copy()
        changed[index] += 0.5
        result = compare(POINT, changed, reference)
        assert (result.index, result.ported, result.reference) == (index, changed[index], reference[index])
        difference = np.abs(changed.astype(np.float64) - reference)
        assert result.error == difference.max() / np.abs(reference).max()
        changed[tuple(int(random.integers(side)) for side in shape)] = math.nan
        assert math.isnan(compare(POINT, changed, reference).error)
        holed = reference.copy()
        holed[index] = -math.inf
        assert not compare(POINT, ported, holed, bound=math.inf).passed


def test_nothing_is_not_equal_to_nothing() -> None:
    assert not compare(POINT, np.ones((0, 3)), np.ones((0, 3))).passed


def test_a_reference_of_zeros_is_met_by_zeros_alone() -> None:
    assert compare(POINT, activation(0.0, -0.0), activation(0.0, 0.0)).passed
    assert not compare(POINT, activation(0.0, 1e-300), activation(0.0, 0.0)).passed


def test_the_worst_layer_is_the_one_that_is_not_a_number() -> None:
    layers = [compare(POINT, activation(value), activation(1.0)) for value in (1.5, math.nan, 1.25)]
    trace = Trace(RUN, tuple(layers))
    assert math.isnan(trace.worst.error)
    assert trace.faulty == tuple(layers)
    assert not trace.passed


def test_a_layer_that_was_not_reached_is_no_fault_but_no_proof() -> None:
    right = compare(POINT, activation(1.0), activation(1.0))
    unreached = replace(absent(POINT, "not reached"), reached=False)
    trace = Trace(RUN, (right, unreached), stopped="RuntimeError")
    assert trace.faulty == ()
    assert not trace.passed
    assert not Trace(RUN, (right, absent(POINT, "the network did not compute it"))).passed
    assert Trace(RUN, (right,)).passed


@pytest.mark.parametrize(
    ("ported", "noise", "passed"),
    [
        (1.0 + 3e-7, 1e-7, True),
        (1.0 + 5e-7, 1e-7, False),  # more than four times TensorFlow's own
        (1.0 + 1e-7, 0.0, True),  # TensorFlow exact by luck: a rounding is allowed
        (1.0 + 3e-7, 0.0, False),
        (math.nan, 1e-7, False),
        (1.0, math.nan, False),
    ],
)
def test_float32_is_held_to_tensorflows_own_error(ported: float, noise: float, passed: bool) -> None:
    reference = activation(1.0, -0.5)
    right = compare(POINT, reference, reference)
    result = with_float32(right, activation(ported, -0.5), reference, noise)
    assert result.agrees
    assert result.float32 is not None
    assert result.passed is result.float32.passed is passed
    if noise == noise:
        assert result.float32.bound == max(4 * noise, 3 * 2.0**-24)


def test_a_long_sum_may_be_off_by_its_roundings_and_no_more() -> None:
    """As oneDNN's strided 1x1 convolutions are; what computes in TF32 or half is far beyond."""
    reference = activation(1.0, -0.5)
    right = compare(POINT, reference, reference)
    for error, passed in ((4.7e-6, True), (5e-6, False), (2.0**-11, False)):
        assert with_float32(right, activation(1.0 + error, -0.5), reference, 1e-7, terms=728).passed is passed


def test_a_report_holds_no_number_that_json_has_not() -> None:
    (entry,) = as_json(Trace(RUN, (compare(POINT, activation(math.nan), activation(1.0)),)), 3)
    assert (entry["error"], entry["found"], entry["expected"], entry["passed"], entry["run"]) == (
        None,
        None,
        1.0,
        False,
        3,
    )
