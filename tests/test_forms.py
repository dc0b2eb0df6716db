"""Folded networks, and networks of another epsilon: right ones pass, and every way to get one wrong is caught there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import create_model, optimize_for_inference
from models.registry import set_epsilon
from porting import folding
from porting.bitwise import compare_weights
from porting.errors import ErrorKind, PortingError
from porting.forms import EPSILON_BOUND, FOLDED_BOUND, PLAIN, STORED_BOUNDS, Form, form_of
from porting.lockstep import lockstep
from porting.origins import Quiet
from porting.parity import Trace
from porting.plan import Contents, Options, Plan, build_plan
from porting.recognition import recognise, reference_source
from porting.reference import Reference
from porting.reference.frames import Frame
from porting.runs import Run, image, trace_request
from porting.sources import open_source
from porting.state_dict import read_weights

FOLDED = Form(folded=True)
OTHER = Form(bn_eps=1e-5)
RUN = Run((65, 70), float32=True)
SMALL = Run((33, 40))
PROBES = Run((42, 39), probe=True)
ARCHS = ("xception", "xception41")
State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A synthetic source's weights, and what TensorFlow computes with them; probes pass folded batch norms by."""

    arch: str
    plan: Plan
    contents: Contents
    path: Path
    state: Mapping[str, Tensor]
    frames: Mapping[Run, list[Frame]]

    def trace(self, form: Form, state: Mapping[str, Tensor], run: Run = SMALL, model: nn.Module | None = None) -> Trace:
        emitted = form.plan(self.plan)
        return lockstep(
            model or form.network(self.plan, state),
            emitted.table.points,
            image(*run.size),
            iter(self.frames[run]),
            run,
            float32=form.network(self.plan, state) if run.float32 else None,
            skip=self.plan.skipped,
            bound=form.stored_bound or form.bound,
        )

    def faults(self, form: Form, state: Mapping[str, Tensor], *only: str) -> dict[str, str]:
        """Parameters that the bit check finds wrong, with their causes; of the whole network or of some modules."""
        rules = tuple(r for r in self.plan.table.rules if not only or r.parameter.rpartition(".")[0] in only)
        plan = replace(self.plan, table=replace(self.plan.table, rules=rules))
        own = {name: value for name, value in state.items() if not only or name.rpartition(".")[0] in only}
        with open_source(self.path) as source:
            found = compare_weights(plan, source, self.contents, form.arrays(own), form)
        return {fault.parameter: fault.cause for fault in found}


@pytest.fixture(scope="module")
def case(synthetic_source: Callable[[str], Path], _kept_reference: Reference) -> Callable[[str], Case]:
    @lru_cache(None)
    def of(arch: str) -> Case:
        with open_source(synthetic_source(arch)) as source:
            recognised = recognise(source)
            plan = build_plan(recognised.contents, arch, Options())
            state = read_weights(plan, source, recognised.contents, Quiet())
            _kept_reference.open(reference_source(recognised, plan))
            silent = FOLDED.silent(plan)
            frames = {run: list(_kept_reference.trace(trace_request(run, silent))) for run in (RUN, SMALL, PROBES)}
            return Case(arch, plan, recognised.contents, synthetic_source(arch), state, frames)

    return of


# --- folding ----------------------------------------------------------------------------------------------------------


def by_hand(kernel: Any, norm: Mapping[str, Any], epsilon: float) -> tuple[Any, Any]:
    """Kernel and bias in float64 by the definition, an output channel at a time."""
    folded, bias = np.empty(kernel.shape), np.empty(len(kernel))
    for channel in range(len(kernel)):
        mean, variance = float(norm["running_mean"][channel]), float(norm["running_var"][channel])
        gamma = float(norm["weight"][channel]) if "weight" in norm else 1.0
        beta = float(norm["bias"][channel]) if "bias" in norm else 0.0
        folded[channel] = kernel[channel].astype(np.float64) * gamma / np.sqrt(variance + epsilon)
        bias[channel] = beta - mean * gamma / np.sqrt(variance + epsilon)
    return folded, bias


