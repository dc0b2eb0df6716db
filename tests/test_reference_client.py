"""The client's side of the protocol, with a process that answers as the worker does but runs nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.reference import Reference, ReferenceSource, TraceRequest

# Answers every trace with two frames that hold the image's first value and 10 more, and writes down what it was asked.
WORKER = """\
#!{python}
import json, struct, sys
requests, out = sys.stdin.buffer, sys.stdout.buffer
def say(header, payload=b""):
    out.write(json.dumps({{**header, "nbytes": len(payload)}}).encode() + b"\\n" + payload)
    out.flush()
while line := requests.readline():
    request = json.loads(line)
    payload = requests.read(request.get("nbytes", 0))
    with open({log!r}, "a") as log:
        log.write(request["do"] + "\\n")
    if request["do"] == "trace":
        (value,) = struct.unpack("<f", payload[:4])
        if value < 0:
            say({{"error": "ValueError: below zero"}})
            continue
        for name, number in (("first", value), ("second", value + 10)):
            say({{"name": name, "shape": [1, 1]}}, struct.pack("<d", number))
    say({{"end": True}})
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").write_text("")
    return tmp_path / "log"


@pytest.fixture
def reference(tmp_path: Path, log: Path) -> Iterator[Reference]:
    python = tmp_path / "python"
    python.write_text(WORKER.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)
    with Reference("source", str(python)) as process:
        yield process


def request(value: float) -> TraceRequest:
    return TraceRequest(np.full((1, 1, 1, 3), value, np.float32))


def asked(log: Path, count: int) -> list[str]:
    """What the process was asked, once that is so many requests."""
    end = time.monotonic() + 10
    while len(lines := log.read_text().split()) < count and time.monotonic() < end:
        time.sleep(0.01)
    return lines


def test_the_next_trace_begins_before_the_last_is_compared(reference: Reference, log: Path) -> None:
    traces = reference.traces([request(1), request(2), request(3)])
    first = next(traces)
    next(first)
    assert asked(log, 3) == ["trace"] * 3
    assert [(frame.name, frame.values.item()) for frame in first] == [("second", 11.0)]
    assert [[frame.values.item() for frame in one] for one in traces] == [[2.0, 12.0], [3.0, 13.0]]
    assert reference.is_idle


def test_what_is_left_of_a_trace_is_not_taken_for_the_next(reference: Reference) -> None:
    traces = reference.traces([request(1), request(2), request(3)])
    next(next(traces))
    assert next(next(traces)).values.item() == 2.0
    assert [frame.values.item() for frame in next(traces)] == [3.0, 13.0]
    assert next(traces, None) is None


def test_a_trace_that_fails_ends_those_after_it(reference: Reference, log: Path) -> None:
    traces = reference.traces([request(1), request(-1), request(3)])
    assert len(list(next(traces))) == 2
    with pytest.raises(PortingError, match="below zero") as failed:
        list(next(traces))
    assert failed.value.kind is ErrorKind.REFERENCE
    assert log.read_text().split() == ["trace", "trace"]
    assert reference.is_idle
    assert [frame.values.item() for frame in reference.trace(request(4))] == [4.0, 14.0]


def test_nothing_else_is_asked_in_the_middle_of_a_trace(reference: Reference, log: Path) -> None:
    reference.tracing = True
    with pytest.raises(RuntimeError, match="not read to its end"):
        reference.traces([request(1)])
    with pytest.raises(RuntimeError, match="not read to its end"):
        reference.open(ReferenceSource("checkpoint", "x", "xception65", 1000))
    assert log.read_text() == ""


def test_no_trace_at_all(reference: Reference) -> None:
    assert list(reference.traces([])) == []
    assert reference.is_idle
