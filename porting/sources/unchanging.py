"""A source that is replaced, cut or written to while it is read: told in one error, whatever the readers made of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from porting.errors import Defect, ErrorKind, PortingError
from porting.sources.base import TensorSource


@contextmanager
def unchanging(source: TensorSource) -> Iterator[Callable[[], None]]:
    """Hold a source's files to what they are now: where they lie, their sizes, and when they were written to.

    Yields a function that checks them, to be called before a result gets its name; it raises as this does. After an
    error of a reader or of TensorFlow, which may be no more than what a change looks like, they are checked too.

    Raises:
        PortingError: corrupt, with every file that changed and how.
    """
    before = {path: _seen(path) for path in source.files()}

    def check() -> None:
        changed = [Defect(path.name, *_difference(seen, _seen(path))) for path, seen in before.items()]
        if defects := [defect for defect in changed if defect.found]:
            raise PortingError(
                ErrorKind.CORRUPT, source.path, defects,
                "It changed while it was read: nothing is emitted or proved. Try again when nothing writes to it.",
            ) from None  # fmt: skip

    try:
        yield check
    except (PortingError, OSError) as error:
        if not (isinstance(error, PortingError) and error.kind is ErrorKind.OUTPUT):
            check()
        raise


def _seen(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _difference(before: os.stat_result | None, now: os.stat_result | None) -> tuple[str, str]:
    """Found and expected; found is empty where nothing differs."""
    if before is None or now is None:
        return ("" if before is now else "gone" if now is None else "there"), "the file as it was"
    if (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino):
        return "another file of that name", "the file as it was"
    if before.st_size != now.st_size:
        return f"{now.st_size} bytes", f"{before.st_size} bytes, as when it was opened"
    return ("" if before.st_mtime_ns == now.st_mtime_ns else "written to since"), "the file as it was"
