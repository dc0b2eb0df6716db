"""Where each dataset of an HDF5 file lies, learnt from a child process and checked against the file itself.

The child (`hdf5_child`) walks the file under limits on processor time, memory and open files; what it says is checked
here, and contiguous datasets, which is how Keras stores all of them, are then read without it.

Source: "HDF5 File Format Specification Version 3.0" for the superblock; docs.hdfgroup.org.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting.errors import corrupt, unsupported
from porting.sources.base import ITEM_SIZE, TensorSpec, read_exactly
from porting.sources.hdf5_process import Hdf5File, Hdf5Process, Window, refusal

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_RATIO = 1100  # deflate reaches 1032 to 1 (zlib's documentation)


@dataclass(frozen=True)
class Dataset:
    """One dataset: its path as the name, and where its bytes are.

    `offset` is in the window, and None where only the child can read it (chunked, compressed or compact).
    """

    spec: TensorSpec
    big_endian: bool
    offset: int | None
    stored: int


@dataclass(frozen=True)
class Hdf5Index:
    """All datasets in HDF5's order, and the attributes Keras writes, by group path ("" is the root)."""

    datasets: tuple[Dataset, ...]
    attributes: Mapping[str, Mapping[str, str | tuple[str, ...]]]


def read_index(file: Hdf5File, process: Hdf5Process) -> Hdf5Index:
    """The checked index of an HDF5 file, which `process` has open from then on.

    Raises:
        PortingError: corrupt or unsupported.
    """
    path, window = file.shown, file.window
    _check_superblock(path, file.fd, window)
    answer = process.open(file)
    try:
        if "error" in answer:
            raise refusal(path, answer)
        datasets = tuple(_dataset(path, entry, window.size) for entry in answer["datasets"])
        attributes = {
            str(group): {str(key): _strings(value) for key, value in values.items()}
            for group, values in answer["attributes"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        process.close()
        raise corrupt(path, "", "the process that reads HDF5 gave an answer that makes no sense") from None
    _check_extents(path, datasets, window.size)
    return Hdf5Index(datasets, attributes)


def _check_superblock(path: Path, fd: int, window: Window) -> None:
    """Signature, version, and the end of file that was noted when the file was written."""
    head = bytearray(48)
    count = read_exactly(fd, memoryview(head)[: min(48, window.size)], window.offset)
    if count < len(head):
        raise corrupt(path, "superblock", f"{count} bytes", f"at least {len(head)} bytes")
    if head[: len(SIGNATURE)] != SIGNATURE:
        raise corrupt(path, "signature", head[:8].hex(" "), SIGNATURE.hex(" "))
    version = head[8]
    if version > 3:
        raise unsupported(path, "superblock", f"version {version}; 0 to 3 are read")
    # Version 1 puts four more bytes before the addresses; 2 and 3 have a shorter head.
    sizes, end_at = (head[13:15], 40 + 4 * version) if version < 2 else (head[9:11], 28)
    if bytes(sizes) != b"\x08\x08":
        raise unsupported(path, "superblock", f"offsets and lengths of {sizes[0]} and {sizes[1]} bytes; 8 are read")
    end = int.from_bytes(head[end_at : end_at + 8], "little") if end_at + 8 <= len(head) else 0
    if end > window.size:
        raise corrupt(path, "size", f"{window.size} bytes", f"{end} bytes", "The file is cut short: fetch it again.")


def _dataset(path: Path, entry: Mapping[str, Any], size: int) -> Dataset:
    name, dtype, storage, stored = entry["name"], entry["dtype"], entry["storage"], entry["bytes"]
    shape = tuple(entry["shape"])
    if not isinstance(name, str) or not (dtype in ITEM_SIZE or dtype == "string"):
        raise ValueError(dtype)
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, stored)):
        raise ValueError(shape)
    spec = TensorSpec(name, dtype, shape)
    offset: int | None = None
    if dtype == "string" or spec.nbytes == 0:
        return Dataset(spec, entry["order"] == ">", None, 0)
    if storage == "contiguous":
        offset = entry["offset"]
        if offset is None or stored != spec.nbytes:
            raise corrupt(path, name, f"{stored} bytes stored", f"{spec.nbytes} bytes ({dtype} {list(shape)})")
        if offset <= 0 or offset + stored > size:
            raise corrupt(path, name, f"bytes {offset} to {offset + stored}", f"a place in the file's {size} bytes")
    elif stored > size:
        raise corrupt(path, name, f"{stored} bytes stored", f"at most the file's {size} bytes")
    elif spec.nbytes > stored * MAX_RATIO:
        raise corrupt(path, name, f"{stored} bytes stored for {spec.nbytes}", f"no more than {MAX_RATIO} to 1")
    return Dataset(spec, entry["order"] == ">", offset, stored)


def _check_extents(path: Path, datasets: tuple[Dataset, ...], size: int) -> None:
    placed = sorted((d for d in datasets if d.offset is not None), key=lambda d: d.offset or 0)
    for one, two in itertools.pairwise(placed):
        if (one.offset or 0) + one.stored > (two.offset or 0):
            raise corrupt(path, two.spec.name, f"the same bytes as {one.spec.name}", "bytes of its own")
    total = math.fsum(d.stored for d in datasets)
    if total > size:
        raise corrupt(path, "", f"datasets that take {total:.0f} bytes", f"at most the file's {size} bytes")


def _strings(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError(value)
