"""`tests.kills` itself: what must not stop it."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

from tqdm import tqdm

from tests.kills import run_killed


def test_a_lock_that_a_killed_process_held_stops_nobody() -> None:
    """tqdm's own lock is a semaphore of all processes that were forked from one."""

    def hold() -> None:
        tqdm.get_lock().acquire()
        Path(os.devnull).open().close()  # the step at which it is killed

    def take() -> None:
        with tqdm.get_lock():
            pass

    take()
    assert run_killed(hold, 0)
    another = Thread(target=take, daemon=True)
    another.start()
    another.join(timeout=5)
    assert not another.is_alive()
