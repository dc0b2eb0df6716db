"""A trace in a file: what TensorFlow computed, so that PyTorch can be held to it elsewhere.

The file is a line of JSON, then frames as the reference's process sends them: a line of JSON (`run`, `name`, `shape`,
`nbytes`, `crc32c`, `noise`), then the values as little-endian float64; the image of each run comes first, as float32
under the name "image". The last line is `{"end": true}`. Nothing in it is executed, and no size is believed before it
is checked against the bytes that are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import crc32c
import numpy as np
import numpy.typing as npt

from porting.errors import Defect, ErrorKind, PortingError, corrupt, unsupported
from porting.reference.frames import Frame

FORMAT, VERSION = "xception-porting trace", 1
IMAGE = "image"
_LINE_LIMIT = 1 << 16


@dataclass(frozen=True)
class _Entry:
    """Where one frame lies."""

    name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    checksum: int
    noise: float | None


class Recorder:
    """Writes a trace into an open file."""

    def __init__(self, file: IO[bytes], header: Mapping[str, Any]) -> None:
        self.file = file
        self._line({"format": FORMAT, "version": VERSION, **header})

    def add(self, run: int, frame: Frame) -> None:
        kind = "<f4" if frame.name == IMAGE else "<f8"
        data = np.ascontiguousarray(frame.values.astype(kind, copy=False)).data.cast("B")
        entry = {"run": run, "name": frame.name, "shape": frame.values.shape, "nbytes": data.nbytes}
        self._line({**entry, "crc32c": crc32c.crc32c(data), "noise": frame.noise})
        self.file.write(data)

    def end(self) -> None:
        self._line({"end": True})

    def _line(self, value: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(value).encode() + b"\n")


class Recording:
    """A trace file, open for reading.

    Attributes:
        arch: the network; `reference`: what computed it; `source`: digest of the source that it is of.
        runs: what was run, as `porting.runs.Run.as_json` names it with `float32` beside.

    Raises:
        PortingError: missing, corrupt (another structure, bytes missing) or unsupported (a newer version).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = path.open("rb")
        except OSError as error:
            raise PortingError(ErrorKind.MISSING, path, [f"{error.strerror}"], "Check the path.") from None
        try:
            self.size = path.stat().st_size
            self._read_header()
            self.entries: list[list[_Entry]] = [[] for _ in self.runs]
            while self._read_entry():
                pass
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            self.file.close()
            raise corrupt(path, "trace", f"not the structure that porting.trace writes ({error})") from None
        except PortingError:
            self.file.close()
            raise

    def _read_header(self) -> None:
        header = self._line()
        if header.get("format") != FORMAT:
            raise unsupported(self.path, "trace", "not a file of porting.trace", "Give the file that it wrote.")
        if header["version"] != VERSION:
            found = f"version {header['version']}; this is version {VERSION}"
            raise unsupported(self.path, "trace", found, "Write it again with this version.")
        self.arch, self.reference = str(header["arch"]), str(header["reference"])
        self.source = str(header["source"])
        self.runs: Sequence[Mapping[str, Any]] = list(header["runs"])

    def _read_entry(self) -> bool:
        header = self._line()
        if header.get("end") is True:
            return False
        shape = tuple(int(side) for side in header["shape"])
        width = 4 if header["name"] == IMAGE else 8
        nbytes, offset = int(header["nbytes"]), self.file.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * width != nbytes:
            raise ValueError(f"{nbytes} bytes for shape {list(shape)}")
        if nbytes > self.size - offset:
            raise corrupt(self.path, str(header["name"]), f"{self.size - offset} bytes", f"{nbytes} bytes")
        noise = header["noise"]
        entry = _Entry(str(header["name"]), shape, offset, nbytes, int(header["crc32c"]), noise and float(noise))
        run = int(header["run"])
        if not 0 <= run < len(self.entries):
            raise ValueError(f"run {run} of {len(self.entries)}")
        self.entries[run].append(entry)
        self.file.seek(nbytes, 1)
        return True

    def _line(self) -> Mapping[str, Any]:
        line = self.file.readline(_LINE_LIMIT)
        if not line.endswith(b"\n"):
            raise ValueError("a line is cut" if line else "it ends early")
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("a line is no object")
        return value

    def check(self, arch: str, source: str) -> None:
        """Raises PortingError: mismatch, where it is another network's or another source's trace."""
        defects = []
        if arch != self.arch:
            defects.append(Defect("network", self.arch, arch))
        if source != self.source:
            defects.append(Defect("sha256 of the source", self.source, source))
        if defects:
            raise PortingError(ErrorKind.MISMATCH, self.path, defects, "Trace the source that you verify against.")

    def run(self, index: int) -> tuple[npt.NDArray[np.float32], Iterator[Frame]]:
        """The image of a run, and its activations.

        Raises:
            PortingError: corrupt, where values do not have their checksum; from the iterator too.
        """
        entries = self.entries[index]
        first = entries[0].name if entries else "nothing"
        if first != IMAGE:
            raise corrupt(self.path, f"run {index}", first, "its image first")
        return self._values(entries[0], np.dtype("<f4")), self._frames(entries[1:])

    def _frames(self, entries: Sequence[_Entry]) -> Iterator[Frame]:
        for entry in entries:
            yield Frame(entry.name, self._values(entry, np.dtype("<f8")), entry.noise)

    def _values(self, entry: _Entry, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self.file.seek(entry.offset)
        data = self.file.read(entry.nbytes)
        if len(data) != entry.nbytes or crc32c.crc32c(data) != entry.checksum:
            raise corrupt(self.path, entry.name, "another checksum", f"crc32c {entry.checksum:08x}")
        return np.frombuffer(bytearray(data), dtype).reshape(entry.shape)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
