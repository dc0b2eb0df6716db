"""Rules read from right to left: the exact inverse of what they do from left to right, in every table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from porting import rules
from porting.rules import Head, HeadOp, Layout, Rule, Shape
from tests.golden_files import ARCHS, stored_classes

CASES: list[tuple[Layout, Shape]] = [
    (Layout.SAME, (5,)),
    (Layout.HWIO_TO_OIHW, (2, 3, 4, 5)),
    (Layout.HWIO_TO_OIHW, (3, 3, 4, 4)),
    (Layout.HWCM_TO_OIHW, (3, 3, 4, 1)),
    (Layout.HWCM_TO_OIHW, (2, 3, 4, 5)),
    (Layout.IO_TO_OI, (4, 4)),
    (Layout.IO_TO_OI, (4, 5)),
    (Layout.HWIO_TO_OI, (1, 1, 4, 5)),
]


def rule(layout: Layout, shape: Shape, skip: int = 0) -> Rule:
    return Rule("scope/weights", shape, layout, "module.weight", skip)


def every_rule() -> Iterator[Rule]:
    for arch in ARCHS:
        yield from rules.table(arch, Head(stored_classes(arch))).rules
    dense = HeadOp("linear", "d", {"inputs": rules.FEATURES, "outputs": 7, "bias": True})
    norm = HeadOp("batch_norm", "n", {"channels": 7, "scale": True, "center": True})
    yield from rules.table(rules.KERAS_ARCH, Head(7, chain=(dense, norm))).rules


@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_there_and_back(layout: Layout, shape: Shape) -> None:
    one = rule(layout, shape)
    variable = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    back = one.revert(one.convert(variable))
    assert back.shape == shape and np.array_equal(back, variable)
    parameter = np.arange(np.prod(shape), dtype=np.float32).reshape(one.target_shape)
    assert np.array_equal(one.convert(one.revert(parameter)), parameter)
    assert np.shares_memory(one.revert(parameter), parameter)  # a view: nothing is copied


def test_every_rule_of_every_table_goes_back_to_its_variable() -> None:
    shapes = {(one.layout, one.shape) for one in every_rule()}
    assert {layout for layout, _ in shapes} == set(Layout)
    for layout, shape in shapes:
        one = rule(layout, shape)
        dummy = np.broadcast_to(np.zeros((), np.float32), one.target_shape)
        assert one.revert(dummy).shape == shape


@pytest.mark.parametrize(("layout", "shape"), [case for case in CASES if case[0] is not Layout.SAME])
def test_no_other_inverse_gives_the_same(layout: Layout, shape: Shape) -> None:
    """The control: the comparison above sees every other layout's inverse."""
    variable = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    parameter = layout.apply(variable)
    for other in set(Layout) - {layout}:
        try:
            back = other.invert(parameter, shape)
        except ValueError:  # an inverse for another number of axes
            continue
        assert back.shape != shape or not np.array_equal(back, variable), other


def test_a_multiplier_of_two_is_not_mistaken_for_channels() -> None:
    one = rule(Layout.HWCM_TO_OIHW, (1, 1, 2, 3))
    parameter = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)
    assert one.revert(parameter)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]  # output c*M+m is [.., c, m]


def test_what_was_left_out_cannot_come_back() -> None:
    one = rule(Layout.IO_TO_OI, (4, 5), skip=1)
    with pytest.raises(ValueError, match="1 outputs were left out"):
        one.revert(np.zeros((4, 4), np.float32))


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (4, 5, 3), (4, 5, 3, 3, 1)])
def test_another_shape_is_refused(shape: Shape) -> None:
    with pytest.raises(ValueError, match="expected shape"):
        rule(Layout.HWIO_TO_OIHW, (3, 3, 5, 4)).revert(np.zeros(shape, np.float32))
