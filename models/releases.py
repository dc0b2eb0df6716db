"""Where `pretrained=True` finds weights: a plain folder, a downloads page on disk, or one on the network.

$PORTING_WEIGHTS names it (`checkpoints/` unless set); of a page, the folder or URL that holds its `index.json`.

Of a page on the network, the index is fetched each time, and the weights once, into a folder of the page's own in
torch.hub's cache. A page that cannot be reached (no network, a server that is down) is taken as it was last seen, and
the log says so: what is in the cache then still loads, checked as ever. A page that answers and has no index is an
error. Every byte is held to the index's sha256, and the index and all that is taken to the page's SHA256SUMS, where it
has one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from models.connection import TransferError
from models.download import (
    NOT_THERE,
    cache_error,
    cache_folder,
    cannot,
    fetch_document,
    is_url,
    receive,
    sha256,
    write_whole,
)
from models.errors import ModelError
from models.index import FORMATS, INDEX, SUMS, File, Offer, choose, read_index, read_sums
from models.manifest import listed_files, read_manifest
from models.weights import Weights, read_weights

# The folder or page that `pretrained=True` searches.
WEIGHTS_VARIABLE = "PORTING_WEIGHTS"
DEFAULT_FOLDER = "checkpoints"

log = logging.getLogger("models")


_Sums = Mapping[str, str] | None  # what SHA256SUMS lists, where there is one


def find_weights(arch: str, folded: bool, num_classes: int | None) -> Weights:
    """The one set of weights for a network in $PORTING_WEIGHTS, checked and read; `models.index.choose` says which.

    Raises:
        ModelError: none, several that `num_classes` does not tell apart, or some that are damaged or cannot be fetched.
    """
    text = os.environ.get(WEIGHTS_VARIABLE) or DEFAULT_FOLDER
    remedy = (
        f"port them with python -m porting.convert --arch {arch}, set {WEIGHTS_VARIABLE}, or pass a path as pretrained="
    )
    if is_url(text):
        base = _base(text)
        remedy = f"set {WEIGHTS_VARIABLE} to another page or folder, or pass a path as pretrained="
        offers, sums, online = _page(base)
        offer = choose(offers, arch, folded, num_classes, base, remedy)
        path = _bring(base, offer, online)
        return _read(path, offer, sums, f"{base}{INDEX}")
    folder = Path(text)
    folder = folder.parent if folder.name in (INDEX, "index.html") else folder
    index = folder / INDEX
    if not index.is_file():
        offer = choose(_folder(folder), arch, folded, num_classes, text, remedy)
        return read_weights(folder / offer.weights[0].path)
    content = _read_bytes(index)
    sums = _sums_in(folder)
    offers = _checked_index(content, sums, str(index))
    offer = choose(offers, arch, folded, num_classes, str(folder), remedy)
    _check_manifest(folder / offer.manifest.path, offer.manifest, sums, str(index))
    return _read(folder / offer.weights[0].path, offer, sums, str(index))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


# --- a plain folder ---------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> list[Offer]:
    """The weights in a folder that have a manifest beside them."""
    offers = []
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".report.json"):
            continue
        named = [path.with_suffix(ending).name for ending in FORMATS.values()]
        named += [name for name in listed_files(path) if Path(name).name == name]
        there = [name for name in named if (folder / name).is_file()]
        ordered = [name for ending in FORMATS.values() for name in there if name.endswith(ending)]
        if not ordered:
            continue
        manifest = read_manifest(path, ordered[0])
        offers.append(
            Offer(
                arch=manifest.arch,
                num_classes=manifest.num_classes,
                folded=manifest.folded,
                dtype=manifest.dtype,
                bn_eps=manifest.bn_eps,
                synthetic=manifest.synthetic,
                verified=manifest.verified,
                content_digest=manifest.content_digest,
                weights=tuple(File(name) for name in dict.fromkeys(ordered)),
                manifest=File(path.name),
            )
        )
    return offers


# --- a page, on disk or not -------------------------------------------------------------------------------------------


def _sums_in(folder: Path) -> _Sums:
    path = folder / SUMS
    return read_sums(_read_bytes(path), str(path)) if path.is_file() else None


def _checked_index(content: bytes, sums: _Sums, name: str) -> tuple[Offer, ...]:
    found = hashlib.sha256(content).hexdigest()
    if sums is not None and sums.get(INDEX) != found:
        raise ModelError(
            f"{name}: sha256: expected {sums.get(INDEX)} (from {SUMS}), found {found}; "
            "it was changed, or the page is being published: try again, then publish it again"
        )
    return read_index(content, name)


def _check_listed(file: File, sums: _Sums, index: str) -> None:
    """The index and SHA256SUMS must say the same of a file."""
    if sums is not None and sums.get(file.path) != file.sha256:
        raise ModelError(
            f"{index}: {file.path}: sha256: expected {sums.get(file.path, 'the file to be listed')} (from {SUMS}), "
            f"found {file.sha256}; one of the two was changed: publish the page again"
        )


def _check_manifest(path: Path, file: File, sums: _Sums, index: str) -> None:
    _check_listed(file, sums, index)
    found = hashlib.sha256(_read_bytes(path)).hexdigest()
    if found != file.sha256:
        raise ModelError(
            f"{path}: sha256: expected {file.sha256} (from {index}), found {found}; "
            "the manifest is damaged or was changed: fetch or publish it again"
        )


def _read(path: Path, offer: Offer, sums: _Sums, index: str) -> Weights:
    file = offer.weights[0]
    _check_listed(file, sums, index)
    if file.sha256 is None:  # an index always states it
        raise ModelError(f"{index}: {file.path}: no sha256")
    size = path.stat().st_size if path.is_file() else None
    if size not in (None, file.bytes):
        raise ModelError(
            f"{path}: size: expected {file.bytes} bytes (from {index}), found {size}; the file is damaged or was "
            "changed: delete it and fetch it again"
        )
    weights = read_weights(path, {index: file.sha256})
    if weights.manifest is None or weights.manifest.path.name != Path(offer.manifest.path).name:
        found = weights.manifest.path.name if weights.manifest else "none"
        raise ModelError(f"{path}: manifest: expected {offer.manifest.path} (from {index}), found {found}")
    return weights


# --- a page on the network --------------------------------------------------------------------------------------------


def _base(url: str) -> str:
    """The address of a page's folder, with its slash, however the page was named."""
    parts = urllib.parse.urlsplit(url)
    path = re.sub(r"/(index\.html|index\.json)$", "/", parts.path)
    if parts.query:
        raise ModelError(f"{url}: expected a page's address without a query (?{parts.query})")
    return parts._replace(path=path.rstrip("/") + "/", fragment="").geturl()


