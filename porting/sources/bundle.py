"""TensorFlow's V2 checkpoints ("tensor bundles"): PREFIX.index and PREFIX.data-SSSSS-of-NNNNN.

Format: tensorflow/core/util/tensor_bundle/tensor_bundle.h and core/protobuf/tensor_bundle.proto. The index is a
table: key "" holds the header, every other key an entry that says where a tensor's bytes lie.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from porting.errors import Defect, ErrorKind, PortingError, corrupt, unsupported
from porting.sources.base import ITEM_SIZE, TensorSource, TensorSpec, open_file, read_exactly
from porting.sources.checksum import crc32c, masked, unmasked
from porting.sources.ordered_code import slice_key
from porting.sources.protobuf import BYTES, FIXED32, VARINT, WireError, one, parse, signed, text, varint
from porting.sources.table import Table
from porting.sources.tensorflow_types import (
    Slice,
    as_array,
    check_readable,
    check_tiling,
    dtype_name,
    parse_shape,
    parse_slice,
)

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

_HEADER = {1: VARINT, 2: VARINT, 3: BYTES}  # num_shards, endianness, version
_ENTRY = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES}
_OPEN_SHARDS = 64  # descriptors kept at once
_CHUNK = 1 << 18  # bytes read before they are summed, so that the crc finds them in the cache


@dataclass(frozen=True)
class Entry:
    """Where a tensor's bytes lie: `offset` and `size` in bytes; `crc` is unmasked; `slices` where partitioned."""

    spec: TensorSpec
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[Slice, ...] = ()


@dataclass
class _Index:
    """An index as it is parsed."""

    path: Path
    shards: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    pieces: dict[bytes, Entry] = field(default_factory=dict)  # slices, under their encoded keys
    shapes: dict[bytes, tuple[int, ...]] = field(default_factory=dict)  # shapes repeat: each is parsed once


def _read_index(path: Path) -> _Index:
    index = _Index(path)
    table = Table(path)
    try:
        for key, value in table.items():
            if key == b"":
                _read_header(index, value)
                continue
            if not index.shards:
                raise corrupt(path, "header", "nothing", "a BundleHeaderProto under the empty key")
            try:
                name = repr(key) if key[0] == 0 else text(key)
            except WireError as error:
                raise corrupt(path, repr(key), str(error)) from None
            try:
                entry = _read_entry(index, name, value)
            except WireError as error:
                raise corrupt(path, name, str(error)) from None
            if key[0] == 0:
                index.pieces[key] = entry
            else:
                index.entries[name] = entry
    finally:
        table.close()
    if not index.shards:
        raise corrupt(path, "header", "nothing", "a BundleHeaderProto under the empty key")
    _check_slices(index)
    _check_overlap(index)
    return index


def _read_header(index: _Index, value: bytes) -> None:
    try:
        header = parse(value, _HEADER)
        shards, endianness = signed(one(header, 1)), one(header, 2)
        version = parse(one(header, 3, b""), {1: VARINT, 2: VARINT})
        consumer = signed(one(version, 2))
    except WireError as error:
        raise corrupt(index.path, "header", str(error)) from None
    if not 0 < shards < 100_000:  # five digits in a shard's name
        raise corrupt(index.path, "header", f"{shards} shards", "1 to 99999")
    if endianness:
        raise unsupported(index.path, "header", "big-endian data", "Save the checkpoint on a little-endian machine.")
    if consumer > 1:  # kTensorBundleVersion
        raise unsupported(index.path, "header", f"a bundle that needs readers of version {consumer}; this one is 1")
    index.shards = shards


def _read_entry(index: _Index, name: str, value: bytes) -> Entry:
    message = parse(value, _ENTRY)
    dtype = dtype_name(one(message, 1), index.path, name)
    packed = one(message, 2, b"")
    shape = index.shapes.get(packed)
    if shape is None:
        shape = index.shapes[packed] = parse_shape(packed)
    spec = TensorSpec(name, dtype, shape)
    shard, offset, size = one(message, 3), one(message, 4), one(message, 5)
    if shard >= index.shards:
        raise WireError(f"shard {signed(shard)} of {index.shards}")
    if (offset | size) >> 63 or offset + size >> 63:
        raise WireError(f"offset {signed(offset)}, size {signed(size)}")
    slices = tuple(parse_slice(data) for data in message.get(7, ()))
    item = ITEM_SIZE.get(dtype)
    if slices:
        if offset or size:
            raise WireError(f"both {len(slices)} slices and {size} bytes of its own")
    elif item and size != spec.size * item:
        raise WireError(f"{size} bytes for {dtype} of shape {list(shape)}, which takes {spec.size * item}")
    return Entry(spec, shard, offset, size, unmasked(one(message, 6)), slices)


