"""What a proof runs: every padding case is met, and images and probes are the same on both sides."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from porting.recognition import Recognised
from porting.reference.frames import probe
from porting.runs import ALIGNED_SIZES, ORIGINAL_SIZES, Run, image, proof_runs, run_of


def source(size: tuple[int, int] | None) -> Recognised:
    model = SimpleNamespace(inputs=SimpleNamespace(size=size)) if size else None
    return cast(Recognised, SimpleNamespace(model=model))


def pool_inputs(side: int) -> list[int]:
    """Sides that the original's four pools see: after a strided and a plain convolution without padding."""
    sides = [(side - 3) // 2 + 1 - 2]
    while len(sides) < 4:
        sides.append(math.ceil(sides[-1] / 2))
    return sides


def strided_inputs(side: int) -> list[int]:
    """Sides that the aligned networks' five strided convolutions see, all padded alike."""
    sides = [side]
    while len(sides) < 5:
        sides.append(math.ceil(sides[-1] / 2))
    return sides


def strides_met(size: tuple[int, int], sides_of: Any) -> bool:
    """Whether each layer meets an odd side on one axis and an even one on the other; of 2, every padding takes all."""
    return all(
        height % 2 != width % 2 and min(height, width) > 2 for height, width in zip(*map(sides_of, size), strict=True)
    )


@pytest.mark.parametrize(("sizes", "sides_of"), [(ALIGNED_SIZES, strided_inputs), (ORIGINAL_SIZES, pool_inputs)])
def test_every_strided_layer_meets_an_odd_and_an_even_side_in_one_run(sizes: Any, sides_of: Any) -> None:
    small, turned = sizes
    assert strides_met(small, sides_of)
    assert turned == small[::-1]


@pytest.mark.parametrize(("sizes", "sides_of"), [(ALIGNED_SIZES, pool_inputs), (ORIGINAL_SIZES, strided_inputs)])
def test_the_other_network_s_sizes_would_not_do(sizes: Any, sides_of: Any) -> None:
    """The control."""
    assert not strides_met(sizes[0], sides_of)


def test_a_lucky_size_would_not_do() -> None:
    """The control: at 299 alone, one pool of four sees an even side."""
    assert [side % 2 for side in pool_inputs(299)] == [1, 0, 1, 1]


def test_a_proof_runs_the_large_size_small_ones_strides_and_probes() -> None:
    small, turned = ALIGNED_SIZES
    first, *others = proof_runs(source(None), "xception65")
    assert first == Run((299, 299), float32=True)
    assert others == [run for stride in (32, 16, 8) for run in (Run(small, stride), Run(turned, stride, probe=True))]


def test_a_fast_proof_runs_the_large_size_alone() -> None:
    assert proof_runs(source(None), "xception65", fast=True) == [Run((299, 299), float32=True)]
    assert proof_runs(source((254, 254)), "xception", fast=True) == [Run((254, 254), float32=True)]


def test_the_original_has_one_output_stride_and_a_source_its_own_size() -> None:
    small, turned = ORIGINAL_SIZES
    runs = proof_runs(source((254, 254)), "xception")
    assert runs == [Run((254, 254), float32=True), Run(small), Run(turned, probe=True)]


def test_sizes_that_are_asked_for_replace_the_others() -> None:
    runs = proof_runs(source(None), "xception65", [(64, 80), (97, 33)])
    assert [run.size for run in runs[:2]] == [(64, 80), (97, 33)]
    assert not any(run.float32 for run in runs)
    assert runs[-1].probe


def test_float32_runs_first_and_where_there_are_values_enough() -> None:
    runs = proof_runs(source(None), "xception65", [(64, 80), (240, 300)])
    assert [(run.size, run.float32) for run in runs[:2]] == [((240, 300), True), ((64, 80), False)]
    small = proof_runs(source((128, 128)), "xception")
    assert [(run.size, run.float32) for run in small[:2]] == [((299, 299), True), ((128, 128), False)]


@pytest.mark.parametrize("run", proof_runs(source(None), "xception41")[1:], ids=str)
def test_a_run_is_read_back(run: Run) -> None:
    assert run_of(run.as_json(), run.float32) == run


@pytest.mark.parametrize("change", [{"input": "other"}, {"size": [1]}, {"size": ["a", "b"]}, {"output_stride": None}])
def test_what_is_no_run_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        run_of(Run((8, 9)).as_json() | change, False)


@pytest.mark.parametrize("size", [(65, 70), (1, 1), (97, 130)])
def test_the_image_is_the_same_everywhere(size: tuple[int, int]) -> None:
    pixels = image(*size)
    assert (pixels.shape, pixels.dtype) == ((1, *size, 3), np.float32)
    assert -1 <= pixels.min() <= pixels.max() <= 1
    np.testing.assert_array_equal(pixels, image(*size))
    assert not np.array_equal(pixels, image(*size, seed=1))


def test_a_probe_is_dense_signed_and_the_same_on_both_sides() -> None:
    like = np.random.default_rng(0).normal(0, 0.037, (1, 7, 5, 16))
    found = probe("layer", like)
    np.testing.assert_array_equal(found, probe("layer", like.copy()))
    assert np.all(found != 0)
    assert 0.3 < (found < 0).mean() < 0.7
    assert 0.25 < np.abs(found).max() / np.abs(like).max() < 4  # of the activation's own scale
    assert not np.array_equal(found, probe("another", like))
    np.testing.assert_array_equal(probe("layer", 1e6 * like), probe("layer", 1e3 * like))  # it does not grow
    assert 0.9 < probe("layer", 1e6 * like).std() < 1.1


def test_a_probe_of_what_a_relu_gave_is_what_a_relu_can_give() -> None:
    rectified = np.maximum(np.random.default_rng(0).normal(size=(1, 4, 4, 8)), 0)
    assert probe("layer", rectified).min() > 0


@pytest.mark.parametrize("like", [np.zeros((1, 2)), np.full((1, 2), np.nan), np.empty((0, 2))])
def test_a_probe_has_a_scale_even_where_the_activation_has_none(like: Any) -> None:
    found = probe("layer", like)
    assert found.shape == like.shape
    assert np.isfinite(found).all()
