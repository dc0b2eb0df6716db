"""Broken and odd tables, as the index of a V2 checkpoint."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from tests.sources import wire
from tests.sources.broken_paths import broken, index, two


def _edited_index(folder: Path, edit: Callable[[bytearray], None]) -> Path:
    prefix = two().write(folder / "model.ckpt")
    data = bytearray(index(prefix).read_bytes())
    edit(data)
    index(prefix).write_bytes(data)
    return prefix


@broken
def _short_index(folder: Path) -> Path:
    return _edited_index(folder, lambda data: data.__delitem__(slice(20, None)))


@broken
def _truncated_index(folder: Path) -> Path:
    return index(_edited_index(folder, lambda data: data.__delitem__(slice(-30, None))))


@broken
def _index_with_a_flipped_byte(folder: Path) -> Path:
    return _edited_index(folder, lambda data: data.__setitem__(10, data[10] ^ 4))


@broken
def _index_with_a_flipped_magic(folder: Path) -> Path:
    return _edited_index(folder, lambda data: data.__setitem__(-1, 0))


@broken
def _block_beyond_the_file(folder: Path) -> Path:
    return _edited_index(folder, lambda data: data.__setitem__(slice(-48, -38), wire.varint(5) + wire.varint(1 << 62)))


@broken
def _endless_varint(folder: Path) -> Path:
    return _edited_index(folder, lambda data: data.__setitem__(slice(-48, -8), b"\xff" * 40))


def _raw_index(folder: Path, data: bytes) -> Path:
    prefix = two().write(folder / "model.ckpt")
    index(prefix).write_bytes(data)
    return prefix


_ROWS = sorted(two().rows.items())


@broken
def _block_without_restarts(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([b"abc"], [b"z"]))


@broken
def _too_many_restarts(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([wire.block(_ROWS)[:-4] + struct.pack("<I", 1 << 30)], [b"z"]))


@broken
def _restart_within_an_entry(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([wire.block(_ROWS)[:-8] + struct.pack("<2I", 3, 1)], [b"z"]))


@broken
def _key_longer_than_the_block(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([wire.block([])[:0] + b"\x00\x7f\x00k" + wire.block([])], [b"z"]))


@broken
def _key_that_shares_too_much(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([b"\x05\x01\x00k" + wire.block([])], [b"z"]))


@broken
def _keys_out_of_order(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([wire.block([_ROWS[0], _ROWS[2], _ROWS[1]])], [b"z"]))


@broken
def _duplicate_name(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([wire.block([*_ROWS, _ROWS[2]])], [b"z"]))


@broken
def _duplicate_name_in_the_next_block(folder: Path) -> Path:
    return _raw_index(folder, wire.raw_table([wire.block(_ROWS), wire.block([_ROWS[2]])], [_ROWS[2][0], b"z"]))


@broken
def _blocks_that_overlap(folder: Path) -> Path:
    data = wire.block(_ROWS)
    handle = wire.varint(0) + wire.varint(len(data))
    out = wire.sealed(data)
    handles = b""
    for more in (wire.block([]), wire.block([(b"y", handle), (b"z", handle)], every=1)):
        handles += wire.varint(len(out)) + wire.varint(len(more))
        out += wire.sealed(more)
    return _raw_index(folder, out + handles.ljust(40, b"\0") + struct.pack("<Q", wire.MAGIC))


def _one_block(folder: Path, stored: bytes, compression: int) -> Path:
    out = wire.sealed(stored, compression)
    handles = b""
    for more in (wire.block([]), wire.block([(b"z", wire.varint(0) + wire.varint(len(stored)))], every=1)):
        handles += wire.varint(len(out)) + wire.varint(len(more))
        out += wire.sealed(more)
    return _raw_index(folder, out + handles.ljust(40, b"\0") + struct.pack("<Q", wire.MAGIC))


@broken
def _unknown_compression(folder: Path) -> Path:
    return _one_block(folder, wire.block(_ROWS), 4)


@broken
def _snappy_bomb(folder: Path) -> Path:
    return _one_block(folder, wire.varint(1 << 40) + b"\x00a", 1)


@broken
def _snappy_garbage(folder: Path) -> Path:
    return _one_block(folder, wire.varint(4) + b"\xff\xff", 1)


@broken
def _no_header(folder: Path) -> Path:
    return _raw_index(folder, wire.table(_ROWS[1:]))
