"""The convert command as a user runs it: a process with streams, signals and children of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT = 900  # seconds; only a hang takes so long, even on a loaded machine


def convert_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "porting.convert", *map(str, arguments)]


def convert(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m porting.convert` to its end, both streams captured apart."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, "text": True, **options}
    return subprocess.run(convert_command(*arguments), timeout=TIMEOUT, check=False, **options)


def start_convert(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a session of its own, so that whatever it leaves running can be found."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, "text": True, **options}
    return subprocess.Popen(convert_command(*arguments), start_new_session=True, **options)


def members(session: int) -> dict[int, str]:
    """The living processes of a session, with their command lines (Linux's /proc)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # The name in parentheses may hold anything; the fields after it are state, parent, group, session.
            state, _, _, own = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == session and state != "Z":
            found[int(entry.name)] = command
    return found


def environment(**changes: str) -> Mapping[str, str]:
    """This process's environment with some variables changed."""
    return {**os.environ, **changes}