@pytest.mark.parametrize("absent", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_a_fold_is_the_definition_rounded_once(absent: tuple[str, ...]) -> None:
    """With scale or centre off too."""
    random = np.random.default_rng(4)
    norm = {
        "running_mean": random.normal(size=32),
        "running_var": random.uniform(0.01, 3, 32),
        "weight": random.normal(size=32),
        "bias": random.normal(size=32),
    }
    norm = {leaf: values.astype(np.float32) for leaf, values in norm.items() if leaf not in absent}
    kernel = random.normal(size=(32, 3, 3, 3)).astype(np.float32)
    state = {"conv1.weight": torch.from_numpy(kernel), "fc.bias": torch.ones(2)}
    state |= {f"bn1.{leaf}": torch.from_numpy(values) for leaf, values in norm.items()}
    folded = folding.fold("xception", state, 1e-3)
    assert list(folded) == ["conv1.weight", "conv1.bias", "fc.bias"]
    for name, right in zip(("conv1.weight", "conv1.bias"), by_hand(kernel, norm, 1e-3), strict=True):
        assert folded[name].dtype is torch.float32
        # One rounding to float32 of a result that is right to float64's last bits.
        np.testing.assert_allclose(folded[name].numpy(), right, rtol=2**-24 + 1e-15, atol=1e-12)
    with pytest.raises(KeyError, match=r"bn1\.running_var"):
        folding.fold("xception", {key: value for key, value in state.items() if "var" not in key}, 1e-3)


@pytest.mark.parametrize("arch", ["xception", "xception41", "xception65", "xception71"])
def test_no_batch_norm_is_left_and_the_keys_are_the_folded_networks(arch: str) -> None:
    torch.manual_seed(1)
    plain: Any = create_model(arch, num_classes=3)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.1, 2)
            module.running_mean.normal_()
    folded = folding.fold(arch, plain.state_dict(), 1e-3)
    native: Any = create_model(arch, num_classes=3, folded=True)
    native.load_state_dict(folded, strict=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in native.modules())
    counters = sum(name.endswith("num_batches_tracked") for name in plain.state_dict())
    assert counters == len(folding.norms(arch)) and not any("running" in name or "batches" in name for name in folded)
    fast = optimize_for_inference(plain).state_dict()
    assert all(torch.equal(fast[name], value) for name, value in folded.items()), "one arithmetic"


def test_batch_norms_of_a_chain_stay() -> None:
    state = {"fc.0.running_mean": torch.ones(4), "fc.0.running_var": torch.ones(4), "fc.1.weight": torch.ones(2, 4)}
    assert folding.fold("xception", state, 1e-3) == state


@pytest.mark.parametrize("arch", [pytest.param(ARCHS[0], marks=pytest.mark.slow), ARCHS[1]])
def test_a_right_fold_passes_every_layer_and_bit(case: Callable[[str], Case], arch: str) -> None:
    right = case(arch)
    state = FOLDED.apply(arch, right.state)
    trace, probes = right.trace(FOLDED, state, RUN), right.trace(FOLDED, state, PROBES)
    assert trace.passed and probes.passed
    assert 1e-9 < trace.worst.error < FOLDED_BOUND / 10  # the bound has room, and weights were rounded anew
    norms = {point.name for point in right.plan.table.points} - FOLDED.silent(right.plan)
    assert {layer.layer for layer in trace.layers} == norms
    assert len(norms) == len(right.plan.table.points) - len(folding.norms(arch))
    for layer in trace.layers:
        assert layer.float32 is not None and layer.float32.passed and layer.float32.error > 0
    assert right.faults(FOLDED, state) == {}


def wrongly(change: Callable[[State], object], epsilon: float = 1e-3) -> Callable[[str, State], State]:
    def fold(arch: str, parts: State) -> State:
        parts = {name: value.clone() for name, value in parts.items()}
        change(parts)
        return folding.fold(arch, parts, epsilon)

    return fold


def along_the_inputs(arch: str, parts: State) -> State:
    right = folding.fold(arch, parts, 1e-3)
    name = next(name for name, value in parts.items() if value.dim() == 4)
    turned = folding.fold(arch, {**parts, name: parts[name].transpose(0, 1)}, 1e-3)[name].transpose(0, 1)
    return {**right, name: turned.contiguous()}


def set_to(leaf: str, value: float) -> Callable[[State], object]:
    def change(parts: State) -> None:
        for name, values in parts.items():
            if name.endswith(f".{leaf}") and values.dim() == 1:
                values.fill_(value)

    return change


# What is done in one fold, which of weight and bias it makes wrong, and the cause that is named.
FOLDS: dict[str, tuple[Callable[[str, State], State], tuple[str, ...], str]] = {
    "epsilon": (wrongly(lambda _: None, 1e-5), ("weight", "bias"), "folded with epsilon 1e-5"),
    "mean": (wrongly(set_to("running_mean", 0)), ("bias",), "folded without the moving mean"),
    "gamma": (wrongly(set_to("weight", 1)), ("weight", "bias"), "folded without gamma"),
    "beta": (wrongly(set_to("bias", 0)), ("bias",), "folded without beta"),
    "variance": (wrongly(set_to("running_var", 1)), ("weight", "bias"), "folded without the moving variance"),
    "axis": (along_the_inputs, ("weight",), "scaled along its inputs, not its outputs"),
}
# A square pointwise convolution in the middle, its batch norm, and what TensorFlow calls the norm's output.
PLACES = {
    "xception": ("block6.rep.4.pointwise", "block6.rep.5", "block7_sepconv2_bn"),
    "xception41": (
        "blocks.5.stack.conv2.conv_pw",
        "blocks.5.stack.conv2.bn_pw",
        "xception_41/middle_flow/block1/unit_3/xception_module/separable_conv2_pointwise/BatchNorm",
    ),
}


