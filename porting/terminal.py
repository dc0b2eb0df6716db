"""How commands behave: results on stdout, everything else on stderr, one error, and an exit code.

Exit codes: 0 done, 1 a check failed or input is bad, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from porting.errors import PortingError

if TYPE_CHECKING:
    from types import FrameType

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def run(command: Callable[[], int]) -> int:
    """Run a command's body and turn what it raises into one message and an exit code."""
    # PyTorch's threads must sleep, not spin, while they wait for TensorFlow's next layer: it needs the same cores.
    # Read when PyTorch is first imported, which no command does before this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _have_streams()
    # A polite kill unwinds like Ctrl-C does, so that nothing half-written stays.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _flushed(command())
    except PortingError as error:
        note(f"error: {error}")
        return _flushed(FAILED)
    except KeyboardInterrupt:
        note("interrupted: nothing half-written stays")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; the result is on disk all the same.
        _silence(sys.stdout)
        return DONE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # only what is printed fails so and gets here
            raise
        return _unprinted(error)


def _have_streams() -> None:
    """Put the null device in the place of streams that were closed, where files would be opened; keep names' bytes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while (descriptor := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            setattr(sys, name, os.fdopen(descriptor, "w" if number else "r"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be of any bytes
        sys.stdout.reconfigure(errors="surrogateescape")


def answer(text: str) -> int:
    """Print a result, of which more may follow, and give the exit code: that nobody takes it is no failure."""
    return _flushed(DONE, text + "\n")


def _flushed(code: int, text: str = "") -> int:
    """The exit code, once what was printed has left this process."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        return code if isinstance(error, BrokenPipeError) else _unprinted(error)
    return code


def _unprinted(error: OSError) -> int:
    """The exit code where there was no room for the result on stdout."""
    _silence(sys.stdout)
    note(f"error: stdout: output: cannot be written: {error.strerror or error}")
    return FAILED


def _silence(stream: TextIO) -> None:
    """Let what is left in a stream that nobody takes go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def note(text: str) -> None:
    """A line for the user, on stderr."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it, or there is no room for it: the exit code says the same
        _silence(sys.stderr)


def size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH as an argument of a command."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    height, width = (int(side) for side in match.groups()) if match else (0, 0)
    if not (height and width):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, found {text!r}")
    return height, width


class Bars:
    """One tqdm bar a stage, on a terminal; nothing in a pipe."""

    def __init__(self) -> None:
        self.bar: Any = None

    def start(self, stage: str, total: int) -> None:
        self.close()
        if sys.stderr.isatty():
            from tqdm import tqdm

            # Some terminals give no size (0 columns, 0 lines), in which tqdm would draw nothing.
            columns, lines = os.get_terminal_size(sys.stderr.fileno())
            size: dict[str, Any] = {"dynamic_ncols": True} if columns and lines else {"ncols": 80, "nrows": 24}
            self.bar = tqdm(desc=stage, total=total, file=sys.stderr, leave=False, **size)

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
