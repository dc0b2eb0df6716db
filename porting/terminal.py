"""How commands behave: results on stdout, everything else on stderr, one error, and an exit code.

Exit codes: 0 done, 1 a check failed or input is bad, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from porting.errors import PortingError

if TYPE_CHECKING:
    from types import FrameType

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def run(command: Callable[[], int]) -> int:
    """Run a command's body and turn what it raises into one message and an exit code."""
    # PyTorch's threads must sleep, not spin, while they wait for TensorFlow's next layer: it needs the same cores.
    # Read when PyTorch is first imported, which no command does before this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A polite kill unwinds like Ctrl-C does, so that nothing half-written stays.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = command()
        sys.stdout.flush()
    except PortingError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted: nothing was emitted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; the result is on disk all the same.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def note(text: str) -> None:
    """A line for the user, on stderr."""
    print(text, file=sys.stderr)


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
