"""Readers of the containers that Xception weights come in. None of them imports TensorFlow or torch."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path

from porting.errors import ErrorKind, PortingError, unsupported
from porting.sources.base import TensorSource, TensorSpec, open_file, read_exactly

__all__ = ["TensorSource", "TensorSpec", "open_source"]

# How a file of each format begins: offset, bytes, and the function that opens it, imported when it is needed.
_BEGINNINGS = (
    (0, b"\x89HDF\r\n\x1a\n", "porting.sources.keras_h5:open_h5"),
    (0, b"PK\x03\x04", "porting.sources.archive:open_zip"),
    (0, b"PK\x05\x06", "porting.sources.archive:open_zip"),
    (0, b"\x1f\x8b", "porting.sources.archive:open_tar"),
    (257, b"ustar", "porting.sources.archive:open_tar"),
)
_SHARD = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}$", re.DOTALL)
_HEAD = 512  # bytes looked at


def open_source(path: str | os.PathLike[str]) -> TensorSource:
    """Open any container of weights, told apart by what is in it, never by its extension.

    Args:
        path: a file, a folder that holds a checkpoint or a SavedModel, or a checkpoint's prefix.

    Raises:
        PortingError: missing, corrupt, or of no format that is read here.
    """
    source = Path(path)
    try:
        if source.is_dir():
            return _open_folder(source)
        if source.with_name(source.name + ".index").is_file() and not source.is_file():
            return _open_bundle(source)
        return _open_file(source)
    except (OSError, ValueError) as error:  # a name too long, a null byte in it, a folder that may not be searched
        raise PortingError(ErrorKind.MISSING, path, [str(error)], "Check the path.") from None


def _open_with(opener: str, path: Path) -> TensorSource:
    module, function = opener.split(":")
    source: TensorSource = getattr(import_module(module), function)(path)
    return source


def _open_folder(folder: Path) -> TensorSource:
    from porting.sources.checkpoint_folder import newest_prefix

    prefix = newest_prefix(folder)
    return _open_file(prefix) if prefix.is_file() else _open_bundle(prefix)


def _open_bundle(prefix: Path) -> TensorSource:
    from porting.sources.bundle import BundleSource

    return BundleSource(prefix)


def _open_file(path: Path) -> TensorSource:
    from porting.sources.table import is_table

    if not path.exists():
        shard = _SHARD.match(path.name)
        remedy = f"Give the checkpoint's prefix, {path.with_name(shard['prefix'])}." if shard else "Check the path."
        raise PortingError(ErrorKind.MISSING, path, ["no such file, folder or checkpoint prefix"], remedy)
    fd = open_file(path)
    try:
        head = bytearray(_HEAD)
        head = head[: read_exactly(fd, memoryview(head), 0)]
        table = is_table(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    if table:
        return _open_bundle(path.with_name(path.name.removesuffix(".index")))
    for offset, magic, opener in _BEGINNINGS:
        if head[offset : offset + len(magic)] == magic:
            return _open_with(opener, path)
    if shard := _SHARD.match(path.name):
        raise PortingError(
            ErrorKind.UNSUPPORTED, path, ["a data file of a checkpoint, which names no tensors"],
            f"Give the checkpoint's prefix, {path.with_name(shard['prefix'])}.",
        )  # fmt: skip
    if path.name.endswith(".index"):
        raise PortingError(ErrorKind.CORRUPT, path, ["not a checkpoint index: its table footer is missing"],
                           "Fetch or copy the file again.")  # fmt: skip
    raise unsupported(path, "", f"no format that is read here; it begins with {bytes(head[:8])!r}",
                      "Give a TensorFlow checkpoint, SavedModel or frozen graph, or a Keras file.")  # fmt: skip
