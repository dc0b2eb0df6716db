"""Mutated files of TensorFlow's containers open, or end in PortingError; and the harness itself can fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from porting.errors import corrupt
from porting.sources.base import TensorSource
from tests.sources.fuzzing import Reader, fuzz
from tests.sources.tensorflow_seeds import READERS

INPUTS = [600, pytest.param(3_000, marks=pytest.mark.slow)]  # for each reader; the long runs have a million

# In a process without TensorFlow, whose import teaches NumPy types that users' NumPy does not have.
RUN = """
import json, sys
from tests.sources.fuzzing import fuzz
from tests.sources.tensorflow_seeds import READERS
reader = next(reader for reader in READERS if reader.name == sys.argv[1])
tally = fuzz(reader, int(sys.argv[2]), seed=20180509)
print(json.dumps({"outcomes": dict(tally.outcomes), "failures": tally.failures}))
assert "tensorflow" not in sys.modules and "ml_dtypes" not in sys.modules
"""


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", [reader.name for reader in READERS])
def test_only_porting_errors(name: str, inputs: int) -> None:
    command = [sys.executable, "-c", RUN, name, str(inputs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    tally = json.loads(done.stdout)
    assert tally["failures"] == []
    assert sum(tally["outcomes"].values()) == inputs
    # The inputs must reach past the first check: some open whole, most do not.
    assert tally["outcomes"]["read"] > inputs // 100
    assert tally["outcomes"]["corrupt"] > inputs // 4


def _one_file(folder: Path) -> list[Path]:
    path = folder / "seed" / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"valid")
    return [path]


def _refusing(path: Path) -> TensorSource:
    raise corrupt(path, "file", "anything")


def _raising(path: Path) -> TensorSource:
    raise IndexError("list index out of range")


def _slow(path: Path) -> TensorSource:
    time.sleep(1.1)
    return _refusing(path)


def _greedy(path: Path) -> TensorSource:
    np.empty(8 << 30, np.uint8)  # more than anything that the process has just given back
    return _refusing(path)


@pytest.mark.parametrize(
    ("opener", "message"),
    [(_refusing, "the valid file is corrupt"), (_raising, "IndexError"), (_slow, "took 1.1 s"), (_greedy, "Memory")],
)
def test_the_harness_notices(opener: object, message: str) -> None:
    reader = Reader("bad", _one_file, opener)  # type: ignore[arg-type]
    if opener is _refusing:
        failures = fuzz(reader, 0, seed=0).failures
    else:
        valid = Reader("bad", _one_file, lambda path: _Valid() if path.read_bytes() == b"valid" else opener(path))  # type: ignore[operator]
        failures = fuzz(valid, 1, seed=0).failures
    assert len(failures) == 1
    assert message in failures[0]


class _Valid(TensorSource):
    specs = {}  # noqa: RUF012

    def read(self, name: str) -> np.ndarray:
        raise KeyError(name)

    def files(self) -> list[Path]:
        return []


def test_inputs_repeat() -> None:
    one, other = (fuzz(READERS[0], 200, seed=3).outcomes for _ in range(2))
    assert one == other
    assert fuzz(READERS[0], 200, seed=4).outcomes != one
