"""What a command costs, with every process that it starts: wall time, processor time, peak memory.

`python -m tests.benchmarks.process_tree COMMAND...` measures one. Memory is the sum of the processes' proportional set
sizes (PSS: shared pages count once), sampled every 50 ms; Linux only.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.05  # seconds between samples


@dataclass(frozen=True)
class Cost:
    """Seconds of wall and processor time, and bytes of memory at the peak."""

    wall: float
    processor: float
    memory: int
    code: int


def measure(command: Sequence[str], **options: object) -> Cost:
    """Run a command to its end and add up what it and its descendants took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    peak = [0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(INTERVAL):
            peak[0] = max(peak[0], sum(map(_memory, _tree(process.pid))))

    watcher = threading.Thread(target=sample)
    watcher.start()
    code = process.wait()
    wall = time.monotonic() - began
    done.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, processor, peak[0], code)


def _tree(root: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main(command: Sequence[str]) -> int:
    cost = measure(command, env={**os.environ})
    print(f"wall {cost.wall:.1f} s, processor {cost.processor:.1f} s, peak memory {cost.memory / 2**20:.0f} MiB",
          file=sys.stderr)  # fmt: skip
    return cost.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
