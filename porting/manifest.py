"""The manifest beside every emitted file: what it is, where it came from, and what was proved.

Other commands, and `models.create_model`, read it; a change of meaning raises SCHEMA_VERSION. Fields:

- `schema_version`: this layout, 1.
- `arch`, `num_classes` (0: a backbone): what `models.create_model` needs.
- `variant`: `folded`, `dtype`, `bn_eps` of the stored network.
- `head`: `kind` ("dense", "chain" or "none"), `activation` that the source applies to the logits and the port does not
  (or null), `background_dropped`, and `layers`, the source's head as it lists it. A chain, which is an nn.Sequential
  at `fc`, also has `pooling` ("avg" or "max") and `modules`: `kind` and settings of each, as `models.heads` takes them.
- `labels`: class names in order, or null.
- `source`: `kind` (the container), `name`, `digest` (sha256 over its files' bytes), `synthetic` (random weights).
- `mapped`: variables that were read; `unread`: `name` and `reason` of every other one.
- `parity`: `verdict` ("verified" or "unverified") and, if verified, `reference`, `precision`, `runs` (each with `size`
  (height, width), `output_stride` and `input`), `bound`, `worst` (`layer`, `error`, relative to the layer's largest
  value) and `float32`: `factor` (how many times TensorFlow's own float32 error is allowed) and `worst` (`layer`,
  `error`, `noise`). Weights of a smaller type than float32 are proved before they are rounded to it, and have `stored`
  (`bound`, `worst`): how far off they are as stored. The report beside the manifest (`porting.report.schema`) has
  every layer.
- `notes`: what a user should hear of, in sentences.
- `files`: `name` (relative to the manifest's folder), `format` ("pth", "safetensors" or "hf"), `bytes`, `sha256`.
- `content_digest`: see `porting.artifact.content_digest`.
- `versions`: of what made it. `preprocessing`: `input_size` (3, height, width), `interpolation`, `crop_pct`, `mean`,
  `std` (for pixels in 0..1), and `source`: "published", or the source's own layers.
- `licence`, `upstream`: as given, or "unknown".
- `evaluation`, where `porting.evaluate --write` has measured it: `top1` and `top5` in percent of the images that could
  be read, `loss` (their mean cross-entropy), `images` (their number), `unreadable` (the number of others), and `data`,
  which says in words what they are.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from porting.errors import Defect, ErrorKind, PortingError
from porting.origins import UNKNOWN

SCHEMA_VERSION = 1
VERIFIED, UNVERIFIED = "verified", "unverified"

Manifest = dict[str, Any]


def manifest_path(weights: Path) -> Path:
    """Where the manifest of a weights file lies."""
    return weights.with_suffix(".json")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest, or None where there is none or it is not one.

    Raises:
        PortingError: unsupported, where a newer version of this project wrote it.
    """
    try:
        value = json.loads(path.read_bytes())
        version = value["schema_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise PortingError(
            ErrorKind.UNSUPPORTED,
            path,
            [f"manifest of schema version {version}; this is version {SCHEMA_VERSION}"],
            "Upgrade this project.",
        )
    return dict(value) if _is_whole(value) else None


def _is_whole(value: Mapping[str, Any]) -> bool:
    """Whether it has what `merged` takes from an older manifest."""
    nested = isinstance(value.get("parity"), Mapping) and isinstance(value.get("source"), Mapping)
    return (
        nested
        and "verdict" in value["parity"]
        and "synthetic" in value["source"]
        and {"content_digest", "labels", "licence", "upstream"} <= value.keys()
    )


def merged(new: Manifest, old: Manifest | None) -> Manifest:
    """The new manifest of the same file, keeping what the old one knows better.

    A verdict is only ever raised, a proof gives way to none of fewer runs, synthetic weights stay synthetic, and
    labels, licence and upstream once given stay until others are given. What was measured of the same contents stays.
    """
    if old is None or old.get("content_digest") != new["content_digest"]:
        return new
    result = dict(new)
    if old["parity"]["verdict"] == VERIFIED and _proves_less(new["parity"], old["parity"]):
        result["parity"] = old["parity"]
    if old["source"]["synthetic"] and not new["source"]["synthetic"]:
        result["source"] = old["source"]
    if new["labels"] is None:
        result["labels"] = old["labels"]
    for field in ("licence", "upstream"):
        if new[field] == UNKNOWN:
            result[field] = old[field]
    if "evaluation" in old and "evaluation" not in new:
        result["evaluation"] = old["evaluation"]
    return result


def _proves_less(parity: Mapping[str, Any], than: Mapping[str, Any]) -> bool:
    """Whether a verdict is no proof, or one of some of another's runs only."""
    before, runs = than.get("runs", []), parity.get("runs", [])
    return parity["verdict"] != VERIFIED or (len(runs) < len(before) and all(run in before for run in runs))


def check_chain(weights: Path, manifest: Manifest, chain: Mapping[str, Any] | None) -> None:
    """A classifier of several layers is rebuilt from the manifest, which must say of it what the source says.

    Args:
        chain: the source's, as `porting.plan.Plan.chain` gives it.

    Raises:
        PortingError: mismatch.
    """
    head = manifest.get("head")
    said = {key: head.get(key) for key in ("pooling", "modules")} if isinstance(head, Mapping) else {}
    if chain is not None and said != chain:
        raise PortingError(
            ErrorKind.MISMATCH,
            manifest_path(weights),
            [Defect("head", str(said), f"{dict(chain)}, as the source holds")],
            "The network would be rebuilt wrongly from it: port the source again.",
        )


def report_path(weights: Path) -> Path:
    """Where the parity report of a weights file lies."""
    return weights.with_name(f"{weights.stem}.report.json")


def versions(verified: bool) -> dict[str, str]:
    """Of what makes a port, and of what proves it."""
    names = ["xception-porting", "torch", "numpy", *(["tensorflow", "keras"] if verified else [])]
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN


def read_labels(path: Path, classes: int, activation: str = "") -> list[str]:
    """Class names from a file: one a line, a JSON list, or ImageNet's {"0": [synset, name]}.

    A single output with a sigmoid tells two classes apart: it may have two names, of what 0 and 1 mean.

    Raises:
        PortingError: missing, corrupt, or mismatch with the number of classes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PortingError(ErrorKind.MISSING, path, [f"labels cannot be read: {error}"], "Check the path.") from None
    except UnicodeDecodeError:
        raise PortingError(ErrorKind.CORRUPT, path, ["labels that are not UTF-8 text"], "Save them as UTF-8.") from None
    labels = _parse_labels(text)
    if labels is None:
        raise PortingError(
            ErrorKind.CORRUPT, path, ["not a list of labels"], "Give one label a line, or a JSON list of strings."
        )
    two_sides = classes == 1 and activation in ("", "sigmoid")
    if len(labels) != classes and not (two_sides and len(labels) == 2):
        raise PortingError(
            ErrorKind.MISMATCH,
            path,
            [f"expected {classes} labels, found {len(labels)}"],
            "Give one label for each class of the ported classifier, in its order.",
        )
    return labels


def _parse_labels(text: str) -> list[str] | None:
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, Mapping):
        try:
            value = [value[str(index)] for index in range(len(value))]
        except KeyError:
            return None
    labels = [_last(item) for item in value] if isinstance(value, list) else []
    return labels if labels and all(isinstance(label, str) for label in labels) else None


def _last(item: Any) -> Any:
    return item[-1] if isinstance(item, Sequence) and not isinstance(item, str) and item else item
