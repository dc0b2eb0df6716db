"""The one call that makes a network fast to run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.layers import ConvNorm, SeparableConvNorm
from models.registry import Network


def fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution, biased, that computes `norm(conv(x))` in evaluation mode; arithmetic in float64, rounded once.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2.)
    """
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean if conv.bias is None else conv.bias.detach().double() - mean
    bias: Tensor = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    folded = copy.copy(conv)  # shares the kernel until the next lines replace it
    folded._parameters = dict(conv._parameters)
    kernel = conv.weight.detach().double() * scale.reshape(-1, 1, 1, 1)
    folded.weight = nn.Parameter(kernel.to(conv.weight.dtype))
    folded.bias = nn.Parameter(bias.to(conv.weight.dtype))
    return folded


def conv_before_each_norm(network: Network) -> dict[str, str]:
    """Path of every batch norm -> path of the convolution whose output it takes."""
    pairs: dict[str, str] = {}
    for path, module in network.named_modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        parent, _, leaf = path.rpartition(".")
        holder = network.get_submodule(parent)
        if isinstance(holder, ConvNorm | SeparableConvNorm):
            conv = leaf.replace("bn", "conv")
        elif leaf == "skipbn":
            conv = "skip"
        elif leaf.isdigit():
            conv = f"{int(leaf) - 1}.pointwise"
        else:  # bn1 to bn4 of the original network, whose conv3 and conv4 are separable
            conv = leaf.replace("bn", "conv")
            conv = conv if isinstance(getattr(holder, conv), nn.Conv2d) else f"{conv}.pointwise"
        pairs[path] = f"{parent}.{conv}" if parent else conv
    return pairs


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def optimize_for_inference(network: Network) -> Network:
    """A copy of `network` for evaluation: batch norms folded, channels last in memory, no gradients.

    Give it images in channels-last memory format for the last of its speed; any other layout gives the same result.
    The copy's state dict is that of the same network with `folded=True`.
    """
    fast = copy.deepcopy(network).eval()
    for norm_path, conv_path in conv_before_each_norm(fast).items():
        conv, norm = fast.get_submodule(conv_path), fast.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        _replace(fast, conv_path, fold_pair(conv, norm))
        _replace(fast, norm_path, nn.Identity())
    fast.folded = True
    fast.requires_grad_(False)
    return fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
