"""One network of synthetic weights, cut into parts that run by themselves on inputs that are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from porting.forms import PLAIN, Form
from porting.lockstep import lockstep
from porting.origins import Quiet
from porting.parity import Trace
from porting.plan import Options, Plan, build_plan
from porting.recognition import recognise, reference_source
from porting.reference import Reference
from porting.reference.frames import Frame
from porting.rules import KERAS_ARCH, Rule, TracePoint
from porting.runs import Run, image, proof_runs, trace_request
from porting.sources import open_source
from porting.state_dict import read_weights

Array = npt.NDArray[Any]

# The original's stem, exit and head are no modules of their own; these are their layers in order.
_ORIGINAL_PARTS = (
    ("conv1", "bn1", "act1", "conv2", "bn2", "act2"),
    ("conv3", "bn3", "act3", "conv4", "bn4", "act4"),
    ("global_pool", "drop", "fc"),
)


@dataclass
class Part:
    """A piece of the network: what it computes, what enters it in each run, and what the reference says of it.

    Attributes:
        points: with module paths inside the part; `prefix` in front of one gives the network's path.
    """

    module: nn.Module
    prefix: str
    points: tuple[TracePoint, ...]
    inputs: dict[Run, Array] = field(default_factory=dict)

    def path(self, module: str) -> str:
        return ".".join(filter(None, (self.prefix, module)))


@dataclass
class Case:
    """A right port of a synthetic source; mutants change `networks` in place and put it back."""

    arch: str
    plan: Plan
    arrays: Mapping[str, Array]  # by parameter
    networks: dict[int, nn.Module]  # float64, by output stride
    parts: dict[int, list[Part]]
    frames: dict[Run, dict[str, Frame]]
    form: Form = PLAIN
    plain: Mapping[str, Array] = field(default_factory=dict)  # as ported, before the form is made of them

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(self.frames)

    def trace(self, part: Part, run: Run, wrong_weights: Container[str] = ()) -> Trace:
        """The verifier's own comparison, in one part; `wrong_weights` are modules inside it."""
        frames = [self.frames[run][point.name] for point in part.points]
        skip = self.plan.skipped if part.points[-1].name == self.plan.table.points[-1].name else 0
        trace = lockstep(
            part.module,
            part.points,
            part.inputs[run],
            iter(frames),
            run,
            skip=skip,
            wrong_weights=wrong_weights,
            bound=self.form.bound,
        )
        layers = tuple(replace(layer, module=part.path(layer.module)) for layer in trace.layers)
        return replace(trace, layers=layers)

    def rules(self) -> tuple[Rule, ...]:
        return self.plan.table.rules


def make_case(arch: str, source_path: Path, reference: Reference, form: Form = PLAIN) -> Case:
    """Port a synthetic source in a form, and keep what TensorFlow computes with it."""
    with open_source(source_path) as source:
        recognised = recognise(source)
        plan = build_plan(recognised.contents, arch, Options())
        plain = read_weights(plan, source, recognised.contents, Quiet())
        reference.open(reference_source(recognised, plan))
    state, silent = form.apply(arch, plain), form.silent(plan)
    own = {key: _own(value) for key, value in state.items()}
    # A proof's own small runs; probes first, which show most.
    runs = sorted(proof_runs(recognised, arch)[1:], key=lambda run: not run.probe)
    case = Case(arch, form.plan(plan), _arrays(state), {}, {}, {}, form, _arrays(plain))
    for stride in sorted({run.output_stride for run in runs}):
        case.networks[stride] = form.network(plan, own, stride)
        case.parts[stride] = list(_parts(arch, case.networks[stride], case.plan.table.points))
    for run in runs:
        stride = run.output_stride
        frames = reference.trace(trace_request(run, silent))
        case.frames[run] = {frame.name: frame for frame in frames}
        _keep_inputs(case, run)
    return case


def _arrays(state: Mapping[str, Tensor]) -> dict[str, Array]:
    return {key: value.numpy() for key, value in state.items()}


def _own(value: Tensor) -> Tensor:
    """In float64 already, so that no run has to cast it; a mutant's values stay float32's."""
    return value.double() if value.is_floating_point() else value.clone()


def _parts(arch: str, network: Any, points: Sequence[TracePoint]) -> Iterator[Part]:
    if arch == KERAS_ARCH:
        stem, last, head = (
            (nn.Sequential(OrderedDict((leaf, getattr(network, leaf)) for leaf in leaves)), "")
            for leaves in _ORIGINAL_PARTS
        )
        blocks = [(module, name) for name, module in network.named_children() if name.startswith("block")]
        pieces = [stem, *blocks, last, head]
    else:
        pieces = [(network.stem, "stem"), *((b, f"blocks.{i}") for i, b in enumerate(network.blocks))]
        pieces.append((network.head, "head"))
    for module, prefix in pieces:
        own = {f"{prefix}.{name}".strip(".") if name else prefix: name for name, _ in module.named_modules()}
        inside = [replace(point, module=own[point.module]) for point in points if point.module in own]
        yield Part(module, prefix, tuple(inside))


def _keep_inputs(case: Case, run: Run) -> None:
    """What enters each part, in a run that also shows that the port is right."""
    network = case.networks[run.output_stride]
    with ExitStack() as stack:
        for part in case.parts[run.output_stride]:
            first = next(module for module in part.module.modules() if not list(module.children()))
            module = first if not part.prefix else part.module

            def keep(_module: nn.Module, inputs: tuple[Any, ...], part: Part = part) -> None:
                part.inputs[run] = np.array(_channels_last(inputs[0]))

            stack.callback(module.register_forward_pre_hook(keep).remove)
        frames = iter(case.frames[run].values())
        trace = lockstep(
            network,
            case.plan.table.points,
            image(*run.size),
            frames,
            run,
            skip=case.plan.skipped,
            bound=case.form.bound,
        )
    assert trace.passed, trace.faulty


def _channels_last(value: Tensor) -> Array:
    array: Array = (value.permute(0, 2, 3, 1) if value.dim() == 4 else value).numpy()
    return array


@torch.no_grad()
def parameter(network: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its key."""
    module, _, leaf = name.rpartition(".")
    value: Tensor = getattr(network.get_submodule(module), leaf)
    return value.data
