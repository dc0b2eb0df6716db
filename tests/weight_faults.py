"""What ports get wrong in weights, done to a right state dict of xception41, and the cause that must be named."""

from __future__ import annotations

from collections.abc import Callable

import torch

State = dict[str, torch.Tensor]
DEPTHWISE = "blocks.3.stack.conv2.conv_dw.weight"
POINTWISE = "blocks.4.stack.conv1.conv_pw.weight"
NORM = "blocks.5.stack.conv1.bn_pw"


def swap(state: State, one: str, other: str) -> None:
    state[one], state[other] = state[other], state[one]


def change(state: State, name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state[name] = function(state[name]).contiguous()


def nudge(state: State) -> None:
    state[POINTWISE] = state[POINTWISE].clone()
    state[POINTWISE].view(-1)[12345] *= 1 + 1e-3


FAULTS: dict[str, tuple[Callable[[State], object], dict[str, str]]] = {
    "mean and variance swapped": (
        lambda s: swap(s, f"{NORM}.running_mean", f"{NORM}.running_var"),
        {
            f"{NORM}.running_mean": "holds moving_variance of the same layer",
            f"{NORM}.running_var": "holds moving_mean of the same layer",
        },
    ),
    "gamma and beta swapped": (
        lambda s: swap(s, f"{NORM}.weight", f"{NORM}.bias"),
        {f"{NORM}.weight": "holds beta of the same layer", f"{NORM}.bias": "holds gamma of the same layer"},
    ),
    "kernels exchanged": (
        lambda s: swap(s, DEPTHWISE, DEPTHWISE.replace("conv2", "conv3")),
        {
            DEPTHWISE: "exchanged: holds xception_41/middle_flow/block1/unit_1/xception_module/"
            "separable_conv3_depthwise/depthwise_weights",
            DEPTHWISE.replace("conv2", "conv3"): "exchanged: holds xception_41/middle_flow/block1/unit_1/"
            "xception_module/separable_conv2_depthwise/depthwise_weights",
        },
    ),
    "flipped": (lambda s: change(s, DEPTHWISE, lambda x: x.flip(2, 3)), {DEPTHWISE: "kernel flipped spatially"}),
    "transposed": (lambda s: change(s, DEPTHWISE, lambda x: x.mT), {DEPTHWISE: "kernel transposed spatially"}),
    "inputs and outputs": (
        lambda s: change(s, POINTWISE, lambda x: x.transpose(0, 1)),
        {POINTWISE: "inputs and outputs exchanged"},
    ),
    "negated": (lambda s: change(s, POINTWISE, torch.neg), {POINTWISE: "negated"}),
    "zeroed": (lambda s: change(s, POINTWISE, torch.zeros_like), {POINTWISE: "all zero"}),
    "scaled": (lambda s: change(s, POINTWISE, lambda x: x * 1.25), {POINTWISE: "scaled by 1.25"}),
    "scaled a little": (
        lambda s: change(s, f"{NORM}.weight", lambda x: x * (1 + 1e-4)),
        {f"{NORM}.weight": "scaled by 1.0001"},
    ),
    "epsilon folded into the variance": (
        lambda s: change(s, f"{NORM}.running_var", lambda x: x + (1e-3 - 1e-5)),
        {f"{NORM}.running_var": "offset by 0.00099"},
    ),
    "one element": (nudge, {POINTWISE: "1 of 529984 values differ"}),
    "half precision": (
        lambda s: change(s, POINTWISE, lambda x: x.half().float()),
        {POINTWISE: "lost precision: rounded to float16"},
    ),
    "bfloat16": (
        lambda s: change(s, POINTWISE, lambda x: x.bfloat16().float()),
        {POINTWISE: "lost precision: rounded to bfloat16"},
    ),
    "another type": (lambda s: change(s, POINTWISE, torch.Tensor.double), {POINTWISE: "stored as float64"}),
    "not finite": (
        lambda s: change(s, f"{NORM}.bias", lambda x: x.index_fill(0, torch.tensor([3]), torch.nan)),
        {f"{NORM}.bias": "not finite"},
    ),
    "class offset": (
        lambda s: change(s, "head.fc.bias", lambda x: x.roll(1)),
        {"head.fc.bias": "shifted by one output (a class offset)"},
    ),
    "missing": (lambda s: s.pop(POINTWISE), {POINTWISE: "missing"}),
    "extra": (lambda s: s.update(mystery=torch.ones(2)), {"mystery": "not part of the network"}),
}
