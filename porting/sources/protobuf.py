"""Protocol buffers read off the wire, without generated code.

Encoding: https://protobuf.dev/programming-guides/encoding/. A reader says which fields it knows and how each is
encoded; everything else is stepped over, within bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, TypeVar

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
# Repeated numbers, packed into one field or a field each: both are valid, whichever the schema prefers.
PACKED_VARINT, PACKED_FIXED64, PACKED_FIXED32 = 24, 25, 29

_FIXED64 = struct.Struct("<Q")
_FIXED32 = struct.Struct("<I")
_U64 = 0xFFFFFFFFFFFFFFFF

REPEATED = 16  # added to a wire type: the field may occur many times, and comes as a list

# Values by field: unsigned integers or slices of what was parsed, and lists of them where a field repeats.
Message = dict[int, Any]
Data = TypeVar("Data", bytes, memoryview)


class WireError(Exception):
    """What is wrong in a message; the caller knows the file and which message it was."""


def varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """A varint, unsigned and of at most 64 bits, and the position after it."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _U64:
                raise WireError("a varint does not fit in 64 bits")
            return value, at
        shift += 7
        if shift > 63:
            raise WireError("a varint is longer than 10 bytes")
    raise WireError("a varint runs past the end of its message")


def parse(data: bytes | memoryview, known: Mapping[int, int]) -> Message:
    """The fields of one message.

    Args:
        data: the message's bytes; slices of it are returned for length-delimited fields.
        known: the wire type of each field to return.

    Raises:
        WireError: a length or varint past the end, a known field of another wire type, a second value of a field that
            does not repeat (no writer does that), a group.
    """
    try:
        return _parse(data, known)
    except IndexError:  # cheaper than a check before each byte; the data ends where the message does
        raise WireError("a varint runs past the end of its message") from None


def _parse(data: bytes | memoryview, known: Mapping[int, int]) -> Message:
    message: Message = {}
    at, end = 0, len(data)
    value: Any
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = varint(data, at - 1, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or number >= 1 << 29:
            raise WireError(f"field number {number}")
        if wire in (VARINT, BYTES):
            value = data[at]
            at += 1
            if value >= 0x80:
                value, at = varint(data, at - 1, end)
            if wire == BYTES:
                if value > end - at:
                    raise WireError(f"field {number} claims {value} bytes where {end - at} are left")
                at += value
                value = data[at - value : at]
        elif wire == FIXED32:
            if end - at < 4:
                raise WireError(f"field {number} runs past the end of its message")
            (value,) = _FIXED32.unpack_from(data, at)
            at += 4
        elif wire == FIXED64:
            if end - at < 8:
                raise WireError(f"field {number} runs past the end of its message")
            (value,) = _FIXED64.unpack_from(data, at)
            at += 8
        else:
            raise WireError(f"field {number} has wire type {wire}")
        expected = known.get(number)
        if expected == wire:
            if number in message:
                raise WireError(f"field {number} occurs twice")
            message[number] = value
        elif expected is not None:
            if expected < REPEATED or (wire != expected & 7 and (expected < PACKED_VARINT or wire != BYTES)):
                raise WireError(f"field {number} has wire type {wire}, not {expected & 7}")
            if number in message:
                message[number].append(value)
            else:
                message[number] = [value]
    return message


def signed(value: int) -> int:
    """An int32 or int64 field's value; negative ones are written as 64-bit two's complement."""
    return value - (1 << 64) if value >> 63 else value


def text(value: bytes | memoryview) -> str:
    """A string field's value."""
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise WireError(f"a string is not UTF-8: {bytes(value[:40])!r}") from None