@pytest.mark.parametrize("fault", FOLDS)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_wrong_fold_is_caught_where_it_is(case: Callable[[str], Case], arch: str, fault: str) -> None:
    right, (conv, norm, layer) = case(arch), PLACES[arch]
    fold, leaves, cause = FOLDS[fault]
    parts = {name: value for name, value in right.state.items() if name.startswith((f"{conv}.", f"{norm}."))}
    state = FOLDED.apply(arch, right.state) | fold(arch, dict(parts))
    assert right.faults(FOLDED, state, conv, norm) == {f"{conv}.{leaf}": cause for leaf in leaves}
    for run in (SMALL, PROBES) if "weight" in leaves else (SMALL,):
        (wrong,) = right.trace(FOLDED, state, run).faulty
        assert (wrong.layer, wrong.module) == (layer, conv)
        assert wrong.error > 10 * FOLDED_BOUND


@pytest.mark.parametrize("arch", ARCHS)
def test_a_batch_norm_folded_into_the_wrong_convolution(
    case: Callable[[str], Case], arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, (conv, norm, layer) = case(arch), PLACES[arch]
    norms = folding.norms(arch)
    other = next(name for name, own in norms.items() if right.state[f"{own}.bias"].shape == right.state[
        f"{norm}.bias"].shape and name != conv)  # fmt: skip
    swapped = {**norms, conv: norms[other], other: norm}
    monkeypatch.setattr(folding, "norms", lambda _: swapped)
    state = FOLDED.apply(arch, right.state)
    monkeypatch.undo()
    found = right.faults(FOLDED, state, conv, norm, other, norms[other])
    assert set(found) == {f"{one}.{leaf}" for one in (conv, other) for leaf in ("weight", "bias")}
    faulty = right.trace(FOLDED, state).faulty
    assert {wrong.module for wrong in faulty} == {conv, other} and layer in {wrong.layer for wrong in faulty}
    assert all(wrong.error > 10 * FOLDED_BOUND for wrong in faulty)


# --- another epsilon --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_variances_for_another_epsilon(case: Callable[[str], Case], arch: str) -> None:
    right = case(arch)
    state = OTHER.apply(arch, right.state)
    for name, value in right.state.items():
        same = name not in {f"{norm}.running_var" for norm in folding.norms(arch).values()}
        want = value.numpy() if same else (value.numpy().astype(np.float64) + (1e-3 - 1e-5)).astype(np.float32)
        assert np.array_equal(state[name].numpy(), want), name
    trace = right.trace(OTHER, state)
    assert trace.passed and 1e-9 < trace.worst.error < EPSILON_BOUND / 10
    norm = PLACES[arch][1]
    assert right.faults(OTHER, state, norm) == {}
    # The controls: these weights are wrong for TensorFlow's epsilon, and the plain ones for the other.
    for form, given in ((PLAIN, state), (OTHER, right.state)):
        trace = right.trace(form, given)
        assert len(trace.faulty) == len(folding.norms(arch)) and min(x.error for x in trace.faulty) > 10 * OTHER.bound
    network = OTHER.network(right.plan, state)
    set_epsilon(network, 1e-3)  # type: ignore[arg-type]
    assert not right.trace(OTHER, state, model=network).passed
    assert right.faults(OTHER, right.state, norm) == {f"{norm}.running_var": "offset by -0.00099"}


def test_one_epsilon_left_as_it_was_is_named(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    state = OTHER.apply("xception41", right.state)
    network = OTHER.network(right.plan, state)
    network.blocks[3].stack.conv2.bn_pw.eps = 1e-3  # type: ignore[union-attr, index]
    (wrong,) = right.trace(OTHER, state, model=network).faulty
    assert wrong.module == "blocks.3.stack.conv2.bn_pw"
    assert wrong.error > 100 * OTHER.bound


def test_a_variance_that_would_be_none_is_refused(case: Callable[[str], Case]) -> None:
    right = case("xception41")
    large = Form(bn_eps=2.0)
    with pytest.raises(PortingError, match="a positive variance") as caught:
        large.check(right.plan, right.contents, large.apply("xception41", right.state))
    assert caught.value.kind is ErrorKind.UNSUPPORTED and "--bn-eps" in caught.value.remedy
    assert "BatchNorm/moving_variance (PyTorch " in caught.value.defects[0].subject
    OTHER.check(right.plan, right.contents, OTHER.apply("xception41", right.state))


# --- smaller types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Form(dtype="float16"), Form(dtype="bfloat16"), Form(True, "float16")])
def test_stored_types(case: Callable[[str], Case], form: Form) -> None:
    right = case("xception41")
    state = form.apply("xception41", right.state)
    exact = form.exact.apply("xception41", right.state)
    for name, value in state.items():
        assert value.dtype is (torch.int64 if name.endswith("tracked") else getattr(torch, form.dtype)), name
        assert torch.equal(value, exact[name].to(value.dtype))
    trace = right.trace(form, state)
    assert trace.passed and 1e-5 < trace.worst.error < STORED_BOUNDS[form.dtype] / 10
    conv, norm, _ = PLACES["xception41"]
    assert right.faults(form, state, conv, norm) == {}
    name = f"{conv}.weight"
    off = state[name].clone()
    off.view(torch.int16).view(-1)[7] += 1  # one step of one value
    assert list(right.faults(form, {**state, name: off}, conv, norm)) == [name]
    assert form_of(state, 1e-3, form.folded) == form
    assert form_of({**state, name: off.float()}, 1e-3, form.folded).dtype == "float32"
