"""The index of a downloads page: what it offers, read as the untrusted text that it is, and the choice among it.

`index.json` is an object of `schema_version` (1) and `weights`, a list of entries: `arch`, `num_classes`, `variant`
(`folded`, `dtype`, `bn_eps`), `synthetic`, `verdict`, `content_digest`, `manifest` and `files`; each file has a `path`
relative to the index, `bytes` and `sha256`, and those of `files` a `format`. Other keys are for people. A path leads to
a file below the index and nowhere else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import ModelError
from models.layers import BN_EPS

SCHEMA_VERSION = 1
INDEX, SUMS = "index.json", "SHA256SUMS"
FORMATS = {"pth": ".pth", "safetensors": ".safetensors"}  # that can be loaded, the first one preferred

_LARGEST_WEIGHTS = 4 << 30  # bytes; ten times xception71's in float64
_LARGEST_MANIFEST = 16 << 20
_MOST_ENTRIES = 10_000
_PART = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,199}")  # of a path: no "..", no scheme, nothing hidden
_DTYPES = ("float32", "float16", "bfloat16")  # the first one preferred

# A line of `sha256sum`'s output (GNU coreutils, "cksum output modes").
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^\\].*)")


@dataclass(frozen=True)
class File:
    """A file of a release: `path` from the index, with `/`; None where its digest and size are not known."""

    path: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Offer:
    """Weights that may be taken: what a manifest, or an index's entry, says of them.

    `weights` are the same tensors in one format or two, the preferred one first.
    """

    arch: str
    num_classes: int
    folded: bool
    dtype: str | None
    bn_eps: float | None
    synthetic: bool
    verified: bool
    content_digest: str | None
    weights: tuple[File, ...]
    manifest: File

    def __str__(self) -> str:
        facts = [f"{self.num_classes} classes", self.dtype or "", "verified" if self.verified else "unverified"]
        return f"{self.weights[0].path} ({', '.join(fact for fact in facts if fact)})"


class _InvalidError(Exception):
    """What an index is expected to hold and does not."""


def _take(entry: Any, key: str, wanted: str, check: Callable[[Any], bool], where: str) -> Any:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if not check(value):
        raise _InvalidError(f"{where}{key}: expected {wanted}, found {str(value)[:60]!r}")
    return value


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 10_000


def _count(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and all(_PART.fullmatch(part) for part in value.split("/"))


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_epsilon(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and math.isfinite(value) and value > 0)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _read_file(entry: Any, most: int, where: str) -> File:
    path = _take(entry, "path", "a relative path below the index", _is_path, where)
    size = _take(entry, "bytes", f"1 to {most}", lambda found: _count(most)(found) and found > 0, where)
    return File(path, size, _take(entry, "sha256", "64 hexadecimal digits", _is_sha256, where))


def _read_offer(entry: Any, where: str) -> Offer | None:
    """An entry; None where it has no format that can be loaded."""
    variant = _take(entry, "variant", "an object", lambda found: isinstance(found, Mapping), where)
    inner = f"{where}variant."
    manifest = _read_file(entry.get("manifest"), _LARGEST_MANIFEST, f"{where}manifest.")
    folder = manifest.path.rpartition("/")[0]
    if not manifest.path.endswith(".json") or manifest.path == INDEX:
        raise _InvalidError(f"{where}manifest.path: expected a .json file of its own, found {manifest.path!r}")
    found: dict[str, File] = {}
    for number, listed in enumerate(_take(entry, "files", "a list", lambda files: isinstance(files, list), where)):
        inside = f"{where}files[{number}]."
        kind = _take(listed, "format", "text", _text, inside)
        file = _read_file(listed, _LARGEST_WEIGHTS, inside)
        if kind in FORMATS:
            if not file.path.endswith(FORMATS[kind]) or file.path.rpartition("/")[0] != folder:
                wanted = f"a {FORMATS[kind]} file beside its manifest"
                raise _InvalidError(f"{inside}path: expected {wanted}, found {file.path!r}")
            found.setdefault(kind, file)
    offer = Offer(
        arch=_take(entry, "arch", "text", _text, where),
        num_classes=_take(entry, "num_classes", "a whole number", _count(10**7), where),
        folded=_take(variant, "folded", "true or false", _flag, inner),
        dtype=_take(variant, "dtype", "text", _text, inner),
        bn_eps=_take(variant, "bn_eps", "a positive number", _is_epsilon, inner),
        synthetic=_take(entry, "synthetic", "true or false", _flag, where),
        verified=_take(entry, "verdict", "text", _text, where) == "verified",
        content_digest=_take(entry, "content_digest", "64 hexadecimal digits", _is_sha256, where),
        weights=tuple(found[kind] for kind in FORMATS if kind in found),
        manifest=manifest,
    )
    return offer if offer.weights else None


def read_index(content: bytes, name: str) -> tuple[Offer, ...]:
    """What an index offers.

    Args:
        content: the index's bytes.
        name: what it is called, for messages.

    Raises:
        ModelError: not such an index, or one of a newer version of this project.
    """
    try:
        index = json.loads(content)
        version = _take(index, "schema_version", "a whole number", _count(10**6), "")
        if version != SCHEMA_VERSION:
            raise _InvalidError(f"schema_version: expected {SCHEMA_VERSION}, found {version}")
        entries = _take(index, "weights", "a list", lambda found: isinstance(found, list), "")
        if len(entries) > _MOST_ENTRIES:
            raise _InvalidError(f"weights: expected at most {_MOST_ENTRIES}, found {len(entries)}")
        offers = [_read_offer(entry, f"weights[{number}].") for number, entry in enumerate(entries)]
    except (_InvalidError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{name}: not the index of a downloads page of this version: {error}; "
            "publish the page again, or update this package"
        ) from None
    return tuple(offer for offer in offers if offer)


def read_sums(content: bytes, name: str) -> Mapping[str, str]:
    """Paths and their sha256, as `sha256sum` lists them.

    Raises:
        ModelError: a line that is none of those.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        found = _SUM.fullmatch(line)
        if not found or found[2] in sums:
            raise ModelError(f"{name}: line {number}: expected a sha256 and a path of its own, found {line[:80]!r}")
        sums[found[2]] = found[1]
    return sums


