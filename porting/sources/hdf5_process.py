"""The parent's side of the process that lets HDF5 touch a file: start, ask, time, end, reap.

HDF5's C library hangs or crashes on some corrupt files, so the process that ports never calls it. A death is an error
about the file, and the next file gets a new child.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting.errors import Defect, ErrorKind, PortingError, corrupt

# Processor time for a walk. It takes about 0.15 ms for each object, and an object takes at least some 800 bytes of the
# file, so this is six times what a file of nothing but objects needs.
OPEN_SECONDS, OPEN_BYTES_A_SECOND, OPEN_SECONDS_MOST = 0.2, 1e6, 20.0
READ_SECONDS, READ_BYTES_A_SECOND = 0.2, 20e6
# Without an answer for this long, the child waits for something that will not come (a dead disk, a stuck driver).
SILENCE_SECONDS = 60.0
MAX_ANSWER_BYTES = 128 << 20

# The parent's own module path, so that the child finds the same h5py; -I keeps everything else out.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import porting.sources.hdf5_child as c; c.main()"


@dataclass(frozen=True)
class Window:
    """The part of a file that is the HDF5 file: all of it, or a stored member of a zip. Bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Hdf5File:
    """An open file with HDF5 in a window of it; `shown` is what the user named, for messages."""

    path: Path
    shown: Path
    fd: int
    window: Window


class Hdf5Process:
    """A child that has one HDF5 file open at a time; started when first asked, started again after it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._pending = bytearray()
        self._file: Hdf5File | None = None  # what the child has open

    def open(self, file: Hdf5File) -> Any:
        """The child's unchecked answer about `file`, which it has open from then on."""
        seconds = min(OPEN_SECONDS + file.window.size / OPEN_BYTES_A_SECOND, OPEN_SECONDS_MOST)
        request = {"do": "open", "path": os.fspath(file.path.absolute()), **dataclasses.asdict(file.window)}
        self._send(file.shown, request, seconds)
        answer = self._line(file.shown, seconds)
        self._file = file
        return answer

    def read(self, file: Hdf5File, name: str, buffer: memoryview) -> None:
        """Fill `buffer` with one dataset of `file`, which must be the one that was opened last."""
        path = file.shown
        if self._file != file:  # a child that died is not asked to die again for every tensor
            raise corrupt(path, name, "HDF5 failed on this file before")
        seconds = READ_SECONDS + len(buffer) / READ_BYTES_A_SECOND
        self._send(path, {"do": "read", "name": name}, seconds)
        while buffer:
            answer = self._line(path, seconds, name)
            if "error" in answer:
                raise refusal(path, answer)
            size = answer["bytes"]
            if not 0 < size <= len(buffer):
                raise corrupt(path, name, f"a piece of {size} bytes", f"at most {len(buffer)} bytes")
            self._receive(path, name, seconds, buffer[:size])
            buffer = buffer[size:]

    def _receive(self, path: Path, name: str, seconds: float, piece: memoryview) -> None:
        count = min(len(piece), len(self._pending))
        piece[:count] = self._pending[:count]
        del self._pending[:count]
        piece = piece[count:]
        while piece:
            self._wait(path, seconds)
            assert self._child is not None and self._child.stdout is not None
            count = os.readv(self._child.stdout.fileno(), [piece])
            if count == 0:
                raise self._death(path, seconds, name)
            piece = piece[count:]

    def close(self) -> None:
        """End the child and reap it; safe to call twice."""
        child, self._child = self._child, None
        self._file = None
        self._pending.clear()
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        child.wait()

    def _send(self, path: Path, request: dict[str, Any], seconds: float) -> None:
        if self._child is None:
            command = [sys.executable, "-I", "-c", _START, json.dumps([str(path) for path in sys.path])]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            try:
                self._line(path, SILENCE_SECONDS)
            except PortingError as error:
                raise PortingError(
                    ErrorKind.MISSING, path, ["the process that reads HDF5 did not start"],
                    'Check that h5py works: python -c "import h5py"',
                ) from error  # fmt: skip
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({**request, "seconds": seconds}).encode() + b"\n")
        except BrokenPipeError:
            raise self._death(path, seconds, "") from None

    def _wait(self, path: Path, seconds: float) -> None:
        assert self._child is not None and self._child.stdout is not None
        waiter = select.poll()
        waiter.register(self._child.stdout.fileno(), select.POLLIN)
        limit = SILENCE_SECONDS + 2 * seconds
        end = time.monotonic() + limit
        while not waiter.poll(1000):
            if time.monotonic() > end:
                self.close()
                raise corrupt(path, "", f"HDF5 gave no answer in {limit:.0f} s")

    def _line(self, path: Path, seconds: float, subject: str = "") -> Any:
        assert self._child is not None and self._child.stdout is not None
        while (end := self._pending.find(b"\n")) < 0:
            self._wait(path, seconds)
            piece = os.read(self._child.stdout.fileno(), 1 << 16)
            if not piece:
                raise self._death(path, seconds, subject)
            self._pending += piece
            if len(self._pending) > MAX_ANSWER_BYTES:
                self.close()
                raise corrupt(path, "", f"an index of more than {MAX_ANSWER_BYTES} bytes")
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            self.close()
            raise corrupt(path, subject, "the process that reads HDF5 gave an answer that makes no sense") from None

    def _death(self, path: Path, seconds: float, subject: str) -> PortingError:
        child = self._child
        assert child is not None
        # Its pipe is shut, so it is ending or has ended: the code says why.
        try:
            code = child.wait(timeout=SILENCE_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        if -code == signal.SIGPROF:
            return corrupt(path, subject, f"HDF5 did not finish reading it in {seconds:.1f} s of processor time")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return corrupt(path, subject, f"HDF5 crashed on it ({how})")


def refusal(path: Path, answer: Mapping[str, Any]) -> PortingError:
    """The child's answer that it refused something, as an error about `path`."""
    kind = ErrorKind(answer["error"])
    remedy = "Fetch or copy the file again." if kind is ErrorKind.CORRUPT else ""
    return PortingError(kind, path, [Defect(str(answer["subject"]), str(answer["found"]))], remedy)
