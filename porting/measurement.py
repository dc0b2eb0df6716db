"""Measuring accuracy: what is needed for it, and the result in the manifest, where a downloads page finds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models import evaluation_state
from models.download import fetch, is_url, sha256
from models.errors import ModelError
from models.evaluation import Accuracy, Outcome, evaluate, exact_arithmetic
from models.evaluation_set import EvaluationSet, classes_of, read_set
from models.image_folder import Key, Samples, evaluation_batches
from models.info import get_info
from models.manifest import find_manifest
from models.preprocess import EvaluationTransform
from models.processes import Share
from models.registry import Network, create_model
from models.weights import read_weights
from porting import artifact
from porting.errors import Defect, ErrorKind, PortingError


@dataclass(frozen=True)
class Measurement:
    """A network, images, and the batches that they are taken in.

    Attributes:
        path, digest: the weights' file and its sha256.
        arch: the network.
        network: with the weights, on its device.
        images: with their classes.
        batches: of the whole set, in order.
        whole: whether these are all the images that there are.
        published: top-1 and top-5 in percent, where the classes are ImageNet's and the weights not random.
    """

    path: Path
    digest: str
    arch: str
    network: Network
    images: EvaluationSet
    batches: Sequence[list[Key]]
    whole: bool
    published: Mapping[str, float] | None

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def settings(self) -> dict[str, Any]:
        """What an evaluation that is gone on with must repeat."""
        return {
            "weights": self.digest,
            "data": self.images.digest,
            "batch_size": len(self.batches[0]),
            "preprocessing": json.loads(json.dumps(asdict(self.network.preprocessing))),
            "device": self.device.type,
        }

    def earlier(self, state: Path) -> list[Outcome]:
        """The outcomes in a state file.

        Raises:
            ModelError: as `models.evaluation_state.read_state`.
        """
        return evaluation_state.read_state(state, self.settings, self.batches)

    def entry(self, found: Accuracy) -> dict[str, Any]:
        """The manifest's `evaluation`."""
        folder = self.images.folder
        part = "" if self.whole else "part of "
        data = (
            f"{part}{folder.root.absolute().name}, {len(folder)} images of {len(folder.classes)} classes, "
            f"digest {self.images.digest[:16]}"
        )
        return {
            "top1": found.percent(found.top1),
            "top5": found.percent(found.top5),
            "loss": round(found.loss, 12),
            "images": found.images,
            "unreadable": len(found.unreadable),
            "data": data,
        }

    def about(self, found: Accuracy) -> dict[str, Any]:
        """What else of the result is for programs."""
        folder = self.images.folder
        return {
            "weights": str(self.path),
            "sha256": self.digest,
            "arch": self.arch,
            "matched": self.images.matched,
            "published": self.published,
            "correct": {"top1": found.top1, "top5": found.top5},
            "unreadable_images": [str(folder.paths[position]) for position in found.unreadable],
        }


def prepare(
    weights: str,
    data: Path,
    labels: Path | None,
    ids: Path | None,
    batch_size: int,
    limit: int | None,
    write: bool,
    device: torch.device,
) -> Measurement:
    """Check everything that can be wrong before the first image.

    Args:
        weights: a file, or its URL.
        data, labels, ids: as `models.evaluation_set.read_set` takes them.
        limit: how many images; None for all.
        write: whether the result is going to be recorded.

    Raises:
        ModelError: weights or images that cannot be used.
        PortingError: the result could not be recorded.
    """
    path = fetch(weights) if is_url(weights) else Path(weights)
    read = read_weights(path)
    if read.arch is None:
        raise ModelError(f"{path}: not the weights of an Xception of this project")
    if read.num_classes == 0:
        raise ModelError(f"{path}: these weights have no classifier: port them without --backbone-only")
    digest = sha256(path)
    if write:
        check_recordable(path, digest)
    classes = classes_of(read.num_classes, read.manifest.labels if read.manifest else None)
    images = read_set(data, classes, labels, ids)
    everything = len(images)
    if limit is not None:
        images = images.spread(limit)
    exact_arithmetic()
    network = create_model(read.arch, pretrained=read, folded=read.folded).eval().requires_grad_(False)
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    info = get_info(read.arch)
    real = not (read.manifest is not None and read.manifest.synthetic)
    published = {"top1": info.top1, "top5": info.top5} if classes.imagenet and real else None
    batches = evaluation_batches(len(images), batch_size)
    return Measurement(path, digest, read.arch, network, images, batches, len(images) == everything, published)


def measure(
    measurement: Measurement,
    before: Sequence[Outcome],
    share: Share,
    state: Path | None,
    moved: Callable[[int, Sequence[str]], None],
    stop: Callable[[], bool],
) -> Accuracy:
    """Evaluate, keeping finished batches in the state file.

    Args:
        before: what the state file held; the first process's counts.
        moved: told of each batch of this process: its images, and why some could not be read.
        stop: asked after each batch.

    Raises:
        ModelError, InterruptedEvaluationError: as `models.evaluation.evaluate`.
    """

    def finished(outcome: Outcome, reasons: Sequence[str]) -> None:
        if state is not None:
            evaluation_state.add(state, outcome)
        moved(outcome.images, reasons)

    samples = Samples(measurement.images.folder, EvaluationTransform(measurement.network.preprocessing), seed=0)
    return evaluate(measurement.network, samples, measurement.batches, before, share, finished, stop)


def _listing(weights: Path, digest: str) -> tuple[Path, dict[str, Any]]:
    found = find_manifest(weights)
    if found is None:
        raise PortingError(
            ErrorKind.MISSING, weights, ["no manifest beside it to write to"],
            "Leave --write out, or put the manifest back that was emitted with the weights.",
        )  # fmt: skip
    path, name = found
    try:
        manifest = json.loads(path.read_bytes())
        recorded = [str(file["sha256"]) for file in manifest["files"] if file["name"] == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PortingError(
            ErrorKind.CORRUPT, path, [f"not a manifest that can be read ({type(error).__name__})"],
            "Port the weights again.",
        ) from None  # fmt: skip
    if recorded != [digest]:
        raise PortingError(
            ErrorKind.MISMATCH, path, [Defect(f"sha256 of {name}", ", ".join(recorded) or "none", digest)],
            "The manifest is of other weights: port the weights again.",
        )  # fmt: skip
    return path, manifest


def check_recordable(weights: Path, digest: str) -> None:
    """Make sure that what is going to be measured can be recorded.

    Args:
        digest: sha256 of the weights.

    Raises:
        PortingError: missing, corrupt or mismatch (the manifest); output (its folder).
    """
    path, _ = _listing(weights, digest)
    artifact.prepare_folder(path.parent)


def record(weights: Path, digest: str, evaluation: Mapping[str, Any]) -> Path:
    """Put what was measured into the manifest, which is replaced whole; returns the manifest's path.

    Args:
        digest: sha256 of the weights that were measured.
        evaluation: as `porting.manifest` describes it.

    Raises:
        PortingError: as `check_recordable`.
    """
    folder = _listing(weights, digest)[0].parent
    with artifact.one_writer(folder), artifact.temporary_file(folder) as file:
        path, manifest = _listing(weights, digest)  # as it is now: another process may have written to it
        artifact.write_json(file, {**manifest, "evaluation": dict(evaluation)})
        artifact.publish({path: file})
    return path
