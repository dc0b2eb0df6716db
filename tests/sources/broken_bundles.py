"""Broken and odd V2 checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from porting.sources.checksum import crc32c
from porting.sources.ordered_code import slice_key
from porting.sources.tensorflow_types import Slice
from tests.sources import wire
from tests.sources.broken_paths import broken, shard, two

# V2: files.


@broken
def _missing_shard(folder: Path) -> Path:
    prefix = two().write(folder / "model.ckpt")
    shard(prefix).unlink()
    return prefix


@broken
def _two_missing_shards(folder: Path) -> Path:
    bundle = wire.Bundle({b"": wire.integer(1, 3)})
    for number in range(3):
        bundle.rows[f"v{number}".encode()] = wire.entry(1, (1,), size=4, shard=number)
    prefix = bundle.write(folder / "model.ckpt")
    shard(prefix).rename(folder / "model.ckpt.data-00001-of-00003").write_bytes(bytes(4))
    return prefix


@broken
def _truncated_shard(folder: Path) -> Path:
    prefix = two().write(folder / "model.ckpt")
    shard(prefix).write_bytes(shard(prefix).read_bytes()[:-1])
    return prefix


@broken
def _flipped_byte(folder: Path) -> Path:
    prefix = two().write(folder / "model.ckpt")
    data = bytearray(shard(prefix).read_bytes())
    data[25] ^= 1
    shard(prefix).write_bytes(data)
    return prefix


@broken
def _bool_of_two(folder: Path) -> Path:
    bundle = two()
    bundle.rows[b"flag"] = wire.entry(10, (1,), offset=len(bundle.data), size=1, crc=crc32c(b"\x02"))
    bundle.data += b"\x02"
    return bundle.write(folder / "model.ckpt")


@broken
def _quantised_type(folder: Path) -> Path:
    bundle = two()
    bundle.rows[b"q"] = wire.entry(11, (1,), offset=len(bundle.data), size=1, crc=crc32c(b"\x02"))
    bundle.data += b"\x02"
    return bundle.write(folder / "model.ckpt")


@broken
def _string_tensor(folder: Path) -> Path:
    bundle = two()
    bundle.add_string("words", b"text")
    return bundle.write(folder / "model.ckpt")


# V2: header and entries.


def _bundle_with(folder: Path, rows: dict[bytes, bytes]) -> Path:
    bundle = two()
    bundle.rows.update(rows)
    return bundle.write(folder / "model.ckpt")


@broken
def _big_endian(folder: Path) -> Path:
    return _bundle_with(folder, {b"": wire.integer(1, 1) + wire.integer(2, 1)})


@broken
def _no_shards(folder: Path) -> Path:
    return _bundle_with(folder, {b"": wire.integer(1, -1)})


@broken
def _newer_version(folder: Path) -> Path:
    return _bundle_with(folder, {b"": wire.integer(1, 1) + wire.message(3, wire.integer(2, 9))})


@broken
def _entry_cut_off(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (1,), size=4)[:-2]})


@broken
def _entry_of_a_wrong_wire_type(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.message(1, b"x")})


@broken
def _group(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": b"\x0b\x0c"})


@broken
def _twice_a_size(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (), size=4) + wire.integer(5, 4)})


@broken
def _invalid_type(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(0, (), size=4)})


@broken
def _newer_type(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(77, (), size=4)})


@broken
def _negative_dimension(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (-1, 3), size=4)})


@broken
def _overflowing_shape(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (1 << 40, 1 << 40), size=4)})


@broken
def _shape_of_many_dimensions(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (1,) * 300, size=4)})


@broken
def _unknown_rank(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.integer(1, 1) + wire.message(2, wire.integer(3, 1))})


@broken
def _shape_that_is_not_the_size(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (3,), offset=40, size=16)})


@broken
def _negative_offset(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (), offset=-4, size=4)})


@broken
def _offset_that_overflows(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (), offset=(1 << 63) - 2, size=4)})


@broken
def _offset_beyond_the_shard(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (), offset=1 << 40, size=4)})


@broken
def _terabytes(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (1 << 40,), offset=40, size=1 << 42)})


@broken
def _shard_that_is_not_there(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (), shard=1, size=4)})


@broken
def _tensors_that_overlap(folder: Path) -> Path:
    return _bundle_with(folder, {b"c": wire.entry(1, (2,), offset=20, size=8)})


@broken
def _name_that_is_not_utf_8(folder: Path) -> Path:
    return _bundle_with(folder, {b"\xff\xfe": wire.entry(1, (), size=4)})


# V2: partitioned variables.


def _parted(
    folder: Path, extents: list[list[tuple[int, int]]], stored: list[list[tuple[int, int]]] | None = None
) -> Path:
    bundle = two()
    bundle.rows[b"p"] = wire.entry(1, (4, 2), more=b"".join(wire.message(7, wire.slices(e)) for e in extents))
    for extent in stored if stored is not None else extents:
        piece = Slice(tuple(start for start, _ in extent), tuple(length for _, length in extent))
        bundle.add(slice_key("p", piece), np.ones([max(length, 0) for _, length in extent], np.float32))
    return bundle.write(folder / "model.ckpt")


@broken
def _slices_with_a_gap(folder: Path) -> Path:
    return _parted(folder, [[(0, 1), (0, 2)], [(2, 2), (0, 2)]])


@broken
def _slices_that_overlap(folder: Path) -> Path:
    return _parted(folder, [[(0, 2), (0, 2)], [(1, 3), (0, 2)]])


@broken
def _slices_that_end_early(folder: Path) -> Path:
    return _parted(folder, [[(0, 2), (0, 2)]])


@broken
def _slice_beyond_the_shape(folder: Path) -> Path:
    return _parted(folder, [[(0, 2), (0, 2)], [(2, 9), (0, 2)]])


@broken
def _slices_off_the_grid(folder: Path) -> Path:
    return _parted(folder, [[(0, 2), (0, 1)], [(2, 2), (1, 1)]])


@broken
def _slice_twice(folder: Path) -> Path:
    return _parted(folder, [[(0, 4), (0, 2)]] * 2, [[(0, 4), (0, 2)]])


@broken
def _slice_without_an_entry(folder: Path) -> Path:
    return _parted(folder, [[(0, 2), (0, 2)], [(2, 2), (0, 2)]], [[(0, 2), (0, 2)]])


@broken
def _slice_of_no_variable(folder: Path) -> Path:
    return _parted(folder, [[(0, 4), (0, 2)]], [[(0, 4), (0, 2)], [(0, 1), (0, 1)]])


@broken
def _slice_of_another_shape(folder: Path) -> Path:
    bundle = two()
    bundle.rows[b"p"] = wire.entry(1, (4,), more=wire.message(7, wire.slices([(0, 4)])))
    bundle.add(slice_key("p", Slice((0,), (4,))), np.ones(3, np.float32))
    return bundle.write(folder / "model.ckpt")


@broken
def _slice_that_starts_nowhere(folder: Path) -> Path:
    bundle = two()
    bundle.rows[b"p"] = wire.entry(1, (4,), more=wire.message(7, wire.message(1, wire.integer(1, 2))))
    return bundle.write(folder / "model.ckpt")
