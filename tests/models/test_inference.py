"""optimize_for_inference: the same function, folded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_networks import SMALL, randomise
from torch import nn

from models import ModelError, create_model, optimize_for_inference
from models.fused import FusedConv2d
from models.inference import conv_before_each_norm, conv_before_relu, fold_pair
from models.layers import MaxPoolSame


@pytest.mark.parametrize("name", SMALL)
def test_same_function_and_same_keys_as_folded(name: str) -> None:
    network = randomise(create_model(name, num_classes=4)).double()
    before = copy.deepcopy(network.state_dict())
    fast = optimize_for_inference(network)
    x = torch.rand(2, 3, 33, 40, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected, found = network(x), fast(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters()) and not fast.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    native: Any = create_model(name, num_classes=4, folded=True).double().eval()
    native.load_state_dict(fast.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(native(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    assert conv_before_each_norm(fast) == {}


def test_wrong_pair_fails() -> None:
    """The control: a batch norm folded into its neighbour's convolution is another function."""
    network = randomise(create_model("xception", num_classes=4)).double()
    fast = optimize_for_inference(network)
    fast.block5.rep[1].pointwise.bias = fast.block5.rep[4].pointwise.bias
    x = torch.rand(1, 3, 33, 40, dtype=torch.float64)
    with torch.no_grad():
        error = (fast(x) - network(x)).abs().max() / network(x).abs().max()
    assert error > 1e-6


def test_norm_without_scale_or_centre() -> None:
    conv = nn.Conv2d(3, 4, 1, bias=False).double()
    norm = nn.BatchNorm2d(4, affine=False, eps=1e-3).double().eval()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.1, 2)
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(fold_pair(conv, norm)(x), norm(conv(x)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SMALL)
def test_fused_convolutions_compute_what_plain_ones_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where they are fused: against the same copy told not to, and with gradients wanted."""
    fast: Any = optimize_for_inference(randomise(create_model(name, num_classes=4)))
    convs = [module for module in fast.modules() if isinstance(module, FusedConv2d)]
    assert len(convs) == sum(isinstance(module, nn.Conv2d) for module in fast.modules())
    for shape in ((2, 3, 33, 40), (1, 3, 64, 33)):
        x = torch.rand(shape) * 2 - 1
        with torch.inference_mode():
            found = fast(x)
            assert all(conv._packed is not None for conv in convs)
            with monkeypatch.context() as patched:
                patched.setattr(FusedConv2d, "_can_fuse", lambda *_: False)
                expected = fast(x)
        wanted = x.clone().requires_grad_()
        with_gradients = fast(wanted)
        with_gradients.sum().backward()
        assert wanted.grad is not None and wanted.grad.abs().max() > 0
        for one in (expected, with_gradients.detach()):
            torch.testing.assert_close(found, one, rtol=0, atol=2e-5 * expected.abs().max().item())
        assert fast(x[:0]).shape == (0, 4)
        with torch.inference_mode():
            assert all(torch.equal(once, found) for once in (copy.deepcopy(fast)(x), fast(x)))


@pytest.mark.parametrize("name", SMALL)
def test_every_relu_that_follows_a_convolution_is_fused(name: str) -> None:
    """What is left are those at the start of a unit, whose input the shortcut takes too; the pairs are the graph's."""
    network = create_model(name, num_classes=4, folded=True).eval()
    pairs = conv_before_relu(network)
    produced: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # so that no identity is used again
    found: dict[str, str] = {}

    def look(path: str, module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        kept.append(out)
        if isinstance(module, nn.Conv2d):
            produced[id(out)] = path
        elif isinstance(module, nn.ReLU) and id(given[0]) in produced:
            found[path] = produced[id(given[0])]

    for path, module in network.named_modules():
        module.register_forward_hook(lambda m, given, out, path=path: look(path, m, given, out))
    with torch.no_grad():
        network(torch.rand(1, 3, 33, 33))
    assert pairs == found and len(pairs) > 10
    left = [path for path, module in optimize_for_inference(network).named_modules() if isinstance(module, nn.ReLU)]
    assert set(left) == {path for path, module in network.named_modules() if isinstance(module, nn.ReLU)} - set(pairs)


def test_a_changed_kernel_is_reordered_again() -> None:
    """In place and by another tensor; the control is a change through `.data`, which is documented to go unnoticed."""
    conv = FusedConv2d(nn.Conv2d(8, 8, 1), relu=True).requires_grad_(False)
    x = torch.rand(1, 8, 5, 5)

    def is_current() -> bool:
        plain = nn.functional.relu(nn.functional.conv2d(x, conv.weight, conv.bias))
        return torch.allclose(conv(x), plain, rtol=0, atol=1e-6)

    assert is_current()
    conv.weight.data.mul_(3.0)
    assert not is_current()
    conv.weight.mul_(2.0)
    assert is_current()
    conv.load_state_dict({name: torch.rand_like(value) for name, value in conv.state_dict().items()}, assign=True)
    conv.requires_grad_(False)
    assert is_current()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [SMALL[0], pytest.param(SMALL[1], marks=pytest.mark.slow)])
def test_a_large_batch_is_computed_a_few_images_at_a_time(name: str) -> None:
    fast: Any = optimize_for_inference(randomise(create_model(name, num_classes=4)).double())
    sizes: list[int] = []
    later: list[int] = []
    stem = fast.conv1 if name == "xception" else fast.stem
    middle = fast.block4 if name == "xception" else fast.blocks[fast.config.entry_units]
    for module, seen in ((stem, sizes), (middle, later)):
        module.register_forward_hook(lambda _module, given, _out, seen=seen: seen.append(len(given[0])))
    x = torch.rand(5, 3, 33, 40, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected = fast(x)
        fast.pixels_at_once = (2 * 33 * 40, 4 * 33 * 40)
        torch.testing.assert_close(fast(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
        assert sizes == [5, 2, 2, 1] and later == [5, 4, 1]
        fast.pixels_at_once = (1, 1)
        assert fast(x[:2]).shape == (2, 4) and sizes[4:] == later[3:] == [1, 1]
        assert fast(x[:0]).shape == (0, 4)
    with pytest.raises(ModelError, match="add the batch dimension"):
        fast(x[0])


def test_both_forms_of_the_pool_are_one_function() -> None:
    """Outside a graph the pool pads by itself; a wrong side or a zero in the padding would show in negative maps."""
    pool = MaxPoolSame()
    for height in (1, 2, 3, 6, 7):
        for width in (1, 4, 5, 8):
            x = -torch.rand(2, 3, height, width) - 1
            padded = nn.functional.pad(x, (width % 2, 1, height % 2, 1), value=float("-inf"))
            expected = nn.functional.max_pool2d(padded, 3, stride=2)
            for form in (x, x.contiguous(memory_format=torch.channels_last)):
                assert torch.equal(pool(form), expected)
