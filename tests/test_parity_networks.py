"""The proof itself: a right port passes every layer, and each wrong one fails at the layer that is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from models import create_model
from porting.origins import Quiet
from porting.parity import FLOAT32_BOUND, LayerResult, Trace, chained, float32_output, load_network, probe_image
from porting.pipeline import read_weights
from porting.plan import Options, Plan, build_plan
from porting.recognition import recognise, reference_source
from porting.reference import Activation, Reference
from porting.rules import TracePoint
from porting.sources import open_source

SIZE = (65, 70)  # odd by even; the original's first pool sees 30x32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These layers are small: a second thread only waits, and on a busy machine it waits long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """A synthetic source's weights as ported, and what TensorFlow computes with them."""

    plan: Plan
    state: dict[str, Tensor]
    image: npt.NDArray[np.float32]
    frames: list[tuple[str, Activation]]

    def network(self) -> Any:
        """A network of its own; its parameters may be replaced, but are shared with every other one."""
        return load_network(partial(create_model, self.plan.arch, num_classes=self.plan.classes), self.state)

    def trace(self, model: nn.Module, **changes: Any) -> Trace:
        given: dict[str, Any] = {"table": self.plan.table, "skip": self.plan.skipped, "reference": iter(self.frames)}
        given |= changes
        return chained(model, given["table"], self.image, given["reference"], given["skip"])


@pytest.fixture(scope="session")
def case(synthetic_source: Callable[[str], Path]) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def of(arch: str) -> Case:
        if arch not in made:
            image = probe_image(*SIZE)
            with open_source(synthetic_source(arch)) as source, Reference(arch) as reference:
                recognised = recognise(source)
                plan = build_plan(recognised.contents, arch, Options())
                state = read_weights(plan, source, recognised.contents, Quiet())
                reference.open(reference_source(recognised, plan))
                made[arch] = Case(plan, state, image, list(reference.trace(image)))
        return made[arch]

    return of


@pytest.mark.parametrize("arch", ["xception", "xception41"])
def test_a_right_port_passes_every_layer(case: Callable[[str], Case], arch: str) -> None:
    right = case(arch)
    steps: list[int] = []
    trace = chained(
        right.network(),
        right.plan.table,
        right.image,
        iter(right.frames),
        right.plan.skipped,
        step=lambda: steps.append(1),
    )
    points = right.plan.table.points
    assert trace.first_wrong is None
    assert trace.worst.error < 1e-12
    assert trace.worst.error > 0  # an exact zero everywhere would mean that nothing was compared
    assert {layer.layer for layer in trace.layers} == {point.name for point in points}
    assert len(trace.layers) == len(steps) == len(points)
    assert trace.size == SIZE
    np.testing.assert_array_equal(trace.output, right.frames[-1][1][:, right.plan.skipped :])


def test_every_activation_of_the_reference_is_compared(case: Callable[[str], Case]) -> None:
    """TensorFlow's side emits no activation that the tables pass over."""
    for arch in ("xception", "xception41"):
        assert {name for name, _ in case(arch).frames} == {point.name for point in case(arch).plan.table.points}


