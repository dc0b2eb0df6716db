"""A fixed share of mutated Keras files and archives; `python -m tests.sources.fuzzing` runs as many as one likes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.sources import keras_seeds
from tests.sources.fuzzing import Reader, Tally, fuzz, outcome

COUNTS = {"keras-h5": 400, "zip": 240, "tar": 360}


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reader", keras_seeds.READERS, ids=lambda reader: reader.name)
def test_nothing_but_porting_error_comes_out(reader: Reader, times: int) -> None:
    tally: Tally = fuzz(reader, COUNTS[reader.name] * times, seed=0)
    assert not tally.failures, "\n".join(tally.failures[:5])
    assert tally.count == COUNTS[reader.name] * times
    # Neither mutated beyond recognition nor left as they were.
    assert tally.outcomes["corrupt"] > tally.count // 10 < tally.count - tally.outcomes["read"]


def test_a_child_killed_at_work_is_replaced(tmp_path: Path) -> None:
    reader = keras_seeds.READERS[0]
    path = reader.build(tmp_path)[0]
    process = keras_seeds._child()
    assert outcome(reader, path) == "read"
    child = process._child
    assert child is not None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert outcome(reader, path) == "corrupt"  # the file it was given is blamed, once
    assert outcome(reader, path) == "read"
