"""The rule tables against DeepLab's and Keras's own variables, the networks' state dicts, and plain loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from models import create_model
from models.layers import GlobalPool, MaxPoolSame
from porting import rules
from porting.rules import Head, Layout, Role, Rule, Shape, Table
from tests.golden_files import ARCHS, golden, stored_classes, variable_shapes


def full_table(arch: str) -> Table:
    return rules.table(arch, Head(stored_classes(arch)))


def network(arch: str, classes: int) -> nn.Module:
    with torch.device("meta"):  # shapes and paths only
        return create_model(arch, num_classes=classes)


def state_shapes(arch: str, classes: int) -> dict[str, Shape]:
    """The network's state dict without the counters that no source holds."""
    state = network(arch, classes).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def targets(table: Table) -> dict[str, Shape]:
    return {rule.parameter: rule.target_shape for rule in table.rules}


def test_the_tables_cover_the_golden_networks() -> None:
    assert set(rules.ARCHS) == set(ARCHS)


@pytest.mark.parametrize("arch", ARCHS)
def test_variables_are_the_original_implementations(arch: str) -> None:
    table = full_table(arch)
    assert {rule.variable: rule.shape for rule in table.rules} == variable_shapes(arch)
    assert len(table.rules) == len(variable_shapes(arch))  # no variable twice
    assert set(table.head) == {rule.variable for rule in table.rules[-2:]}


@pytest.mark.parametrize("arch", ARCHS)
def test_statistics_are_the_moving_averages(arch: str) -> None:
    for rule in full_table(arch).rules:
        assert (rule.role is Role.STATISTIC) == rule.variable.endswith(("/moving_mean", "/moving_variance"))


@pytest.mark.parametrize(
    ("arch", "head", "classes"),
    [(arch, Head(stored_classes(arch)), stored_classes(arch)) for arch in ARCHS]
    + [(arch, Head(1001, skip=1), 1000) for arch in ARCHS]
    + [(arch, None, 0) for arch in ARCHS],
)
def test_parameters_are_the_networks_state_dict(arch: str, head: Head | None, classes: int) -> None:
    table = rules.table(arch, head)
    assert targets(table) == state_shapes(arch, classes)
    assert len({rule.parameter for rule in table.rules}) == len(table.rules)


def test_the_state_dict_comparison_sees_one_wrong_layout() -> None:
    table = full_table("xception41")
    first = replace(table.rules[0], layout=Layout.SAME)
    assert targets(replace(table, rules=(first, *table.rules[1:]))) != state_shapes("xception41", 1001)


# --- trace points -----------------------------------------------------------------------------------------------------


def points(table: Table) -> list[tuple[str, str]]:
    return [(point.name, point.module) for point in (*table.trace, table.pooled, table.logits) if point]


@pytest.mark.parametrize("arch", ARCHS)
def test_trace_points_pair_one_to_one_with_modules_that_exist(arch: str) -> None:
    paired = points(full_table(arch))
    assert len({name for name, _ in paired}) == len({module for _, module in paired}) == len(paired)
    modules = dict(network(arch, 10).named_modules())
    assert [module for _, module in paired if module not in modules] == []


@pytest.mark.parametrize("arch", ARCHS)
def test_trace_points_cover_every_computing_layer(arch: str) -> None:
    computing = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, MaxPoolSame, GlobalPool, nn.Linear)
    covered = {module for _, module in points(full_table(arch))}
    left_out = {
        path
        for path, module in network(arch, 10).named_modules()
        if isinstance(module, computing) and path not in covered
    }
    # Keras computes a separable convolution in one layer: its depthwise half cannot be seen by itself.
    unseen = {
        rule.parameter.removesuffix(".weight") for rule in full_table(arch).rules if "depthwise_k" in rule.variable
    }
    assert len(unseen) == (34 if arch == "xception" else 0)
    assert left_out == unseen


@pytest.mark.parametrize("arch", ARCHS)
def test_trace_points_cover_every_residual_sum(arch: str) -> None:
    """Units and blocks whose output is a sum, counted from the paper: all but the aligned networks' last unit."""
    sums = [module for name, module in points(full_table(arch)) if name.rpartition("/")[2].startswith("add")]
    expected = {
        "xception": [f"block{n}" for n in range(1, 13)],
        "xception41": [f"blocks.{n}" for n in range(12)],
        "xception65": [f"blocks.{n}" for n in range(20)],
        "xception71": [f"blocks.{n}" for n in range(22)],
    }
    assert sums == expected[arch]


def test_original_trace_names_are_keras_layers() -> None:
    assert {name for name, _ in points(full_table("xception"))} == {
        str(n) for n in golden("xception")["endpoint_names"]
    }


# --- layouts ----------------------------------------------------------------------------------------------------------


