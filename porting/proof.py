"""Holding an emitted file to TensorFlow: every bit of its weights, then every layer at several sizes and strides."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from porting import artifact, parity
from porting.bitwise import compare_weights
from porting.errors import Defect, ErrorKind, PortingError, corrupt
from porting.forms import PLAIN, Form
from porting.lockstep import lockstep
from porting.origins import Progress, Quiet
from porting.parity import LayerResult, Trace
from porting.plan import Plan
from porting.recognition import Recognised, reference_name, reference_source
from porting.reference import Recording, Reference
from porting.reference.frames import Frame
from porting.rules import TracePoint
from porting.runs import Run, proof_runs, run_of, trace_request
from porting.state_dict import read_weights

Image = npt.NDArray[np.float32]
Frames = Callable[[Sequence[Run]], Iterable[tuple[Image, Iterator[Frame]]]]
Networks = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Proof:
    """What was compared, and how close it was.

    Attributes:
        traces: every layer, once for each run.
        reference: what the port was held to.
        stored: the comparisons of weights that are stored in a smaller type, as they are stored; `traces` are then
            those of the weights before. They have a bound of their own.
    """

    traces: tuple[Trace, ...]
    reference: str
    stored: tuple[Trace, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.traces) and all(trace.passed for trace in (*self.traces, *self.stored))

    @property
    def worst(self) -> LayerResult:
        return max((trace.worst for trace in self.traces), key=lambda layer: layer.error)

    @property
    def worst_float32(self) -> LayerResult | None:
        """The layer whose float32 error is the most times TensorFlow's own; None where float32 was not run."""
        run = [(layer.float32, layer) for trace in self.traces for layer in trace.layers]
        return max(
            ((f.error / f.bound, layer) for f, layer in run if f), key=lambda pair: pair[0], default=(0.0, None)
        )[1]

    def summary(self) -> dict[str, Any]:
        """The manifest's account of it."""
        result: dict[str, Any] = {
            "reference": self.reference,
            "precision": "float64",
            "runs": [trace.run.as_json() for trace in self.traces],
            "bound": self.worst.bound,
            "worst": {"layer": self.worst.layer, "error": self.worst.error},
        }
        lighter = self.worst_float32
        if lighter and lighter.float32:
            worst = {"layer": lighter.layer, "error": lighter.float32.error, "noise": lighter.float32.noise}
            result["float32"] = {"factor": parity.FLOAT32_FACTOR, "worst": worst}
        if self.stored:
            layer = max((trace.worst for trace in self.stored), key=lambda worst: worst.error)
            result["stored"] = {"bound": layer.bound, "worst": {"layer": layer.layer, "error": layer.error}}
        return result


def reference_frames(reference: Reference, silent: Iterable[str] = ()) -> Frames:
    """Runs of TensorFlow's process; `silent` as `porting.runs.trace_request` takes it."""

    def frames(runs: Sequence[Run]) -> Iterable[tuple[Image, Iterator[Frame]]]:
        requests = [trace_request(run, silent) for run in runs]
        return zip((request.image for request in requests), reference.traces(requests), strict=True)

    return frames


def recorded_frames(recording: Recording) -> tuple[Frames, list[Run]]:
    """Runs of a trace file, and which they are.

    Raises:
        PortingError: corrupt.
    """
    try:
        runs = [run_of(entry, bool(entry["float32"])) for entry in recording.runs]
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(recording.path, "runs", f"not what porting.trace writes ({error})") from None
    return lambda asked: (recording.run(runs.index(run)) for run in asked), runs


def read_back(file: Path, content: str) -> dict[str, Tensor]:
    """The state dict of a file that was just written.

    Args:
        content: the content digest of what was written.

    Raises:
        PortingError: output, where the disk gives back something else.
    """
    state = artifact.read_state(file)
    if artifact.content_digest(state) != content:
        raise PortingError(ErrorKind.OUTPUT, file, ["reads back differently than it was written"], "Check the disk.")
    return state


