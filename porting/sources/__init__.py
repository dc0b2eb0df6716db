"""Readers of the containers that Xception weights come in. None of them imports TensorFlow or torch."""

from __future__ import annotations

import os
import re
from glob import escape
from importlib import import_module
from pathlib import Path

from porting.errors import ErrorKind, PortingError, corrupt, unsupported
from porting.sources.base import TensorSource, TensorSpec, open_file, read_exactly

__all__ = ["TensorSource", "TensorSpec", "open_source", "require"]

# How a file of each format begins: offset, bytes, and the function that opens it, imported when it is needed.
_BEGINNINGS = (
    (0, b"\x89HDF\r\n\x1a\n", "porting.sources.keras_h5:open_h5"),
    (0, b"PK\x03\x04", "porting.sources.archive:open_zip"),
    (0, b"PK\x05\x06", "porting.sources.archive:open_zip"),
    (0, b"\x1f\x8b", "porting.sources.archive:open_tar"),
    (257, b"ustar", "porting.sources.archive:open_tar"),
)
# Parts of a checkpoint that name no tensors, known by their names because their bytes are anything.
_PARTS = (
    (re.compile(r"(?<=.)\.data-\d{5}-of-\d{5}$"), "a data file of a checkpoint, which names no tensors"),
    (re.compile(r"(?<=.)\.meta$"), "the graph of a checkpoint, which holds no tensors"),
)
_SAVED_MODEL = b"\x08\x01"  # SavedModel.saved_model_schema_version = 1
_GRAPH = (0x0A, 0x12, 0x18, 0x22)  # GraphDef: node, library, version or versions comes first, as the writer likes
_HEAD = 512  # bytes looked at


def open_source(path: str | os.PathLike[str], *, within: Path | None = None) -> TensorSource:
    """Open any container of weights, told apart by what is in it, never by its extension.

    Args:
        path: a file, a folder that holds a checkpoint or a SavedModel, or a checkpoint's prefix.
        within: a folder that a `checkpoint` file may not lead out of; for what came in an archive.

    Raises:
        PortingError: missing, corrupt, or of no format that is read here.
    """
    source = Path(path)
    try:
        if source.is_dir():
            return _open_folder(source, within)
        if not source.is_file() and source.with_name(source.name + ".index").is_file():
            return _open_prefix(source)
        return _open_file(source)
    except OSError as error:
        raise _unreachable(path, error) from None


def require(path: str | os.PathLike[str]) -> None:
    """Refuse at once, before anything heavy is loaded, a path where nothing begins like this.

    Raises:
        PortingError: missing, as `open_source` says it.
    """
    source = Path(path)
    try:
        found = source.exists() or any(source.parent.glob(f"{escape(source.name)}*"))
    except OSError as error:
        raise _unreachable(path, error) from None
    if not found:
        raise _missing(source)


def _unreachable(path: object, error: OSError) -> PortingError:
    """Of a name that is too long, or in a folder that may not be searched."""
    return PortingError(ErrorKind.MISSING, path, [error.strerror or str(error)], "Check the path.")


def _missing(path: Path) -> PortingError:
    return PortingError(ErrorKind.MISSING, path, ["no such file, folder or checkpoint prefix"], _instead_of(path))


def _open_with(opener: str, path: Path) -> TensorSource:
    module, function = opener.split(":")
    source: TensorSource = getattr(import_module(module), function)(path)
    return source


def _open_folder(folder: Path, within: Path | None = None) -> TensorSource:
    if (folder / "saved_model.pb").is_file() or (folder / "saved_model.pbtxt").is_file():
        from porting.sources.saved_model import open_saved_model

        return open_saved_model(folder)
    from porting.sources.checkpoint_folder import newest_prefix

    prefix = newest_prefix(folder, within)
    return _open_file(prefix) if prefix.is_file() else _open_prefix(prefix)


def _open_prefix(prefix: Path) -> TensorSource:
    """A checkpoint of several files: V2, object-based or not, or sharded V1."""
    if not prefix.with_name(prefix.name + ".index").is_file():
        from porting.sources.checkpoint_v1 import V1Source

        return V1Source(prefix)
    from porting.sources.bundle import BundleSource

    source = BundleSource(prefix)
    from porting.sources.object_graph import OBJECT_GRAPH_KEY, name_variables

    if OBJECT_GRAPH_KEY in source.entries:
        name_variables(source)
    return source


def _open_table(path: Path) -> TensorSource:
    """A V2 index, or a V1 checkpoint: what lies under the empty key tells them apart."""
    from porting.sources.table import Table

    table = Table(path)
    try:
        first = table.block(0)[:1] if len(table) else []
    finally:
        table.close()
    # BundleHeaderProto begins with its number of shards, SavedTensorSlices with a message.
    if first and first[0][0] == b"" and first[0][1][:1] == b"\x0a":
        from porting.sources.checkpoint_v1 import V1Source

        return V1Source(path)
    if not path.name.endswith(".index"):
        raise PortingError(
            ErrorKind.UNSUPPORTED, path, ["a checkpoint index under a name that does not end in .index"],
            "Name it PREFIX.index, beside PREFIX.data-00000-of-00001, and give PREFIX.",
        )  # fmt: skip
    return _open_prefix(path.with_name(path.name.removesuffix(".index")))


def _open_file(path: Path) -> TensorSource:
    if not path.exists():
        from porting.sources.checkpoint_v1 import v1_shards

        if v1_shards(path):
            return _open_prefix(path)
        raise _missing(path)
    from porting.sources.table import is_table

    fd = open_file(path)
    try:
        head = bytearray(_HEAD)
        head = head[: read_exactly(fd, memoryview(head), 0)]
        table = is_table(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    if table:
        return _open_table(path)
    for offset, magic, opener in _BEGINNINGS:
        if head[offset : offset + len(magic)] == magic:
            return _open_with(opener, path)
    for ending, what in _PARTS:
        if ending.search(path.name):
            raise PortingError(ErrorKind.UNSUPPORTED, path, [what], _instead_of(path))
    if path.name.endswith(".index"):
        raise corrupt(path, "table footer", "none", "the footer that ends a checkpoint index")
    if head[:2] == _SAVED_MODEL and path.name == "saved_model.pb":
        return _open_folder(path.parent)
    if head and head[0] in _GRAPH:
        return _open_with("porting.sources.frozen_graph:FrozenGraphSource", path)
    found = f"no format that is read here; it begins with {bytes(head[:8])!r}" if head else "an empty file"
    raise unsupported(path, "", found, "Give a TensorFlow checkpoint, SavedModel or frozen graph, or a Keras file.")


def _instead_of(path: Path) -> str:
    """What to give instead of a file that is part of a checkpoint."""
    for ending, _ in _PARTS:
        if match := ending.search(path.name):
            return f"Give the checkpoint's prefix, {path.with_name(path.name[: match.start()] or '.')}."
    return "Check the path."