def _check_slices(index: _Index) -> None:
    """Every partitioned variable has its slices, each slice its variable, and together they are the whole."""
    left = set(index.pieces)
    for name, entry in index.entries.items():
        if not entry.slices:
            continue
        try:
            whole = [piece.resolved(entry.spec.shape) for piece in entry.slices]
            check_tiling(whole, entry.spec.shape)
            for piece, explicit in zip(entry.slices, whole, strict=True):
                key = slice_key(name, piece)
                stored = index.pieces.get(key)
                if stored is None or key not in left:
                    raise WireError(f"no entry for the slice {list(explicit.starts)} + {list(explicit.lengths)}")
                left.discard(key)
                if (stored.spec.dtype, stored.spec.shape) != (entry.spec.dtype, explicit.lengths) or stored.slices:
                    raise WireError(
                        f"the slice at {list(explicit.starts)} is {stored.spec.dtype} {list(stored.spec.shape)}, "
                        f"not {entry.spec.dtype} {list(explicit.lengths)}"
                    )
        except WireError as error:
            raise corrupt(index.path, name, str(error)) from None
    if left:
        raise corrupt(index.path, repr(min(left)), "a slice of no partitioned variable")


def _check_overlap(index: _Index) -> None:
    """No two tensors share bytes of a shard."""
    stored = [entry for entry in (*index.entries.values(), *index.pieces.values()) if entry.size]
    stored.sort(key=lambda entry: (entry.shard, entry.offset))
    for before, after in pairwise(stored):
        if before.shard == after.shard and after.offset < before.offset + before.size:
            raise corrupt(
                index.path, after.spec.name, f"bytes from {after.offset} of shard {after.shard}, "
                f"which {before.spec.name} holds up to {before.offset + before.size}",
            )  # fmt: skip


