"""TensorFlow's V1 checkpoints: one table that holds names and values, or one table a shard.

Format: tensorflow/core/util/{tensor_slice_writer.h,saved_tensor_slice.proto}. Key "" holds SavedTensorSlices.meta,
which lists every tensor and its slices; each slice's values lie under a key of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from porting.errors import Defect, ErrorKind, PortingError, corrupt, unsupported
from porting.sources.base import TensorSource, TensorSpec
from porting.sources.ordered_code import slice_key
from porting.sources.protobuf import BYTES, REPEATED, VARINT, WireError, parse, signed, text
from porting.sources.table import SNAPPY_RATIO, Table
from porting.sources.tensor_proto import parse_tensor, tensor_values
from porting.sources.tensorflow_types import (
    Slice,
    check_readable,
    check_tiling,
    dtype_name,
    parse_shape,
    parse_slice,
)

_SHARD = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)


@dataclass(frozen=True)
class _Piece:
    """One stored slice: where it belongs, and the table and key that hold it."""

    stored: Slice
    explicit: Slice
    table: Table
    key: bytes


def v1_shards(prefix: Path) -> list[Path]:
    """The files PREFIX-NNNNN-of-NNNNN beside a prefix, in order; none where it is no sharded V1 checkpoint.

    Raises:
        PortingError: missing shards, or shards of different sets.
    """
    if not prefix.parent.is_dir():
        return []
    found = {}
    for path in prefix.parent.iterdir():
        match = _SHARD.fullmatch(path.name)
        if match and match["prefix"] == prefix.name:
            found[int(match["number"]), int(match["count"])] = path
    counts = sorted({count for _, count in found})
    if len(counts) > 1:
        sets = " and ".join(map(str, counts))
        raise PortingError(ErrorKind.CORRUPT, prefix, [f"shards of sets of {sets}"], "Keep the files of one set.")
    wanted = [(number, counts[0]) for number in range(counts[0])] if counts else []
    missing = [f"{prefix.name}-{number:05d}-of-{count:05d}" for number, count in wanted if (number, count) not in found]
    if missing:
        raise PortingError(
            ErrorKind.MISSING, prefix, [Defect(name, "no such file", "a shard of the checkpoint") for name in missing],
            "Put all shards beside each other.",
        )  # fmt: skip
    return [found[key] for key in sorted(found)]


class V1Source(TensorSource):
    """A V1 checkpoint.

    Args:
        path: the checkpoint, or its prefix where it is sharded.

    Raises:
        PortingError: missing, corrupt or unsupported.
    """

    container = "tf-checkpoint-v1"

    def __init__(self, path: Path) -> None:
        self.path = path
        if (shard := _SHARD.fullmatch(path.name)) and path.is_file():
            raise PortingError(
                ErrorKind.UNSUPPORTED, path, ["one shard of a V1 checkpoint, which holds a part of the tensors"],
                f"Give the checkpoint's prefix, {path.with_name(shard['prefix'])}.",
            )  # fmt: skip
        self._tables: list[Table] = []
        self._pieces: dict[str, list[_Piece]] = {}
        self.specs: dict[str, TensorSpec] = {}
        self._block: tuple[Table, int, dict[bytes, bytes]] | None = None
        try:
            for file in [path] if path.is_file() else v1_shards(path) or [path]:
                self._tables.append(Table(file))
                self._read_meta(self._tables[-1])
            self._check_slices()
        except BaseException:
            self.close()
            raise

    def _read_meta(self, table: Table) -> None:
        first = table.block(0)[:1] if len(table) else []
        if not first or first[0][0] != b"":
            raise corrupt(table.path, "header", "nothing", "a SavedTensorSlices message under the empty key")
        try:
            slices = parse(first[0][1], {1: BYTES}).get(1, b"")
            meta = parse(slices, {1: BYTES | REPEATED, 2: BYTES})
            consumer = signed(parse(meta.get(2, b""), {2: VARINT}).get(2, 0))
        except WireError as error:
            raise corrupt(table.path, "header", str(error)) from None
        if consumer > 1:  # TF_CHECKPOINT_VERSION
            raise unsupported(table.path, "header", f"a checkpoint for readers of version {consumer}; this one is 1")
        names = set()
        for data in meta.get(1, []):
            name = "header"
            try:
                message = parse(data, {1: BYTES, 2: BYTES, 3: VARINT, 4: BYTES | REPEATED})
                name = text(message.get(1, b""))
                if name in names:
                    raise WireError("listed twice")
                names.add(name)
                shape = parse_shape(message.get(2, b""))
                spec = TensorSpec(name, dtype_name(message.get(3, 0), table.path, name), shape)
                # A value takes a byte at least; an allocation must not follow a claim that no file can hold.
                if spec.size > SNAPPY_RATIO * table.size and len(self._tables) == 1:
                    raise WireError(f"shape {list(shape)} in a file of {table.size} bytes")
                known = self.specs.setdefault(name, spec)
                if known != spec:
                    raise WireError(
                        f"{spec.dtype} {list(shape)} in {table.path.name}, {known.dtype} {list(known.shape)} before"
                    )
                for piece in map(parse_slice, message.get(4, [])):
                    explicit = piece.resolved(shape)
                    key = slice_key(name, piece)
                    self._pieces.setdefault(name, []).append(_Piece(piece, explicit, table, key))
            except WireError as error:
                raise corrupt(table.path, name, str(error)) from None

    def _check_slices(self) -> None:
        total = sum(table.size for table in self._tables)
        for name, spec in self.specs.items():
            try:
                check_tiling([piece.explicit for piece in self._pieces.get(name, [])], spec.shape)
                if spec.size > SNAPPY_RATIO * total:
                    raise WireError(f"shape {list(spec.shape)} in files of {total} bytes")
            except WireError as error:
                raise corrupt(self.path, name, str(error)) from None

    def files(self) -> Sequence[Path]:
        return [table.path for table in self._tables]

    def read(self, name: str) -> npt.NDArray[Any]:
        spec = self.specs[name]
        check_readable(spec, self.path)
        pieces = self._pieces[name]
        if len(pieces) == 1:
            return self._values(spec, pieces[0])
        parts = [self._values(spec, piece) for piece in pieces]
        whole = np.empty(spec.shape, parts[0].dtype)
        for piece, values in zip(pieces, parts, strict=True):
            whole[piece.explicit.index] = values
        return whole

    def close(self) -> None:
        for table in self._tables:
            table.close()
        self._block = None

    def _values(self, spec: TensorSpec, piece: _Piece) -> npt.NDArray[Any]:
        path = piece.table.path
        number = piece.table.block_of(piece.key)
        if number is None:
            raise corrupt(path, spec.name, "no values for a slice that the header lists")
        if self._block is None or self._block[:2] != (piece.table, number):
            self._block = None  # let the old one go first
            self._block = piece.table, number, dict(piece.table.block(number))
        data = self._block[2].get(piece.key)
        if data is None:
            raise corrupt(path, spec.name, "no values for a slice that the header lists")
        try:
            stored = parse(parse(data, {2: BYTES}).get(2, b""), {1: BYTES, 2: BYTES, 3: BYTES})
            if text(stored.get(1, b"")) != spec.name or parse_slice(stored.get(2, b"")) != piece.stored:
                raise WireError("its key holds a slice of another tensor")
            tensor = parse_tensor(stored.get(3, b""))
            part = TensorSpec(spec.name, spec.dtype, piece.explicit.lengths)
            return tensor_values(tensor, part, path, repeat=False)
        except WireError as error:
            raise corrupt(path, spec.name, str(error)) from None
