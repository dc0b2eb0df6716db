"""A trace in a file: written once, read back exactly, and never believed where its bytes say otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from porting import ErrorKind, PortingError
from porting.proof import recorded_frames
from porting.reference.frames import Frame
from porting.reference.recording import IMAGE, Recorder, Recording
from porting.runs import Run

RUNS = [Run((4, 5), float32=True), Run((3, 3), probe=True)]
HEADER = {
    "arch": "xception41",
    "reference": "a reference",
    "source": "ab" * 32,
    "runs": [{**run.as_json(), "float32": run.float32} for run in RUNS],
}
FRAMES = [Frame("conv", np.arange(24.0).reshape(1, 2, 3, 4), 1e-7), Frame("pool", np.array([[1.5, -0.0]]))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "one.trace"
    with path.open("wb") as file:
        recorder = Recorder(file, HEADER)
        for index, run in enumerate(RUNS):
            recorder.add(index, Frame(IMAGE, np.full((1, *run.size, 3), 0.25, np.float32)))
            for frame in FRAMES:
                recorder.add(index, frame)
        recorder.end()
    return path


def test_what_is_read_is_what_was_written(path: Path) -> None:
    with Recording(path) as recording:
        frames, runs = recorded_frames(recording)
        assert runs == RUNS
        asked = (RUNS[1], RUNS[0])  # in any order
        for run, (pixels, found) in zip(asked, frames(asked), strict=True):
            assert (pixels.dtype, pixels.shape) == (np.float32, (1, *run.size, 3))
            for frame, expected in zip(found, FRAMES, strict=True):
                assert (frame.name, frame.noise) == (expected.name, expected.noise)
                np.testing.assert_array_equal(frame.values, expected.values)
                assert frame.values.dtype == np.float64
        recording.check("xception41", "ab" * 32)


@pytest.mark.parametrize(("arch", "source"), [("xception65", "ab" * 32), ("xception41", "cd" * 32)])
def test_another_sources_trace_is_a_mismatch(path: Path, arch: str, source: str) -> None:
    with Recording(path) as recording, pytest.raises(PortingError) as caught:
        recording.check(arch, source)
    assert caught.value.kind is ErrorKind.MISMATCH


def test_a_changed_value_is_corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(np.float64(23.0).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with Recording(path) as recording, pytest.raises(PortingError, match="conv: expected crc32c") as caught:
        list(recording.run(0)[1])
    assert caught.value.kind is ErrorKind.CORRUPT


def test_a_file_cut_anywhere_is_corrupt(path: Path) -> None:
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(PortingError) as caught:
            Recording(path)
        assert caught.value.kind in (ErrorKind.CORRUPT, ErrorKind.UNSUPPORTED), length


def lie(**changes: object) -> Callable[[dict[str, object]], dict[str, object]]:
    return lambda entry: entry | changes


@pytest.mark.parametrize(
    "change",
    [
        lie(nbytes=1 << 60, shape=[1 << 57]),
        lie(nbytes=8),
        lie(nbytes=-192, shape=[-24]),
        lie(shape=[1, 2]),
        lie(shape="many"),
        lie(run=7),
        lie(run=-9),
        lie(crc32c=None),
        lambda entry: {key: value for key, value in entry.items() if key != "name"},
        lambda _: [1, 2],
    ],
)
def test_a_frame_that_lies_about_itself_is_corrupt(path: Path, change: Callable[[object], object]) -> None:
    lines = path.read_bytes().split(b"\n", 2)
    head, data = lines[1], lines[2]
    at = data.index(b'{"run": 0, "name": "conv"')
    end = data.index(b"\n", at)
    broken = json.dumps(change(json.loads(data[at:end]))).encode()
    path.write_bytes(b"\n".join([lines[0], head, data[:at] + broken + data[end:]]))
    with pytest.raises(PortingError) as caught, Recording(path) as recording:
        list(recording.run(0)[1])
    assert caught.value.kind is ErrorKind.CORRUPT


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"format": "something else"}, ErrorKind.UNSUPPORTED),
        ({"version": 2}, ErrorKind.UNSUPPORTED),
        ({"runs": None}, ErrorKind.CORRUPT),
        ({"runs": [{"size": [1, 2]}] * 2}, ErrorKind.CORRUPT),
    ],
)
def test_another_header_is_refused(path: Path, header: dict[str, object], kind: ErrorKind) -> None:
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(json.dumps(json.loads(first) | header).encode() + b"\n" + rest)
    with pytest.raises(PortingError) as caught, Recording(path) as recording:
        recorded_frames(recording)
    assert caught.value.kind is kind


def test_no_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PortingError) as caught:
        Recording(tmp_path / "none.trace")
    assert caught.value.kind is ErrorKind.MISSING