class BundleSource(TensorSource):
    """A V2 checkpoint.

    Listing reads the index alone; shards are opened by `read` and `verify_files`.

    Args:
        prefix: the checkpoint's prefix, without ".index".

    Raises:
        PortingError: missing, corrupt or unsupported index.
    """

    container = "tf-checkpoint-v2"

    def __init__(self, prefix: Path) -> None:
        self.path = prefix
        self.index_path = prefix.with_name(prefix.name + ".index")
        self._index = _read_index(self.index_path)
        self.entries: Mapping[str, Entry] = self._index.entries
        self.specs = {name: entry.spec for name, entry in self.entries.items()}
        self._fds: dict[int, tuple[int, int]] = {}  # shard: descriptor, bytes in the file
        self._buffer = np.empty(0, np.uint8)

    def shard_path(self, shard: int) -> Path:
        return self.path.with_name(f"{self.path.name}.data-{shard:05d}-of-{self._index.shards:05d}")

    def _stored(self) -> list[Entry]:
        """Entries that have bytes of their own."""
        return [*(entry for entry in self.entries.values() if not entry.slices), *self._index.pieces.values()]

    def files(self) -> Sequence[Path]:
        shards = sorted({entry.shard for entry in self._stored()})
        return [self.index_path, *map(self.shard_path, shards)]

    def verify_files(self) -> None:
        needed: dict[int, Entry] = {}
        for entry in self._stored():
            last = needed.setdefault(entry.shard, entry)
            if entry.offset + entry.size > last.offset + last.size:
                needed[entry.shard] = entry
        missing, short = [], []
        for shard, last in sorted(needed.items()):
            path, end = self.shard_path(shard), last.offset + last.size
            try:
                size = path.stat().st_size if path.is_file() else None
            except OSError:
                size = None
            if size is None:
                missing.append(Defect(path.name, "no such file", "a shard of the checkpoint"))
            elif size < end:
                short.append(Defect(path.name, f"{size} bytes; {last.spec.name} is cut off", f"at least {end} bytes"))
        if missing:
            raise PortingError(
                ErrorKind.MISSING, self.path, missing, "Put the data files beside the .index, with the same prefix."
            )
        if short:
            raise PortingError(ErrorKind.CORRUPT, self.path, short, "Fetch or copy the file again.")

    def read(self, name: str) -> npt.NDArray[Any]:
        entry = self.entries[name]
        check_readable(entry.spec, self.path)
        if not entry.slices:
            return as_array(self._raw(entry, entry.spec.name), entry.spec, self.path)
        pieces = [self._index.pieces[slice_key(name, piece)] for piece in entry.slices]
        for piece in pieces:  # before the whole is allocated: an index may claim any shape
            self._shard(piece, name)
        whole: npt.NDArray[Any] | None = None
        for part, piece in zip(entry.slices, pieces, strict=True):
            values = as_array(self._raw(piece, name), piece.spec, self.path)
            if whole is None:
                whole = np.empty(entry.spec.shape, values.dtype)
            whole[part.resolved(entry.spec.shape).index] = values
        assert whole is not None  # `slices` is not empty
        return whole

    def read_strings(self, name: str) -> list[bytes]:
        """The elements of a string tensor, checked like any other.

        Raises:
            PortingError: corrupt; KeyError where there is no such tensor.
        """
        entry = self.entries[name]
        if entry.spec.dtype != "string" or entry.slices:
            raise unsupported(self.path, name, f"a tensor of type {entry.spec.dtype}, not string")
        # Lengths as varints, a masked crc of them (as fixed integers), then the bytes; the entry's crc covers the
        # fixed-size lengths, their crc and the bytes (tensor_bundle.cc, ReadStringTensor).
        data = self._bytes(entry, name).tobytes()
        try:
            lengths, at = [], 0
            if entry.spec.size > entry.size:
                raise WireError(f"{entry.spec.size} strings in {entry.size} bytes")
            for _ in range(entry.spec.size):
                length, at = varint(data, at, len(data))
                lengths.append(length)
            if sum(lengths) + 4 + at != len(data):
                raise WireError(f"strings of {sum(lengths)} bytes in an entry of {len(data)}")
        except WireError as error:
            raise corrupt(self.path, name, str(error)) from None
        crc = 0
        for length in lengths:
            crc = crc32c(length.to_bytes(4 if length >> 32 == 0 else 8, "little"), crc)
        if masked(crc).to_bytes(4, "little") != data[at : at + 4]:
            raise corrupt(self.path, name, "lengths that do not match their crc32c")
        self._check_crc(crc32c(data[at:], crc), entry, name)
        at += 4
        strings = []
        for length in lengths:
            strings.append(data[at : at + length])
            at += length
        return strings

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1][0])

    def _shard(self, entry: Entry, name: str) -> int:
        """The descriptor of an entry's shard, which is known to be long enough."""
        opened = self._fds.get(entry.shard)
        if opened is None:
            path = self.shard_path(entry.shard)
            try:
                fd = open_file(path)
            except PortingError as error:
                found = f"no shard {path.name}" if not path.exists() else f"shard {path.name}: {error.defects[0]}"
                raise PortingError(
                    ErrorKind.MISSING, self.path, [Defect(name, found)],
                    "Put the data files beside the .index, with the same prefix.",
                ) from None  # fmt: skip
            if len(self._fds) >= _OPEN_SHARDS:
                self.close()
            opened = self._fds[entry.shard] = fd, os.fstat(fd).st_size
        fd, size = opened
        if entry.offset + entry.size > size:
            raise self._cut_off(entry, name, size)
        return fd

    def _cut_off(self, entry: Entry, name: str, size: int) -> PortingError:
        return corrupt(
            self.path, name, f"shard {self.shard_path(entry.shard).name} ends at byte {size}",
            f"bytes {entry.offset} to {entry.offset + entry.size}",
        )  # fmt: skip

    def _bytes(self, entry: Entry, name: str) -> npt.NDArray[np.uint8]:
        """An entry's bytes, unchecked, in the buffer."""
        fd = self._shard(entry, name)
        if entry.size > self._buffer.size:
            self._buffer = np.empty(0, np.uint8)  # let the old one go first
            self._buffer = np.empty(entry.size, np.uint8)
        raw = self._buffer[: entry.size]
        got = read_exactly(fd, raw.data, entry.offset)
        if got != entry.size:
            raise self._cut_off(entry, name, entry.offset + got)
        return raw

    def _raw(self, entry: Entry, name: str) -> npt.NDArray[np.uint8]:
        """An entry's bytes, in the buffer, checked against its crc32c."""
        raw = self._bytes(entry, name)
        self._check_crc(crc32c(raw.data), entry, name)
        return raw

    def _check_crc(self, crc: int, entry: Entry, name: str) -> None:
        if crc != entry.crc:
            raise corrupt(
                self.path, name, f"crc32c {crc:#010x} of the bytes in shard {self.shard_path(entry.shard).name}",
                f"{entry.crc:#010x}",
            )  # fmt: skip
