"""The index of a V2 checkpoint: which tensors it holds, and where their bytes lie.

Format: tensorflow/core/util/tensor_bundle/tensor_bundle.h and core/protobuf/tensor_bundle.proto. The index is a
table: key "" holds the header, every other key an entry. Everything in it is proved before it is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from porting.errors import corrupt, unsupported
from porting.sources.base import ITEM_SIZE, TensorSpec
from porting.sources.checksum import unmasked
from porting.sources.ordered_code import slice_key
from porting.sources.protobuf import BYTES, FIXED32, VARINT, WireError, one, parse, signed, text
from porting.sources.table import Table
from porting.sources.tensorflow_types import Slice, check_tiling, dtype_name, parse_shape, parse_slice

_HEADER = {1: VARINT, 2: VARINT, 3: BYTES}  # num_shards, endianness, version
_ENTRY = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES}


@dataclass(frozen=True)
class Entry:
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
    shapes: dict[bytes, tuple[int, ...]] = field(default_factory=dict)  # shapes repeat: each is parsed once


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
    _join_slices(index)
    whole = Index(index.shards, index.entries)
    _check_overlap(path, whole)
    return whole


def _read_header(index: _Parsed, value: bytes) -> None:
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


def _read_entry(index: _Parsed, name: str, value: bytes) -> Entry:
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
    if slices:
        index.slices[name] = slices
    item = ITEM_SIZE.get(dtype)
    if slices:
        if offset or size:
            raise WireError(f"both {len(slices)} slices and {size} bytes of its own")
    elif item and size != spec.size * item:
        raise WireError(f"{size} bytes for {dtype} of shape {list(shape)}, which takes {spec.size * item}")
    return Entry(spec, shard, offset, size, unmasked(one(message, 6)))


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
                joined.append((explicit, replace(stored, spec=replace(stored.spec, name=name))))
        except WireError as error:
            raise corrupt(index.path, name, str(error)) from None
        index.entries[name] = replace(entry, slices=tuple(joined))
    if left:
        raise corrupt(index.path, repr(min(left)), "a slice of no partitioned variable")


def _check_overlap(path: Path, index: Index) -> None:
    """No two tensors share bytes of a shard."""
    stored = [entry for entry in index.stored() if entry.size]
    stored.sort(key=lambda entry: (entry.shard, entry.offset))
    for before, after in pairwise(stored):
        if before.shard == after.shard and after.offset < before.offset + before.size:
            raise corrupt(
                path, after.spec.name, f"bytes from {after.offset} of shard {after.shard}, "
                f"which {before.spec.name} holds up to {before.offset + before.size}",
            )  # fmt: skip
