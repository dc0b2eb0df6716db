"""One TensorFlow process for one port after another: its start costs more than most proofs."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType

from porting.errors import PortingError
from porting.reference.client import Reference


class SharedReference:
    """Starts TensorFlow when it is first asked for, and anew where a port left it in the middle of something.

    A context manager that always ends the process.

    Args:
        python: the interpreter that has TensorFlow; default this one.
    """

    def __init__(self, python: str | None = None) -> None:
        self.python = python
        self.process: Reference | None = None

    def begin(self) -> None:
        """Let TensorFlow be imported beside what comes before the first `take`, which says what is wrong."""
        with suppress(PortingError):
            self.take("TensorFlow")

    def take(self, file: object) -> Reference:
        """The process, for a port of `file`.

        Raises:
            PortingError: missing, where there is no TensorFlow.
        """
        if self.process is not None and not self.process.is_idle:
            self.close()
        if self.process is None:
            self.process = Reference(file, self.python)
        self.process.file = file
        return self.process

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def __enter__(self) -> SharedReference:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
