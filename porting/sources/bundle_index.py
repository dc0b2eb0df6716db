"""The index of a V2 checkpoint: which tensors it holds, and where their bytes lie.

Format: tensorflow/core/util/tensor_bundle/tensor_bundle.h and core/protobuf/tensor_bundle.proto. The index is a
table: key "" holds the header, every other key an entry. Everything in it is proved before it is returned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from porting.errors import corrupt, unsupported
from porting.sources.base import ITEM_SIZE, TensorSpec
from porting.sources.checksum import unmasked
from porting.sources.ordered_code import slice_key
from porting.sources.protobuf import BYTES, FIXED32, REPEATED, VARINT, WireError, parse, signed, text
from porting.sources.table import Table
from porting.sources.tensorflow_types import Slice, check_tiling, dtype_name, parse_shape, parse_slice

_HEADER = {1: VARINT, 2: VARINT, 3: BYTES}  # num_shards, endianness, version
_ENTRY = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES | REPEATED}


class Entry(NamedTuple):
    """Where a tensor's bytes lie: `offset` and `size` in bytes; `crc` is unmasked.

    A partitioned variable has no bytes of its own, but `slices` that cover it, each with an entry.
    """

    spec: TensorSpec
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[tuple[Slice, Entry], ...] = ()


@dataclass(frozen=True)
class Index:
    """A whole index: the number of shards, and the tensors in the file's order."""

    shards: int
    entries: dict[str, Entry]

    def stored(self) -> list[Entry]:
        """The entries that have bytes of their own."""
        found = [entry for entry in self.entries.values() if not entry.slices]
        found += [piece for entry in self.entries.values() for _, piece in entry.slices]
        return found


@dataclass
class _Parsed:
    """An index while it is read."""

    path: Path
    shards: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    slices: dict[str, tuple[Slice, ...]] = field(default_factory=dict)  # of partitioned variables
    pieces: dict[bytes, Entry] = field(default_factory=dict)  # slices, under their encoded keys
    # Shapes repeat, so each is parsed once; with its number of elements.
    shapes: dict[bytes, tuple[tuple[int, ...], int]] = field(default_factory=dict)


def read_index(path: Path) -> Index:
    """Read and check an index file.

    Raises:
        PortingError: missing, corrupt or unsupported.
    """
    index = _Parsed(path)
    table = Table(path)
    try:
        for key, value in table.items():
            if key == b"":
                _read_header(index, value)
                continue
            if not index.shards:
                raise corrupt(path, "header", "nothing", "a BundleHeaderProto under the empty key")
            name = repr(key)
            try:
                if key[0] == 0:
                    index.pieces[key] = _read_entry(index, name, value)
                else:
                    name = text(key)
                    index.entries[name] = _read_entry(index, name, value)
            except WireError as error:
                raise corrupt(path, name, str(error)) from None
    finally:
        table.close()
    if not index.shards:
        raise corrupt(path, "header", "nothing", "a BundleHeaderProto under the empty key")
    _join_slices(index)
    whole = Index(index.shards, index.entries)
    _check_overlap(path, whole)
    return whole


def _read_header(index: _Parsed, value: bytes) -> None:
    try:
        header = parse(value, _HEADER)
        shards, endianness = signed(header.get(1, 0)), header.get(2, 0)
        version = parse(header.get(3, b""), {1: VARINT, 2: VARINT})
        consumer = signed(version.get(2, 0))
    except WireError as error:
        raise corrupt(index.path, "header", str(error)) from None
    if not 0 < shards < 100_000:  # five digits in a shard's name
        raise corrupt(index.path, "header", f"{shards} shards", "1 to 99999")
    if endianness:
        raise unsupported(index.path, "header", "big-endian data", "Save the checkpoint on a little-endian machine.")
    if consumer > 1:  # kTensorBundleVersion
        raise unsupported(index.path, "header", f"a bundle that needs readers of version {consumer}; this one is 1")
    index.shards = shards


def _read_entry(index: _Parsed, name: str, value: bytes) -> Entry:
    message = parse(value, _ENTRY)
    dtype = dtype_name(message.get(1, 0), index.path, name)
    packed = message.get(2, b"")
    known = index.shapes.get(packed)
    if known is None:
        shape = parse_shape(packed)
        known = index.shapes[packed] = shape, math.prod(shape)
    shape, elements = known
    shard, offset, size = message.get(3, 0), message.get(4, 0), message.get(5, 0)
    if shard >= index.shards:
        raise WireError(f"shard {signed(shard)} of {index.shards}")
    if (offset | size) >> 63 or offset + size >> 63:
        raise WireError(f"offset {signed(offset)}, size {signed(size)}")
    slices = message.get(7)
    if slices:
        index.slices[name] = tuple(map(parse_slice, slices))
    item = ITEM_SIZE.get(dtype)
    if slices:
        if offset or size:
            raise WireError(f"both {len(slices)} slices and {size} bytes of its own")
    elif item and size != elements * item:
        raise WireError(f"{size} bytes for {dtype} of shape {list(shape)}, which takes {elements * item}")
    return Entry(TensorSpec(name, dtype, shape), shard, offset, size, unmasked(message.get(6, 0)))


def _join_slices(index: _Parsed) -> None:
    """Give every partitioned variable its slices, which have entries of their own and together are the whole."""
    left = set(index.pieces)
    for name, slices in index.slices.items():
        entry = index.entries.get(name)
        if entry is None:
            raise corrupt(index.path, name, "a slice that has slices")
        try:
            whole = [piece.resolved(entry.spec.shape) for piece in slices]
            check_tiling(whole, entry.spec.shape)
            joined = []
            for piece, explicit in zip(slices, whole, strict=True):
                key = slice_key(name, piece)
                if key not in left:
                    raise WireError(f"no entry for the slice {list(explicit.starts)} + {list(explicit.lengths)}")
                left.discard(key)
                stored = index.pieces[key]
                if (stored.spec.dtype, stored.spec.shape) != (entry.spec.dtype, explicit.lengths):
                    raise WireError(
                        f"the slice at {list(explicit.starts)} is {stored.spec.dtype} {list(stored.spec.shape)}, "
                        f"not {entry.spec.dtype} {list(explicit.lengths)}"
                    )
                joined.append((explicit, stored._replace(spec=replace(stored.spec, name=name))))
        except WireError as error:
            raise corrupt(index.path, name, str(error)) from None
        index.entries[name] = entry._replace(slices=tuple(joined))
    if left:
        raise corrupt(index.path, repr(min(left)), "a slice of no partitioned variable")


def _check_overlap(path: Path, index: Index) -> None:
    """No two tensors share bytes of a shard."""
    stored = sorted((entry.shard, entry.offset, entry.size, entry.spec.name) for entry in index.stored() if entry.size)
    at, end, holder = -1, 0, ""
    for shard, offset, size, name in stored:
        if shard == at and offset < end:
            raise corrupt(path, name, f"bytes from {offset} of shard {shard}, which {holder} holds up to {end}")
        at, end, holder = shard, offset + size, name
