"""The proof itself: a right port passes every layer, and each wrong one fails at the layer that is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import create_model
from porting.lockstep import load_network, lockstep
from porting.origins import Quiet
from porting.parity import Trace
from porting.pipeline import read_weights
from porting.plan import Options, Plan, build_plan
from porting.recognition import recognise, reference_source
from porting.reference import Reference
from porting.reference.frames import Frame
from porting.rules import TracePoint
from porting.runs import Run, image, trace_request
from porting.sources import open_source
from tests.network_faults import (
    exchanged_blocks,
    exchanged_layers,
    keras_padding_of_a_strided_convolution,
    missing_relu,
    one_element,
    other_epsilon,
    other_shortcut_epsilon,
    parameter,
    relu_before_the_shortcut,
    shifted_logits,
    swapped_scale_and_centre,
    swapped_statistics,
    symmetric_pool,
    transposed_depthwise_kernel,
    transposed_kernel,
)

RUN = Run((65, 70), float32=True)  # odd by even; the original's first pool sees 30x32
PROBES = Run((42, 39), probe=True)


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
    frames: dict[Run, list[Frame]]

    def network(self) -> Any:
        """A network of its own; its parameters may be replaced, but are shared with every other one."""
        return load_network(partial(create_model, self.plan.arch, num_classes=self.plan.classes), self.state)

    def trace(self, model: nn.Module, run: Run = RUN, **changes: Any) -> Trace:
        frames = changes.pop("frames", self.frames[run])
        given = {"points": self.plan.table.points, "skip": self.plan.skipped, "float32": self.network()} | changes
        return lockstep(model, given.pop("points"), image(*run.size), iter(frames), run, **given)


@pytest.fixture(scope="session")
def case(synthetic_source: Callable[[str], Path], _kept_reference: Reference) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def of(arch: str) -> Case:
        if arch not in made:
            with open_source(synthetic_source(arch)) as source:
                recognised = recognise(source)
                plan = build_plan(recognised.contents, arch, Options())
                state = read_weights(plan, source, recognised.contents, Quiet())
                _kept_reference.open(reference_source(recognised, plan))
                frames = {run: list(_kept_reference.trace(trace_request(run))) for run in (RUN, PROBES)}
                made[arch] = Case(plan, state, frames)
        return made[arch]

    return of


@pytest.mark.parametrize("arch", ["xception", "xception41"])
def test_a_right_port_passes_every_layer(case: Callable[[str], Case], arch: str) -> None:
    right = case(arch)
    steps: list[int] = []
    trace = right.trace(right.network(), step=lambda: steps.append(1))
    points = right.plan.table.points
    assert trace.passed and not trace.faulty
    assert trace.worst.error < 1e-12
    assert trace.worst.error > 0  # an exact zero everywhere would mean that nothing was compared
    assert sorted(layer.layer for layer in trace.layers) == sorted(point.name for point in points)
    assert len(steps) == len(points)
    assert right.trace(right.network(), PROBES).passed


@pytest.mark.parametrize("arch", ["xception", "xception41"])
def test_float32_is_within_its_bound_and_not_exact(case: Callable[[str], Case], arch: str) -> None:
    for layer in case(arch).trace(case(arch).network()).layers:
        assert layer.float32 is not None
        assert 0 < layer.float32.error <= layer.float32.bound
        assert layer.float32.bound < 1e-5


def test_every_activation_of_the_reference_is_compared(case: Callable[[str], Case]) -> None:
    """TensorFlow's side emits no activation that the tables pass over."""
    for arch in ("xception", "xception41"):
        names = {point.name for point in case(arch).plan.table.points}
        assert {frame.name for frame in case(arch).frames[RUN]} == names


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
    faulty = [wrong.layer for run in (RUN, PROBES) for wrong in case(arch).trace(model, run).faulty]
    assert layer in faulty
    for other in set(faulty) - {layer}:  # an exchange has two ends, or two blocks of them
        assert (fault is exchanged_layers and other == f"{MIDDLE.format(3)}/separable_conv1_depthwise/depthwise") or (
            fault is exchanged_blocks and other.startswith(("block7_sepconv", "block8_sepconv"))
        )


