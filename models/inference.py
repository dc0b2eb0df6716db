"""The one call that makes a network fast to run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.fused import FusedConv2d
from models.registry import Network

# One image of 299x299 before the middle flow, whose largest maps have 11 MB: a last cache, and what the C library keeps
# for further use (glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD), are of that size. Four images after it, where maps
# are small and larger products run faster. Measured on batches of eight: tests/benchmarks/forward.py.
_PIXELS_AT_ONCE = (299 * 299, 4 * 299 * 299)


def fold_parameters(
    kernel: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    centre: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Kernel (O, I, H, W) and bias (O), in float64, of the convolution that computes a batch norm after this one.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2.)

    Args:
        kernel, bias: the convolution's.
        mean, variance, scale, centre: the batch norm's, (O) each; a scale or centre that is None is one or zero.
        eps: the batch norm's epsilon.
    """
    factor = 1 / (variance.detach().double() + eps).sqrt()
    if scale is not None:
        factor = factor * scale.detach().double()
    shift = -mean.detach().double()
    if bias is not None:
        shift = shift + bias.detach().double()
    folded_bias = shift * factor
    if centre is not None:
        folded_bias = folded_bias + centre.detach().double()
    return kernel.detach().double() * factor.reshape(-1, 1, 1, 1), folded_bias


def fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution, biased, that computes `norm(conv(x))` in evaluation mode; computed in float64, rounded once."""
    assert norm.running_mean is not None and norm.running_var is not None
    kernel, bias = fold_parameters(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
    )
    folded = copy.copy(conv)  # shares the kernel until the next lines replace it
    folded._parameters = dict(conv._parameters)
    folded.weight = nn.Parameter(kernel.to(conv.weight.dtype))
    folded.bias = nn.Parameter(bias.to(conv.weight.dtype))
    return folded


def _convolution(holder: nn.Module, name: str) -> str:
    """A child's name if it is a convolution; of a separable one, as conv3 of the original network, its second half."""
    return name if isinstance(getattr(holder, name), nn.Conv2d) else f"{name}.pointwise"


def conv_before_each_norm(network: Network) -> dict[str, str]:
    """Path of every batch norm -> path of the convolution whose output it takes."""
    pairs: dict[str, str] = {}
    for path, module in network.named_modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        parent, _, leaf = path.rpartition(".")
        holder = network.get_submodule(parent)
        if leaf == "skipbn":
            conv = "skip"
        elif leaf.isdigit():
            conv = f"{int(leaf) - 1}.pointwise"
        else:
            conv = _convolution(holder, leaf.replace("bn", "conv"))
        pairs[path] = f"{parent}.{conv}" if parent else conv
    return pairs


def conv_before_relu(network: Network) -> dict[str, str]:
    """Path of every ReLU that takes a convolution's output, batch norm aside -> path of that convolution."""
    pairs: dict[str, str] = {}
    for path, module in network.named_modules():
        if not isinstance(module, nn.ReLU):
            continue
        parent, _, leaf = path.rpartition(".")
        holder = network.get_submodule(parent)
        if isinstance(holder, nn.Sequential) and leaf in ("0", "act1"):
            continue  # takes what enters the unit, which the shortcut takes too
        if leaf.isdigit():  # in a block of the original network: ReLU, convolution, batch norm, ReLU ...
            conv = f"{int(leaf) - 2}.pointwise"
        elif isinstance(holder, nn.Sequential):  # in an aligned unit: act1, conv1, act2, conv2 ...
            conv = f"conv{int(leaf.removeprefix('act')) - 1}.conv_pw"
        else:
            conv = _convolution(holder, leaf.replace("act", "conv"))
        pairs[path] = f"{parent}.{conv}" if parent else conv
    return pairs


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def optimize_for_inference(network: Network) -> Network:
    """A copy of `network` for evaluation: batch norms folded, channels last in memory, no gradients.

    The images' memory format does not matter. On the CPU, PyTorch's threads compute a batch's images side by side, a
    few at a time, unless a hook, a gradient or a mode looks on; in float32 the first call reorders the kernels, which
    takes their memory twice. The copy's state dict is that of the same network with `folded=True`.
    """
    fast = copy.deepcopy(network).eval()
    for norm_path, conv_path in conv_before_each_norm(fast).items():
        conv, norm = fast.get_submodule(conv_path), fast.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        _replace(fast, conv_path, fold_pair(conv, norm))
        _replace(fast, norm_path, nn.Identity())
    relu_after = {conv: relu for relu, conv in conv_before_relu(fast).items()}
    for path, conv in [(path, conv) for path, conv in fast.named_modules() if isinstance(conv, nn.Conv2d)]:
        _replace(fast, path, FusedConv2d(conv, relu=path in relu_after))
        if path in relu_after:
            _replace(fast, relu_after[path], nn.Identity())
    fast.folded = True
    fast.pixels_at_once = _PIXELS_AT_ONCE
    fast.requires_grad_(False)
    return fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
