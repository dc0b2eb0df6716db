"""TensorFlow's V2 checkpoints ("tensor bundles"), written: PREFIX.index and PREFIX.data-00000-of-00001.

Format: tensorflow/core/util/tensor_bundle/tensor_bundle.h, core/protobuf/tensor_bundle.proto. The bytes are those that
TensorFlow's own writer gives for the same tensors; `porting.sources.bundle` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from porting.sources.checksum import crc32c, masked
from porting.sources.tensorflow_types import DTYPE_NAMES, STORED
from porting.writers.table import table
from porting.writers.wire import fixed32, integer, message

_NUMBERS = {name: number for number, name in DTYPE_NAMES.items()}
_VERSION = 1  # kTensorBundleVersion: of the writer; readers of any version will do
_HEADER = integer(1, 1) + message(3, integer(1, _VERSION))  # one shard; little-endian, the default


def index_path(prefix: Path) -> Path:
    """Where a checkpoint's index lies."""
    return prefix.with_name(f"{prefix.name}.index")


def data_path(prefix: Path) -> Path:
    """Where the only shard of such a checkpoint lies."""
    return prefix.with_name(f"{prefix.name}.data-00000-of-00001")


def write_bundle(data: IO[bytes], index: IO[bytes], tensors: Iterable[tuple[str, npt.NDArray[Any]]]) -> None:
    """Write a checkpoint of one shard, one tensor after another: none but the current one is held.

    Args:
        data, index: the two files, empty.
        tensors: names and values, of any numeric type that NumPy has and in any memory order, by increasing name in
            UTF-8.

    Raises:
        ValueError: names that do not increase, or an empty one.
    """
    entries = [(b"", _HEADER)]
    offset = 0
    for name, values in tensors:
        key = name.encode()
        if key <= entries[-1][0]:
            raise ValueError(f"tensor {name!r} after {entries[-1][0].decode()!r}")
        dtype = values.dtype.name
        raw = np.ascontiguousarray(values, STORED[dtype]).reshape(-1).view(np.uint8).data
        data.write(raw)
        shape = b"".join(message(2, integer(1, side)) for side in values.shape)
        entry = integer(1, _NUMBERS[dtype]) + message(2, shape) + integer(4, offset) + integer(5, len(raw))
        entries.append((key, entry + fixed32(6, masked(crc32c(raw)))))
        offset += len(raw)
    index.write(table(entries))
