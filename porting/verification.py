"""An existing `.pth` against the source that it is said to come from: every bit of the weights, then every layer."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from porting import artifact, rules
from porting.bitwise import Fault, compare_weights
from porting.errors import Defect, ErrorKind, PortingError
from porting.manifest import VERIFIED, Manifest, manifest_path, merged, read_manifest
from porting.origins import Progress, Quiet, find
from porting.plan import Options, Plan, build_plan, fitting_archs
from porting.recognition import Recognised, recognise
from porting.reference import Reference
from porting.sources import open_source

if TYPE_CHECKING:
    from porting.proof import Proof

FAILED = "failed"
# Other ports' names for the classifier: Cadene's pretrained-models calls it last_linear.
_OTHER_NAMES = {"last_linear.weight": "fc.weight", "last_linear.bias": "fc.bias"}


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        verdict: "verified" or "failed".
        arch: the network.
        parameters: how many were compared bit for bit.
        faults: parameters that differ.
        proof: the layers, unless only weights were asked for or they cannot be loaded.
    """

    verdict: str
    arch: str
    parameters: int
    faults: tuple[Fault, ...]
    proof: Proof | None

    def as_json(self) -> dict[str, Any]:
        """verdict, reference, layers and faulty, as `python -m porting.verify --json` prints them."""
        faulty: list[dict[str, Any]] = [
            {
                "layer": fault.parameter,
                "variable": fault.variable,
                "error": fault.error if math.isfinite(fault.error) else None,
                "cause": fault.cause,
                "index": list(fault.index),
                "expected": fault.expected,
                "found": fault.found,
            }
            for fault in self.faults
        ]
        layers = []
        for trace in self.proof.traces if self.proof else ():
            for layer in trace.layers:
                error = layer.error if math.isfinite(layer.error) else None
                size = list(trace.size)
                layers.append(
                    {"layer": layer.layer, "module": layer.module, "size": size, "error": error, "passed": layer.passed}
                )
        return {
            "verdict": self.verdict,
            "arch": self.arch,
            "reference": self.proof.reference if self.proof else None,
            "layers": layers,
            "faulty": faulty,
        }


def verify(
    weights: str | Path,
    src: str | Path,
    arch: str | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    weights_only: bool = False,
    ema: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Hold a PyTorch file to its source; a manifest beside a file that passes is upgraded to verified.

    Args:
        weights: a `.pth` with the layout of this project, timm or Cadene.
        src: as `porting.port` takes it.
        arch: the network; default the manifest's, else the one that the source fits.
        sizes: heights and widths to run at; default as `porting.port` proves.
        weights_only: compare the weights alone, which needs no TensorFlow.
        ema: the file holds ExponentialMovingAverage shadows.
        progress: told of each stage and step.

    Raises:
        PortingError: a file that cannot be read, or a source that cannot be ported at all.
    """
    weights, watch = Path(weights), progress or Quiet()
    state = _load(weights)
    manifest = read_manifest(manifest_path(weights))
    if manifest:
        _check_digest(weights, manifest)
    variant = manifest["variant"] if manifest else {}
    if variant.get("folded") or variant.get("dtype", "float32") != "float32":
        raise PortingError(
            ErrorKind.UNSUPPORTED, weights, [f"a variant that is not verified yet: {variant}"], "Verify the plain file."
        )
    with ExitStack() as stack:
        origin = find(src, arch or (manifest["arch"] if manifest else ""), stack, watch)
        recognised = recognise(stack.enter_context(open_source(origin.path)))
        plan = _plan(weights, recognised, state, arch or (manifest["arch"] if manifest else None), ema)
        recognised.source.verify_files()
        reference = origin.reference
        if not weights_only and reference is None:
            reference = stack.enter_context(Reference(src))
        arrays = {name: value.numpy() for name, value in state.items()}
        faults = compare_weights(plan, recognised.source, recognised.contents, arrays)
        proof = None
        if not weights_only and reference is not None and not any(math.isinf(fault.error) for fault in faults):
            from porting.proof import compare, network

            model = network(plan, _with_counters(state))
            chosen = list(sizes) or recognised.proof_sizes()
            proof = compare(recognised, plan, reference, model, chosen, watch)
        passed = not faults and (weights_only or (proof is not None and proof.passed))
        if passed and proof and manifest:
            stack.enter_context(artifact.one_writer(weights.absolute().parent))
            manifest = read_manifest(manifest_path(weights)) or manifest  # another process may have written meanwhile
            upgraded = merged({**manifest, "parity": {"verdict": VERIFIED, **proof.summary()}}, manifest)
            if upgraded != manifest:
                file = stack.enter_context(artifact.temporary_file(weights.absolute().parent))
                artifact.write_json(file, upgraded)
                artifact.publish({manifest_path(weights): file})
    return Verification(VERIFIED if passed else FAILED, plan.arch, len(plan.table.rules), tuple(faults), proof)


def _load(path: Path) -> dict[str, Tensor]:
    """The file's tensors under this project's names."""
    if not path.is_file():
        raise PortingError(ErrorKind.MISSING, path, ["no such file"], "Check the path.")
    try:
        loaded: Any = artifact.read_state(path)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PortingError(
            ErrorKind.CORRUPT, path, [f"not a state dict that loads with weights_only=True ({reason})"],
            "Give a file of plain tensors, as torch.save writes a state dict.",
        ) from None  # fmt: skip
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    state: dict[str, Tensor] = {}
    for name, value in loaded.items() if isinstance(loaded, Mapping) else [("", None)]:
        if not isinstance(value, Tensor):
            raise PortingError(ErrorKind.UNSUPPORTED, path, ["not a state dict"], "Give a mapping of names to tensors.")
        state[_OTHER_NAMES.get(str(name), str(name))] = value.detach()
    return state


def _check_digest(weights: Path, manifest: Manifest) -> None:
    """The manifest beside a file must be the file's own."""
    digest = artifact.file_digest(weights)
    recorded = [entry["sha256"] for entry in manifest["files"]]
    if digest not in recorded:
        raise PortingError(
            ErrorKind.CORRUPT,
            weights,
            [Defect("sha256", digest, f"{' or '.join(recorded)}, as the manifest beside it says")],
            "The file was changed after it was emitted: port it again, or remove the manifest to verify it as it is.",
        )


def _with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the batch counters that older files lack."""
    import torch

    complete = dict(state)
    for name in state:
        if name.endswith(".running_var"):
            complete.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return complete


def _plan(weights: Path, recognised: Recognised, state: Mapping[str, Tensor], arch: str | None, ema: bool) -> Plan:
    """The plan whose classifier has as many classes as the file's."""
    contents = recognised.contents
    head = next((state[name] for name in ("head.fc.weight", "fc.weight") if name in state), None)
    options = Options(ema=ema, backbone_only=head is None)
    if arch is None:
        fits = fitting_archs(contents, options) or rules.ARCHS[:1]
        arch = fits[0]
    plan = build_plan(contents, arch, options)
    if head is None or head.shape[0] == plan.classes:
        return plan
    with_background = build_plan(contents, arch, replace(options, keep_background=True))
    if head.shape[0] == with_background.classes:
        return with_background
    raise PortingError(
        ErrorKind.MISMATCH,
        weights,
        [Defect("classifier", f"{head.shape[0]} classes", f"{plan.classes} classes, as the source holds")],
        "Give the source that the file was ported from.",
    )
