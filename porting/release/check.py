"""A published site, checked end to end: checksums, index, manifests, pages and their links, here or over http(s)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from porting.errors import Defect, ErrorKind, PortingError
from porting.origins import Progress, Quiet
from porting.release import checksums, fields, index, signing
from porting.release.description import describe
from porting.release.index import CARDS, INDEX, MAX_BYTES, REPORTS, SIGNATURE, SUMS, WEIGHTS
from porting.release.places import Folder, Place, Remote, UnreadableError


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        differences: everything that is not as it should be; none where the site is whole.
        files, bytes: how much was read.
        weights: entries of the index.
        signature: "checked", "there, but no public key was given", or "none".
    """

    place: str
    differences: tuple[Defect, ...]
    files: int
    bytes: int
    weights: int
    signature: str


@dataclass
class _Read:
    """Files as they came."""

    digests: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    differences: list[Defect] = field(default_factory=list)


def verify(site: str, public_key: Path | None = None, progress: Progress | None = None) -> Checked:
    """Read every file of a site, and say of each that is not as the site's own lists have it.

    Args:
        site: its folder, or its http(s) address.
        public_key: a minisign public key; with it, SHA256SUMS must be signed by its owner.

    Raises:
        PortingError: missing, where there is no such site; corrupt or unsupported, where SHA256SUMS or index.json
            cannot be read at all; as `signing.check` says.
    """
    watch = progress or Quiet()
    place: Place = Remote(site) if site.startswith(("http://", "https://")) else Folder(Path(site))
    sums = _root(place, SUMS, checksums.MAX_BYTES)
    listed = checksums.read(sums, f"{place.name}: {SUMS}")
    found = _Read()
    signature = _signature(place, sums, public_key, found)
    index_bytes = _root(place, INDEX, MAX_BYTES)
    value = index.read(index_bytes, f"{place.name}: {INDEX}")
    named = {stored.path: stored for stored in index.stored_files(value)}
    pages = set(index.pages_of(value))
    found.differences += _lists(listed, named, pages)
    small = pages | {INDEX} | {entry["manifest"]["path"] for entry in value["weights"]}
    watch.start("files", len(listed))
    for path in sorted(listed):
        limit = named[path].bytes if path in named else MAX_BYTES
        _take(place, path, limit, path in small, found)
        watch.step()
    found.differences += _contents(listed, named, found)
    found.differences += _manifests(value, found)
    for page in sorted(pages & found.texts.keys()):
        found.differences += _links(page, found.texts, {*listed, SUMS, *([SIGNATURE] if signature != "none" else [])})
    for folder in (WEIGHTS, REPORTS, CARDS):
        for path in sorted(place.found(folder) - listed.keys()):
            found.differences.append(Defect(path, "a file that the site does not list"))
    total = sum(found.sizes.values())
    return Checked(place.name, tuple(found.differences), len(found.sizes), total, len(value["weights"]), signature)


def _root(place: Place, path: str, limit: int) -> bytes:
    try:
        data = b"".join(place.pieces(path, limit))
    except UnreadableError as error:
        remedy = "Name the folder or the address of a site that porting.release built."
        raise PortingError(ErrorKind.MISSING, place.name, [Defect(path, str(error))], remedy) from None
    if len(data) > limit:
        raise PortingError(ErrorKind.CORRUPT, place.name, [Defect(path, "a larger file", f"at most {limit} bytes")])
    return data


def _signature(place: Place, sums: bytes, public_key: Path | None, found: _Read) -> str:
    try:
        data = b"".join(place.pieces(SIGNATURE, signing.MAX_BYTES))
    except UnreadableError as error:
        if public_key is not None:
            found.differences.append(Defect(SIGNATURE, str(error), "a signature, as a public key was given"))
        return "none"
    if public_key is None:
        return "there, but no public key was given"
    defect = signing.check(sums, data[: signing.MAX_BYTES], public_key)
    if defect:
        found.differences.append(defect)
    return "checked"


