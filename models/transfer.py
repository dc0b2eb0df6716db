"""One file over http(s), in as many pieces as the line makes of it.

Sources to port and published weights both come this way. Imports nothing but the standard library and, if it is there,
tqdm. Source: RFC 9110, 14.2 (Range), 13.1.5 (If-Range), 15.3.7 (206) and 15.5.17 (416).
"""

from __future__ import annotations

import errno
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from models.connection import (
    LINE_FAULTS,
    FailedError,
    Fault,
    Retry,
    TransferError,
    check_kind,
    content_length,
    new_opener,
    refused,
)
from models.scratch import is_still

_PIECE = 1 << 18
_MAX_BYTES = 8 << 30  # ten times the largest published archive; stops a server that never ends
_PROGRESS_BYTES = 1 << 16  # an attempt that brought this much is not counted as failed


@dataclass(frozen=True)
class Transfer:
    """What is fetched, into which unfinished file, and how long it must be (None: as the server says)."""

    url: str
    part: Path
    size: int | None


def transfer(wanted: Transfer, retry: Retry, progress: bool | None) -> bool:
    """Bring all of `wanted.url` into `wanted.part`, which keeps what has come if this fails or is interrupted.

    Returns whether it was put together from more than one answer.

    Raises:
        TransferError: missing, corrupt (cut short, too long), or unsupported (a redirect elsewhere, a web page).
        OSError: the file cannot be written.
    """
    opener = new_opener()
    resumed = False
    failures = 0
    with _bar(wanted, progress) as bar:
        while True:
            before = _size(wanted.part)
            try:
                resumed |= _attempt(wanted, opener, retry.timeout, bar)
                return resumed
            except (FailedError, *LINE_FAULTS) as error:
                came = _size(wanted.part) - before
                failures = 1 if came >= _PROGRESS_BYTES else failures + 1
                distrusted = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
                if failures >= retry.attempts or distrusted:
                    raise _given_up(wanted, error) from None
                time.sleep(retry.pause * 2 ** (failures - 1))


def transfer_checked(wanted: Transfer, check: Callable[[Path], None], retry: Retry, progress: bool | None) -> None:
    """Bring all of `wanted.url` into `wanted.part` and have it checked; a file that fails the check is removed.

    Args:
        check: raises what it likes for a file that is not the one that is wanted.

    Raises:
        TransferError, OSError: as `transfer`.
    """
    # A process that was killed between the last byte and the renaming left all of it.
    complete = wanted.size is not None and _size(wanted.part) == wanted.size
    resumed = complete or transfer(wanted, retry, progress)
    try:
        check(wanted.part)
    except Exception:
        wanted.part.unlink()
        if not resumed:
            raise
        # The two halves may be of two versions of the file: once more, whole.
        transfer(wanted, retry, progress)
        try:
            check(wanted.part)
        except Exception:
            wanted.part.unlink()
            raise
    _note(wanted.part).unlink(missing_ok=True)


def forget_lock(path: Path) -> None:
    """Remove the lock's file of a process that was killed after its file was whole."""
    with suppress(OSError):  # a folder that is only read
        if path.exists():
            with locked(path):
                pass


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of one file that is fetched; who comes second waits, and then finds the file there.

    The lock's own file is gone afterwards, and a process that dies holds nothing. Where the system has no such locks,
    nothing is locked: what two processes garble, the check of the digest finds.

    Raises:
        OSError: the lock cannot be made.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _wait(fcntl.flock, descriptor, fcntl.LOCK_EX, fcntl.LOCK_NB)
            if is_still(path, descriptor):
                break
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):  # file systems without locks
                break
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who held it has removed it: whoever comes now makes a new one
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _wait(flock: Callable[[int, int], None], descriptor: int, exclusive: int, at_once: int) -> None:
    try:
        flock(descriptor, exclusive | at_once)
    except BlockingIOError:
        if sys.stderr.isatty():
            print("Waiting for another process that is fetching the same file ...", file=sys.stderr)
        flock(descriptor, exclusive)