def test_a_wrong_background_row_fails_at_the_logits(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    (wrong,) = right.trace(right.network(), skip=0).faulty
    assert (wrong.layer, wrong.error) == ("xception_41/logits", math.inf)
    assert wrong.cause == "one output too few in front (the background class)"


# --- a reference that does not keep its side --------------------------------------------------------------------------


def test_a_reference_that_ends_early_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    trace = right.trace(right.network(), frames=right.frames[RUN][:-3])
    gone = {frame.name for frame in right.frames[RUN][-3:]}
    assert {layer.layer for layer in trace.faulty} == gone
    assert all(layer.error == math.inf for layer in trace.faulty)


def test_a_reference_that_says_nothing_fails_at_the_first_layer(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    trace = right.trace(right.network(), frames=[])
    assert len(trace.faulty) == len(right.plan.table.points)


@pytest.mark.parametrize("at", [0, 77, -1])
def test_a_reference_that_lacks_a_layer_fails_at_it(case: Callable[[str], Case], at: int) -> None:
    right = case("xception41")
    frames = list(right.frames[RUN])
    gone = frames.pop(at)
    trace = right.trace(right.network(), frames=frames)
    assert [layer.layer for layer in trace.faulty] == [gone.name]


def test_a_reference_that_is_not_finite_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    frames = list(right.frames[PROBES])
    frames[40] = Frame(frames[40].name, np.full_like(frames[40].values, math.nan))
    wrong = right.trace(right.network(), PROBES, frames=frames).faulty[0]
    assert (wrong.layer, wrong.cause) == (frames[40].name, "the reference is not finite")


def test_a_layer_that_is_never_called_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    model.unused = nn.ReLU()
    ghost = TracePoint("ghost/Relu", "unused")
    trace = right.trace(model, points=(ghost, *right.plan.table.points), float32=None)
    assert [layer.layer for layer in trace.faulty] == ["ghost/Relu"]


def test_a_layer_that_is_called_twice_fails(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    act = model.stem[0].act
    model.stem[1].register_forward_pre_hook(lambda _module, inputs: (act(inputs[0]),))
    assert [layer.layer for layer in right.trace(model).faulty] == ["xception_41/entry_flow/conv1_1/Relu"]


def test_a_reference_is_read_to_its_end(case: Callable[[str], Case]) -> None:
    """What is left in a stream would be taken for the answer to the next request."""
    right = case("xception41")
    frames = iter([*right.frames[RUN], Frame("extra", np.ones(1))])
    right.trace(right.network(), frames=frames)
    assert next(frames, None) is None


# --- isolation, probes, float32 ---------------------------------------------------------------------------------------


def test_every_faulty_layer_is_named_and_no_innocent_one(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    other_epsilon(model)
    missing_relu(model)
    swapped_scale_and_centre(model)
    shifted_logits(model)
    trace = right.trace(model)
    assert [layer.module for layer in trace.faulty] == [
        "blocks.3.stack.conv2.bn_pw", "blocks.5.stack.act2", "blocks.11.stack.conv1.bn_dw", "head.fc",
    ]  # fmt: skip
    causes = [layer.cause for layer in trace.faulty[:2]]
    assert causes == ["epsilon 1e-05 instead of 0.001", "the activation is missing"]


def test_probes_see_what_a_dead_channel_hides(case: Callable[[str], Case]) -> None:
    """A channel that is never positive hides what follows its ReLU from every image, and from no probe."""
    right = case("xception41")
    frames = {frame.name: frame.values for frame in right.frames[RUN]}
    rectified = frames[f"{MIDDLE.format(4)}/Relu_1"]
    dead = int(np.flatnonzero(rectified.reshape(-1, rectified.shape[-1]).max(0) == 0)[0])
    model = right.network()
    conv = model.blocks[6].stack.conv2.conv_dw
    weight = conv.weight.data.clone()
    weight[dead] *= -1
    conv.weight = parameter(weight)
    assert right.trace(model).passed
    (wrong,) = right.trace(model, PROBES).faulty
    assert (wrong.module, wrong.index[-1]) == ("blocks.6.stack.conv2.conv_dw", dead)


def test_less_than_float32_is_seen_at_its_layer(case: Callable[[str], Case]) -> None:
    """What computes in less precision than float32 has right weights and agrees in float64."""
    right = case("xception41")
    coarse = right.network()
    coarse.blocks[4].stack.conv3.bn_pw.register_forward_hook(lambda _m, _i, output: output.bfloat16().float())
    trace = right.trace(right.network(), float32=coarse)
    assert trace.faulty[0].module == "blocks.4.stack.conv3.bn_pw"
    assert trace.faulty[0].agrees
    assert not trace.passed


def test_a_network_that_works_in_place_is_compared_before_it_overwrites(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model, lighter = right.network(), right.network()
    for network in (model, lighter):
        network.stem[1].act = nn.ReLU(inplace=True)
    assert right.trace(model, float32=lighter).passed
    model.blocks[4].stack.act1 = nn.ReLU(inplace=True)  # this one overwrites the unit's input, which the sum takes
    (wrong,) = right.trace(model).faulty
    assert (wrong.module, wrong.cause) == (
        "blocks.4",
        "the shortcut is taken after the ReLU, which overwrites its input",
    )


def test_where_a_network_stops_is_named_and_nothing_after_it(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    model = right.network()
    model.blocks[2].stack.conv1.conv_pw = nn.Conv2d(7, 728, 1)
    trace = right.trace(model)
    assert not trace.passed
    (wrong,) = trace.faulty
    assert wrong.module == "blocks.2.stack.conv1.conv_pw"
    assert wrong.cause.startswith("the network stops here: RuntimeError")
    assert len(trace.layers) == len(right.plan.table.points)
