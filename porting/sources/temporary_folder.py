"""A folder for what an archive holds, which is gone however the process ends; where it is killed, with the next run."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from types import FrameType

from models.scratch import make_folder, remove_folder
from porting.errors import ErrorKind, PortingError, corrupt
from porting.sources.archive_members import DISTRUST


class TemporaryFolder:
    """Removed by `close`, with the object, at exit, and on SIGTERM where the program leaves that signal alone.

    Ctrl-C needs nothing: it is an exception, and the folder goes with whoever holds it.
    """

    def __init__(self) -> None:
        self.path, descriptor = make_folder(Path(tempfile.gettempdir()))
        self._finalizer = weakref.finalize(self, remove_folder, self.path, descriptor)
        _end_orderly_on_sigterm()

    def write(self, archive: Path, name: str, pieces: Iterable[bytes]) -> None:
        """Make the file `name`, a checked relative name, from `pieces`.

        Raises:
            PortingError: corrupt, where a file or folder of this name is there already; output, where the disk is full.
        """
        with self.writer(archive, name) as write:
            for piece in pieces:
                write(piece)

    def writer(self, archive: Path, name: str) -> _Writer:
        """A context that makes the file `name` and gives the function that fills it; raises as `write` does."""
        return _Writer(archive, name, self.path / PurePosixPath(name))

    def close(self) -> None:
        """Remove the folder; safe to call twice."""
        self._finalizer()


class _Writer:
    def __init__(self, archive: Path, name: str, path: Path) -> None:
        self._archive, self._name, self._path = archive, name, path
        self._fd = -1

    def __enter__(self) -> Callable[[memoryview | bytes], object]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # O_EXCL: names that differ only in case are one file on some disks, and nothing is written twice.
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except (FileExistsError, NotADirectoryError):
            raise corrupt(
                self._archive, self._name, "a file and a folder, or two files, of one name", "", DISTRUST
            ) from None
        except OSError as error:
            raise self._failed(error) from None
        return self._write

    def _write(self, piece: memoryview | bytes) -> None:
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> PortingError:
        return PortingError(
            ErrorKind.OUTPUT, self._archive,
            [f"it cannot be unpacked in {tempfile.gettempdir()}: {error.strerror}"],
            "Free some space, or name another folder in the environment variable TMPDIR.",
        )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _end_orderly_on_sigterm() -> None:
    """Make SIGTERM end the process as an exception does, unless someone else decides about it."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
