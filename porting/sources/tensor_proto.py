"""Values written as a TensorProto, as V1 checkpoints and frozen graphs hold them.

Message: tensorflow/core/framework/tensor.proto. Values are raw bytes in `tensor_content`, or one list a type; a list
that is too short repeats its last value (tensor.cc, FromProtoField), where the caller allows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from porting.errors import corrupt, unsupported
from porting.sources.base import TensorSpec
from porting.sources.protobuf import (
    BYTES,
    PACKED_FIXED32,
    PACKED_FIXED64,
    PACKED_VARINT,
    VARINT,
    Message,
    WireError,
    parse,
)
from porting.sources.tensorflow_types import STORED, as_array, check_readable, dtype_name, parse_shape

_DTYPE, _SHAPE, _CONTENT = 1, 2, 4
_KNOWN = {
    _DTYPE: VARINT, _SHAPE: BYTES, _CONTENT: BYTES, 5: PACKED_FIXED32, 6: PACKED_FIXED64, 7: PACKED_VARINT,
    9: PACKED_FIXED32, 10: PACKED_VARINT, 11: PACKED_VARINT, 12: PACKED_FIXED64, 13: PACKED_VARINT,
    16: PACKED_VARINT, 17: PACKED_VARINT,
}  # fmt: skip
# The field that lists a type's values, and the type of one item of the list.
_FIELDS = {
    "float32": (5, "<f4"), "float64": (6, "<f8"), "int32": (7, "int32"), "uint8": (7, "uint8"), "int16": (7, "int16"),
    "int8": (7, "int8"), "uint16": (7, "uint16"), "complex64": (9, "<f4"), "int64": (10, "int64"),
    "bool": (11, "uint8"), "complex128": (12, "<f8"), "float16": (13, "uint16"), "bfloat16": (13, "uint16"),
    "uint32": (16, "uint32"), "uint64": (17, "uint64"),
}  # fmt: skip
# A constant may be one value and a shape. Ten times the largest tensor of these networks is still let through.
_MAX_REPEATED = 64 << 20  # bytes


def parse_tensor(data: bytes | memoryview) -> Message:
    """A TensorProto's fields.

    Raises:
        WireError: malformed.
    """
    return parse(data, _KNOWN)


def tensor_spec(tensor: Message, name: str, path: Path) -> TensorSpec:
    """Name, type and shape of a TensorProto that states its own.

    Raises:
        WireError: malformed; PortingError: an unknown type.
    """
    return TensorSpec(name, dtype_name(tensor.get(_DTYPE, 0), path, name), parse_shape(tensor.get(_SHAPE, b"")))


def tensor_values(tensor: Message, spec: TensorSpec, path: Path, *, repeat: bool) -> npt.NDArray[Any]:
    """The values of a TensorProto, writable; bfloat16 comes as float32.

    Args:
        tensor: its fields.
        spec: the type and shape it must have.
        path: the file, for messages.
        repeat: whether a list may be shorter than the shape.

    Raises:
        PortingError: corrupt (count of values or bytes, values out of range), unsupported (type).
    """
    check_readable(spec, path)
    number, item = _FIELDS[spec.dtype]
    content = tensor.get(_CONTENT, b"")
    chunks = tensor.get(number, [])
    if len(content):
        if chunks or len(content) != spec.nbytes:
            raise corrupt(path, spec.name, f"{len(content)} bytes of content", f"{spec.nbytes}")
        return as_array(np.frombuffer(bytearray(content), np.uint8), spec, path)
    try:
        flat = _floats(chunks, item) if item.startswith("<") else _integers(chunks, item)
    except WireError as error:
        raise corrupt(path, spec.name, str(error)) from None
    if spec.dtype.startswith("complex") and len(flat) % 2:
        raise corrupt(path, spec.name, f"{len(flat)} halves of complex numbers", "an even count")
    flat = flat.view(STORED[spec.dtype])
    if len(flat) != spec.size:
        if not repeat or len(flat) > spec.size:
            raise corrupt(path, spec.name, f"{len(flat)} values", f"{spec.size}, for shape {list(spec.shape)}")
        if spec.nbytes > _MAX_REPEATED:
            raise unsupported(path, spec.name, f"{len(flat)} values repeated to {spec.nbytes} bytes, over 64 MiB")
        last = flat[-1] if len(flat) else flat.dtype.type(0)
        flat = np.concatenate([flat, np.full(spec.size - len(flat), last, flat.dtype)])
    return as_array(flat.view(np.uint8), spec, path)


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: str) -> npt.NDArray[Any]:
    if len(parts) == 1:
        own: npt.NDArray[Any] = parts[0].copy()  # what was parsed may be immutable
        return own
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _floats(chunks: Sequence[Any], dtype: str) -> npt.NDArray[Any]:
    size = np.dtype(dtype).itemsize
    parts: list[npt.NDArray[Any]] = []
    for chunk in chunks:
        data = chunk.to_bytes(size, "little") if isinstance(chunk, int) else chunk
        if len(data) % size:
            raise WireError(f"a list of {len(data)} bytes, of numbers of {size} bytes")
        parts.append(np.frombuffer(data, dtype))
    return _joined(parts, dtype)


def _integers(chunks: Sequence[Any], dtype: str) -> npt.NDArray[Any]:
    parts = [np.array([c], np.uint64) if isinstance(c, int) else packed_varints(c) for c in chunks]
    wide = _joined(parts, "uint64")
    # Negative numbers are written as 64-bit two's complement.
    exact = wide if dtype == "uint64" else wide.view(np.int64)
    narrow = exact.astype(dtype)
    if not np.array_equal(narrow, exact):
        raise WireError(f"a number that is no {dtype}")
    return narrow


def packed_varints(data: bytes | memoryview) -> npt.NDArray[np.uint64]:
    """The numbers of a packed list of varints, modulo 2**64.

    Raises:
        WireError: the last one is cut off, or one is longer than 10 bytes.
    """
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if raw.size and (not ends.size or ends[-1] != raw.size - 1):
        raise WireError("a packed list ends within a varint")
    starts = np.concatenate([np.zeros(min(1, ends.size), ends.dtype), ends[:-1] + 1])
    lengths = ends - starts + 1
    longest = int(lengths.max()) if lengths.size else 0
    if longest > 10:
        raise WireError("a varint is longer than 10 bytes")
    values = np.zeros(ends.size, np.uint64)
    for byte in range(longest):
        has = lengths > byte
        part = (raw[starts[has] + byte] & 0x7F).astype(np.uint64)
        values[has] |= part << np.uint64(7 * byte)
    return values
