"""An existing `.pth` against the source that it is said to come from: every bit of the weights, then every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.manifest import find_manifest
from models.weights import classes_of, epsilon_of, is_folded
from porting import artifact, rules
from porting.bitwise import Fault, compare_weights
from porting.errors import Defect, ErrorKind, PortingError
from porting.findings import layer_of, report
from porting.forms import Form, form_of
from porting.manifest import VERIFIED, Manifest, check_chain, merged, read_manifest, versions
from porting.networks import UserNetwork, user_network
from porting.origins import AUTO, Progress, Quiet, find
from porting.plan import Options, Plan, build_plan, fitting_archs
from porting.recognition import Recognised, recognise, reference_name, reference_source
from porting.reference import Recording, Reference, SharedReference
from porting.runs import proof_runs
from porting.sources import open_source
from porting.sources.unchanging import unchanging
from porting.weights_file import check_digest, read_weights_file, with_counters

if TYPE_CHECKING:
    from porting.proof import Proof


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        verdict: "verified" or "failed".
        arch: the network.
        parameters: how many were compared bit for bit.
        faults: parameters that differ.
        proof: the layers, unless only weights were asked for or they cannot be loaded.
        report: all of it as data, as `porting.report.schema` documents.
    """

    verdict: str
    arch: str
    parameters: int
    faults: tuple[Fault, ...]
    proof: Proof | None
    report: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.verdict == VERIFIED