def test_weights_are_float32_again_bit_for_bit(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    right.trace(model)
    for key, value in model.state_dict().items():
        assert value.dtype is before[key].dtype
        assert torch.equal(value, before[key]), key
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


MIDDLE = "xception_41/middle_flow/block1/unit_{}/xception_module"
EXIT = "xception_41/exit_flow/block1/unit_1/xception_module"


def parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def other_epsilon(model: Any) -> None:
    model.blocks[3].stack.conv2.bn_pw.eps = 1e-5


def swapped_statistics(model: Any) -> None:
    norm = model.stem[1].bn
    norm.running_mean, norm.running_var = norm.running_var.clone(), norm.running_mean.clone()


def swapped_scale_and_centre(model: Any) -> None:
    norm = model.blocks[11].stack.conv1.bn_dw
    norm.weight, norm.bias = parameter(norm.bias.data), parameter(norm.weight.data)


def transposed_kernel(model: Any) -> None:
    conv = model.stem[0].conv
    conv.weight = parameter(conv.weight.data.transpose(2, 3))


def transposed_depthwise_kernel(model: Any) -> None:
    conv = model.blocks[7].stack.conv3.conv_dw
    conv.weight = parameter(conv.weight.data.transpose(2, 3))


def one_element(model: Any) -> None:
    conv = model.blocks[6].stack.conv2.conv_pw
    weight = conv.weight.data.clone()
    weight.view(-1)[int(weight.abs().argmax())] *= 1 + 1e-6
    conv.weight = parameter(weight)


def missing_relu(model: Any) -> None:
    model.blocks[5].stack.act2 = nn.Identity()


def relu_before_the_shortcut(model: Any) -> None:
    model.blocks[4].register_forward_pre_hook(lambda _module, inputs: (inputs[0].relu(), *inputs[1:]))


def exchanged_layers(model: Any) -> None:
    one, other = model.blocks[4].stack.conv1.conv_dw, model.blocks[5].stack.conv1.conv_dw
    one.weight, other.weight = other.weight, one.weight


def shifted_logits(model: Any) -> None:
    model.head.fc.weight = parameter(model.head.fc.weight.data.roll(1, 0))
    model.head.fc.bias = parameter(model.head.fc.bias.data.roll(1, 0))


def keras_padding_of_a_strided_convolution(model: Any) -> None:
    conv = model.stem[0].conv
    conv.padding = (0, 0)
    conv.register_forward_pre_hook(lambda _module, inputs: (nn.functional.pad(inputs[0], (0, 1, 0, 1)),))


def symmetric_pool(model: Any) -> None:
    model.block1.rep[5] = nn.MaxPool2d(3, stride=2, padding=1)


def exchanged_blocks(model: Any) -> None:
    model.block6, model.block7 = model.block7, model.block6


def other_shortcut_epsilon(model: Any) -> None:
    model.block12.skipbn.eps = 1e-5


@pytest.mark.parametrize(
    ("arch", "fault", "layer"),
    [
        ("xception41", other_epsilon, f"{MIDDLE.format(1)}/separable_conv2_pointwise/BatchNorm"),
        ("xception41", swapped_statistics, "xception_41/entry_flow/conv1_2/BatchNorm"),
        ("xception41", swapped_scale_and_centre, f"{EXIT}/separable_conv1_depthwise/BatchNorm"),
        ("xception41", transposed_kernel, "xception_41/entry_flow/conv1_1/Conv2D"),
        ("xception41", transposed_depthwise_kernel, f"{MIDDLE.format(5)}/separable_conv3_depthwise/depthwise"),
        ("xception41", one_element, f"{MIDDLE.format(4)}/separable_conv2_pointwise/Conv2D"),
        ("xception41", missing_relu, f"{MIDDLE.format(3)}/Relu_1"),
        ("xception41", relu_before_the_shortcut, f"{MIDDLE.format(2)}/add"),
        ("xception41", exchanged_layers, f"{MIDDLE.format(2)}/separable_conv1_depthwise/depthwise"),
        ("xception41", shifted_logits, "xception_41/logits"),
        ("xception41", keras_padding_of_a_strided_convolution, "xception_41/entry_flow/conv1_1/Conv2D"),
        ("xception", symmetric_pool, "block2_pool"),
        ("xception", exchanged_blocks, "block7_sepconv1"),
        ("xception", other_shortcut_epsilon, "batch_normalization_3"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_wrong_port_fails_at_the_layer_that_is_wrong(
    case: Callable[[str], Case], arch: str, fault: Callable[[Any], None], layer: str
) -> None:
    model = case(arch).network()
    fault(model)
    wrong = case(arch).trace(model).first_wrong
    assert wrong is not None
    assert wrong.layer == layer


def test_a_wrong_background_row_fails_at_the_logits(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    wrong = right.trace(right.network(), skip=0).first_wrong
    assert wrong is not None
    assert (wrong.layer, wrong.error) == ("xception_41/logits", math.inf)


# --- a reference that does not keep its side --------------------------------------------------------------------------


def wrong_layers(trace: Trace) -> list[LayerResult]:
    return [layer for layer in trace.layers if not layer.passed]


def test_a_reference_that_ends_early_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    trace = right.trace(right.network(), reference=iter(right.frames[:-3]))
    gone = {name for name, _ in right.frames[-3:]}
    assert {layer.layer for layer in wrong_layers(trace)} == gone
    assert all(layer.error == math.inf for layer in wrong_layers(trace))


def test_a_reference_that_says_nothing_fails_at_the_first_layer(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    trace = right.trace(right.network(), reference=iter([]))
    assert len(wrong_layers(trace)) == len(right.plan.table.points)


@pytest.mark.parametrize("at", [0, 77, -1])
def test_a_reference_that_lacks_a_layer_fails_at_it(case: Callable[[str], Case], at: int) -> None:
    right = case("xception41")
    frames = list(right.frames)
    name, _ = frames.pop(at)
    trace = right.trace(right.network(), reference=iter(frames))
    assert [layer.layer for layer in wrong_layers(trace)] == [name]


def test_a_reference_that_is_not_finite_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    name, values = right.frames[40]
    frames = [*right.frames[:40], (name, np.full_like(values, math.nan)), *right.frames[41:]]
    trace = right.trace(right.network(), reference=iter(frames))
    assert [layer.layer for layer in wrong_layers(trace)] == [name]


def test_a_layer_that_is_never_called_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    model.unused = nn.ReLU()
    ghost = TracePoint("ghost/Relu", "unused")
    table = replace(right.plan.table, trace=(ghost, *right.plan.table.trace))
    assert [layer.layer for layer in wrong_layers(right.trace(model, table=table))] == ["ghost/Relu"]


def test_a_layer_that_is_called_twice_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    act = model.stem[0].act
    model.stem[1].register_forward_pre_hook(lambda _module, inputs: (act(inputs[0]),))
    wrong = right.trace(model).first_wrong
    assert wrong is not None
    assert wrong.layer == "xception_41/entry_flow/conv1_1/Relu"


def test_a_reference_is_read_to_its_end(case: Callable[[str], Case]) -> None:
    """What is left in a stream would be taken for the answer to the next request."""
    right = case("xception41")
    frames = iter([*right.frames, ("extra", np.ones(1))])
    right.trace(right.network(), reference=frames)
    assert next(frames, None) is None


# --- the emitted file in float32 --------------------------------------------------------------------------------------


def logits_of(right: Case) -> Activation:
    return right.frames[-1][1][:, right.plan.skipped :]


@pytest.mark.parametrize("arch", ["xception", "xception41"])
def test_float32_output_of_a_right_port(case: Callable[[str], Case], arch: str) -> None:
    right = case(arch)
    result = float32_output(right.network(), right.image, logits_of(right))
    assert result.passed
    assert 0 < result.error < FLOAT32_BOUND / 4


def test_float32_output_of_a_wrong_port(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    model.blocks[11].stack.conv3.bn_pw.eps = 1e-5
    assert not float32_output(model, right.image, logits_of(right)).passed
