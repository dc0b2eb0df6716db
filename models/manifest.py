"""The manifest beside a weight file: whose weights these are, and how an image becomes their input."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.heads import Chain, read_chain
from models.info import Preprocessing

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What `<stem>.json` says about `<stem>.pth`.

    `labels` are the class names in order, where the weights have their own (two of them may name the two sides of a
    single sigmoid output); `sha256` is None where the manifest does not list the file; `activation` is what the
    source applies to the logits, where it says; `chain` is the classifier where it is more than one dense layer;
    `verified` says whether the port was proved; `dtype` is that of the stored weights, `content_digest` their contents'
    (`porting.artifact.content_digest`), where it says.
    """

    path: Path
    arch: str
    num_classes: int
    folded: bool
    bn_eps: float | None
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    synthetic: bool
    sha256: str | None
    activation: str | None = None
    chain: Chain | None = None
    verified: bool = False
    dtype: str | None = None
    content_digest: str | None = None


def _preprocessing(entry: dict[str, Any]) -> Preprocessing:
    channels, height, width = (int(side) for side in entry["input_size"])
    found = Preprocessing(
        (channels, height, width),
        str(entry["interpolation"]),
        float(entry["crop_pct"]),
        tuple(float(value) for value in entry["mean"]),
        tuple(float(value) for value in entry["std"]),
    )
    if len(found.mean) != channels or len(found.std) != channels:
        raise ValueError(f"mean and std: expected {channels} values, one a channel")
    if min(found.input_size) < 1 or not 0 < found.crop_pct <= 1 or not all(value > 0 for value in found.std):
        raise ValueError("preprocessing: expected positive sizes and std, and 0 < crop_pct <= 1")
    return found


def _epsilon(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"variant: bn_eps: expected a positive number, found {value}")
    return value


def _head(path: Path, entry: dict[str, Any]) -> tuple[str | None, Chain | None]:
    """The recorded activation, and the chain where the classifier is one."""
    head = entry.get("head")
    if not isinstance(head, dict):
        return None, None
    activation = head.get("activation")
    chain = None
    if head.get("kind") == "chain":
        try:
            chain = read_chain(head)
            if chain.num_classes != int(entry["num_classes"]):
                raise ModelError(f"head: expected {entry['num_classes']} classes, found {chain.num_classes}")
            if entry["arch"] != "xception":
                raise ModelError(f"head: a chain is expected of xception alone, found {entry['arch']}")
        except ModelError as error:
            raise ModelError(f"{path}: {error}; port the file again") from None
    return None if activation is None else str(activation), chain


def find_manifest(weights: Path) -> tuple[Path, str] | None:
    """The manifest that tells of a weight file, and what it calls the file; None where there is none.

    It is `<same stem>.json` beside the file; else any manifest in that folder that lists the file, or in the folder
    above that lists it with its folder: several formats of the same weights have one manifest.
    """
    beside = weights.with_suffix(".json")
    if weights.suffix != ".json" and beside.is_file():
        return beside, weights.name
    folder = weights.absolute().parent
    for place, name in ((folder, weights.name), (folder.parent, f"{folder.name}/{weights.name}")):
        for path in sorted(place.glob("*-*.json")):
            if not path.name.endswith(".report.json") and name in listed_files(path):
                return path, name
    return None


def listed_files(path: Path) -> list[str]:
    """Names of the files that a manifest lists; none where it is no manifest."""
    try:
        return [str(file["name"]) for file in json.loads(path.read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def read_manifest(path: Path, weights: str) -> Manifest:
    """The manifest `path`, as far as it concerns the file named `weights`.

    Raises:
        ModelError: not readable, not JSON, another schema, or a key missing or malformed.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["schema_version"] != SCHEMA_VERSION:
            raise ModelError(
                f"{path}: schema_version: expected {SCHEMA_VERSION}, found {entry['schema_version']!r}; "
                "update this package, or port the file again"
            )
        digests = [str(file["sha256"]) for file in entry["files"] if file["name"] == weights]
        bn_eps = entry["variant"].get("bn_eps")
        labels = entry.get("labels")
        activation, chain = _head(path, entry)
        manifest = Manifest(
            path=path,
            arch=str(entry["arch"]),
            num_classes=int(entry["num_classes"]),
            folded=bool(entry["variant"]["folded"]),
            bn_eps=None if bn_eps is None else _epsilon(float(bn_eps)),
            labels=None if labels is None else tuple(str(label) for label in labels),
            preprocessing=_preprocessing(entry["preprocessing"]),
            synthetic=bool((entry.get("source") or {}).get("synthetic", False)),
            sha256=digests[0] if digests else None,
            activation=activation,
            chain=chain,
            verified=(entry.get("parity") or {}).get("verdict") == "verified",
            dtype=None if (dtype := entry["variant"].get("dtype")) is None else str(dtype),
            content_digest=None if (content := entry.get("content_digest")) is None else str(content),
        )
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"{path}: not a manifest of this project: {what}; move it away to load the weights without it"
        ) from error
    two_sides = manifest.num_classes == 1 and manifest.activation in (None, "sigmoid")
    counts = {manifest.num_classes, 2} if two_sides else {manifest.num_classes}
    if manifest.labels is not None and len(manifest.labels) not in counts:
        raise ModelError(f"{path}: labels: expected {manifest.num_classes}, found {len(manifest.labels)}")
    return manifest
