"""Fetch published weights over http(s) into a cache, checked, resumed after an interruption, and never half written.

A file's folder in the cache is named after its URL. In it: the file, `.sha256` with the digest of the first download
(kept when the file is deleted, so that a changed file is noticed), and `.part` with what has come so far.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from models.connection import Retry, TransferError, check_url
from models.transfer import Transfer, locked, transfer_checked
from porting.errors import Defect, ErrorKind, PortingError, corrupt
from porting.sources.base import sha256
from porting.sources.official import OfficialSource, official

__all__ = ["OfficialSource", "Retry", "cache_folder", "fetch", "official"]


@dataclass(frozen=True)
class _Place:
    """Where one URL's file, digest, unfinished download and, while it comes, lock are."""

    file: Path

    @property
    def digest(self) -> Path:
        return self.file.with_name(self.file.name + ".sha256")

    @property
    def part(self) -> Path:
        return self.file.with_name(self.file.name + ".part")

    @property
    def lock(self) -> Path:
        return self.file.with_name(".lock")


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/xception-porting`, or the same in `~/.cache` (XDG Base Directory Specification 0.8)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    root = Path(given) if given and Path(given).is_absolute() else Path.home() / ".cache"
    return root / "xception-porting"


def fetch(
    source: OfficialSource | str, *, cache: Path | None = None, retry: Retry | None = None, progress: bool | None = None
) -> Path:
    """The file that `source` names, downloaded unless the cache has it, its size and digest checked either way.

    Args:
        source: an entry of the table, or any http(s) URL.
        cache: the folder to keep it in; default `cache_folder()`.
        retry: how often and how patiently to try again; the defaults suit a slow line.
        progress: whether to show a bar; default only on a terminal.

    Raises:
        PortingError: missing (not there, no network, interrupted for good); corrupt (cut short, a wrong size or
            digest, or not what was fetched first); unsupported (not http, a web page); output (the cache).
    """
    wanted = source if isinstance(source, OfficialSource) else OfficialSource("", source, "", "")
    try:
        return _fetch(wanted, cache, retry, progress)
    except TransferError as error:
        again = "Run the same command again to go on from there. " if error.again else ""
        raise PortingError(
            ErrorKind(error.kind.value), error.url, [Defect(error.subject, error.found, error.expected)],
            error.remedy or again + by_hand(error.url),
        ) from None  # fmt: skip


def _fetch(wanted: OfficialSource, cache: Path | None, retry: Retry | None, progress: bool | None) -> Path:
    check_url(wanted.url)
    place = _place(cache if cache is not None else cache_folder(), wanted.url)
    try:
        place.file.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.lock):
            if place.file.exists():
                _check(place.file, wanted, place.digest, "Delete it to fetch it again.")
            else:
                _download(wanted, place, retry or Retry(), progress)
    except OSError as error:
        raise PortingError(
            ErrorKind.OUTPUT, place.file.parent, [f"the cache cannot be used: {error.strerror or error}"],
            "Free some space, or name another folder in the environment variable XDG_CACHE_HOME.",
        ) from None  # fmt: skip
    return place.file


def by_hand(url: str) -> str:
    """The remedy for every failed download."""
    return f"Fetch {url} by hand and give the file's path as --src; --src synthetic needs no download."


def _place(cache: Path, url: str) -> _Place:
    last = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    # Only characters that every file system takes; the hash, not the name, tells two URLs apart.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-100:] or "download"
    return _Place(cache / hashlib.sha256(url.encode()).hexdigest()[:16] / name)


def _download(wanted: OfficialSource, place: _Place, retry: Retry, progress: bool | None) -> None:
    def check(part: Path) -> None:
        _check(part, wanted, place.digest, by_hand(wanted.url), shown=wanted.url)

    transfer_checked(Transfer(wanted.url, place.part, wanted.bytes), check, retry, progress)
    place.part.replace(place.file)


def _check(file: Path, wanted: OfficialSource, digest_file: Path, remedy: str, shown: object = None) -> None:
    """Size and digest against the table, or against what was fetched first; the first time, keep the digest."""
    size = file.stat().st_size
    if wanted.bytes is not None and size != wanted.bytes:
        raise corrupt(shown or file, "size", f"{size} bytes", f"{wanted.bytes} bytes", remedy)
    if size == 0:
        raise corrupt(shown or file, "size", "0 bytes", "weights", remedy)
    found = sha256([file])
    if wanted.sha256 is not None:
        if found != wanted.sha256:
            raise corrupt(shown or file, "sha256", found, wanted.sha256, remedy)
        return
    if not digest_file.exists():
        scratch = digest_file.with_name(digest_file.name + ".new")
        scratch.write_text(f"{found}\n", encoding="ascii")
        scratch.replace(digest_file)
        return
    kept = digest_file.read_text(encoding="ascii", errors="replace").strip()
    if found != kept:
        raise PortingError(
            ErrorKind.CORRUPT, shown or file, [Defect("sha256", found, f"{kept}, as when it was first fetched")],
            f"If the publisher is known to have replaced it, delete {digest_file}.",
        )  # fmt: skip