def verify(
    weights: str | Path,
    src: str | Path,
    arch: str | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    network: str | None = None,
    weights_only: bool = False,
    ema: bool = False,
    trace: str | Path | None = None,
    reference_python: str | None = None,
    tensorflow: SharedReference | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Hold a PyTorch file to its source; a manifest beside a file that passes is upgraded to verified.

    Args:
        weights: a `.pth` with the layout of this project, timm or Cadene.
        src: as `porting.port` takes it.
        arch: the network; default the manifest's, else the one that the source fits.
        sizes: heights and widths to run at; default as `porting.port` proves.
        network: "MODULE:FACTORY" of the network to run, instead of this project's.
        weights_only: compare the weights alone, which needs no TensorFlow.
        ema: the file holds ExponentialMovingAverage shadows.
        trace: a file of `porting.trace`, in TensorFlow's place.
        reference_python: the interpreter that runs TensorFlow.
        tensorflow: its process; default one of this call's own.
        progress: told of each stage and step.

    Raises:
        PortingError: a file that cannot be read, or a source that cannot be ported at all.
    """
    weights, watch = Path(weights), progress or Quiet()
    state = read_weights_file(weights)
    listed = find_manifest(weights)
    manifest = read_manifest(listed[0]) if listed else None
    digest = check_digest(weights, manifest) if manifest else artifact.file_digest(weights)
    form = _form(weights, manifest, state)
    arch = arch or (manifest["arch"] if manifest else None)
    with ExitStack() as stack:
        tensorflow = tensorflow or stack.enter_context(SharedReference(reference_python))
        origin = find(src, arch or AUTO, stack, watch, tensorflow)
        source = stack.enter_context(open_source(origin.path))
        unchanged = stack.enter_context(unchanging(source))
        recognised = recognise(source)
        plan = _plan(weights, recognised, state, arch, ema)
        if manifest:
            check_chain(weights, manifest, plan.chain)
        recognised.source.verify_files()
        theirs = user_network(network, form.plan(plan), with_counters(state)) if network else None
        recording = stack.enter_context(Recording(Path(trace))) if trace else None
        if recording:
            recording.check(plan.arch, recognised.source.digest())
        reference = None
        if not weights_only and recording is None:
            reference = tensorflow.take(src)  # it starts while the weights are compared
        faults = compare_weights(plan, recognised.source, recognised.contents, form.arrays(state), form)
        proof = None
        if not weights_only and not any(math.isinf(fault.error) for fault in faults):
            held_to = recording or reference
            assert held_to is not None
            proof = _prove(recognised, plan, form, with_counters(state), held_to, theirs, sizes, faults, watch)
        notes = list(form.notes())
        if theirs and theirs.unseen:
            notes.append(f"No module of {network} shows these by themselves: {', '.join(theirs.unseen)}.")
        if faults and proof is None and not weights_only:
            notes.append("No layer was run: these weights do not fit the network.")
        found = report(
            form.plan(plan),
            faults,
            proof,
            source={
                "name": origin.name,
                "kind": recognised.source.container,
                "digest": recognised.source.digest(),
                "synthetic": origin.synthetic,
            },
            weights={
                "file": weights.name,
                "sha256": digest,
                "content_digest": artifact.content_digest(state),
                "variant": form.variant,
            },
            notes=notes,
            versions=versions(proof is not None and recording is None),
            weights_only=weights_only,
        )
        unchanged()
        if found["verdict"] == VERIFIED and proof and manifest and listed and theirs is None:
            _upgrade(stack, listed[0], manifest, proof)
    return Verification(found["verdict"], plan.arch, found["weights"]["parameters"], tuple(faults), proof, found)


def _form(weights: Path, manifest: Manifest | None, state: Mapping[str, Tensor]) -> Form:
    """The form of a file: as its tensors show, and for the epsilon its manifest or its name.

    Raises:
        PortingError: mismatch, with a manifest that says otherwise; unsupported (several types of weights).
    """
    recorded = manifest["variant"] if manifest else {}
    eps = epsilon_of(weights, None if recorded.get("bn_eps") is None else float(recorded["bn_eps"]))
    form = form_of(state, eps, is_folded(state))
    said = {key: recorded.get(key, value) for key, value in form.variant.items()}
    if said != form.variant:
        raise PortingError(
            ErrorKind.MISMATCH,
            weights,
            [
                Defect(f"variant: {key}", str(form.variant[key]), str(said[key]))
                for key in said
                if said[key] != form.variant[key]
            ],
            "The manifest is another file's: remove it to verify the file as it is.",
        )
    mixed = [name for name, value in state.items() if value.dtype is torch.bfloat16 and form.dtype != "bfloat16"]
    if mixed:
        raise PortingError(
            ErrorKind.UNSUPPORTED, weights, [Defect(name, "bfloat16", form.dtype) for name in mixed],
            "Store all weights in one type.",
        )  # fmt: skip
    return form


def _prove(
    recognised: Recognised,
    plan: Plan,
    form: Form,
    state: Mapping[str, Tensor],
    held_to: Reference | Recording,
    theirs: UserNetwork | None,
    sizes: Sequence[tuple[int, int]],
    faults: Sequence[Fault],
    watch: Progress,
) -> Proof:
    from porting import proof

    if isinstance(held_to, Recording):
        frames, runs = proof.recorded_frames(held_to)
        name = held_to.reference
        if form.folded:  # recorded probes entered the batch norms, which are not there
            runs = [run for run in runs if not run.probe]
    else:
        name = held_to.open(reference_source(recognised, plan)) or reference_name(recognised, plan)
        frames, runs = proof.reference_frames(held_to, form.silent(plan)), proof_runs(recognised, plan.arch, sizes)
    emitted = form.plan(plan)
    wrong = {point.module for fault in faults if (point := layer_of(emitted.table, fault.parameter))}
    if theirs is None:
        return proof.compare_form(recognised, plan, form, state, frames, runs, name, watch, wrong)
    runs = [run for run in runs if run.output_stride == 32]  # what a factory makes has the stride that it has
    networks, bound = (lambda _: theirs.create()), form.stored_bound or form.bound
    return proof.compare(emitted, frames, networks, runs, name, watch, theirs.points, wrong, bound)


def _upgrade(stack: ExitStack, path: Path, manifest: Manifest, proof: Proof) -> None:
    """Record the proof in the manifest."""
    stack.enter_context(artifact.one_writer(path.absolute().parent))
    manifest = read_manifest(path) or manifest  # another process may have written meanwhile
    upgraded = merged({**manifest, "parity": {"verdict": VERIFIED, **proof.summary()}}, manifest)
    if upgraded != manifest:
        file = stack.enter_context(artifact.temporary_file(path.absolute().parent))
        artifact.write_json(file, upgraded)
        artifact.publish({path: file})


def _plan(weights: Path, recognised: Recognised, state: Mapping[str, Tensor], arch: str | None, ema: bool) -> Plan:
    """The plan whose classifier has as many classes as the file's."""
    contents = recognised.contents
    classes = classes_of(state)
    options = Options(ema=ema, backbone_only=not classes)
    if arch is None:
        fits = fitting_archs(contents, options) or rules.ARCHS[:1]
        arch = fits[0]
    plan = build_plan(contents, arch, options)
    if classes == plan.classes:
        return plan
    with_background = build_plan(contents, arch, replace(options, keep_background=True))
    if classes == with_background.classes:
        return with_background
    raise PortingError(
        ErrorKind.MISMATCH,
        weights,
        [Defect("classifier", f"{classes} classes", f"{plan.classes} classes, as the source holds")],
        "Give the source that the file was ported from.",
    )