def _lists(listed: Mapping[str, str], named: Mapping[str, index.Stored], pages: set[str]) -> Iterator[Defect]:
    """Where SHA256SUMS and index.json do not speak of the same files."""
    for path in sorted(named.keys() | pages | {INDEX}):
        if path not in listed:
            yield Defect(path, f"not in {SUMS}")
        elif path in named and listed[path] != named[path].sha256:
            yield Defect(path, f"sha256 {named[path].sha256} in {INDEX}", f"{listed[path]}, as in {SUMS}")
    for path in sorted(listed.keys() - named.keys() - pages - {INDEX}):
        yield Defect(path, f"in {SUMS}, but {INDEX} knows nothing of it")


def _take(place: Place, path: str, limit: int, keep: bool, found: _Read) -> None:
    total, size, kept = hashlib.sha256(), 0, []
    try:
        for piece in place.pieces(path, limit):
            size += len(piece)
            total.update(piece)
            if keep:
                kept.append(piece)
    except UnreadableError as error:
        found.differences.append(Defect(path, str(error)))
        return
    if size > limit:
        found.differences.append(Defect(path, "a larger file", f"at most {limit} bytes"))
        return
    found.digests[path], found.sizes[path] = total.hexdigest(), size
    if keep:
        found.texts[path] = b"".join(kept)


def _contents(listed: Mapping[str, str], named: Mapping[str, index.Stored], found: _Read) -> Iterator[Defect]:
    """Where a file is not what the lists say."""
    for path in sorted(found.digests):
        if path in named and found.sizes[path] != named[path].bytes:
            yield Defect(path, f"{found.sizes[path]} bytes", f"{named[path].bytes}, as in {INDEX}")
        elif found.digests[path] != listed[path]:
            yield Defect(path, f"sha256 {found.digests[path]}", f"{listed[path]}, as in {SUMS}")


def _manifests(value: Mapping[str, Any], found: _Read) -> Iterator[Defect]:
    """Where the index says something else than the manifests."""
    if value["weights"] != sorted(value["weights"], key=index.order):
        yield Defect(INDEX, "weights in another order", "sorted by arch and stem")
    for entry in value["weights"]:
        path = entry["manifest"]["path"]
        if path not in found.texts:
            continue  # it did not come, which is listed already
        try:
            described = describe(fields.decode(found.texts[path]), entry["stem"], path)
        except ValueError:
            yield Defect(path, "no JSON", "a manifest")
        except PortingError as error:
            yield from (Defect(f"{path}: {one.subject}", one.found, one.expected) for one in error.defects)
        else:
            yield from index.defects_of(entry, described)


class _Page(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.references: list[tuple[str, str]] = []
        self.places: set[str] = set()
        self.feed(data.decode(errors="replace"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, text in attrs:
            if name == "id" and text:
                self.places.add(text)
            elif name in ("href", "src", "srcset", "data", "action", "poster", "xlink:href") and text is not None:
                self.references.append((tag, text))


def _links(page: str, texts: Mapping[str, bytes], there: set[str]) -> Iterator[Defect]:
    """References of a page that lead nowhere in the site, or to something that would be fetched from elsewhere."""
    parsed = {page: _Page(texts[page])}
    for tag, reference in parsed[page].references:
        parts = urlsplit(reference)
        if parts.scheme in ("http", "https") and tag == "a":
            continue  # somebody else's page
        if parts.scheme == "data" and tag == "link":
            continue
        target = _resolved(page, unquote(parts.path)) if parts.path else page
        if parts.scheme or parts.netloc or target not in there:
            yield Defect(page, f"a link to {reference!r}", "a file of the site")
        elif parts.fragment and target in texts:
            if target not in parsed:
                parsed[target] = _Page(texts[target])
            if unquote(parts.fragment) not in parsed[target].places:
                yield Defect(page, f"a link to {reference!r}", "a place in that page")


def _resolved(page: str, path: str) -> str:
    """A relative reference as a path of the site; "" where it leads out of it."""
    parts = list(PurePosixPath(page).parent.parts)
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "" if path.startswith("/") else "/".join(parts)
