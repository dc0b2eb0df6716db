"""The likely cause of a wrong layer: every fault that ports have is recognised from numbers alone, and no other is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import MaxPoolSame
from porting.causes import likely

Wrong = Callable[[Tensor], Tensor]


def signed(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(5, eps=1e-3).double().eval()
    random = torch.Generator().manual_seed(2)
    for value in (made.weight.data, made.bias.data, made.running_mean, made.running_var):
        assert value is not None
        value.copy_(torch.rand(5, generator=random, dtype=torch.float64) + 0.1)
    return made


def bias_and_dense() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(6, 4).double()


def conv(stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    torch.manual_seed(4)
    return nn.Conv2d(5, 5, 3, stride, dilation, dilation, groups=5, bias=False).double()


def cause(module: nn.Module, x: Tensor, expected: Tensor) -> str:
    with torch.inference_mode():
        return likely(module, (x,), module(x), expected)


MAP = signed(1, 5, 12, 9)


@pytest.mark.parametrize(("epsilon", "text"), [(1e-5, "1e-05"), (2e-3, "0.002")])
def test_the_epsilon_is_solved_for(epsilon: float, text: str) -> None:
    module = norm()
    expected = module(MAP).detach()
    module.eps = epsilon
    assert cause(module, MAP, expected) == f"epsilon {text} instead of 0.001"


def change(module: nn.BatchNorm2d, **values: Tensor) -> None:
    for name, value in values.items():
        getattr(module, name).data.copy_(value)


def exchange(module: nn.BatchNorm2d, one: str, other: str) -> None:
    change(module, **{one: getattr(module, other).clone(), other: getattr(module, one).clone()})


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (lambda m: exchange(m, "running_mean", "running_var"), "mean and variance are exchanged"),
        (lambda m: exchange(m, "weight", "bias"), "gamma and beta are exchanged"),
        (lambda m: m.train(), "statistics of the batch are used: the network is in training mode"),
    ],
    ids=["statistics", "scale and centre", "training"],
)
def test_a_batch_norm(changed: Callable[[nn.BatchNorm2d], object], text: str) -> None:
    module = norm()
    expected = module(MAP).detach()
    changed(module)
    module.momentum = 0.0  # training must not change the statistics before they are looked at
    assert cause(module, MAP, expected) == text


@pytest.mark.parametrize(
    ("parts", "text"), [(("weight",), "scale (gamma) is left out"), (("bias",), "centre (beta) is left out")]
)
def test_a_batch_norm_that_leaves_a_part_out(parts: tuple[str, ...], text: str) -> None:
    module = norm()
    expected = module(MAP).detach()
    plain = norm()
    change(plain, **{part: torch.ones(5) if part == "weight" else torch.zeros(5) for part in parts})
    module.register_forward_hook(lambda _m, inputs, _o: plain(inputs[0]))
    assert cause(module, MAP, expected) == text


@pytest.mark.parametrize(
    ("right", "wrong", "text"),
    [
        (conv(2), conv(1), "stride 1 instead of 2"),
        (conv(1), conv(2), "stride 2 instead of 1"),
        (conv(1, 2), conv(1, 1), "dilation 1 instead of 2"),
        (conv(1, 1), conv(1, 2), "dilation 2 instead of 1"),
    ],
    ids=["stride 1", "stride 2", "dilation 1", "dilation 2"],
)
def test_a_convolution(right: nn.Conv2d, wrong: nn.Conv2d, text: str) -> None:
    assert cause(wrong, MAP, right(MAP).detach()) == text


def test_a_convolution_padded_on_the_other_side() -> None:
    x, module = signed(1, 5, 12, 10), conv(2)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), module.weight, stride=2, groups=5).detach()  # Keras's SAME
    assert cause(module, x, expected) == "padding (before, after) (1, 1) instead of (0, 1)"


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (lambda k: k.flip(2, 3), "the kernel is flipped"),
        (lambda k: k.flip(2), "the kernel is flipped top to bottom"),
        (lambda k: k.flip(3), "the kernel is flipped left to right"),
        (lambda k: k.mT, "the kernel is transposed"),
    ],
    ids=["both", "rows", "columns", "transposed"],
)
def test_a_kernel(turn: Callable[[Tensor], Tensor], text: str) -> None:
    module = conv()
    expected = module(MAP).detach()
    module.weight.data = turn(module.weight.data).contiguous()
    assert cause(module, MAP, expected) == text


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            nn.MaxPool2d(3, 2, 1),
            "padding: 1 on every side, where TensorFlow's SAME pads an even side only after it",
        ),
        (nn.MaxPool2d(3, 2), "padding: none"),
        (nn.AvgPool2d(3, 2, 1), "average instead of maximum"),
    ],
    ids=["symmetric", "none", "average"],
)
def test_a_pool(wrong: nn.Module, text: str) -> None:
    x = signed(1, 5, 12, 10)
    assert cause(wrong, x, MaxPoolSame()(x)) == text


def test_a_pool_padded_with_zeros() -> None:
    x = signed(1, 5, 12, 10) - 5
    zeros = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0.0), nn.MaxPool2d(3, 2))
    assert cause(zeros, x, MaxPoolSame()(x)) == "padding: with zeros instead of minus infinity"


class Does(nn.Module):
    def __init__(self, function: Wrong) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


BRANCH = signed(1, 5, 12, 9).flip(1)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda x: BRANCH + x.relu(), "the shortcut is taken after the ReLU"),
        (lambda x: BRANCH, "the shortcut is left out"),
        (lambda x: BRANCH + 2 * x, "the shortcut is added twice"),
        (lambda x: (BRANCH + x).relu(), "an activation too many: this is the ReLU of what is expected"),
        (lambda x: -(BRANCH + x), "negated"),
        (lambda x: 1.5 * (BRANCH + x), "scaled by 1.5"),
        (lambda x: 0 * x, "all zero"),
        (lambda x: x / 0, "not finite"),
        (lambda x: (BRANCH + x).float().double(), "lost precision: off by about float32's rounding"),
        (lambda x: (BRANCH + x).roll((1, 1), (2, 3)), "shifted by a pixel: padding on the other side"),
        (lambda x: (BRANCH + x)[:, :, ::2, ::2], "stride or padding: 6x5 instead of 12x9"),
        (lambda x: (BRANCH + x)[:, :3], "another shape"),
    ],
)
def test_a_sum(wrong: Wrong, text: str) -> None:
    assert cause(Does(wrong), MAP, BRANCH + MAP) == text


def test_a_missing_activation() -> None:
    assert cause(nn.Identity(), MAP, MAP.relu()) == "the activation is missing"
    assert cause(nn.ReLU6(), 9 * MAP, (9 * MAP).relu()) == "ReLU6 instead of ReLU"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda y: y.roll(1, -1), "outputs are shifted by one (a class offset)"),
        (lambda y: F.pad(y, (1, 0)), "one output too many in front (the background class)"),
        (lambda y: y.softmax(-1), "an activation too many: this is the softmax of what is expected"),
    ],
)
def test_a_classifier(wrong: Wrong, text: str) -> None:
    module, x = bias_and_dense(), signed(2, 6)
    expected = module(x).detach()
    module.register_forward_hook(lambda _m, _i, output: wrong(output))
    assert cause(module, x, expected) == text


def test_a_classifier_without_its_bias() -> None:
    module, x = bias_and_dense(), signed(2, 6)
    expected, bias = module(x).detach(), module.bias.data
    module.register_forward_hook(lambda _m, _i, output: output - bias)
    assert cause(module, x, expected) == "the bias is left out"


def test_a_global_pool() -> None:
    assert cause(Does(lambda x: x.amax((2, 3))), MAP, MAP.mean((2, 3))) == "maximum instead of average"


@pytest.mark.parametrize("module", [norm(), conv(), nn.ReLU(), Does(lambda x: BRANCH + x)])
def test_what_is_not_explained_is_not_guessed(module: nn.Module) -> None:
    """The control: a difference of another kind gets no cause."""
    expected = module(MAP).detach() + 0.1 * signed(1, 5, 12, 9).flip(3)
    assert cause(module, MAP, expected) == ""


def test_a_reference_that_is_not_finite() -> None:
    assert cause(nn.ReLU(), MAP, MAP / 0) == "the reference is not finite"