def choose(offers: Sequence[Offer], arch: str, folded: bool, num_classes: int | None, place: str, remedy: str) -> Offer:
    """The one set of weights for a network, never synthetic, for TensorFlow's batch-norm epsilon.

    Of several, those of `num_classes` are taken, else those of 1000; of these a verified one, then the widest type.

    Args:
        num_classes: None for any.
        place: where the offers are from, and
        remedy: what to do where there is none, for messages.

    Raises:
        ModelError: none, or several that are not the same weights.
    """
    fitting = [x for x in offers if (x.arch, x.folded) == (arch, folded) and x.bn_eps in (None, BN_EPS)]
    found = [offer for offer in fitting if not offer.synthetic]
    if not found:
        kind = "folded " if folded else ""
        passed = f" ({len(fitting)} synthetic passed over)" if fitting else ""
        raise ModelError(f"{place}: no {kind}weights for {arch}{passed}; {remedy}")
    for wanted in (num_classes, 1000):
        right = [offer for offer in found if offer.num_classes == wanted]
        if right:
            found = right
            break
    best = min(_rank(offer) for offer in found)
    found = [offer for offer in found if _rank(offer) == best]
    contents = {offer.content_digest for offer in found}
    if len(found) > 1 and (len(contents) > 1 or None in contents):
        names = ", ".join(map(str, found))
        raise ModelError(f"{place}: several weights for {arch}: {names}; pass the path of one as pretrained=")
    return min(found, key=lambda offer: offer.weights[0].path)


def _rank(offer: Offer) -> tuple[bool, int]:
    dtype = _DTYPES.index(offer.dtype) if offer.dtype in _DTYPES else 0
    return not offer.verified, dtype