def oihw_by_loops(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    height, width, inputs, outputs = array.shape
    result = np.empty((outputs, inputs, height, width), array.dtype)
    for h in range(height):
        for w in range(width):
            for i in range(inputs):
                for o in range(outputs):
                    result[o, i, h, w] = array[h, w, i, o]
    return result


def depthwise_by_loops(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    height, width, channels, multiplier = array.shape
    result = np.empty((channels * multiplier, 1, height, width), array.dtype)
    for h in range(height):
        for w in range(width):
            for c in range(channels):
                for m in range(multiplier):
                    result[c * multiplier + m, 0, h, w] = array[h, w, c, m]
    return result


def dense_by_loops(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    inputs, outputs = array.shape
    result = np.empty((outputs, inputs), array.dtype)
    for i in range(inputs):
        for o in range(outputs):
            result[o, i] = array[i, o]
    return result


def noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


LAYOUTS = [
    (Layout.SAME, noise(5), noise(5)),
    (Layout.HWIO_TO_OIHW, noise(3, 3, 3, 3), oihw_by_loops(noise(3, 3, 3, 3))),  # every axis alike: only values tell
    (Layout.HWIO_TO_OIHW, noise(3, 2, 4, 5), oihw_by_loops(noise(3, 2, 4, 5))),
    (Layout.HWCM_TO_OIHW, noise(3, 3, 6, 1), depthwise_by_loops(noise(3, 3, 6, 1))),
    (Layout.HWCM_TO_OIHW, noise(3, 3, 4, 2), depthwise_by_loops(noise(3, 3, 4, 2))),
    (Layout.HWCM_TO_OIHW, noise(3, 2, 2, 3), depthwise_by_loops(noise(3, 2, 2, 3))),
    (Layout.IO_TO_OI, noise(4, 4), dense_by_loops(noise(4, 4))),
    (Layout.HWIO_TO_OI, noise(1, 1, 4, 4), dense_by_loops(noise(1, 1, 4, 4)[0, 0])),
]


@pytest.mark.parametrize(("layout", "stored", "expected"), LAYOUTS)
def test_layouts_equal_plain_loops(
    layout: Layout, stored: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]
) -> None:
    np.testing.assert_array_equal(layout.apply(stored), expected, strict=True)


@pytest.mark.parametrize(("layout", "stored", "expected"), LAYOUTS)
def test_no_other_layout_gives_the_same(
    layout: Layout, stored: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]
) -> None:
    for other in Layout:
        if other is layout:
            continue
        try:
            result = other.apply(stored)
        except ValueError:  # the wrong number of axes
            continue
        assert not np.array_equal(result, expected)


def test_the_channel_order_of_a_multiplier_is_not_the_other_one() -> None:
    stored = noise(3, 3, 4, 2)
    multiplier_first = stored.transpose(3, 2, 0, 1).reshape(8, 1, 3, 3)  # m*C+c
    assert not np.array_equal(Layout.HWCM_TO_OIHW.apply(stored), multiplier_first)


def test_a_depthwise_kernel_computes_what_tensorflow_defines() -> None:
    """tf.nn.depthwise_conv2d: output[i, j, c*M+m] sums filter[:, :, c, m] over input[..., c] (VALID, stride 1)."""
    image, kernel = noise(1, 4, 5, 2), noise(3, 3, 2, 3)
    expected = np.zeros((2, 3, 6), np.float64)
    for i in range(2):
        for j in range(3):
            for c in range(2):
                for m in range(3):
                    patch = image[0, i : i + 3, j : j + 3, c].astype(np.float64)
                    expected[i, j, c * 3 + m] = (patch * kernel[:, :, c, m]).sum()
    weight = torch.from_numpy(Layout.HWCM_TO_OIHW.apply(kernel).copy()).double()
    result = nn.functional.conv2d(torch.from_numpy(image).double().permute(0, 3, 1, 2), weight, groups=2)
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-12)


def test_a_dense_kernel_wider_than_1x1_is_refused() -> None:
    with pytest.raises(ValueError, match="1x1 kernel"):
        Layout.HWIO_TO_OI.apply(noise(3, 3, 4, 4))


def test_a_rule_leaves_out_leading_outputs() -> None:
    kernel, bias = noise(4, 6), noise(6)
    rule = Rule("logits/weights", (4, 6), Layout.IO_TO_OI, "fc.weight", skip=1)
    np.testing.assert_array_equal(rule.convert(kernel), kernel.T[1:], strict=True)
    np.testing.assert_array_equal(Rule("b", (6,), Layout.SAME, "fc.bias", skip=1).convert(bias), bias[1:], strict=True)
    assert rule.target_shape == (5, 4)


def test_proving_a_table_needs_no_storage() -> None:
    huge = Rule("kernel", (3, 3, 1 << 20, 1 << 20), Layout.HWIO_TO_OIHW, "weight")  # 36 TiB, were it stored
    assert huge.target_shape == (1 << 20, 1 << 20, 3, 3)


def test_an_unknown_network_is_no_table() -> None:
    with pytest.raises(KeyError):
        rules.table("xception99", None)


def test_float64_beyond_float32_becomes_infinite_without_a_warning() -> None:
    rule = Rule("x", (2,), Layout.SAME, "x")
    values = rule.float32(np.array([1e300, 0.5]))  # pytest turns a warning into an error
    assert values.dtype == np.float32
    assert values.tolist() == [np.inf, 0.5]
