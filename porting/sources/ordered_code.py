"""Keys under which checkpoints store slices of partitioned variables.

Encoding: tensorflow/core/lib/strings/ordered_code.cc (byte strings that sort as the values they encode) and
core/util/saved_tensor_slice_util.cc (what a slice's key is made of).
"""

from __future__ import annotations

from porting.sources.tensorflow_types import Slice


def _number(value: int) -> bytes:
    """A count: how many bytes, then those bytes, the highest first."""
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _string(value: bytes) -> bytes:
    """Bytes, with 0 escaped so that the terminator sorts below every continuation; UTF-8 has no 255 to escape."""
    return value.replace(b"\x00", b"\x00\xff") + b"\x00\x01"


def _signed(value: int) -> bytes:
    """A signed number in 7 bits a byte; the number of leading ones says how many bytes follow."""
    magnitude = ~value if value < 0 else value
    size = magnitude.bit_length() // 7 + 1
    bits = value & ((1 << (8 * size)) - 1)
    # `size` ones from the top, flipped against the sign.
    header = ((1 << size) - 1) << (8 * size - size)
    return (bits ^ header).to_bytes(size, "big")


def slice_key(name: str, piece: Slice) -> bytes:
    """The key of one slice of variable `name`; lengths of -1 stay as they are."""
    parts = [_number(0), _string(name.encode()), _number(len(piece.starts))]
    for start, length in zip(piece.starts, piece.lengths, strict=True):
        parts += [_signed(start), _signed(length)]
    return b"".join(parts)
