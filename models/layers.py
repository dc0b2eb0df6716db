"""The layers that both families are made of.

Every convolution, batch norm, ReLU and pool is a module of its own, called through `__call__`, so that a forward hook
on any of them sees what it computes, and may keep it: a ReLU works in place only where no hook is (`rectified`).

`folded` builds the same layer with its batch norm folded into the convolution before it: the convolution has a bias,
and an identity stands in the batch norm's place, so that module paths and indices stay what they are.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from models.errors import ModelError

# TF-Slim's xception.py and keras.applications.xception both build with 1e-3; PyTorch's default is 1e-5.
BN_EPS = 1e-3


def batch_norm(channels: int, folded: bool = False) -> nn.Module:
    """Batch norm with TensorFlow's epsilon, or an identity where it is folded into the convolution before it."""
    return nn.Identity() if folded else nn.BatchNorm2d(channels, eps=BN_EPS)


def depthwise_conv(channels: int, stride: int = 1, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    """3x3 depthwise convolution padded by its dilation on every side.

    At stride 1 that is TensorFlow's SAME; at stride 2 it is DeepLab's `fixed_padding`, which SAME is not.
    """
    return nn.Conv2d(
        channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, groups=channels, bias=bias
    )


def rectified(act: nn.Module, x: Tensor, norm: nn.Module | None = None, *others: nn.Module) -> Tensor:
    """`act(x)`, computed in place where `act` is a ReLU, `x` a batch norm's own, and nobody else can have it.

    A map for the ReLU's output alone costs a pass over memory and, in training, is kept until the backward pass.

    Args:
        norm: the module that gave `x`.
        others: those that passed it on.
    """
    if type(act) is nn.ReLU and type(norm) is nn.BatchNorm2d and not is_traced() and not hooked(act, norm, *others):
        return torch.relu_(x)
    out: Tensor = act(x)
    return out


def hooked(*modules: nn.Module) -> bool:
    """Whether a hook on one of the modules, or on all modules, sees what is given to them or by them."""
    if torch_module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, kind) for module in modules for kind in kinds)


class ConvNorm(nn.Module):
    """Convolution, batch norm and, where `relu`, a ReLU: `conv`, `bn`, `act`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True, folded: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=folded)
        self.bn = batch_norm(outputs, folded)
        self.act: nn.Module = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return rectified(self.act, self.bn(self.conv(x)), self.bn)


class SeparableConvNorm(nn.Module):
    """DeepLab's separable convolution: depthwise, batch norm, pointwise, batch norm; a ReLU after each where `relu`."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, relu: bool = False, folded: bool = False
    ) -> None:
        super().__init__()
        self.conv_dw = depthwise_conv(inputs, stride, dilation, bias=folded)
        self.bn_dw = batch_norm(inputs, folded)
        self.act_dw: nn.Module = nn.ReLU() if relu else nn.Identity()
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=folded)
        self.bn_pw = batch_norm(outputs, folded)
        self.act_pw: nn.Module = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = rectified(self.act_dw, self.bn_dw(self.conv_dw(x)), self.bn_dw)
        return rectified(self.act_pw, self.bn_pw(self.conv_pw(x)), self.bn_pw)


class SeparableConv(nn.Module):
    """Keras' `SeparableConv2D`: depthwise then pointwise, nothing between them; `bias` is the pointwise one's."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = depthwise_conv(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.conv1(x))
        return out


class MaxPoolSame(nn.Module):
    """3x3 max-pool with stride 2 and TensorFlow's SAME padding: (N, C, H, W) to (N, C, ceil(H/2), ceil(W/2)).

    SAME pads 1 before and 1 after an odd side, but 0 before and 1 after an even one, always with minus infinity
    (TensorFlow, `tf.nn`, "Notes on padding"). In a traced or exported graph that is an operation of its own, which is
    right for every size; outside, the pool's own padding and its ceiling, which copy nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if not is_traced():
            return F.max_pool2d(x, 3, stride=2, padding=(height % 2, width % 2), ceil_mode=True)
        return F.max_pool2d(F.pad(x, (width % 2, 1, height % 2, 1), value=float("-inf")), 3, stride=2)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, a sample's branch is dropped with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
        return x * mask / keep


def drop_path(rate: float) -> nn.Module:
    """`DropPath`, or an identity where nothing is ever dropped."""
    return DropPath(rate) if rate > 0.0 else nn.Identity()


class Pooling(str, Enum):
    """How the last feature map becomes a vector; the values are timm's names."""

    AVG = "avg"
    MAX = "max"
    AVGMAX = "avgmax"
    NONE = ""


def pooling_named(name: str) -> Pooling:
    """The pooling that timm calls `name`.

    Raises:
        ModelError: no such pooling.
    """
    try:
        return Pooling(name)
    except ValueError as error:
        names = ", ".join(repr(one.value) for one in Pooling)
        raise ModelError(f"global_pool: expected one of {names}, found {name!r}") from error


class GlobalPool(nn.Module):
    """Pools (N, C, H, W) to (N, C); `Pooling.NONE` leaves the map as it is."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        if self.pooling is Pooling.AVG:
            return x.mean((2, 3))
        if self.pooling is Pooling.MAX:
            return x.amax((2, 3))
        if self.pooling is Pooling.AVGMAX:
            return 0.5 * (x.mean((2, 3)) + x.amax((2, 3)))
        return x

    def extra_repr(self) -> str:
        return f"pooling={self.pooling.value!r}"


def classifier(features: int, num_classes: int) -> nn.Module:
    """The dense layer, or an identity for `num_classes=0`."""
    return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


def is_traced() -> bool:
    """True while a graph is captured: a check on the input would become part of it, so there is none then."""
    return bool(torch.jit.is_tracing()) or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]


def is_transformed() -> bool:
    """True inside `torch.func.vmap` and its like, which follow one thread and know plain operations alone."""
    return torch._C._functorch.peek_interpreter_stack() is not None
