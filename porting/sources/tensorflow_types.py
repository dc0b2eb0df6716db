"""TensorFlow's element types, shapes and slices as its files store them.

Messages: tensorflow/core/framework/{types,tensor_shape,tensor_slice}.proto.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from porting.errors import corrupt, unsupported
from porting.sources.base import ITEM_SIZE, TensorSpec, widen_bfloat16
from porting.sources.protobuf import BYTES, REPEATED, VARINT, WireError, parse, signed

# types.proto, enum DataType.
DTYPE_NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16",
    17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
    24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz", 28: "float8_e5m2fnuz",
    29: "int4", 30: "uint4", 31: "int2", 32: "uint2",
}  # fmt: skip

# How the bytes of each type are first seen; bool and bfloat16 take another step.
STORED: dict[str, np.dtype[Any]] = {name: np.dtype(name).newbyteorder("<") for name in ITEM_SIZE if name != "bfloat16"}
STORED |= {"bool": np.dtype(np.uint8), "bfloat16": np.dtype("<u2")}

MAX_RANK = 254  # tensor_shape.h, TensorShapeRep::MaxDimensions
MAX_ELEMENTS = 1 << 62  # far above any file; keeps products of dimensions out of big integers


def dtype_name(number: int, path: Path, tensor: str) -> str:
    """The name of a `DataType`; an unknown one is unsupported, for newer TensorFlows add types."""
    name = DTYPE_NAMES.get(number)
    if name is None:
        if number == 0 or number >= 100:  # invalid, or a reference type, which is never stored
            raise corrupt(path, tensor, f"type number {signed(number)}", "a DataType")
        raise unsupported(path, tensor, f"TensorFlow type number {number}", "Save the variable as float32.")
    return name


def parse_shape(data: bytes | memoryview) -> tuple[int, ...]:
    """A TensorShapeProto's dimensions.

    Raises:
        WireError: malformed, of unknown rank, negative or beyond what an address can hold.
    """
    message = parse(data, {2: BYTES | REPEATED, 3: VARINT})
    if message.get(3):
        raise WireError("a shape of unknown rank")
    dims = message.get(2, [])
    if len(dims) > MAX_RANK:
        raise WireError(f"a shape of {len(dims)} dimensions, where TensorFlow has at most {MAX_RANK}")
    shape = []
    for dim in dims:
        size = signed(parse(dim, {1: VARINT}).get(1, 0))
        if size < 0:
            raise WireError(f"a dimension of {size}")
        shape.append(size)
    if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
        raise WireError(f"shape {shape}, more elements than can exist")
    return tuple(shape)


@dataclass(frozen=True)
class Slice:
    """Part of a tensor: `starts` and `lengths`, an entry a dimension; a length of -1 takes the whole dimension."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    def resolved(self, shape: Sequence[int]) -> Slice:
        """The same slice with every length explicit.

        Raises:
            WireError: it does not lie in `shape`.
        """
        if len(self.starts) != len(shape):
            raise WireError(f"a slice of {len(self.starts)} dimensions in a shape of {len(shape)}")
        lengths = tuple(size if length < 0 else length for size, length in zip(shape, self.lengths, strict=True))
        for start, length, size in zip(self.starts, lengths, shape, strict=True):
            if start + length > size:
                raise WireError(f"a slice from {start} to {start + length} of a dimension of {size}")
        return Slice(self.starts, lengths)

    @property
    def index(self) -> tuple[slice, ...]:
        """What selects it from an array; only where lengths are explicit."""
        return tuple(slice(start, start + size) for start, size in zip(self.starts, self.lengths, strict=True))


def parse_slice(data: bytes | memoryview) -> Slice:
    """A TensorSliceProto: extents of start and, unless the dimension is taken whole, length."""
    starts, lengths = [], []
    extents = parse(data, {1: BYTES | REPEATED}).get(1, [])
    if len(extents) > MAX_RANK:
        raise WireError(f"a slice of {len(extents)} dimensions")
    for extent in extents:
        message = parse(extent, {1: VARINT, 2: VARINT})
        start = signed(message.get(1, 0))
        length = signed(message.get(2, 0)) if 2 in message else -1
        if start < 0 or (2 in message and length < 0) or (2 not in message and start):
            raise WireError(f"a slice from {start} of length {length}")
        starts.append(start)
        lengths.append(length)
    return Slice(tuple(starts), tuple(lengths))


def check_tiling(slices: Sequence[Slice], shape: Sequence[int]) -> None:
    """Check that resolved slices cover a shape exactly once, as the cells of a grid (what every partitioner makes).

    Raises:
        WireError: a gap, an overlap, or a tiling that is no grid.
    """
    cells = 1
    for axis, size in enumerate(shape):
        cuts = sorted({(piece.starts[axis], piece.lengths[axis]) for piece in slices})
        reached = 0
        for start, length in cuts:
            if start != reached:
                word = "overlap" if start < reached else "leave a gap"
                raise WireError(f"slices {word} at {min(start, reached)} of dimension {axis}")
            reached = start + length
        if reached != size:
            raise WireError(f"slices end at {reached} of dimension {axis}, which has {size}")
        cells *= len(cuts)
    if len({piece.starts for piece in slices}) != len(slices) or cells != len(slices):
        raise WireError(f"{len(slices)} slices where the grid they lie on has {cells} cells")


def as_array(raw: npt.NDArray[np.uint8], spec: TensorSpec, path: Path) -> npt.NDArray[Any]:
    """The little-endian bytes that `raw` begins with, as an array of the spec's type and shape.

    It is a view, except of bfloat16, which is widened.

    Raises:
        PortingError: corrupt (a bool that is neither 0 nor 1).
    """
    values: npt.NDArray[Any] = np.ndarray(spec.shape, STORED[spec.dtype], raw.data)
    if spec.dtype == "bfloat16":
        return widen_bfloat16(values)
    if spec.dtype == "bool":
        if values.size and int(values.max()) > 1:
            raise corrupt(path, spec.name, f"a bool of value {int(values.max())}", "0 or 1")
        return values.view(np.bool_)
    return values


def check_readable(spec: TensorSpec, path: Path) -> None:
    """Raise `unsupported`, naming the tensor and type, unless its values have a plain NumPy form."""
    if spec.dtype not in ITEM_SIZE:
        raise unsupported(path, spec.name, f"a tensor of type {spec.dtype}", "Only numbers and bools can be read.")
