"""From a source to an emitted file: read, plan, convert, prove, and only then give it a name."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from porting import artifact, parity, rules
from porting.errors import Defect, ErrorKind, PortingError
from porting.keras_names import KerasContents, is_keras, keras_contents
from porting.manifest import UNKNOWN, UNVERIFIED, VERIFIED, Manifest, manifest_path, merged, read_labels, read_manifest
from porting.plan import Contents, Options, Plan, build_plan
from porting.reference import Reference, ReferenceSource
from porting.sources import TensorSource, open_source

SYNTHETIC = "synthetic"
DEFAULT_SIZE = (299, 299)  # what all four networks are evaluated at
# A second proof at a small, odd-by-even size: at 299 most pools are padded evenly on both sides, so that a port with
# symmetric padding could pass; here the original's pools meet both cases.
SECOND_SIZE = (97, 130)
_PREFIXES = {rules.KERAS_ARCH: "xception", **{arch: f"tf_{scope}" for arch, scope in rules.ALIGNED_SCOPES.items()}}
_CROP = {rules.KERAS_ARCH: 0.8975}
_ALIGNED_CROP = 0.903


class Progress(Protocol):
    """What a caller is told while a port runs."""

    def start(self, stage: str, total: int) -> None: ...

    def step(self) -> None: ...


class Quiet:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int) -> None: ...

    def step(self) -> None: ...


@dataclass(frozen=True)
class PortResult:
    """What a port made.

    Attributes:
        path: the emitted `.pth`, absolute.
        manifest: as written beside it.
        traces: the comparisons, one for each input size; empty if not verified.
        notes: what the user should hear of.
        seconds: wall-clock time.
    """

    path: Path
    manifest: Manifest
    traces: tuple[parity.Trace, ...]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Job:
    """One source, understood."""

    source: TensorSource
    plan: Plan
    keras: KerasContents | None
    contents: Contents
    options: Options
    synthetic: str
    notes: list[str] = field(default_factory=list)


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
    progress: Progress | None = None,
) -> PortResult:
    """Port a source to PyTorch, prove it against TensorFlow, and emit it.

    Args:
        src: a checkpoint (prefix, index or folder), a Keras file, or "synthetic[:SEED]".
        arch: xception, xception41, xception65 or xception71.
        out: folder for the result; created.
        keep_background: keep class 0 of a 1001-class classifier.
        ema: take ExponentialMovingAverage shadows.
        backbone_only: leave the classifier out.
        labels: file of class names for the manifest.
        licence, upstream: recorded in the manifest.
        verify: prove the port; without it the manifest says unverified.
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
    options = Options(keep_background, ema, backbone_only)
    folder = Path(out).absolute()
    with ExitStack() as stack:
        reference, synthetic = None, ""
        if str(src).partition(":")[0] == SYNTHETIC:
            reference = stack.enter_context(Reference(src))
            path = _synthesize(reference, str(src), arch, Path(stack.enter_context(_scratch())), watch)
            synthetic = str(src)
        else:
            path = Path(src)
        job = _understand(stack.enter_context(open_source(path)), arch, options, synthetic)
        names = read_labels(Path(labels), job.plan.classes) if labels is not None else None
        if verify and reference is None:
            reference = stack.enter_context(Reference(src))  # TensorFlow starts while the weights are read
        artifact.prepare_folder(folder)
        state = read_weights(job.plan, job.source, job.contents, watch)
        file = stack.enter_context(artifact.temporary_file(folder))
        artifact.write_state(file, state)
        content = artifact.content_digest(state)
        del state
        proof = None
        if verify and reference is not None:
            proof = _prove(job, reference, file, content, watch)
        digest = artifact.file_digest(Path(file.name))
        manifest = _manifest(job, proof, names, licence, upstream, content)
        final = artifact.publish(file, folder, _PREFIXES[arch], digest)
        manifest["files"] = [{"name": final.name, "format": "pth", "bytes": final.stat().st_size, "sha256": digest}]
        manifest = merged(manifest, read_manifest(manifest_path(final)))
        if manifest != read_manifest(manifest_path(final)):
            artifact.write_json(manifest_path(final), manifest)
    traces = proof.traces if proof else ()
    return PortResult(final, manifest, traces, (*job.plan.notes, *job.notes), time.monotonic() - began)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="porting-synthetic-")