def prove(
    recognised: Recognised,
    plan: Plan,
    reference: Reference,
    file: Path,
    content: str,
    progress: Progress,
    form: Form = PLAIN,
    fast: bool = False,
) -> Proof:
    """Load a written file back and hold it to its source and to TensorFlow's execution of it.

    Args:
        content: the content digest of what was written.
        form: what was written.
        fast: at one size only.

    Raises:
        PortingError: parity, naming the first wrong parameter or layer with both values; reference; output, where the
            disk gives back something else than was written.
    """
    state = read_back(file, content)
    faults = compare_weights(plan, recognised.source, recognised.contents, form.arrays(state), form)
    if faults:
        raise PortingError(
            ErrorKind.PARITY,
            recognised.source.path,
            [Defect(f"{fault.variable} (PyTorch {fault.parameter})", fault.found, fault.expected) for fault in faults],
            "Nothing was emitted. The source changed while it was read, or this is a fault of the port.",
        )
    state = artifact.read_state(file)  # mapped anew: the memory that the checks touched is given back
    name = reference.open(reference_source(recognised, plan)) or reference_name(recognised, plan)
    runs = proof_runs(recognised, plan.arch, fast=fast)
    frames = reference_frames(reference, form.silent(plan))
    proof = compare_form(recognised, plan, form, state, frames, runs, name, progress)
    for trace in (*proof.traces, *proof.stored):
        if not trace.passed:
            raise _layer_differs(recognised, trace)
    return proof


def compare_form(
    recognised: Recognised,
    plan: Plan,
    form: Form,
    state: Mapping[str, Tensor],
    frames: Frames,
    runs: Sequence[Run],
    reference: str,
    progress: Progress,
    wrong_weights: Container[str] = (),
) -> Proof:
    """Run this project's network of a form with a file's state dict, as `compare` does.

    Weights of a smaller type would hide small faults. So the same weights before they were rounded are compared first,
    within their own bound; the bits of the file are known to be those, rounded. Then the stored ones are, without
    float32's own check, within the bound of their type.

    Raises:
        PortingError: reference; corrupt, in a source that is read again.
    """
    run_form = partial(compare, form.plan(plan), frames, reference=reference, wrong_weights=wrong_weights)
    if form.stored_bound is None:
        networks = partial(form.network, plan, state)
        return run_form(networks=networks, runs=runs, progress=progress, bound=form.bound)
    plain = read_weights(plan, recognised.source, recognised.contents, Quiet())
    exact = partial(form.exact.network, plan, form.exact.apply(plan.arch, plain))
    proof = run_form(networks=exact, runs=runs, progress=progress, bound=form.bound)
    small = [run for run in runs if not run.float32]
    few = [*[run for run in small if not run.probe][:1], *[run for run in small if run.probe][:1]]
    stored = partial(form.network, plan, state)
    after = run_form(networks=stored, runs=few, progress=progress, bound=form.stored_bound)
    return replace(proof, stored=after.traces)


def compare(
    plan: Plan,
    frames: Frames,
    networks: Networks,
    runs: Sequence[Run],
    reference: str,
    progress: Progress,
    points: Sequence[TracePoint] = (),
    wrong_weights: Container[str] = (),
    bound: float = parity.FLOAT64_BOUND,
) -> Proof:
    """Run a network beside the reference, whatever comes of it.

    Args:
        networks: the network at an output stride, a new one each time.
        points: what to compare; default everything that the plan's table pairs.
        wrong_weights: modules whose difference needs no other explanation.
        bound: what each layer's float64 error may be.

    Raises:
        PortingError: reference.
    """
    points = points or plan.table.points
    progress.start("verifying against TensorFlow", len(points) * len(runs))
    traces = []
    made: dict[int, nn.Module] = {}  # a run leaves its network as it was
    for run, (pixels, activations) in zip(runs, frames(runs), strict=True):
        if run.output_stride not in made:
            made[run.output_stride] = networks(run.output_stride)
        model = made[run.output_stride]
        lighter = networks(run.output_stride) if run.float32 else None
        traces.append(
            lockstep(
                model,
                points,
                pixels,
                activations,
                run,
                float32=lighter,
                skip=plan.skipped,
                wrong_weights=wrong_weights,
                bound=bound,
                step=progress.step,
            )
        )
    return Proof(tuple(traces), reference)


def _layer_differs(recognised: Recognised, trace: Trace) -> PortingError:
    wrong = trace.faulty[0]
    where = f"{wrong.layer} (PyTorch {wrong.module}) at {trace.run}, index {list(wrong.index)}"
    if wrong.agrees and wrong.float32:
        found = f"in float32 {wrong.float32.error:.3g} of the layer's largest off, {wrong.float32.noise:.3g} is noise"
        expected = f"at most {wrong.float32.bound:.3g}"
    else:
        found = f"{wrong.ported!r}; error {wrong.error:.3g} of the layer's largest, bound {wrong.bound:g}"
        expected = f"{wrong.reference!r} as TensorFlow computes"
    return PortingError(
        ErrorKind.PARITY,
        recognised.source.path,
        [Defect(where, found, expected)],
        f"Nothing was emitted. {len(trace.faulty)} of {len(trace.layers)} layers are faulty; this is the first."
        + (f" Likely cause: {wrong.cause}." if wrong.cause else "")
        + " Please report it.",
    )
