"""The process that lets HDF5 touch a user's file: it may hang or crash, so it is never the process that ports.

It is a program, not a module to import (`hdf5_process` starts it). It reads one JSON object a line from stdin and
answers with one JSON line on stdout, followed, for tensors, by their bytes. It opens nothing but the file it is given,
and hands out an index; the parent checks every number in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

# Before HDF5 and NumPy load. No threads: they would only take address space.
os.environ.update(
    OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", HDF5_PLUGIN_PRELOAD="::", HDF5_USE_FILE_LOCKING="FALSE"
)

import h5py
import numpy as np
from h5py import h5g

from porting.sources.hdf5_walk import RefusedError, index, slabs

# What HDF5 and the answer may take beyond the interpreter, NumPy and h5py.
MAX_EXTRA_MEMORY = 160 << 20


class Window(io.RawIOBase):
    """`size` bytes of a file from `offset`, as a file of its own: an h5 file that lies uncompressed in a zip."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file: BinaryIO = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed with the window
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        count = os.preadv(self._file.fileno(), [memoryview(buffer)[:count]], self._offset + self._at)
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _limit(seconds: float) -> None:
    """From here, `seconds` of processor time: SIGPROF then ends the process, whatever HDF5 is doing."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _confine(highest_fd: int) -> None:
    """A bounded amount of memory, no core file, no writing, and no file numbered above `highest_fd`."""
    # Where the system does not say how large the process is (not Linux), the other limits remain.
    with contextlib.suppress(OSError), Path("/proc/self/statm").open(encoding="utf-8") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = now + MAX_EXTRA_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest_fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _answer(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _refusal(error: Exception, subject: str = "") -> dict[str, Any]:
    """An exception as an answer; h5py raises a dozen kinds on bad files."""
    if isinstance(error, RefusedError):
        kind, subject, found = error.args
        return {"error": kind, "subject": subject, "found": found}
    if isinstance(error, MemoryError):
        found = f"HDF5 needs more than {MAX_EXTRA_MEMORY} bytes of memory for it"
        return {"error": "unsupported", "subject": subject, "found": found}
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return {"error": "corrupt", "subject": subject, "found": f"HDF5 cannot read it: {text}"}


def _opened(window: Window) -> tuple[h5py.File | None, dict[str, Any]]:
    """The file and its index, or what is wrong with it."""
    file: h5py.File | None = None
    try:
        file = h5py.File(window, "r")
        return file, index(h5g.open(file.id, b"/"))
    except Exception as error:
        return file, _refusal(error)


def _read(out: BinaryIO, file: h5py.File, name: str) -> None:
    """Answer with a tensor's pieces, each after a line with its length, or with what is wrong."""
    try:
        for slab in slabs(file[name].id):
            _answer(out, {"bytes": len(slab)})
            out.write(slab)
    except Exception as error:
        _answer(out, _refusal(error, name))
    out.flush()


def _warm_up() -> None:
    """Read a small file in memory, so that every module is loaded before no further file may be opened."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.attrs["layer_names"] = ["one"]
        file.attrs["model_config"] = b"{}"
        file.create_dataset("one", data=np.zeros(8, "float32"), chunks=(4,), compression="gzip")
    with h5py.File(memory, "r") as file:
        index(h5g.open(file.id, b"/"))
        list(slabs(file["one"].id))


def main() -> None:
    """Serve requests until stdin ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    _warm_up()
    kept = os.open(os.devnull, os.O_RDONLY)  # the number that the user's file will have
    _confine(kept)
    os.close(kept)
    _answer(out, {"ready": True})
    window: Window | None = None
    file: h5py.File | None = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit(request["seconds"])
        if request["do"] == "open":
            if file is not None:
                # A corrupt file may fail to close; it is read-only, and nothing of it is used again.
                with contextlib.suppress(Exception):
                    file.close()
            if window is not None:
                window.close()
            window = Window(request["path"], request["offset"], request["size"])
            file, answer = _opened(window)
            _answer(out, answer)
        elif file is not None:
            _read(out, file, request["name"])
        _limit(0)


if __name__ == "__main__":
    main()