def _synthesize(reference: Reference, src: str, arch: str, folder: Path, progress: Progress) -> Path:
    _, _, seed = src.partition(":")
    if seed and not seed.isdecimal():
        raise PortingError(
            ErrorKind.MISSING, src, [f"the seed is a whole number, found {seed!r}"], "Give synthetic, or synthetic:7."
        )
    progress.start("TensorFlow writes a synthetic source", 1)
    path = reference.synthesize(arch, int(seed or 0), folder)
    progress.step()
    return path


def _understand(source: TensorSource, arch: str, options: Options, synthetic: str) -> _Job:
    """Names, plan and notes for a source; nothing but names and shapes is read."""
    keras = keras_contents(source) if is_keras(source) else None
    contents = keras.contents if keras else Contents(str(source.path), source.specs)
    plan = build_plan(contents, arch, options)
    source.verify_files()
    notes = []
    if keras and keras.model:
        notes += [f"before the network: {layer}, not understood and not ported" for layer in keras.model.inputs.unknown]
        if keras.model.head.activation and plan.classes:
            notes.append(f"{keras.model.head.activation} after the head is not part of the port: logits come out")
    return _Job(source, plan, keras, contents, options, synthetic, notes)


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
        values = rule.convert(source.read(own))
        target = np.empty(values.shape, np.float32)
        np.copyto(target, values, casting="same_kind")
        _check_finite(source, own, target)
        state[rule.parameter] = torch.from_numpy(target)
        if rule.parameter.endswith(".running_var"):
            # PyTorch counts the batches that a running statistic saw; a ported one starts anew.
            state[rule.parameter.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        progress.step()
    return state


def _check_finite(source: TensorSource, name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    if np.isfinite(values).all():
        return
    bad = int((~np.isfinite(values)).sum())
    found = values.reshape(-1)[int((~np.isfinite(values)).reshape(-1).argmax())]
    raise PortingError(
        ErrorKind.CORRUPT,
        source.path,
        [Defect(name, f"{bad} of {values.size} not finite (the first is {found})", "finite values")],
        "The training that wrote it diverged, or the file is damaged; use an earlier checkpoint.",
    )


@dataclass(frozen=True)
class _Proof:
    traces: tuple[parity.Trace, ...]
    float32: parity.Float32Result
    reference: str


def _prove(job: _Job, reference: Reference, file: IO[bytes], content: str, progress: Progress) -> _Proof:
    """Load the written file back and hold it to TensorFlow; raises PortingError: parity."""
    state = artifact.read_state(Path(file.name))
    if artifact.content_digest(state) != content:
        raise PortingError(
            ErrorKind.OUTPUT, file.name, ["reads back differently than it was written"], "Check the disk."
        )
    model = _network(job.plan, state)
    reference.open(reference_source(job.source, job.plan, job.keras))
    sizes = proof_sizes(job.keras)
    points = len(job.plan.table.trace) + (2 if job.plan.table.logits else 1)
    progress.start("verifying against TensorFlow", points * len(sizes))
    traces = []
    for size in sizes:
        image = parity.probe_image(*size)
        frames = reference.trace(image)
        trace = parity.chained(model, job.plan.table, image, frames, _skipped(job.plan), step=progress.step)
        if trace.first_wrong:
            raise _parity_failed(job, trace)
        traces.append(trace)
    float32 = parity.float32_output(model, parity.probe_image(*sizes[0]), traces[0].output)
    if not float32.passed:
        found = f"error {float32.error:.3g}" + ("" if float32.same_class else " and another arg max")
        raise PortingError(
            ErrorKind.PARITY,
            job.source.path,
            [Defect("output in float32 after reload", found, f"at most {float32.bound:g} of the largest output")],
            "Nothing was emitted. This is a fault of the port or of this machine's PyTorch; please report it.",
        )
    return _Proof(tuple(traces), float32, _reference_name(job))


def _network(plan: Plan, state: Mapping[str, Any]) -> Any:
    from models import create_model

    return parity.load_network(partial(create_model, plan.arch, num_classes=plan.classes), state)


def _skipped(plan: Plan) -> int:
    return plan.table.rules[-1].skip if plan.table.logits else 0


def proof_sizes(keras: KerasContents | None) -> list[tuple[int, int]]:
    """The input sizes to prove at: the source's own, and a small one whose padding differs."""
    own = keras.model.inputs.size if keras and keras.model else None
    return [own or DEFAULT_SIZE, SECOND_SIZE]


def _parity_failed(job: _Job, trace: parity.Trace) -> PortingError:
    wrong = trace.first_wrong
    assert wrong is not None
    faulty = sum(not layer.passed for layer in trace.layers)
    height, width = trace.size
    where = f"{wrong.layer} (PyTorch {wrong.module}) at {height}x{width}, index {list(wrong.index)}"
    found = f"{wrong.ported!r}; error {wrong.error:.3g} of the layer's largest, bound {wrong.bound:g}"
    return PortingError(
        ErrorKind.PARITY,
        job.source.path,
        [Defect(where, found, f"{wrong.reference!r} as TensorFlow computes")],
        f"Nothing was emitted. {faulty} of {len(trace.layers)} layers differ; this is the first. Please report it.",
    )


def reference_source(source: TensorSource, plan: Plan, keras: KerasContents | None) -> ReferenceSource:
    """What TensorFlow must load to run the same network."""
    classes = plan.classes + _skipped(plan)
    path = str(Path(source.path).absolute())
    if keras is None:
        shadow = f"/{rules.SHADOW}"
        stored = {rule.variable.removesuffix(shadow): rule.variable for rule in plan.table.rules}
        renamed = {plain: name for plain, name in stored.items() if plain != name}
        return ReferenceSource("checkpoint", path, plan.arch, classes, renamed)
    model = keras.model
    dense = (model.head.dense if model else rules.KERAS_HEAD) if classes else ""
    return ReferenceSource(
        "keras",
        path,
        plan.arch,
        classes,
        container=source.container,
        has_graph=model is not None,
        layers=dict(model.layers) if model else {},
        dense=dense,
        store=keras.store,
        nested=keras.nested,
    )


def _reference_name(job: _Job) -> str:
    if job.keras is None:
        return "DeepLab's aligned Xception on TensorFlow ops, float64"
    return "the file's own Keras model" if job.keras.model else "keras.applications.Xception with the file's weights"


def _manifest(
    job: _Job, proof: _Proof | None, labels: list[str] | None, licence: str, upstream: str, content: str
) -> Manifest:
    plan = job.plan
    model = job.keras.model if job.keras else None
    result: dict[str, Any] = {"verdict": UNVERIFIED}
    if proof:
        worst = max((trace.worst for trace in proof.traces), key=lambda layer: layer.error)
        result = {
            "verdict": VERIFIED,
            "reference": proof.reference,
            "precision": "float64",
            "sizes": [list(trace.size) for trace in proof.traces],
            "bound": parity.FLOAT64_BOUND,
            "worst": {"layer": worst.layer, "error": worst.error},
            "float32": {"bound": proof.float32.bound, "error": proof.float32.error},
        }
    return {
        "schema_version": 1,
        "arch": plan.arch,
        "num_classes": plan.classes,
        "variant": {"folded": False, "dtype": "float32", "bn_eps": 1e-3},
        "head": {
            "kind": "dense" if plan.classes else "none",
            "activation": (model.head.activation or None) if model and plan.classes else None,
            "background_dropped": _skipped(plan) > 0,
            "layers": list(job.contents.head_layers),
        },
        "labels": labels,
        "source": {
            "kind": job.source.container,
            "name": job.synthetic or Path(job.source.path).name,
            "digest": job.source.digest(),
            "synthetic": bool(job.synthetic),
        },
        "mapped": len(plan.table.rules),
        "unread": [{"name": item.name, "reason": item.reason} for item in plan.unread],
        "parity": result,
        "files": [],
        "content_digest": content,
        "versions": _versions(proof is not None),
        "preprocessing": _preprocessing(job),
        "licence": licence,
        "upstream": upstream,
    }


def _preprocessing(job: _Job) -> dict[str, Any]:
    model = job.keras.model if job.keras else None
    height, width = (model.inputs.size if model else None) or DEFAULT_SIZE
    mean, std, source = [0.5] * 3, [0.5] * 3, "published"
    if model and model.inputs.affine:
        # The source's layers map pixels p of 0..255 to scale*p + offset; here pixels are p/255.
        scale, offset = model.inputs.affine
        std = [1 / (255 * s) for s in scale]
        mean = [-o * d for o, d in zip(offset, std, strict=True)]
        source = ", ".join(model.inputs.layers)
    return {
        "input_size": [3, height, width],
        "interpolation": "bicubic",
        "crop_pct": _CROP.get(job.plan.arch, _ALIGNED_CROP),
        "mean": mean,
        "std": std,
        "source": source,
    }


def _versions(verified: bool) -> dict[str, str]:
    found = {"python": platform.python_version(), "xception-porting": _version("xception-porting")}
    found |= {name: _version(name) for name in ("torch", "numpy", *(("tensorflow", "keras") if verified else ()))}
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN
