"""Temporary files and folders whose maker is known to live: it holds a lock on them until they are gone.

Whoever makes one first removes those beside it whose lock can be had: their makers were killed. Where the system or the
file system has no such locks, nothing is removed. The locks are `flock`'s, so a process that dies holds none. Imports
nothing but the standard library.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # a system without these locks
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".porting-", ".tmp"


@contextmanager
def scratch_file(folder: Path) -> Iterator[IO[bytes]]:
    """A new file in `folder`, open for writing and reading, that is gone afterwards unless `give_name` renamed it.

    Raises:
        OSError: it cannot be made.
    """
    remove_left(folder)
    path, descriptor = _new(folder, _make_file)
    file = open(path, "w+b", opener=lambda *_: descriptor)  # noqa: SIM115 - this way it knows its name
    try:
        yield file
    finally:
        with suppress(OSError):  # what could not be written was reported by the flush before
            file.close()
        path.unlink(missing_ok=True)


def give_name(file: IO[bytes], path: Path) -> None:
    """Let a scratch file, its content flushed, appear as `path`, in place of what is there.

    Raises:
        OSError: it cannot be renamed.
    """
    if not fcntl:  # such systems rename no open file
        file.close()
    Path(file.name).replace(path)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` that is gone afterwards, with all that is in it.

    Raises:
        OSError: it cannot be made.
    """
    path, descriptor = make_folder(parent)
    try:
        yield path
    finally:
        remove_folder(path, descriptor)


def make_folder(parent: Path) -> tuple[Path, int]:
    """A new folder in `parent` and the descriptor that holds its lock, for `remove_folder`.

    Raises:
        OSError: it cannot be made.
    """
    remove_left(parent)
    return _new(parent, _make_folder)


def remove_folder(path: Path, descriptor: int) -> None:
    """Remove what `make_folder` made."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    finally:  # a signal in the middle of it ends the process, and not the removal
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def remove_left(folder: Path) -> None:
    """Remove what processes that were killed have left in `folder`: of this user's, and nobody holds its lock."""
    if not fcntl:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX)]
        for name in names:
            with suppress(OSError):  # another's, or gone meanwhile
                _remove_one(folder / name)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether what is open is what now lies at `path`."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _remove_one(path: Path) -> None:
    there = path.lstat()
    is_folder = stat.S_ISDIR(there.st_mode)
    # Folders of shared places like /tmp hold whatever others put there.
    if not (is_folder or stat.S_ISREG(there.st_mode)) or there.st_uid != os.geteuid():
        return
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_still(path, descriptor):  # it may have got its final name while the lock was waited for
            shutil.rmtree(path) if is_folder else path.unlink()
    finally:
        os.close(descriptor)


def _new(parent: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Make something under a name that nobody has, and lock it."""
    while True:
        path = parent / f"{PREFIX}{os.urandom(8).hex()}{SUFFIX}"
        try:
            descriptor = make(path)
        except FileExistsError:
            continue
        if descriptor >= 0:
            if _is_own(path, descriptor):
                return path, descriptor
            os.close(descriptor)


def _is_own(path: Path, descriptor: int) -> bool:
    """Lock what was made; False where somebody who clears up took it for left in the moment before."""
    if not fcntl:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can have taken it
        return True
    return is_still(path, descriptor)


def _make_file(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o600)


def _make_folder(path: Path) -> int:
    path.mkdir(mode=0o700)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # taken for left, and removed
        return -1
