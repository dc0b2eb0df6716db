"""The file that keeps an evaluation's finished batches, so that an interrupted one goes on.

Lines of JSON: first what is evaluated, then one outcome a batch. Each process adds its own lines, whole; a line that a
killed process has not finished is left out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.evaluation import Outcome
from models.image_folder import Key
from models.settings import check_same_settings

_VERSION = 1


def _outcome(line: bytes, batches: Sequence[list[Key]]) -> Outcome:
    """One line's outcome.

    Raises:
        ValueError, KeyError, TypeError: it is none of these batches.
    """
    entry = json.loads(line)
    numbers = [entry[name] for name in ("batch", "images", "top1", "top5")]
    unreadable, loss = tuple(entry["unreadable"]), float(entry["loss"])
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in (*numbers, *unreadable)):
        raise ValueError("a count that is no whole number")
    batch, images, top1, top5 = numbers
    positions = {position for _, position in batches[batch]} if 0 <= batch < len(batches) else set()
    if not (
        positions
        and 0 <= top1 <= top5 <= images == len(positions) - len(unreadable)
        and len(set(unreadable)) == len(unreadable)
        and positions.issuperset(unreadable)
        and math.isfinite(loss)
        and loss >= 0
    ):
        raise ValueError("counts that do not fit the batch")
    return Outcome(batch, images, top1, top5, loss, unreadable)


def read_state(path: Path, settings: Mapping[str, Any], batches: Sequence[list[Key]]) -> list[Outcome]:
    """The outcomes in a state file, which is begun where there is none; one process alone calls this.

    Args:
        settings: what is evaluated, and how; an evaluation with other settings is not gone on with.

    Raises:
        ModelError: it cannot be read or written, is no such file, or is another evaluation's.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        header = json.dumps({"evaluation": _VERSION, **settings}).encode() + b"\n"
        if header.startswith(content) and not whole:  # nothing yet, or a part of the first line
            path.write_bytes(header)
            return []
        if not whole:
            raise ModelError(f"{path}: not the state of an evaluation; name another file")
        if whole != content:  # a killed process's last line, which the next would be glued to
            os.truncate(path, len(whole))
    except OSError as error:
        raise ModelError(f"{path}: cannot be used: {error.strerror or error}; name another file") from error
    lines = whole.splitlines()
    _check_settings(path, lines[0], settings)
    outcomes: dict[int, Outcome] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            outcome = _outcome(line, batches)
            if outcomes.setdefault(outcome.batch, outcome) != outcome:
                raise ValueError(f"another outcome of batch {outcome.batch}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError(
                f"{path}: line {number}: {reason}; the file is damaged: remove it, or name another"
            ) from None
    return list(outcomes.values())


def _check_settings(path: Path, line: bytes, settings: Mapping[str, Any]) -> None:
    try:
        then = json.loads(line)
        if then.pop("evaluation") != _VERSION:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{path}: not the state of an evaluation; name another file") from None
    check_same_settings(path, then, settings, "another evaluation's; repeat that one, or name another file")


def add(path: Path, outcome: Outcome) -> None:
    """Add an outcome to a state file, in one piece; a machine that does not see the file keeps nothing.

    Raises:
        ModelError: it cannot be written.
    """
    line = json.dumps(asdict(outcome)).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from error
    if written != len(line):
        raise ModelError(f"{path}: cannot be written: no space left")
