"""Holding an emitted file to TensorFlow: every layer in float64, and the reloaded network's output in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models import create_model
from porting import artifact, parity
from porting.errors import Defect, ErrorKind, PortingError
from porting.origins import Progress
from porting.plan import Plan
from porting.recognition import Recognised, reference_name, reference_source
from porting.reference import Reference


@dataclass(frozen=True)
class Proof:
    """What was compared, and how close it was.

    Attributes:
        traces: every layer, once for each input size.
        float32: the output in float32.
        reference: what the port was held to.
    """

    traces: tuple[parity.Trace, ...]
    float32: parity.Float32Result
    reference: str

    @property
    def passed(self) -> bool:
        return self.float32.passed and not any(trace.first_wrong for trace in self.traces)

    @property
    def worst(self) -> parity.LayerResult:
        return max((trace.worst for trace in self.traces), key=lambda layer: layer.error)

    def summary(self) -> dict[str, Any]:
        """The manifest's account of it."""
        return {
            "reference": self.reference,
            "precision": "float64",
            "sizes": [list(trace.size) for trace in self.traces],
            "bound": parity.FLOAT64_BOUND,
            "worst": {"layer": self.worst.layer, "error": self.worst.error},
            "float32": {"bound": self.float32.bound, "error": self.float32.error},
        }


def prove(
    recognised: Recognised, plan: Plan, reference: Reference, file: Path, content: str, progress: Progress
) -> Proof:
    """Load a written file back and hold it to TensorFlow's execution of the source.

    Args:
        content: the content digest of what was written.

    Raises:
        PortingError: parity, naming the first wrong layer with both values; reference; output, where the disk gives
            back something else than was written.
    """
    state = artifact.read_state(file)
    if artifact.content_digest(state) != content:
        raise PortingError(ErrorKind.OUTPUT, file, ["reads back differently than it was written"], "Check the disk.")
    proof = compare(recognised, plan, reference, network(plan, state), recognised.proof_sizes(), progress)
    for trace in proof.traces:
        if trace.first_wrong:
            raise _layer_differs(recognised, trace, trace.first_wrong)
    float32 = proof.float32
    if not float32.passed:
        found = f"error {float32.error:.3g}" + ("" if float32.same_class else " and another arg max")
        raise PortingError(
            ErrorKind.PARITY,
            recognised.source.path,
            [Defect("output in float32 after reload", found, f"at most {float32.bound:g} of the largest output")],
            "Nothing was emitted. This is a fault of the port or of this machine's PyTorch; please report it.",
        )
    return proof


def compare(
    recognised: Recognised,
    plan: Plan,
    reference: Reference,
    model: nn.Module,
    sizes: Sequence[tuple[int, int]],
    progress: Progress,
) -> Proof:
    """Run a network beside TensorFlow at each size, whatever comes of it; later sizes end where one has differed.

    Raises:
        PortingError: reference.
    """
    reference.open(reference_source(recognised, plan))
    progress.start("verifying against TensorFlow", len(plan.table.points) * len(sizes))
    traces: list[parity.Trace] = []
    for size in sizes:
        image = parity.probe_image(*size)
        frames = reference.trace(image)
        traces.append(parity.chained(model, plan.table, image, frames, plan.skipped, step=progress.step))
        if traces[-1].first_wrong:
            break
    float32 = parity.float32_output(model, parity.probe_image(*sizes[0]), traces[0].output)
    return Proof(tuple(traces), float32, reference_name(recognised, plan))


def network(plan: Plan, state: Mapping[str, Tensor]) -> Any:
    """The plan's network with a state dict's tensors, strictly."""
    return parity.load_network(partial(create_model, plan.arch, num_classes=plan.classes), state)


def _layer_differs(recognised: Recognised, trace: parity.Trace, wrong: parity.LayerResult) -> PortingError:
    faulty = sum(not layer.passed for layer in trace.layers)
    height, width = trace.size
    where = f"{wrong.layer} (PyTorch {wrong.module}) at {height}x{width}, index {list(wrong.index)}"
    found = f"{wrong.ported!r}; error {wrong.error:.3g} of the layer's largest, bound {wrong.bound:g}"
    return PortingError(
        ErrorKind.PARITY,
        recognised.source.path,
        [Defect(where, found, f"{wrong.reference!r} as TensorFlow computes")],
        f"Nothing was emitted. {faulty} of {len(trace.layers)} layers differ; this is the first. Please report it.",
    )
