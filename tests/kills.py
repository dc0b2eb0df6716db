"""Commands that are killed with SIGKILL: `python -m tests.kills` asks what each of them leaves behind.

A port and two downloads, in processes of their own, are killed right before each step that touches the disk, or at
random moments. No file may then lie unfinished under a final name, nothing may keep the next run from succeeding, and
that run must clear up. `--proofs` kills whole commands while TensorFlow runs: its process must go too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

# Audit events (PEP 578) before what may change the disk, or a lock on it.
STEPS = ("open", "os.", "shutil.", "fcntl.", "ctypes.dlsym")


def _fork() -> int:
    """`os.fork`; tqdm's own lock is one for all processes, and a killed one that holds it would stop the others."""
    tqdm.set_lock(threading.RLock())
    return os.fork()


def run_killed(work: Callable[[], Any], step: int) -> bool:
    """Whether a process of its own that does `work` was killed, right before its step of this number."""
    child = _fork()
    if child == 0:
        left = step

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            if event.startswith(STEPS) and left >= 0:  # the kill itself is such an event
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def run_killed_after(work: Callable[[], Any], seconds: float) -> bool:
    """Kill a process of its own that does `work`, so long after it began; it may just have ended."""
    child = _fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # until it is waited for, the number is its own
    os.waitpid(child, 0)
    return True


def steps_of(work: Callable[[], Any]) -> int:
    """How many steps it takes."""
    reader, writer = os.pipe()
    child = _fork()
    if child == 0:
        steps = 0

        def count(event: str, _arguments: object) -> None:
            nonlocal steps
            steps += event.startswith(STEPS)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os.write(writer, str(steps).encode())
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:  # noqa: PTH123 - a descriptor
        text = pipe.read()
    os.waitpid(child, 0)
    return int(text)


def main() -> int:
    from tests.killed_jobs import careless, jobs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=6, help="of each job and scene; 0: every one (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=0, help="kills at random moments (default: %(default)s)")
    parser.add_argument("--proofs", type=int, default=0, help="kills of whole commands (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, began = random.Random(arguments.seed), time.monotonic()
    wrong: list[str] = []
    kills: Counter[str] = Counter()
    with scratch() as folder, ExitStack() as stack:
        for job in jobs(folder, True, stack):
            for scene in job.scenes:
                job.begin(scene)
                steps = steps_of(job.work)
                chosen = range(steps) if arguments.steps == 0 else chance.sample(range(steps), arguments.steps)
                for step in chosen:
                    found = job.killed(scene, partial(run_killed, step=step))
                    wrong += [f"{job.name}, {scene.__name__}, step {step}: {text}" for text in found]
                    kills["disk steps"] += 1
    with scratch() as folder, ExitStack() as stack:
        made = jobs(folder, False, stack) if arguments.count else []
        for number in range(arguments.count):
            job = made[number % len(made)]
            scene, after = chance.choice(job.scenes), chance.uniform(0, job.seconds)
            found = job.killed(scene, partial(run_killed_after, seconds=after))
            wrong += [f"{job.name}, {scene.__name__}, after {after:.4f} s: {text}" for text in found]
            kills["random moments"] += 1
    if arguments.proofs:
        from tests.killed_jobs import killed_proofs

        with scratch() as folder:
            wrong += killed_proofs(folder, [chance.random() for _ in range(arguments.proofs)])
            kills["moments of a proof"] += arguments.proofs
    for text in wrong:
        print(text)
    with scratch() as folder:
        unseen = [name for name, found in careless(folder) if not found]
    told = "NOT " + ", ".join(unseen) if unseen else "each"
    figures = ", ".join(f"{count} at {name}" for name, count in kills.items())
    print(f"{kills.total()} kills ({figures}), {len(wrong)} faults; careless writers found out: {told}")
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if wrong or unseen else 0


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder whose own folder for temporary files is this process's."""
    with tempfile.TemporaryDirectory() as name:
        before = tempfile.tempdir
        tempfile.tempdir = str(Path(name) / "temporary")
        Path(tempfile.tempdir).mkdir()
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


if __name__ == "__main__":
    sys.exit(main())
