"""TensorFlow's V2 checkpoints ("tensor bundles"): PREFIX.index and PREFIX.data-SSSSS-of-NNNNN.

Format: tensorflow/core/util/tensor_bundle/tensor_bundle.h. A shard is the tensors' little-endian bytes, one after
another; the index says where each begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from porting.errors import Defect, ErrorKind, PortingError, corrupt, unsupported
from porting.sources.base import TensorSource, open_file, read_exactly
from porting.sources.bundle_index import Entry, read_index
from porting.sources.checksum import crc32c, masked
from porting.sources.protobuf import WireError, varint
from porting.sources.tensorflow_types import as_array, check_readable

_OPEN_SHARDS = 64  # descriptors kept at once
_PIECE = 1 << 20  # bytes read before they are summed, so that the sum finds them in the cache


class BundleSource(TensorSource):
    """A V2 checkpoint.

    Listing reads the index alone; shards are opened by `read` and `verify_files`.

    Args:
        prefix: the checkpoint's prefix, without ".index".
        container: what kind of container holds it.
        path: what the user named, where that is not the prefix.
        beside: other files of the container.

    Raises:
        PortingError: missing, corrupt or unsupported index.
    """

    def __init__(
        self, prefix: Path, container: str = "tf-checkpoint-v2", path: Path | None = None, beside: Sequence[Path] = ()
    ) -> None:
        self.path = path or prefix
        self.container = container
        self._prefix = prefix
        self._beside = tuple(beside)
        self.index_path = prefix.with_name(prefix.name + ".index")
        self._index = read_index(self.index_path)
        self.entries: Mapping[str, Entry] = self._index.entries
        self.specs = {name: entry.spec for name, entry in self.entries.items()}
        self._stored_names: Mapping[str, str] = {}  # by the names in `specs`, where they differ
        self._fds: dict[int, tuple[int, int]] = {}  # shard: descriptor, bytes in the file
        self._buffer = np.empty(0, np.uint8)
        self._view = memoryview(b"")

    def rename(self, names: Mapping[str, str]) -> None:
        """List tensors under other names, in the order of `names` (the new by the old); the rest are left out."""
        self.entries = {
            new: self.entries[old]._replace(spec=replace(self.entries[old].spec, name=new))
            for old, new in names.items()
        }
        self.specs = {name: entry.spec for name, entry in self.entries.items()}
        self._stored_names = {new: old for old, new in names.items()}

    @property
    def location(self) -> Path:
        return self._prefix

    def stored_name(self, name: str) -> str:
        return self._stored_names.get(name, name)

    def shard_path(self, shard: int) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}.data-{shard:05d}-of-{self._index.shards:05d}")

    def files(self) -> Sequence[Path]:
        shards = sorted({entry.shard for entry in self._index.stored()})
        return [*self._beside, self.index_path, *map(self.shard_path, shards)]

    def verify_files(self) -> None:
        needed: dict[int, Entry] = {}
        for entry in self._index.stored():
            last = needed.setdefault(entry.shard, entry)
            if entry.offset + entry.size > last.offset + last.size:
                needed[entry.shard] = entry
        missing, short = [], []
        for shard, last in sorted(needed.items()):
            path, end = self.shard_path(shard), last.offset + last.size
            try:
                size = path.stat().st_size if path.is_file() else None
            except OSError:
                size = None
            if size is None:
                missing.append(Defect(path.name, "no such file", "a shard of the checkpoint"))
            elif size < end:
                short.append(Defect(path.name, f"{size} bytes; {last.spec.name} is cut off", f"at least {end} bytes"))
        if missing:
            raise PortingError(
                ErrorKind.MISSING, self.path, missing, "Put the data files beside the .index, with the same prefix."
            )
        if short:
            raise PortingError(ErrorKind.CORRUPT, self.path, short, "Fetch or copy the file again.")

    def read(self, name: str) -> npt.NDArray[Any]:
        entry = self.entries[name]
        check_readable(entry.spec, self.path)
        if entry.slices:
            return self._assembled(entry, name)
        self._fill(entry, name)
        return as_array(self._buffer, entry.spec, self.path)

    def _assembled(self, entry: Entry, name: str) -> npt.NDArray[Any]:
        """A partitioned variable, whole."""
        for _, piece in entry.slices:  # before the whole is allocated: an index may claim any shape
            self._shard(piece, name)
        whole: npt.NDArray[Any] | None = None
        for part, piece in entry.slices:
            self._fill(piece, name)
            values = as_array(self._buffer, piece.spec, self.path)
            if whole is None:
                whole = np.empty(entry.spec.shape, values.dtype)
            whole[part.index] = values
        assert whole is not None  # `slices` is not empty
        return whole

    def read_strings(self, name: str) -> list[bytes]:
        """The elements of a string tensor, checked like any other.

        Raises:
            PortingError: corrupt; KeyError where there is no such tensor.
        """
        entry = self.entries[name]
        if entry.spec.dtype != "string" or entry.slices:
            raise unsupported(self.path, name, f"a tensor of type {entry.spec.dtype}, not string")
        # Lengths as varints, a masked crc of them (as fixed integers), then the bytes; the entry's crc covers the
        # fixed-size lengths, their crc and the bytes (tensor_bundle.cc, ReadStringTensor).
        self._fill_unchecked(entry, name)
        data = self._view[: entry.size].tobytes()
        try:
            lengths, at = [], 0
            if entry.spec.size > entry.size:
                raise WireError(f"{entry.spec.size} strings in {entry.size} bytes")
            for _ in range(entry.spec.size):
                length, at = varint(data, at, len(data))
                lengths.append(length)
            if sum(lengths) + 4 + at != len(data):
                raise WireError(f"strings of {sum(lengths)} bytes in an entry of {len(data)}")
        except WireError as error:
            raise corrupt(self.path, name, str(error)) from None
        crc = 0
        for length in lengths:
            crc = crc32c(length.to_bytes(4 if length >> 32 == 0 else 8, "little"), crc)
        if masked(crc).to_bytes(4, "little") != data[at : at + 4]:
            raise corrupt(self.path, name, "lengths that do not match their crc32c")
        crc = crc32c(data[at:], crc)
        if crc != entry.crc:
            raise self._wrong_crc(crc, entry, name)
        at += 4
        strings = []
        for length in lengths:
            strings.append(data[at : at + length])
            at += length
        return strings

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1][0])

    def _shard(self, entry: Entry, name: str) -> int:
        """The descriptor of an entry's shard, which is known to be long enough."""
        opened = self._fds.get(entry.shard)
        if opened is None:
            path = self.shard_path(entry.shard)
            try:
                fd = open_file(path)
            except PortingError as error:
                found = f"no shard {path.name}" if not path.exists() else f"shard {path.name}: {error.defects[0]}"
                raise PortingError(
                    ErrorKind.MISSING, self.path, [Defect(name, found)],
                    "Put the data files beside the .index, with the same prefix.",
                ) from None  # fmt: skip
            if len(self._fds) >= _OPEN_SHARDS:
                self.close()
            opened = self._fds[entry.shard] = fd, os.fstat(fd).st_size
        fd, size = opened
        if entry.offset + entry.size > size:
            raise self._cut_off(entry, name, size)
        return fd

    def _cut_off(self, entry: Entry, name: str, size: int) -> PortingError:
        return corrupt(
            self.path, name, f"shard {self.shard_path(entry.shard).name} ends at byte {size}",
            f"bytes {entry.offset} to {entry.offset + entry.size}",
        )  # fmt: skip

    def _fill(self, entry: Entry, name: str) -> None:
        """Put an entry's bytes at the start of the buffer, checked against its crc32c."""
        crc = self._fill_unchecked(entry, name)
        if crc != entry.crc:
            raise self._wrong_crc(crc, entry, name)

    def _fill_unchecked(self, entry: Entry, name: str) -> int:
        """Put an entry's bytes at the start of the buffer; returns their crc32c."""
        fd = self._shard(entry, name)
        size, offset = entry.size, entry.offset
        if size > len(self._view):
            self._view = memoryview(b"")
            self._buffer = np.empty(0, np.uint8)  # let the old one go first
            self._buffer = np.empty(size, np.uint8)
            self._view = self._buffer.data
        crc = done = 0
        while done < size:
            piece = self._view[done : min(done + _PIECE, size)]
            got = read_exactly(fd, piece, offset + done)
            if got != len(piece):
                raise self._cut_off(entry, name, offset + done + got)
            crc = crc32c(piece, crc)
            done += got
        return crc

    def _wrong_crc(self, crc: int, entry: Entry, name: str) -> PortingError:
        return corrupt(
            self.path, name, f"{crc:#010x} of the bytes in shard {self.shard_path(entry.shard).name}",
            f"crc32c {entry.crc:#010x}, as the index says",
        )  # fmt: skip
