"""Why a layer with the right weights computes something else: found by trying what goes wrong in ports.

Each guess is computed on the layer's own input and accepted only if it reproduces one of the two outputs, so that a
cause that is named is one that was seen to explain every number. (Wrong weights are explained in `porting.bitwise`.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEW = 8  # outputs on which a guess is tried first
_SAME = 1e-9  # of the largest magnitude: an explanation must reproduce the output up to float64's rounding


def likely(module: nn.Module, inputs: tuple[object, ...], found: Tensor, expected: Tensor) -> str:
    """The likely cause of a difference, or "" where none of the known ones explains it.

    Args:
        module: the layer; its weights are taken to be right.
        inputs: what it was given, float64 (N, C, H, W) or (N, features) first.
        found, expected: its output, and the reference's.
    """
    if not torch.isfinite(found).all():
        return "not finite"
    if not torch.isfinite(expected).all():
        return "the reference is not finite"
    x = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
    try:
        return next(_explanations(module, x, found, expected), "")
    except RuntimeError:  # a guess that cannot be computed on this input explains nothing
        return ""


def _explanations(module: nn.Module, x: Tensor | None, found: Tensor, expected: Tensor) -> Iterator[str]:
    yield from _activation(found, expected)
    if x is not None and isinstance(module, nn.modules.batchnorm._BatchNorm):
        yield from _batch_norm(module, x, found, expected)
    elif x is not None and isinstance(module, nn.Conv2d):
        yield from _convolution(module, x, expected)
    elif x is not None and isinstance(module, nn.Linear):
        yield from _dense(module, x, found, expected)
    elif x is not None:
        yield from _pool(x, found, expected)
        yield from _sum(x, found, expected)
    yield from _generic(found, expected)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.numel():
        return False
    scale = float(other.abs().max())
    return float((one - other).abs().max()) <= _SAME * scale


def _activation(found: Tensor, expected: Tensor) -> Iterator[str]:
    if _equal(found, expected.relu()):
        yield "an activation too many: this is the ReLU of what is expected"
    if _equal(found.relu(), expected):
        yield "the activation is missing"
    if _equal(found, expected.clamp(max=6).relu()):
        yield "ReLU6 instead of ReLU"


def _batch_norm(module: nn.modules.batchnorm._BatchNorm, x: Tensor, found: Tensor, expected: Tensor) -> Iterator[str]:
    if module.running_mean is None or module.running_var is None:
        yield "no running statistics: batch statistics are used"
        return
    mean, variance = module.running_mean.double(), module.running_var.double()
    ones = torch.ones_like(mean)
    gamma = ones if module.weight is None else module.weight.double()
    beta = 0 * ones if module.bias is None else module.bias.double()

    def norm(epsilon: float, *parts: Tensor) -> Tensor:
        m, v, g, b = (part.reshape(1, -1, *[1] * (x.dim() - 2)) for part in (parts or (mean, variance, gamma, beta)))
        return (x - m) / (v + epsilon).sqrt() * g + b

    want = _epsilon(x, expected, mean, variance, gamma, beta)
    have = _epsilon(x, found, mean, variance, gamma, beta)
    if want is not None and _equal(norm(want), expected):
        if have is not None and _equal(norm(have), found):
            yield f"epsilon {have:.3g} instead of {want:.3g}"
        axes = [axis for axis in range(x.dim()) if axis != 1]
        batch = (x.mean(axes), x.var(axes, unbiased=False), gamma, beta)
        if _equal(norm(want, *batch), found) or _equal(norm(module.eps, *batch), found):
            yield "statistics of the batch are used: the network is in training mode"
        for name, parts in (
            ("scale (gamma) is left out", (mean, variance, ones, beta)),
            ("centre (beta) is left out", (mean, variance, gamma, 0 * ones)),
        ):
            if _equal(norm(want, *parts), found):
                yield name
    for name, parts in (
        ("mean and variance are exchanged", (variance, mean, gamma, beta)),
        ("gamma and beta are exchanged", (mean, variance, beta, gamma)),
    ):
        for epsilon in {module.eps, 1e-3}:
            if _equal(norm(epsilon, *parts), expected):
                yield name


def _epsilon(x: Tensor, y: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor) -> float | None:
    """The epsilon with which a batch norm of x is y, solved where a small epsilon matters most."""
    best = []
    order = torch.argsort(variance)[: min(8, len(variance))]
    for channel in order.tolist():
        if gamma[channel] == 0 or variance[channel] < 0:
            continue
        centred, scaled = x[:, channel] - mean[channel], y[:, channel] - beta[channel]
        at = int(centred.abs().argmax())
        gain = float(scaled.reshape(-1)[at] / (centred.reshape(-1)[at] * gamma[channel]))
        if gain > 0 and math.isfinite(gain):
            best.append(1 / gain**2 - float(variance[channel]))
    return sorted(best)[len(best) // 2] if best else None


def _convolution(module: nn.Conv2d, x: Tensor, expected: Tensor) -> Iterator[str]:
    """Settings under which the same kernel gives what is expected."""
    kernel = module.weight.double()
    bias = None if module.bias is None else module.bias.double()
    stride, dilation = module.stride[0], module.dilation[0]
    reach = dilation * (kernel.shape[2] - 1)

    def conv(padding: tuple[int, int], stride: int, dilation: int, k: Tensor, few: bool) -> Tensor:
        before, after = padding
        count = _FEW if few else k.shape[0]
        depthwise = module.groups == x.shape[1] == k.shape[0]
        given = x[:, :count] if depthwise else x
        groups = min(count, module.groups) if depthwise else module.groups
        if few and not depthwise and groups > 1:
            count = k.shape[0]
        b = None if bias is None else bias[:count]
        return F.conv2d(F.pad(given, (before, after) * 2), k[:count], b, stride, 0, dilation, groups)

    def gives(padding: tuple[int, int], stride: int = stride, dilation: int = dilation, k: Tensor = kernel) -> bool:
        if min(x.shape[2:]) + sum(padding) <= dilation * (k.shape[2] - 1):
            return False
        some = conv(padding, stride, dilation, k, few=True)  # most guesses are wrong, and this is enough to see it
        return _equal(some, expected[:, : some.shape[1]]) and _equal(
            conv(padding, stride, dilation, k, few=False), expected
        )

    own = (reach // 2, reach - reach // 2)
    if isinstance(module.padding, tuple):
        own = (int(module.padding[0]), int(module.padding[0]))
    if kernel.shape[2] > 1:
        for name, turned in (
            ("the kernel is flipped", kernel.flip(2, 3)),
            ("the kernel is flipped top to bottom", kernel.flip(2)),
            ("the kernel is flipped left to right", kernel.flip(3)),
            ("the kernel is transposed", kernel.transpose(2, 3)),
        ):
            if gives(own, k=turned):
                yield name
    for want_stride, want_dilation in dict.fromkeys(product((stride, 1, 2), (dilation, 1, 2, 4, 8))):
        spread = want_dilation * (kernel.shape[2] - 1)
        half = spread // 2
        for padding in dict.fromkeys((own, (half, half), (0, half), (0, spread), (0, 0), (half, 0))):
            if not gives(padding, want_stride, want_dilation):
                continue
            changes = []
            if stride != want_stride:
                changes.append(f"stride {stride} instead of {want_stride}")
            if dilation != want_dilation:
                changes.append(f"dilation {dilation} instead of {want_dilation}")
            elif own != padding:
                changes.append(f"padding (before, after) {own} instead of {padding}")
            yield ", ".join(changes) or "something before or after the convolution"


def _dense(module: nn.Linear, x: Tensor, found: Tensor, expected: Tensor) -> Iterator[str]:
    if found.shape[-1] == expected.shape[-1]:
        for offset in (1, -1):
            if _equal(found, expected.roll(offset, -1)):
                yield "outputs are shifted by one (a class offset)"
    elif found.shape[-1] == expected.shape[-1] + 1 and (_equal(found[:, 1:], expected)):
        yield "one output too many in front (the background class)"
    elif found.shape[-1] == expected.shape[-1] - 1 and (_equal(found, expected[:, 1:])):
        yield "one output too few in front (the background class)"
    if module.bias is not None and _equal(found, expected - module.bias.double()):
        yield "the bias is left out"
    if _equal(found, expected.softmax(-1)):
        yield "an activation too many: this is the softmax of what is expected"


def _pool(x: Tensor, found: Tensor, expected: Tensor) -> Iterator[str]:
    if x.dim() != 4:
        return
    if found.dim() == 2:
        for name, pooled in (("maximum", x.amax((2, 3))), ("sum", x.sum((2, 3)))):
            if _equal(found, pooled):
                yield f"{name} instead of average"
        return
    if 2 * found.shape[2] > x.shape[2] + 2:
        return
    height, width = x.shape[2:]
    same = F.pad(x, (width % 2, 1, height % 2, 1), value=-math.inf)
    if not _equal(F.max_pool2d(same, 3, 2), expected):
        return
    zeros = F.pad(x, (width % 2, 1, height % 2, 1))
    guesses: tuple[tuple[str, Callable[[], Tensor]], ...] = (
        (
            "padding: 1 on every side, where TensorFlow's SAME pads an even side only after it",
            lambda: F.max_pool2d(x, 3, 2, 1),
        ),
        ("padding: none", lambda: F.max_pool2d(x, 3, 2)),
        ("padding: with zeros instead of minus infinity", lambda: F.max_pool2d(zeros, 3, 2)),
        ("padding: none, the last window cut (ceil mode)", lambda: F.max_pool2d(x, 3, 2, ceil_mode=True)),
        ("average instead of maximum", lambda: F.avg_pool2d(x, 3, 2, 1)),
    )
    for name, guess in guesses:
        if _equal(found, guess()):
            yield name


def _sum(x: Tensor, found: Tensor, expected: Tensor) -> Iterator[str]:
    if x.shape != expected.shape or x.shape != found.shape:
        return
    more = found - expected
    if _equal(more, x.relu() - x):
        yield "the shortcut is taken after the ReLU"
    small = _SAME * float(expected.abs().max())
    if x.min() >= 0 and more.min() >= -small and not (more[x > 0].abs() > small).any():
        yield "the shortcut is taken after the ReLU, which overwrites its input"
    if _equal(found, expected - x):
        yield "the shortcut is left out"
    if _equal(found, expected + x):
        yield "the shortcut is added twice"


def _generic(found: Tensor, expected: Tensor) -> Iterator[str]:
    if found.shape != expected.shape:
        if found.dim() == 4 and found.shape[:2] == expected.shape[:2]:
            have, want = list(found.shape[2:]), list(expected.shape[2:])
            yield f"stride or padding: {have[0]}x{have[1]} instead of {want[0]}x{want[1]}"
        yield "another shape"
        return
    if not found.any():
        yield "all zero"
        return
    ratio = float((found * expected).sum() / (expected * expected).sum()) if expected.any() else 0.0
    if ratio and _equal(found, ratio * expected):
        yield "negated" if math.isclose(ratio, -1) else f"scaled by {ratio:.6g}"
    if found.dim() == 4 and min(found.shape[2:]) > 2:
        for down, right in product((-1, 0, 1), repeat=2):
            moved = found.roll((down, right), (2, 3))[:, :, 1:-1, 1:-1]
            if (down, right) != (0, 0) and _equal(moved, expected[:, :, 1:-1, 1:-1]):
                yield "shifted by a pixel: padding on the other side"
    if float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max()):
        yield "lost precision: off by about float32's rounding"
