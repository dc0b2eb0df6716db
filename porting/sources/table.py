"""Sorted tables of keys and values in LevelDB's format, which hold checkpoint indexes and V1 checkpoints.

Format: https://github.com/google/leveldb/blob/main/doc/table_format.md. A table is data blocks, an index block of
(last key, block handle) and a 48-byte footer; each block ends in a compression type and a masked crc32c.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from porting.errors import corrupt, unsupported
from porting.sources.base import open_file, read_exactly
from porting.sources.checksum import crc32c, unmasked

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two block handles, padding, the magic
TRAILER = 5  # bytes after each block: compression type, masked crc32c
_NONE, _SNAPPY = 0, 1

# A snappy element of three bytes yields at most 64 (github.com/google/snappy, format_description.txt).
SNAPPY_RATIO = 22


class _BadBlockError(Exception):
    """What is wrong inside a block; the caller knows the file and the block."""


@dataclass(frozen=True)
class Handle:
    """Where a block lies: `offset` and `size` in bytes, without its trailer."""

    offset: int
    size: int


def _varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """A varint64 and the position after it."""
    value = shift = 0
    while True:
        if at >= end:
            raise _BadBlockError("a varint runs past the end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise _BadBlockError("a varint is longer than 10 bytes")
    if value >> 64:
        raise _BadBlockError("a varint does not fit in 64 bits")
    return value, at


def _handle(data: bytes | memoryview, at: int, end: int) -> tuple[Handle, int]:
    offset, at = _varint(data, at, end)
    size, at = _varint(data, at, end)
    return Handle(offset, size), at


def _block_entries(block: bytes) -> list[tuple[bytes, bytes]]:
    """The (key, value) pairs of one block: keys share prefixes with the key before, except at restart points."""
    if len(block) < 4:
        raise _BadBlockError(f"{len(block)} bytes, too few for the restart count")
    (count,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * count
    if end < 0:
        raise _BadBlockError(f"{count} restart points do not fit in {len(block)} bytes")
    entries: list[tuple[bytes, bytes]] = []
    starts = {0}
    key = b""
    at = 0
    first = True
    while at < end:
        start = at
        if at + 3 <= end and (block[at] | block[at + 1] | block[at + 2]) < 0x80:
            shared, fresh, size = block[at], block[at + 1], block[at + 2]
            at += 3
        else:
            shared, at = _varint(block, at, end)
            fresh, at = _varint(block, at, end)
            size, at = _varint(block, at, end)
        if shared > len(key):
            raise _BadBlockError(f"a key shares {shared} bytes with a key of {len(key)}")
        middle = at + fresh
        at = middle + size
        if at > end:
            raise _BadBlockError(f"the entry at byte {start} runs {at - end} bytes past the end")
        if shared == 0:
            starts.add(start)
        previous, key = key, key[:shared] + block[middle - fresh : middle]
        if key <= previous and not first:
            raise _BadBlockError(f"key {key!r} follows {previous!r}: keys must increase")
        first = False
        entries.append((key, block[middle:at]))
    for restart in struct.unpack_from(f"<{count}I", block, end):
        if restart not in starts:
            raise _BadBlockError(f"restart point {restart} is not the start of an entry with a whole key")
    return entries


class Table:
    """A table open for reading; every block's crc32c is checked when it is read.

    Args:
        path: the file.

    Raises:
        PortingError: corrupt (lengths, crc32c, order of keys), unsupported (compression type), missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_file(path)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.size = os.fstat(self._fd).st_size
        if self.size < FOOTER:
            raise corrupt(self.path, "table footer", f"a file of {self.size} bytes", f"at least {FOOTER} bytes")
        footer = self._bytes(self.size - FOOTER, FOOTER, "table footer")
        (magic,) = struct.unpack_from("<Q", footer, FOOTER - 8)
        if magic != MAGIC:
            raise corrupt(self.path, "table footer", f"magic {magic:#018x}", f"{MAGIC:#018x}")
        try:
            meta, at = _handle(footer, 0, FOOTER - 8)
            index, at = _handle(footer, at, FOOTER - 8)
        except _BadBlockError as error:
            raise corrupt(self.path, "table footer", str(error)) from None
        self._parsed(self._read_block(meta, "meta index block"), "meta index block")
        self._last_keys: list[bytes] = []
        self._handles: list[Handle] = []
        reached = 0
        for key, value in self._parsed(self._read_block(index, "index block"), "index block"):
            try:
                handle, at = _handle(value, 0, len(value))
            except _BadBlockError as error:
                raise corrupt(self.path, "index block", str(error)) from None
            # Blocks are written one after another: an overlap would let a small file claim endless entries.
            if handle.offset < reached:
                raise corrupt(
                    self.path, "index block", f"a block at byte {handle.offset}", f"none before byte {reached}"
                )
            reached = handle.offset + handle.size + TRAILER
            self._last_keys.append(key)
            self._handles.append(handle)

    def __len__(self) -> int:
        """How many data blocks there are."""
        return len(self._handles)

    def block(self, number: int) -> list[tuple[bytes, bytes]]:
        """The (key, value) pairs of one data block, in order."""
        where = f"block {number}"
        entries = self._parsed(self._read_block(self._handles[number], where), where)
        if entries:
            low = self._last_keys[number - 1] if number else b""
            if entries[-1][0] > self._last_keys[number] or (number and entries[0][0] <= low):
                raise corrupt(self.path, where, "keys outside the range that the index block gives it")
        return entries

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All (key, value) pairs, in order."""
        for number in range(len(self._handles)):
            yield from self.block(number)

    def block_of(self, key: bytes) -> int | None:
        """The number of the only block that can hold `key`."""
        number = bisect_left(self._last_keys, key)
        return number if number < len(self._handles) else None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _bytes(self, offset: int, size: int, what: str) -> bytes:
        data = bytearray(size)
        got = read_exactly(self._fd, memoryview(data), offset)
        if got != size:
            raise corrupt(self.path, what, f"{got} bytes at byte {offset}", f"{size}")
        return bytes(data)

    def _read_block(self, handle: Handle, what: str) -> bytes:
        end = handle.offset + handle.size + TRAILER
        if end > self.size - FOOTER:
            raise corrupt(
                self.path, what, f"a block that ends at byte {end}", f"one that ends by byte {self.size - FOOTER}"
            )
        raw = self._bytes(handle.offset, handle.size + TRAILER, what)
        compression, stored = struct.unpack_from("<BI", raw, handle.size)
        crc = crc32c(memoryview(raw)[: handle.size + 1])
        if crc != unmasked(stored):
            raise corrupt(self.path, what, f"{crc:#010x}", f"crc32c {unmasked(stored):#010x}")
        if compression == _NONE:
            return raw[: handle.size]
        if compression == _SNAPPY:
            return self._unsnap(memoryview(raw)[: handle.size], what)
        raise unsupported(self.path, what, f"compression type {compression}", "Save the checkpoint again uncompressed.")

    def _unsnap(self, data: memoryview, what: str) -> bytes:
        try:
            declared, _ = _varint(data, 0, len(data))
        except _BadBlockError as error:
            raise corrupt(self.path, what, f"snappy length: {error}") from None
        if declared > SNAPPY_RATIO * len(data):
            raise corrupt(self.path, what, f"{declared} bytes declared for {len(data)} bytes of snappy data")
        import cramjam  # only old V1 checkpoints need it

        try:
            # The length is bounded above, so the library's own allocation is too.
            block = bytes(cramjam.snappy.decompress_raw(data))
        except cramjam.DecompressionError as error:
            raise corrupt(self.path, what, f"snappy data: {error}") from None
        if len(block) != declared:
            raise corrupt(self.path, what, f"{len(block)} bytes of snappy data", f"{declared}")
        return block

    def _parsed(self, block: bytes, what: str) -> list[tuple[bytes, bytes]]:
        try:
            return _block_entries(block)
        except _BadBlockError as error:
            raise corrupt(self.path, what, str(error)) from None


def is_table(fd: int, size: int) -> bool:
    """Whether a file of `size` bytes ends in a table's magic."""
    if size < FOOTER:
        return False
    tail = bytearray(8)
    return read_exactly(fd, memoryview(tail), size - 8) == 8 and int.from_bytes(tail, "little") == MAGIC
