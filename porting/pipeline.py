"""From a source to an emitted file: read, plan, convert, prove, and only then give it a name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from porting import artifact, rules
from porting.errors import ErrorKind, PortingError
from porting.findings import report
from porting.formats import check_possible, entries, timm_note, with_older, write, write_hf
from porting.forms import Form
from porting.manifest import (
    SCHEMA_VERSION,
    UNVERIFIED,
    VERIFIED,
    Manifest,
    manifest_path,
    merged,
    read_labels,
    read_manifest,
    report_path,
    versions,
)
from porting.origins import AUTO, UNKNOWN, Origin, Progress, Quiet, find
from porting.plan import Options, Plan, build_plan, fitting_archs, nearest_arch
from porting.recognition import DEFAULT_SIZE, Recognised, recognise
from porting.reference import SharedReference
from porting.report.files import as_text
from porting.request import HF, PTH, contradiction
from porting.sources import open_source
from porting.sources.unchanging import unchanging
from porting.state_dict import read_weights

if TYPE_CHECKING:
    from porting.parity import Trace
    from porting.proof import Proof

_PREFIXES = {rules.KERAS_ARCH: "xception", **{arch: f"tf_{scope}" for arch, scope in rules.ALIGNED_SCOPES.items()}}


@dataclass(frozen=True)
class PortResult:
    """What a port made.

    Attributes:
        path: the emitted file, or timm's folder, absolute; of several formats, the first.
        manifest: as written beside it.
        traces: the comparisons, one for each run; empty if not verified.
        report: what was proved, as data (`porting.report.schema`).
        notes: what the user should hear of.
        seconds: wall-clock time.
    """

    path: Path
    manifest: Manifest
    traces: tuple[Trace, ...]
    report: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float


def port(
    src: str | Path,
    arch: str,
    *,
    out: str | Path = "checkpoints",
    keep_background: bool = False,
    ema: bool = False,
    backbone_only: bool = False,
    labels: str | Path | None = None,
    licence: str = UNKNOWN,
    upstream: str = UNKNOWN,
    fold_bn: bool = False,
    bn_eps: float = rules.BATCH_NORM_EPSILON,
    dtype: str = "float32",
    formats: Sequence[str] = (PTH,),
    verify: bool = True,
    fast: bool = False,
    reference_python: str | None = None,
    tensorflow: SharedReference | None = None,
    progress: Progress | None = None,
) -> PortResult:
    """Port a source to PyTorch, prove it against TensorFlow, and emit it.

    Args:
        src: a path to any container that `porting.sources` reads, an http(s) URL, "official" for the network's
            published file, or "synthetic[:SEED]" for random weights that TensorFlow writes.
        arch: xception, xception41, xception65 or xception71, or "auto" for the one that the source fits.
        out: folder for the result; created.
        keep_background: keep class 0 of a 1001-class classifier.
        ema: take ExponentialMovingAverage shadows.
        backbone_only: leave the classifier out.
        labels: file of class names for the manifest.
        licence, upstream: recorded in the manifest; of official sources, known.
        fold_bn: fold every batch norm into the convolution before it, for `create_model(folded=True)`.
        bn_eps: emit weights for a network whose batch norms have this epsilon.
        dtype: "float32", or "float16" or "bfloat16" to round every weight to.
        formats: any of "pth", "safetensors" and "hf" (a folder that timm loads).
        verify: prove the port; without it the manifest says unverified.
        fast: verify at one size, the source's own or 299x299, and not at small sizes, other strides or with probes.
        reference_python: the interpreter that runs TensorFlow; default this one.
        tensorflow: its process, for several ports one after the other; default one of this port's own.
        progress: told of each stage and step.

    Raises:
        PortingError: the source is missing, corrupt, unsupported or another network; parity failed; or the result
            could not be written. Nothing is left behind.
        ValueError: no such arch, dtype or format, or options that contradict each other.
    """
    if arch not in (*rules.ARCHS, AUTO):
        raise ValueError(f"arch: expected one of {', '.join(rules.ARCHS)} or {AUTO}, found {arch!r}")
    if problem := contradiction(arch, fold_bn, bn_eps, dtype, formats):
        raise ValueError(problem)
    form = Form(fold_bn, dtype, bn_eps)
    began = time.monotonic()
    watch = progress or Quiet()
    folder = Path(out).absolute()
    with ExitStack() as stack:
        tensorflow = tensorflow or stack.enter_context(SharedReference(reference_python))
        origin = find(src, arch, stack, watch, tensorflow)
        origin = replace(
            origin,
            licence=origin.licence if licence == UNKNOWN else licence,
            upstream=origin.upstream if upstream == UNKNOWN else upstream,
        )
        source = stack.enter_context(open_source(origin.path))
        unchanged = stack.enter_context(unchanging(source))
        recognised = recognise(source)
        options = Options(keep_background, ema, backbone_only)
        if arch == AUTO:
            arch = _fitting(origin, recognised, options, fold_bn, bn_eps, dtype, formats)
        plan = build_plan(recognised.contents, arch, options)
        check_possible(formats, plan, origin.path)
        source.verify_files()
        names = read_labels(Path(labels), plan.classes, recognised.activation) if labels is not None else None
        reference = tensorflow.take(src) if verify else None  # it starts while the weights are read
        artifact.prepare_folder(folder)
        state = form.apply(arch, read_weights(plan, source, recognised.contents, watch))
        form.check(plan, recognised.contents, state)
        content = artifact.content_digest(state)
        emitted = write(formats, state, folder, f"{_PREFIXES[arch]}{form.suffix}", stack)
        del state
        proof = None
        if verify and reference is not None:
            from porting.proof import prove, read_back

            for one in emitted[1:]:
                read_back(Path(one.file.name), content)
            proof = prove(recognised, plan, reference, Path(emitted[0].file.name), content, watch, form, fast)
        notes = (*plan.notes, *recognised.notes(plan), *form.notes(), *_timm_notes(arch, form, formats))
        manifest = _manifest(recognised, plan, origin, proof, names, content, form)
        manifest["notes"] = list(notes)
        parity = manifest["parity"]
        stack.enter_context(artifact.one_writer(folder))
        final = emitted[0].shown
        beside = manifest_path(emitted[0].path if emitted[0].format != HF else folder / f"{final.name}.hf")
        before = read_manifest(beside)
        manifest = merged(manifest, before)
        extras: dict[Path, IO[bytes]] = {}
        for one in emitted:
            if one.format == HF:
                extras = write_hf(one.shown, manifest, stack, folder)
        manifest["files"] = with_older(entries(emitted, folder, extras), before, folder)
        # All is whole on the disk before anything gets its name: a full disk leaves nothing.
        finished = {**extras, **{one.path: one.file for one in emitted if not one.there}}
        if manifest != before:
            finished[beside] = stack.enter_context(artifact.temporary_file(folder))
            artifact.write_json(finished[beside], manifest)
        account = {
            "source": manifest["source"],
            "weights": {
                "file": final.name,
                "sha256": emitted[0].digest,
                "content_digest": content,
                "variant": manifest["variant"],
            },
            "notes": notes,
            "versions": manifest["versions"],
        }
        found = report(form.plan(plan), [], proof, **account)
        if proof and manifest["parity"] == parity:  # an earlier, longer proof keeps its report
            finished[report_path(beside)] = stack.enter_context(artifact.temporary_file(folder))
            artifact.write_text(finished[report_path(beside)], as_text(found))
        unchanged()
        artifact.publish(finished)
    return PortResult(final, manifest, proof.traces if proof else (), found, notes, time.monotonic() - began)


def _fitting(origin: Origin, recognised: Recognised, options: Options, *asked: Any) -> str:
    """The network that a source fits, or the nearest: its plan then says what is missing.

    Raises:
        PortingError: mismatch, where what is asked for is not possible for this network.
    """
    fits = fitting_archs(recognised.contents, options)
    arch = fits[0] if fits else nearest_arch(recognised.contents, options)[0]
    if problem := contradiction(arch, *asked):
        raise PortingError(ErrorKind.MISMATCH, origin.path, [problem], f"It holds {arch}: port it by itself.")
    return arch


def _timm_notes(arch: str, form: Form, formats: Sequence[str]) -> tuple[str, ...]:
    """What whoever asked for weights that timm takes must know of them."""
    note = timm_note(arch, form.bn_eps) if HF in formats or form.bn_eps != rules.BATCH_NORM_EPSILON else ""
    return (note,) if note else ()


def _manifest(
    recognised: Recognised,
    plan: Plan,
    origin: Origin,
    proof: Proof | None,
    labels: list[str] | None,
    content: str,
    form: Form,
) -> Manifest:
    model = recognised.model
    return {
        "schema_version": SCHEMA_VERSION,
        "arch": plan.arch,
        "num_classes": plan.classes,
        "variant": form.variant,
        "head": {
            "kind": "chain" if plan.chain else "dense" if plan.classes else "none",
            "activation": (model.head.activation or None) if model and plan.classes else None,
            "background_dropped": plan.skipped > 0,
            "layers": list(recognised.contents.head_layers),
            **(plan.chain or {}),
        },
        "labels": labels,
        "source": {
            "kind": recognised.source.container,
            "name": origin.name,
            "digest": recognised.source.digest(),
            "synthetic": origin.synthetic,
        },
        "mapped": len(plan.table.rules),
        "unread": [{"name": item.name, "reason": item.reason} for item in plan.unread],
        "parity": {"verdict": VERIFIED, **proof.summary()} if proof else {"verdict": UNVERIFIED},
        "notes": [],
        "files": [],
        "content_digest": content,
        "versions": versions(proof is not None),
        "preprocessing": _preprocessing(recognised, plan),
        "licence": origin.licence,
        "upstream": origin.upstream,
    }


def _preprocessing(recognised: Recognised, plan: Plan) -> dict[str, Any]:
    """The published evaluation's, with what the source's own layers say instead."""
    from models.info import get_info

    published = get_info(plan.arch).preprocessing
    inputs = recognised.model.inputs if recognised.model else None
    height, width = (inputs.size if inputs else None) or DEFAULT_SIZE
    mean, std, source = list(published.mean), list(published.std), "published"
    if inputs and inputs.affine:
        # The source's layers map pixels p of 0..255 to scale*p + offset; here pixels are p/255.
        scale, offset = inputs.affine
        std = [1 / (255 * s) for s in scale]
        mean = [-o * d for o, d in zip(offset, std, strict=True)]
        source = ", ".join(inputs.layers)
    return {
        "input_size": [3, height, width],
        "interpolation": published.interpolation,
        "crop_pct": published.crop_pct,
        "mean": mean,
        "std": std,
        "source": source,
    }
