"""The table reader, the keys of slices and the wire reader, piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from porting.sources.checksum import crc32c, masked, unmasked
from porting.sources.ordered_code import slice_key
from porting.sources.protobuf import BYTES, PACKED_VARINT, REPEATED, VARINT, WireError, parse, signed, varint
from porting.sources.table import Table
from porting.sources.tensorflow_types import Slice
from tests.sources import wire


def _rows(count: int) -> list[tuple[bytes, bytes]]:
    return [(b"layer/%05d/weights" % i, b"v" * (i % 300)) for i in range(count)]


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("count", [1, 16, 17, 500])
def test_rows_of_many_blocks(count: int, snappy: bool, tmp_path: Path) -> None:
    rows = _rows(count)
    path = tmp_path / "t"
    path.write_bytes(wire.table(rows, per_block=40, snappy=snappy))
    table = Table(path)
    assert list(table.items()) == rows
    assert len(table) == -(-count // 40)
    for key, value in rows[:: max(1, count // 7)]:
        number = table.block_of(key)
        assert number is not None
        assert dict(table.block(number))[key] == value
    assert table.block_of(b"zzz") is None
    table.close()
    table.close()


def test_a_table_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(wire.raw_table([], []))
    assert list(Table(path).items()) == []


def test_crc32c_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's polynomial, the usual check value
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    assert [unmasked(masked(crc)) for crc in (0, 1, 0xFFFFFFFF, 0xE3069283)] == [0, 1, 0xFFFFFFFF, 0xE3069283]
    assert masked(0) == 0xA282EAD8


def test_keys_of_slices() -> None:
    """The bytes that TensorFlow's ordered code gives, one to ten bytes a number."""
    whole = slice_key("w", Slice((0,), (-1,)))
    assert whole == b"\x00w\x00\x01\x01\x01\x80\x7f"
    assert slice_key("w", Slice((63,), (64,))) == b"\x00w\x00\x01\x01\x01\xbf\xc0\x40"
    assert slice_key("w", Slice((300,), (1 << 40,))) == b"\x00w\x00\x01\x01\x01\xc1\x2c\xfd\x00\x00\x00\x00\x00"
    numbers = [0, 1, 63, 64, 8191, 8192, 1 << 20, 1 << 34, 1 << 48, 1 << 55, 1 << 62, (1 << 63) - 1]
    keys = [slice_key("w", Slice((number,), (1,))) for number in numbers]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80", "a varint runs past the end of its message"), (b"\x80" * 10 + b"\x01", "longer than 10 bytes"),
        (b"\xff" * 9 + b"\x7f", "does not fit in 64 bits"),
    ],
)  # fmt: skip
def test_bad_varints(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        varint(data, 0, len(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\x00", "field number 0"), (b"\x0a\x05abc", "field 1 claims 5 bytes where 3 are left"),
        (b"\x0d\x00", "field 1 runs past"), (b"\x09\x00", "field 1 runs past"), (b"\x0b", "field 1 has wire type 3"),
        (b"\x08\x01", "field 1 has wire type 0, not 2"), (b"\x0a", "a varint runs past"),
        (b"\xfa\xff\xff\xff\xff\x01\x00", "field number"),
    ],
)  # fmt: skip
def test_bad_messages(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        parse(data, {1: BYTES})


def test_messages() -> None:
    data = wire.integer(1, -1) + wire.message(2, "x") + wire.integer(9, 5) + wire.message(2, "y") + wire.integer(3, 4)
    read = parse(data + wire.message(3, b"\x01\x02"), {1: VARINT, 2: BYTES | REPEATED, 3: PACKED_VARINT})
    assert read == {1: (1 << 64) - 1, 2: [b"x", b"y"], 3: [4, b"\x01\x02"]}
    assert signed(read[1]) == -1
    with pytest.raises(WireError, match="field 2 occurs twice"):
        parse(data, {2: BYTES})
