"""From a source to an emitted file: read, plan, convert, prove, and only then give it a name."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porting import artifact, rules
from porting.errors import Defect, ErrorKind, PortingError
from porting.findings import report
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
from porting.origins import UNKNOWN, Origin, Progress, Quiet, find
from porting.plan import Contents, Options, Plan, build_plan
from porting.recognition import DEFAULT_SIZE, Recognised, recognise
from porting.reference import Reference
from porting.report.files import as_text
from porting.sources import TensorSource, open_source

if TYPE_CHECKING:
    from porting.parity import Trace
    from porting.proof import Proof

_PREFIXES = {rules.KERAS_ARCH: "xception", **{arch: f"tf_{scope}" for arch, scope in rules.ALIGNED_SCOPES.items()}}


@dataclass(frozen=True)
class PortResult:
    """What a port made.

    Attributes:
        path: the emitted `.pth`, absolute.
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
    verify: bool = True,
    reference_python: str | None = None,
    progress: Progress | None = None,
) -> PortResult:
    """Port a source to PyTorch, prove it against TensorFlow, and emit it.

    Args:
        src: a path to any container that `porting.sources` reads, an http(s) URL, "official" for the network's
            published file, or "synthetic[:SEED]" for random weights that TensorFlow writes.
        arch: xception, xception41, xception65 or xception71.
        out: folder for the result; created.
        keep_background: keep class 0 of a 1001-class classifier.
        ema: take ExponentialMovingAverage shadows.
        backbone_only: leave the classifier out.
        labels: file of class names for the manifest.
        licence, upstream: recorded in the manifest; of official sources, known.
        verify: prove the port; without it the manifest says unverified.
        reference_python: the interpreter that runs TensorFlow; default this one.
        progress: told of each stage and step.

    Raises:
        PortingError: the source is missing, corrupt, unsupported or another network; parity failed; or the result
            could not be written. Nothing is left behind.
        ValueError: no such arch.
    """
    if arch not in rules.ARCHS:
        raise ValueError(f"arch: expected one of {', '.join(rules.ARCHS)}, found {arch!r}")
    began = time.monotonic()
    watch = progress or Quiet()
    folder = Path(out).absolute()
    with ExitStack() as stack:
        origin = find(src, arch, stack, watch)
        origin = replace(
            origin,
            licence=origin.licence if licence == UNKNOWN else licence,
            upstream=origin.upstream if upstream == UNKNOWN else upstream,
        )
        source = stack.enter_context(open_source(origin.path))
        recognised = recognise(source)
        plan = build_plan(recognised.contents, arch, Options(keep_background, ema, backbone_only))
        source.verify_files()
        names = read_labels(Path(labels), plan.classes, recognised.activation) if labels is not None else None
        reference = origin.reference
        if verify and reference is None:
            reference = stack.enter_context(
                Reference(src, reference_python)
            )  # TensorFlow starts while the weights are read
        artifact.prepare_folder(folder)
        state = read_weights(plan, source, recognised.contents, watch)
        file = stack.enter_context(artifact.temporary_file(folder))
        artifact.write_state(file, state)
        content = artifact.content_digest(state)
        del state
        proof = None
        if verify and reference is not None:
            from porting.proof import prove

            proof = prove(recognised, plan, reference, Path(file.name), content, watch)
        digest = artifact.file_digest(Path(file.name))
        manifest = _manifest(recognised, plan, origin, proof, names, content)
        stack.enter_context(artifact.one_writer(folder))
        final, there = artifact.final_path(folder, _PREFIXES[arch], digest)
        size = Path(file.name).stat().st_size
        manifest["files"] = [{"name": final.name, "format": "pth", "bytes": size, "sha256": digest}]
        before = read_manifest(manifest_path(final))
        manifest = merged(manifest, before)
        # Both are whole on the disk before either gets its name: a full disk leaves neither.
        finished = {} if there else {final: file}
        if manifest != before:
            finished[manifest_path(final)] = stack.enter_context(artifact.temporary_file(folder))
            artifact.write_json(finished[manifest_path(final)], manifest)
        notes = (*plan.notes, *recognised.notes(plan))
        account = {
            "source": manifest["source"],
            "weights": {
                "file": final.name,
                "sha256": digest,
                "content_digest": content,
                "variant": manifest["variant"],
            },
            "notes": notes,
            "versions": manifest["versions"],
        }
        found = report(plan, [], proof, **account)
        if proof:
            finished[report_path(final)] = stack.enter_context(artifact.temporary_file(folder))
            artifact.write_text(finished[report_path(final)], as_text(found))
        artifact.publish(finished)
    return PortResult(final, manifest, proof.traces if proof else (), found, notes, time.monotonic() - began)


def read_weights(plan: Plan, source: TensorSource, contents: Contents, progress: Progress) -> dict[str, Any]:
    """The state dict of a plan: every variable read once, converted, and checked to be finite.

    Raises:
        PortingError: corrupt (a checksum, NaN or infinity in a weight) or as the source's `read` says.
    """
    import torch

    progress.start("reading", len(plan.table.rules))
    state: dict[str, Any] = {}
    for rule in plan.table.rules:
        own = contents.own(rule.variable)
        target = rule.float32(source.read(own))
        _check_finite(source, own, target)
        state[rule.parameter] = torch.from_numpy(target)
        if rule.parameter.endswith(".running_var"):
            # PyTorch counts the batches that a running statistic saw; a ported one starts anew.
            state[rule.parameter.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        progress.step()
    return state


def _check_finite(source: TensorSource, name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    bad = int((~finite).sum())
    first = values.reshape(-1)[int((~finite).reshape(-1).argmax())]
    raise PortingError(
        ErrorKind.CORRUPT,
        source.path,
        [Defect(name, f"{bad} of {values.size} not finite (the first is {first})", "finite values")],
        "The training that wrote it diverged, or the file is damaged; use an earlier checkpoint.",
    )


def _manifest(
    recognised: Recognised, plan: Plan, origin: Origin, proof: Proof | None, labels: list[str] | None, content: str
) -> Manifest:
    model = recognised.model
    return {
        "schema_version": SCHEMA_VERSION,
        "arch": plan.arch,
        "num_classes": plan.classes,
        "variant": {"folded": False, "dtype": "float32", "bn_eps": rules.BATCH_NORM_EPSILON},
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
