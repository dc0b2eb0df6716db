"""The networks against what the original implementations compute: tests/golden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_networks import (
    NAMES,
    endpoint_modules,
    golden,
    golden_image,
    golden_network,
    module_outputs,
    statistics,
)
from torch import Tensor, nn

from models.layers import MaxPoolSame

# The golden arrays are TensorFlow's float32, which is off by up to 6e-7 of each layer's maximum.
BOUND = 1e-5


def error(found: np.ndarray, expected: np.ndarray, scale: float | None = None) -> float:
    """Largest difference as a share of `scale`, the largest expected value unless given."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / (np.abs(expected).max() if scale is None else scale))


def logits_error(network: nn.Module, name: str, size: int = 299) -> float:
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        logits = network(golden_image(name, size, size, dtype))
    key = "logits" if size == 299 else f"logits_{size}x{size}"
    return error(logits[0].numpy(), golden(name)[key].astype(np.float64))


@pytest.fixture(scope="module", params=[*NAMES[:2], *(pytest.param(x, marks=pytest.mark.slow) for x in NAMES[2:])])
def case(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, golden_network(request.param, torch.float64)  # nearest to the truth


def test_logits_and_every_endpoint(case: tuple[str, Any]) -> None:
    name, network = case
    data = golden(name)
    modules = endpoint_modules(name)
    wanted = {modules[endpoint] for endpoint in data["endpoint_names"]}
    assert len(data["endpoint_names"]) > 100

    def reduce(x: Tensor) -> tuple[tuple[int, ...], np.ndarray]:
        return tuple(x.shape), statistics(x)

    logits, outputs = module_outputs(network, golden_image(name, 299, 299, torch.float64), wanted, reduce)
    errors = [error(logits[0].numpy(), data["logits"].astype(np.float64))]
    assert errors[0] <= BOUND
    for endpoint, expected, padded in zip(
        data["endpoint_names"], data["endpoint_stats"], data["endpoint_shapes"], strict=True
    ):
        shape, found = outputs[modules[endpoint]]
        nhwc = (shape[0], *shape[2:], shape[1])
        side = tuple(int(n) for n in padded if n)
        assert side in (nhwc, (1, 1, *nhwc))  # TF-Slim keeps the pooled map's sides of 1
        errors.append(error(found, expected, scale=expected[2]))
        assert errors[-1] <= BOUND, f"{endpoint} ({modules[endpoint]}): {errors[-1]}"
    assert max(errors) > 0.0  # float32 against float64: an exact zero would mean that nothing was compared


def test_logits_at_an_even_size(case: tuple[str, Any]) -> None:
    name, network = case
    assert logits_error(network, name, 224) <= BOUND


def test_float32_logits(case: tuple[str, Any]) -> None:
    assert logits_error(golden_network(case[0]), case[0]) <= BOUND


def features_error(network: Any, name: str, key: str) -> float:
    data = golden(name)
    with torch.no_grad():
        features = network.forward_features(golden_image(name, 193, 257, torch.float32))
    shape = tuple(int(side) for side in data[f"{key}_shape"] if side)
    assert (features.shape[0], *features.shape[2:]) == shape[:3]
    expected = data[f"{key}_stats"]
    by_statistics = error(statistics(features), expected, scale=expected[2])
    by_channel = error(features.mean((0, 2, 3)).numpy(), data[f"{key}_mean"].astype(np.float64))
    return max(by_statistics, by_channel)


def test_features_at_every_output_stride(case: tuple[str, Any]) -> None:
    name = case[0]
    if name == "xception":
        assert features_error(golden_network(name), name, "features_193x257") <= BOUND
        return
    for stride in (16, 8):
        network = golden_network(name, output_stride=stride)
        assert features_error(network, name, f"features_os{stride}_193x257") <= BOUND


# Negative controls: each of these is a mistake that a port has really made, and each must fail the comparison above.


def set_epsilon(network: nn.Module, eps: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps


@pytest.mark.parametrize("name", ["xception", "xception41"])
def test_wrong_epsilon_fails(name: str) -> None:
    network = golden_network(name)
    set_epsilon(network, 1e-5)
    assert logits_error(network, name) > 10 * BOUND


@pytest.mark.parametrize("size", [299, 224])
def test_symmetric_pool_fails(size: int) -> None:
    network = golden_network("xception")
    for block in network.children():
        for index, layer in enumerate(getattr(block, "rep", ())):
            if isinstance(layer, MaxPoolSame):
                block.rep[index] = nn.MaxPool2d(3, stride=2, padding=1)
    assert logits_error(network, "xception", size) > 10 * BOUND


@pytest.mark.parametrize("name", ["xception", "xception41"])
def test_shortcut_after_the_relu_fails(name: str) -> None:
    network = golden_network(name)
    block = network.block5 if name == "xception" else network.blocks[5]
    block.register_forward_pre_hook(lambda _module, inputs: (inputs[0].relu(), *inputs[1:]))
    assert logits_error(network, name) > 10 * BOUND


def test_relu_inside_a_separable_convolution_fails() -> None:
    network = golden_network("xception41")
    network.blocks[4].stack.conv2.act_dw = nn.ReLU()
    assert logits_error(network, "xception41") > 10 * BOUND


def test_dilating_the_strided_unit_itself_fails() -> None:
    network = golden_network("xception41", output_stride=16)
    unit = network.blocks[len(network.blocks) - 2].stack
    for conv in (unit.conv1, unit.conv2, unit.conv3):
        conv.conv_dw.dilation = conv.conv_dw.padding = (2, 2)
    assert features_error(network, "xception41", "features_os16_193x257") > 10 * BOUND


def test_tensorflow_same_on_strided_convolutions_fails() -> None:
    network = golden_network("xception41")
    conv = network.stem[0].conv
    conv.padding = (0, 0)
    conv.register_forward_pre_hook(lambda _module, inputs: (nn.functional.pad(inputs[0], (0, 1, 0, 1)),))
    assert logits_error(network, "xception41", 224) > 10 * BOUND
