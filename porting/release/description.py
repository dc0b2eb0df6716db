"""What a release says of one manifest's weights: the manifest's own words, each of them checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.info import MODELS
from porting.errors import Defect, ErrorKind, PortingError, unsupported
from porting.manifest import SCHEMA_VERSION, UNVERIFIED, VERIFIED, Manifest
from porting.release import fields
from porting.release.fields import Fields
from porting.request import DTYPES, FORMATS, HF, PTH, SAFETENSORS

# The first match is what torch.hub takes for the digest, whatever else the name holds (torch/hub.py, HASH_REGEX).
_HUB_DIGEST = re.compile(r"-([a-f0-9]*)\.")
_LEAST_DIGITS = 8


@dataclass(frozen=True)
class Listed:
    """A file as the manifest lists it; `name` is relative to the manifest's folder."""

    name: str
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """A checked manifest.

    Attributes:
        stem: the manifest's file name without `.json`.
        manifest: all of it, as decoded.
        files: what it lists, in its order.
        evaluation: what `porting.evaluate` measured, or None.
    """

    stem: str
    manifest: Manifest
    files: tuple[Listed, ...]
    evaluation: Mapping[str, Any] | None

    @property
    def arch(self) -> str:
        return str(self.manifest["arch"])

    @property
    def verified(self) -> bool:
        return bool(self.manifest["parity"]["verdict"] == VERIFIED)

    @property
    def synthetic(self) -> bool:
        return bool(self.manifest["source"]["synthetic"])

    def said(self) -> dict[str, Any]:
        """The fields of an index's entry that the manifest decides; a `content_digest` of None is left to the files."""
        manifest = self.manifest
        return {
            "stem": self.stem,
            "arch": manifest["arch"],
            "num_classes": manifest["num_classes"],
            "variant": {key: manifest["variant"][key] for key in ("folded", "dtype", "bn_eps")},
            "synthetic": self.synthetic,
            "verdict": manifest["parity"]["verdict"],
            "content_digest": manifest.get("content_digest"),
            "licence": manifest["licence"],
            "upstream": manifest["upstream"],
        }


def looks_like_manifest(value: object) -> bool:
    """Whether this is meant as a manifest, right or not: a folder may hold other JSON too."""
    return isinstance(value, Mapping) and {"arch", "files"} <= value.keys()


def describe(value: object, stem: str, file: object) -> Description:
    """A manifest, if every field that a release uses is what it should be.

    Args:
        value: decoded JSON.
        stem: the manifest's file name without `.json`.
        file: the manifest, for messages.

    Raises:
        PortingError: unsupported, where a newer version of this project wrote it; corrupt, with all that is wrong.
    """
    found = Fields(value)
    version = found.take("schema_version", "a whole number", fields.is_count)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise unsupported(
            file, "schema_version", f"{version}; this is version {SCHEMA_VERSION}", "Upgrade this project."
        )
    if not fields.is_name(stem):
        found.defects.append(Defect("name", repr(stem), "letters, digits and . _ + - alone"))
    found.take("arch", f"one of {', '.join(MODELS)}", lambda arch: isinstance(arch, str) and arch in MODELS)
    found.take("num_classes", "a whole number", fields.is_count)
    found.take("variant.folded", "true or false", fields.is_flag)
    found.take("variant.dtype", f"one of {', '.join(DTYPES)}", lambda dtype: dtype in DTYPES)
    found.take("variant.bn_eps", "a positive number", lambda eps: fields.is_number(eps) and _positive(eps))
    found.take("source.synthetic", "true or false", fields.is_flag)
    for field in ("source.name", "source.kind", "licence", "upstream"):
        found.take(field, "text", fields.is_text)
    found.take("source.digest", "64 hexadecimal digits", fields.is_sha256, absent=None)
    verdicts = (VERIFIED, UNVERIFIED)
    found.take("parity.verdict", " or ".join(verdicts), lambda verdict: verdict in verdicts)
    # Weights that were trained here have none.
    found.take("content_digest", "64 hexadecimal digits", fields.is_sha256, absent=None)
    found.take("labels", "a list of text, or null", lambda labels: labels is None or _texts(labels), absent=None)
    found.take("notes", "a list of text", _texts, absent=[])
    files = tuple(_listed(part) for part in found.parts("files", "a list of files"))
    names = [listed.name for listed in files]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.defects.append(Defect("files", f"{name} more than once", "each file once"))
    evaluation = _evaluation(found)
    if found.defects:
        raise PortingError(ErrorKind.CORRUPT, file, found.defects, "Port the weights again, or move the manifest away.")
    return Description(stem, dict(value) if isinstance(value, Mapping) else {}, files, evaluation)


def _positive(value: Any) -> bool:
    return bool(value > 0)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(fields.is_text(item) for item in value)


def _listed(part: Fields) -> Listed:
    kind = part.take("format", f"one of {', '.join(FORMATS)}", lambda found: found in FORMATS)
    size = part.take("bytes", "a whole number", fields.is_count)
    digest = part.take("sha256", "64 hexadecimal digits", fields.is_sha256)
    if kind == HF:
        wanted, depth = "folder/name, plain names both", 1
    else:
        wanted, depth = "a plain name", 0
    name = part.take("name", wanted, lambda found: fields.is_path(found) and str(found).count("/") == depth)
    if name and digest and kind in (PTH, SAFETENSORS):
        in_name = _HUB_DIGEST.search(name)
        digits = in_name[1] if in_name else ""
        if not (name.endswith(f".{kind}") and len(digits) >= _LEAST_DIGITS and digest.startswith(digits)):
            # Whoever downloads it checks it by these digits.
            part.defects.append(Defect(f"{part.where}.name", name, f"a name that ends in -{digest[:8]}.{kind}"))
    return Listed(name or "", kind or "", size or 0, digest or "")


def _evaluation(found: Fields) -> Mapping[str, Any] | None:
    """What was measured; keys that this version does not know are kept."""
    part = found.part("evaluation")
    if not isinstance(found.value, Mapping) or found.value.get("evaluation") is None:
        return None
    for field in ("top1", "top5"):
        part.take(field, "percent", fields.is_percent)
    part.take("loss", "a number", fields.is_number)
    for field in ("images", "unreadable"):
        part.take(field, "a whole number", fields.is_count)
    part.take("data", "text", fields.is_text)
    return part.value if isinstance(part.value, Mapping) else None
