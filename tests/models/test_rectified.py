"""ReLUs that work in place: where they do, that nobody can tell, and what would go wrong where they must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_networks import SMALL, randomise
from torch import Tensor, nn

from models import create_model, layers

# ReLUs that take a batch norm's output; the others take a unit's input, which its shortcut takes too.
OF_A_NORM = {"xception41": 2 + 2 * 12 + 6, "xception": 4 + 1 + 2 + 8 * 2 + 1}


@pytest.fixture(params=SMALL)
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return randomise(create_model(request.param, num_classes=4))


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was rectified in place, so far."""
    seen: list[Tensor] = []
    real: Callable[[Tensor], Tensor] = torch.relu_
    monkeypatch.setattr(torch, "relu_", lambda x: (seen.append(x), real(x))[1])
    return seen


def image() -> Tensor:
    return torch.rand(2, 3, 55, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def gradients(network: nn.Module) -> list[Tensor]:
    network.zero_grad()
    network(image()).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def unhook(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()


def hooked(network: nn.Module) -> list[Any]:
    return [module.register_forward_hook(lambda *_: None) for module in network.modules()]


@pytest.mark.parametrize("training", [False, True])
def test_every_bit_is_the_same_with_hooks_that_forbid_it(network: Any, in_place: list[Tensor], training: bool) -> None:
    state = {name: value.clone() for name, value in network.train(training).state_dict().items()}
    alone = network(image()).detach(), *gradients(network)
    assert len(in_place) == 2 * OF_A_NORM[network.info.name]
    network.load_state_dict(state)
    hooks = hooked(network)
    beside = network(image()).detach(), *gradients(network)
    unhook(hooks)
    assert len(in_place) == 2 * OF_A_NORM[network.info.name], "a hook's tensor was overwritten"
    assert len(alone) > 100
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one, other)


def kept_as_they_were(network: nn.Module) -> bool:
    """Whether a hook that keeps every batch norm's output finds it unchanged after the pass."""
    kept: list[tuple[Tensor, Tensor]] = []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(lambda _m, _i, out: kept.append((out, out.clone()))) for norm in norms]
    with torch.inference_mode():
        network(image())
    unhook(hooks)
    assert len(kept) == len(norms)
    return all(torch.equal(tensor, copy) for tensor, copy in kept)


def test_a_hook_may_keep_what_it_saw(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_as_they_were(network)
    monkeypatch.setattr(layers, "hooked", lambda *_: False)
    assert not kept_as_they_were(network), "negative control: without the look at hooks"


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_any_hook_on_any_of_the_modules_forbids_it(kind: str, in_place: list[Tensor]) -> None:
    layer = layers.ConvNorm(3, 4, 1)
    for module in (layer.bn, layer.act):
        hook = getattr(module, f"register_{kind}_hook")(lambda *_: None)
        layer(image()).sum().backward()
        assert in_place == []
        hook.remove()
    layer(image()).sum().backward()
    assert len(in_place) == 1


def test_a_hook_on_a_separable_convolution_forbids_it_for_the_relu_after_it(in_place: list[Tensor]) -> None:
    unit = create_model("xception41", num_classes=0).blocks[3].eval()
    x = torch.rand(1, 728, 4, 4)
    for path in ("stack.conv1", "stack.conv1.bn_pw", "stack.conv1.act_pw", "stack.act2"):
        hook = unit.get_submodule(path).register_forward_hook(lambda *_: None)
        unit(x)
        hook.remove()
        assert len(in_place) == 1, path  # the other one
        in_place.clear()
    unit(x)
    assert len(in_place) == 2


def test_a_hook_on_all_modules_forbids_it(in_place: list[Tensor]) -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    layers.ConvNorm(3, 4, 1)(image())
    hook.remove()
    assert in_place == []


@pytest.mark.parametrize("norm", [nn.Identity(), nn.GroupNorm(1, 4)])
def test_only_a_batch_norm_s_output_is_known_to_be_its_own(norm: nn.Module, in_place: list[Tensor]) -> None:
    layer = layers.ConvNorm(3, 4, 1)
    layer.bn = norm
    layer(image())
    assert in_place == []


def test_another_activation_is_called(in_place: list[Tensor]) -> None:
    layer = layers.ConvNorm(3, 4, 1)
    layer.act = nn.Hardtanh()
    assert torch.equal(layer(image()), nn.functional.hardtanh(layer.bn(layer.conv(image()))))
    assert in_place == []
