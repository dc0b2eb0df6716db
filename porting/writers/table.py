"""Sorted tables of keys and values in LevelDB's format, as TensorFlow writes a checkpoint's index.

Format: https://github.com/google/leveldb/blob/main/doc/table_format.md. What the format leaves open (sizes of blocks,
the keys of the index block) is as in tensorflow/core/lib/io (table_builder.cc, block_builder.cc, table_options.h), so
that the same entries give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from porting.sources.checksum import crc32c, masked
from porting.sources.table import FOOTER, MAGIC
from porting.writers.wire import varint

_BLOCK_SIZE = 262144  # bytes after which a block is closed
_RESTART_INTERVAL = 16  # entries between whole keys in a data block; every key of the index block is whole
_UNCOMPRESSED = b"\x00"


class _Block:
    """A block in the making: keys share prefixes with the key before, except at restart points."""

    def __init__(self, interval: int) -> None:
        self.data = bytearray()
        self.key = b""
        self._interval = interval
        self._restarts = [0]
        self._since = 0  # entries since the last restart point

    @property
    def size(self) -> int:
        """Bytes of the block, its restart points included."""
        return len(self.data) + 4 * (len(self._restarts) + 1)

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since < self._interval:
            shared = _common(self.key, key)
        else:
            self._restarts.append(len(self.data))
            self._since = 0
        self.data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self.key = key
        self._since += 1

    def finished(self) -> bytes:
        return bytes(self.data) + struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))


def table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole table.

    Args:
        entries: keys and values, by increasing key.

    Raises:
        ValueError: keys that do not increase.
    """
    out = bytearray()
    index = _Block(1)
    block = _Block(_RESTART_INTERVAL)
    closed: tuple[bytes, bytes] | None = None  # last key and handle of a block whose next key is not known yet
    for key, value in entries:
        if closed:
            index.add(_separator(closed[0], key), closed[1])
            closed = None
        elif block.data and key <= block.key:
            raise ValueError(f"key {key!r} after {block.key!r}")
        block.add(key, value)
        if block.size >= _BLOCK_SIZE:
            closed = block.key, _append(out, block)
            block = _Block(_RESTART_INTERVAL)
    if block.data:
        closed = block.key, _append(out, block)
    meta = _append(out, _Block(_RESTART_INTERVAL))
    if closed:
        index.add(_successor(closed[0]), closed[1])
    handles = meta + _append(out, index)
    return bytes(out) + handles.ljust(FOOTER - 8, b"\0") + struct.pack("<Q", MAGIC)


def _append(out: bytearray, block: _Block) -> bytes:
    """Write a block and its trailer; returns its handle."""
    data = block.finished()
    handle = varint(len(out)) + varint(len(data))
    out += data + _UNCOMPRESSED + struct.pack("<I", masked(crc32c(_UNCOMPRESSED, crc32c(data))))
    return handle


def _common(one: bytes, other: bytes) -> int:
    """Bytes that two keys share at their beginning."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)


def _separator(last: bytes, first: bytes) -> bytes:
    """A short key between a block's last and the next one's first (leveldb, util/comparator.cc)."""
    at = _common(last, first)
    if at < len(last) and last[at] + 1 < first[at]:
        return last[:at] + bytes([last[at] + 1])
    return last


def _successor(last: bytes) -> bytes:
    """A short key that is not below the table's last one."""
    at = next((at for at, byte in enumerate(last) if byte != 0xFF), None)
    return last if at is None else last[:at] + bytes([last[at] + 1])
