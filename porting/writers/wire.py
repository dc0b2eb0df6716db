"""Protocol buffers written on the wire, without generated code; `porting.sources.protobuf` reads them.

Encoding: https://protobuf.dev/programming-guides/encoding/. Fields are to be given in the order of their numbers, and
what has its default value is to be left out, as TensorFlow's serializer does.
"""

from __future__ import annotations

import struct

from porting.sources.protobuf import BYTES, FIXED32, VARINT


def varint(value: int) -> bytes:
    """A varint of a number that is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """An integer field; nothing where the value is 0, its default."""
    return varint(number << 3 | VARINT) + varint(value) if value else b""


def message(number: int, value: bytes) -> bytes:
    """A field that holds a message, or bytes."""
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def fixed32(number: int, value: int) -> bytes:
    """A field of four bytes."""
    return varint(number << 3 | FIXED32) + struct.pack("<I", value)