def _kept(base: str) -> Path:
    """The folder of a page in the cache."""
    host = re.sub(r"[^A-Za-z0-9.-]", "_", urllib.parse.urlsplit(base).hostname or "").strip(".") or "page"
    return cache_folder() / f"{host}-{hashlib.sha256(base.encode()).hexdigest()[:16]}"


def _page(base: str) -> tuple[Sequence[Offer], _Sums, bool]:
    """What a page offers, its SHA256SUMS, and whether it could be reached."""
    kept = _kept(base)
    try:
        content = fetch_document(base + INDEX)
        listed = _sums(base)
    except TransferError as error:
        if not error.unreachable or not (kept / INDEX).is_file():
            raise cannot(error) from None
        log.warning("%s: cannot be reached (%s): weights as on the last visit, from %s", base, error.text, kept)
        sums = _sums_in(kept)
        return _checked_index(_read_bytes(kept / INDEX), sums, str(kept / INDEX)), sums, False
    sums = read_sums(listed, base + SUMS) if listed is not None else None
    offers = _checked_index(content, sums, base + INDEX)
    with suppress(OSError):  # a cache that cannot be written may hold all that is needed
        _keep(kept / SUMS, listed)
        _keep(kept / INDEX, content)
    return offers, sums, True


def _sums(base: str) -> bytes | None:
    try:
        return fetch_document(base + SUMS)
    except TransferError as error:
        if error.status in NOT_THERE:
            return None
        raise


def _keep(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)


def _bring(base: str, offer: Offer, online: bool) -> Path:
    """Have the chosen weights and their manifest in the cache."""
    kept, index = _kept(base), f"{base}{INDEX}"
    weights, manifest = offer.weights[0], offer.manifest
    path = kept / weights.path
    if not online and not path.is_file():
        raise ModelError(f"{base}{weights.path}: not in the cache, and the page cannot be reached; try again later")
    try:
        beside = kept / manifest.path
        # A page that is published again may say more of the same weights.
        if online and (not beside.is_file() or sha256(beside) != manifest.sha256):
            try:
                content = fetch_document(base + manifest.path, manifest.bytes or 0)
            except TransferError as error:
                raise cannot(error) from None
            found = hashlib.sha256(content).hexdigest()
            if found != manifest.sha256:
                raise ModelError(
                    f"{base}{manifest.path}: sha256: expected {manifest.sha256} (from {index}), found {found}; "
                    "the manifest there is damaged or was changed, and is not used"
                )
            write_whole(beside, content)
        receive(base + weights.path, path, weights.bytes, weights.sha256, index)
    except OSError as error:
        raise cache_error(error) from error
    if not online:  # what has just come was checked as it came
        _check_manifest(beside, manifest, None, index)
    return path
