"""Writes the pieces of TensorFlow's containers, right or wrong, for files that TensorFlow would never write."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cramjam
import numpy as np
import numpy.typing as npt

from porting.sources.checksum import crc32c, masked
from porting.sources.table import MAGIC

DT = {"float32": 1, "float64": 2, "int32": 3, "string": 7, "int64": 9, "bool": 10, "bfloat16": 14, "float16": 19}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value)


def message(number: int, value: bytes | str) -> bytes:
    """A length-delimited field."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fixed32(number: int, value: int) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<I", value)


def shape(dims: Sequence[int]) -> bytes:
    """A TensorShapeProto."""
    return b"".join(message(2, integer(1, size)) for size in dims)


def slices(extents: Sequence[tuple[int, int] | None]) -> bytes:
    """A TensorSliceProto; None takes a dimension whole."""
    return b"".join(message(1, b"" if e is None else integer(1, e[0]) + integer(2, e[1])) for e in extents)


def block(entries: Sequence[tuple[bytes, bytes]], every: int = 16) -> bytes:
    """A table block, without its trailer."""
    out = bytearray()
    restarts = []
    previous = b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def sealed(data: bytes, compression: int = 0) -> bytes:
    """A block with its trailer."""
    return data + bytes([compression]) + struct.pack("<I", masked(crc32c(data + bytes([compression]))))


def table(entries: Sequence[tuple[bytes, bytes]], per_block: int = 40, snappy: bool = False) -> bytes:
    """A table of sorted entries."""
    groups = [entries[i : i + per_block] for i in range(0, len(entries), per_block)]
    return raw_table([block(group) for group in groups], [group[-1][0] for group in groups], snappy)


def raw_table(blocks: Sequence[bytes], last_keys: Sequence[bytes], snappy: bool = False) -> bytes:
    """A table of blocks as they are."""
    out = bytearray()
    index = []
    for data, key in zip(blocks, last_keys, strict=True):
        stored = bytes(cramjam.snappy.compress_raw(data)) if snappy else data
        index.append((key, varint(len(out)) + varint(len(stored))))
        out += sealed(stored, 1 if snappy else 0)
    handles = b""
    for data in (block([]), block(index, every=1)):
        handles += varint(len(out)) + varint(len(data))
        out += sealed(data)
    return bytes(out) + handles.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


HEADER = integer(1, 1) + message(3, integer(1, 1))  # one shard, little-endian, version 1


def entry(
    dtype: int, dims: Sequence[int], *, offset: int = 0, size: int = 0, crc: int = 0, shard: int = 0, more: bytes = b""
) -> bytes:
    """A BundleEntryProto."""
    out = integer(1, dtype) + message(2, shape(dims))
    out += (integer(3, shard) if shard else b"") + (integer(4, offset) if offset else b"") + integer(5, size)
    return out + fixed32(6, masked(crc)) + more


@dataclass
class Bundle:
    """A V2 checkpoint in the making: `rows` go into the index, `data` into its only shard."""

    rows: dict[bytes, bytes] = field(default_factory=lambda: {b"": HEADER})
    data: bytes = b""

    def add(self, name: str | bytes, array: npt.NDArray[np.generic], more: bytes = b"") -> None:
        raw = array.tobytes()
        key = name.encode() if isinstance(name, str) else name
        self.rows[key] = entry(
            DT[str(array.dtype)], array.shape, offset=len(self.data), size=len(raw), crc=crc32c(raw), more=more
        )
        self.data += raw

    def add_string(self, name: str, value: bytes) -> None:
        """A scalar string tensor."""
        crc = crc32c(struct.pack("<I", len(value)))
        check = struct.pack("<I", masked(crc))
        raw = varint(len(value)) + check + value
        self.rows[name.encode()] = entry(
            DT["string"], (), offset=len(self.data), size=len(raw), crc=crc32c(check + value, crc)
        )
        self.data += raw

    def write(self, prefix: Path) -> Path:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        prefix.with_name(prefix.name + ".index").write_bytes(table(sorted(self.rows.items())))
        prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(self.data)
        return prefix


def small_bundle(tensors: Mapping[str, npt.NDArray[np.generic]]) -> Bundle:
    bundle = Bundle()
    for name in sorted(tensors):
        bundle.add(name, tensors[name])
    return bundle


def v1_checkpoint(tensors: Mapping[str, npt.NDArray[np.float32]], snappy: bool = False) -> bytes:
    """A V1 checkpoint of whole float32 tensors."""
    from porting.sources.ordered_code import slice_key
    from porting.sources.tensorflow_types import Slice

    metas, rows = b"", []
    for name, array in tensors.items():
        whole = slices([None] * array.ndim)
        metas += message(1, message(1, name) + message(2, shape(array.shape)) + integer(3, 1) + message(4, whole))
        saved = message(1, name) + message(2, whole) + message(3, message(5, array.tobytes()))
        rows.append((slice_key(name, Slice((0,) * array.ndim, (-1,) * array.ndim)), message(2, saved)))
    return table([(b"", message(1, metas)), *sorted(rows)], per_block=4, snappy=snappy)


def object_graph(nodes: Sequence[bytes]) -> bytes:
    """A TrackableObjectGraph of TrackableObjects."""
    return b"".join(message(1, node) for node in nodes)


def child(node: int, name: str) -> bytes:
    return message(1, integer(1, node) + message(2, name))


def attribute(full_name: str, key: str) -> bytes:
    return message(2, message(1, "VARIABLE_VALUE") + message(2, full_name) + message(3, key))


def slot(original: int, name: str, variable: int) -> bytes:
    return message(3, integer(1, original) + message(2, name) + integer(3, variable))


def const_node(name: str, tensor: bytes) -> bytes:
    """A NodeDef of a constant."""
    value = message(1, "value") + message(2, message(8, tensor))
    return message(1, name) + message(2, "Const") + message(5, value)


def tensor(dtype: int, dims: Sequence[int], values: bytes) -> bytes:
    """A TensorProto; `values` is a field of it."""
    return integer(1, dtype) + message(2, shape(dims)) + values