class _NoBar:
    """Progress where tqdm is not installed."""

    total: int | None = None
    n = 0

    def update(self, count: int) -> None:
        pass

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def _bar(wanted: Transfer, progress: bool | None) -> AbstractContextManager[Any]:
    try:
        from tqdm import tqdm
    except ImportError:
        return closing(_NoBar())
    bar: AbstractContextManager[Any] = tqdm(
        total=wanted.size, unit="B", unit_scale=True, unit_divisor=1024, leave=False,
        desc=urlsplit(wanted.url).path.rpartition("/")[2][:40],
        disable=None if progress is None else not progress,  # tqdm's own None means: only on a terminal
    )  # fmt: skip
    return bar


def _attempt(wanted: Transfer, opener: urllib.request.OpenerDirector, timeout: float, bar: Any) -> bool:
    """One request, from where the unfinished file ends; returns whether it went on from there."""
    start = _size(wanted.part)
    note = _note(wanted.part)
    headers = {"User-Agent": "xception-porting", "Accept-Encoding": "identity"}
    validator = _validator(note, wanted.url)
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    else:
        start = 0
    request = urllib.request.Request(wanted.url, headers=headers)
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            # The unfinished file is no beginning of what is there now.
            error.close()
            wanted.part.unlink(missing_ok=True)
            raise FailedError("the server has less than was fetched before") from None
        raise refused(wanted.url, error) from None
    with response:
        check_kind(wanted.url, response.headers)
        going_on = bool(response.status == 206)
        if going_on and not (start and _range_start(response.headers) == start):
            found = str(response.headers.get("Content-Range"))
            raise TransferError(
                wanted.url, Fault.CORRUPT, "Content-Range", found, f"from {start}",
                remedy="Fetch or copy the file again.",
            )  # fmt: skip
        start = start if going_on else 0
        length = content_length(response.headers)
        total = None if length is None else start + length
        if wanted.size is not None and total not in (None, wanted.size):
            raise TransferError(wanted.url, Fault.CORRUPT, "size", f"{total} bytes", f"{wanted.size} bytes")
        limit = min(n for n in (wanted.size, total, _MAX_BYTES) if n is not None)
        if not start:  # a process killed between the two lines must not leave another file's bytes to go on from
            wanted.part.unlink(missing_ok=True)
        note.write_text(json.dumps({"url": wanted.url, "validator": _strong(response.headers)}), encoding="utf-8")
        bar.total, bar.n = wanted.size or total, start
        bar.refresh()
        done = _receive(response, wanted, start, limit, bar)
    expected = wanted.size if wanted.size is not None else total
    if expected is not None and done < expected:
        raise FailedError(f"{done} of {expected} bytes came")
    note.unlink(missing_ok=True)
    return going_on


def _receive(response: Any, wanted: Transfer, start: int, limit: int, bar: Any) -> int:
    with wanted.part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        done = start
        while piece := response.read(_PIECE):
            done += len(piece)
            if done > limit:
                raise TransferError(wanted.url, Fault.CORRUPT, "size", f"more than {limit} bytes", f"{limit} bytes")
            file.write(piece)
            bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
    return done


def _strong(headers: Message) -> str | None:
    """What If-Range may hold: a strong entity tag, or else the date."""
    tag = headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return headers.get("Last-Modified")


def _note(part: Path) -> Path:
    """What the server said of the file that has come in part: whether it is still that one, it is asked by this."""
    return part.with_name(part.name + ".json")


def _validator(note: Path, url: str) -> str | None:
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = kept.get("validator") if isinstance(kept, Mapping) and kept.get("url") == url else None
    return value if isinstance(value, str) and value.isprintable() else None


def _range_start(headers: Message) -> int | None:
    match = re.match(r"bytes (\d{1,18})-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _given_up(wanted: Transfer, error: Exception) -> TransferError:
    reason = getattr(error, "reason", None) or error
    text = str(reason) or type(error).__name__
    came = _size(wanted.part)
    if isinstance(error, FailedError) and came:
        return TransferError(wanted.url, Fault.CORRUPT, "download", text, again=True)
    found = f"{came} bytes came, then: {text}" if came else f"no connection: {text}"
    return TransferError(wanted.url, Fault.MISSING, "download", found, again=bool(came))
