"""Our networks against timm's own, with the same weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from golden_networks import NAMES
from test_networks import randomise
from timm_beside import beside
from torch import Tensor, nn

from models import create_model
from models.layers import MaxPoolSame

THEIRS = {"xception": "legacy_xception"}


def build(name: str, **arguments: Any) -> Any:
    timm = beside("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(THEIRS.get(name, name), **arguments).eval()


def image(name: str) -> Tensor:
    return torch.rand(1, 3, 75, 107) * 2 - 1


def as_keras(network: Any) -> None:
    """Give timm's definition of the original network Keras' epsilon and padding."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
        if isinstance(module, nn.MaxPool2d):
            parent, _, leaf = path.rpartition(".")
            setattr(network.get_submodule(parent), leaf, MaxPoolSame())


@pytest.mark.parametrize("name", NAMES)
def test_same_keys_shapes_and_logits(name: str) -> None:
    theirs = build(name)
    ours = randomise(create_model(name))
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert list(shapes) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = image(name)
    with torch.no_grad():
        expected = ours(x)
        if name == "xception":
            assert (theirs(x) - expected).abs().max() > 1e-3 * expected.abs().max()  # the control
            as_keras(theirs)
        found = theirs(x)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("name", ["xception", "xception41"])
def test_same_feature_maps(name: str) -> None:
    theirs = build(name, features_only=True)
    ours = randomise(create_model(name, features_only=True))
    state = ours.state_dict()
    flattened = {"body.": "", "stem_": "stem.", "blocks_": "blocks."}
    for key in theirs.state_dict():
        prefix = next((one for one in flattened if key.startswith(one)), "")
        state[key] = state.pop(flattened.get(prefix, "") + key.removeprefix(prefix))
    theirs.load_state_dict(state, strict=True)
    if name == "xception":
        as_keras(theirs)
    assert theirs.feature_info.channels() == ours.feature_info.channels()
    assert theirs.feature_info.reduction() == ours.feature_info.reduction()
    assert theirs.feature_info.module_name() == ours.feature_info.module_name()
    x = image(name)
    with torch.no_grad():
        for found, expected in zip(theirs(x), ours(x), strict=True):
            assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_same_adaptation_of_the_first_convolution(channels: int) -> None:
    from models.registry import adapt_first_conv

    weight = torch.rand(32, 3, 3, 3)
    manipulate = beside("timm.models._manipulate")
    assert torch.equal(adapt_first_conv(weight, channels), manipulate.adapt_input_conv(channels, weight))


def test_same_default_cfg() -> None:
    for name in NAMES:
        with torch.device("meta"):
            ours = create_model(name).default_cfg
        theirs = build(f"{THEIRS.get(name, name)}.tf_in1k").default_cfg
        for key in ("input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier"):
            assert ours[key] == theirs[key], f"{name} {key}"
