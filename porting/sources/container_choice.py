"""Which of an archive's files is the container: by content, checkpoints before frozen graphs of the same model.

Published archives hold several things at once; DeepLab's, for example, a checkpoint and a frozen graph.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from porting.errors import unsupported
from porting.sources.archive_members import Member
from porting.sources.base import open_file, read_exactly
from porting.sources.hdf5_index import SIGNATURE
from porting.sources.keras_zip import is_keras
from porting.sources.table import is_table
from porting.sources.zip_directory import read_directory

# Lower is preferred.
_CHECKPOINT, _SAVED_MODEL, _KERAS, _GRAPH = range(4)
_NESTED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


def choose_container(archive: Path, folder: Path) -> Path:
    """The one container in `folder`, or in a folder in it: a file, or a folder that is one.

    Raises:
        PortingError: unsupported, where there is none, or more than one of the best kind.
    """
    found: dict[int, list[Path]] = {}
    nested: list[str] = []
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        folders.sort()
        here = Path(root)
        # What a Mac's own archiver adds.
        plain = sorted(f for f in files if not f.startswith("._") and "__MACOSX" not in here.parts)
        if "saved_model.pb" in plain:
            found.setdefault(_SAVED_MODEL, []).append(here)
            folders.clear()
            continue
        names += [(here / name).relative_to(folder).as_posix() for name in plain]
        kinds = {name: _kind(here / name) for name in plain}
        tables = [name for name, kind in kinds.items() if kind == _CHECKPOINT]
        if len(tables) > 1 or any(name.endswith(".index") for name in tables):
            found.setdefault(_CHECKPOINT, []).append(here)  # the folder's own file says which is the newest
            continue
        for name, kind in kinds.items():
            if isinstance(kind, int):
                found.setdefault(kind, []).append(here / name)
            elif kind:
                nested.append(f"{(here / name).relative_to(folder).as_posix()} ({kind})")
    if not found:
        if nested:
            raise unsupported(archive, nested[0], "an archive in an archive", "Unpack the outer one first.")
        raise unsupported(archive, "archive", f"no weights that are read here among {_listed(names)}")
    best = found[min(found)]
    if len(best) > 1:
        listed = _listed([path.relative_to(folder).as_posix() for path in best])
        raise unsupported(archive, "archive", f"{len(best)} containers: {listed}", "Unpack it and name one of them.")
    return best[0]


def is_hdf5_alone(path: Path, members: Sequence[Member]) -> Member | None:
    """The uncompressed HDF5 member that can be read in place, if it is the one file of interest."""
    if any(m.compressed for m in members):
        return None
    fd = open_file(path)
    try:
        head = bytearray(len(SIGNATURE))
        found = []
        for member in members:
            read_exactly(fd, memoryview(head), member.offset)
            if bytes(head) == SIGNATURE and member.size > len(head):
                found.append(member)
            elif not member.name.lower().endswith((".txt", ".md", ".json")):
                return None
    finally:
        os.close(fd)
    return found[0] if len(found) == 1 else None


def _kind(path: Path) -> int | str:
    """A kind of container, the name of an archive format, or "" for neither."""
    fd = open_file(path)
    try:
        head = bytearray(512)
        head = head[: read_exactly(fd, memoryview(head), 0)]
        if is_table(fd, os.fstat(fd).st_size):
            return _CHECKPOINT
    finally:
        os.close(fd)
    if head.startswith(SIGNATURE):
        return _KERAS
    if head.startswith(b"PK\x03\x04") and is_keras(read_directory(path)):
        return _KERAS
    if head[257:262] == b"ustar":
        return "tar"
    for magic, name in _NESTED.items():
        if head.startswith(magic):
            return name
    return _GRAPH if path.suffix == ".pb" else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "no files"
