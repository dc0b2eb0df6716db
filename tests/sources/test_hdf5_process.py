"""Children that hang, die or lie, and what a child may do."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from porting.errors import PortingError
from porting.sources import hdf5_process
from porting.sources.hdf5_process import Hdf5Process
from porting.sources.keras_h5 import open_h5
from tests.sources.hdf5_edits import (
    plain,
)
from tests.sources.keras_files import legacy_h5


@pytest.fixture(scope="module")
def process() -> Iterator[Hdf5Process]:
    one = Hdf5Process()
    yield one
    one.close()


def child_that(does: str) -> str:
    return (
        "import json, os, signal, sys\n"
        "print(json.dumps({'ready': True}), flush=True)\n"
        "request = json.loads(sys.stdin.readline())\n" + does
    )


DEATHS = {
    "hangs": (
        "signal.setitimer(signal.ITIMER_PROF, 0.05)\nwhile True: pass",
        "HDF5 did not finish reading it in 0.2 s of processor time",
    ),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "HDF5 crashed on it (SIGSEGV)"),
    "leaves": ("sys.exit(3)", "HDF5 crashed on it (exit code 3)"),
    "raves": ("print('[1, 2]', flush=True)", "the process that reads HDF5 gave an answer that makes no sense"),
    "babbles": ("print('}{', flush=True)", "the process that reads HDF5 gave an answer that makes no sense"),
    "lies": (
        "print(json.dumps({'attributes': {}, 'datasets': [{'name': 'vars', 'dtype': 'float32', 'order': '<', "
        "'shape': [4], 'bytes': 16, 'storage': 'contiguous', 'offset': 1 << 62}]}), flush=True)\nsys.stdin.readline()",
        "vars: expected a place in the file's 8 bytes, found bytes",
    ),
    "is silent": ("sys.stdin.readline()", "HDF5 gave no answer in 1 s"),
}


@pytest.mark.parametrize("case", DEATHS)
def test_a_child_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    does, text = DEATHS[case]
    path = tmp_path / "a.h5"
    path.write_bytes(plain())
    text = text.replace("8 bytes", f"{len(plain())} bytes")
    monkeypatch.setattr(hdf5_process, "_START", child_that(does))
    monkeypatch.setattr(hdf5_process, "SILENCE_SECONDS", 0.2 if case == "is silent" else 60.0)
    process = Hdf5Process()
    with pytest.raises(PortingError) as caught:
        open_h5(path, process)
    assert f"{path}: corrupt: {text}" in str(caught.value)
    monkeypatch.undo()
    if case == "lies":
        process.close()  # it would go on lying
    with open_h5(path, process) as source:  # the next file gets a new child
        assert len(source.specs) == 2
    process.close()


def test_a_child_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(plain())
    monkeypatch.setattr(hdf5_process, "_START", "raise ImportError('h5py')")
    with pytest.raises(PortingError) as caught:
        open_h5(path)
    expected = 'missing: the process that reads HDF5 did not start\nCheck that h5py works: python -c "import h5py"'
    assert str(caught.value) == f"{path}: {expected}"


def test_a_child_that_dies_at_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    content = io.BytesIO()
    legacy_h5(content, {"a": {"v": np.ones(9), "w": np.ones(9)}}, chunks=True)
    path.write_bytes(content.getvalue())
    with open_h5(path) as source:
        child = source._process._child
        assert child is not None
        child.send_signal(signal.SIGSEGV)
        child.wait()
        for text in ("HDF5 crashed on it (SIGSEGV)", "HDF5 failed on this file before"):
            with pytest.raises(PortingError) as caught:
                source.read("a/w")
            assert f"{path}: corrupt: a/w: {text}" in str(caught.value) or "SIGSEGV" in text


def test_what_a_child_may_use(tmp_path: Path, process: Hdf5Process) -> None:
    (tmp_path / "a.h5").write_bytes(plain())
    open_h5(tmp_path / "a.h5", process).close()
    child = process._child
    assert child is not None
    lines = Path(f"/proc/{child.pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[0] for line in lines}
    held = sorted(int(fd.name) for fd in Path(f"/proc/{child.pid}/fd").iterdir())
    assert int(limits["Max open files"]) == held[-1] + 1  # the user's file is the last that it could open
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert 100 << 20 < int(limits["Max address space"]) < 2 << 30


def test_no_child_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    content = io.BytesIO()
    legacy_h5(content, {"a": {"w": np.ones(9)}}, chunks=True)  # chunked, so the child stays while the source is open
    path.write_bytes(content.getvalue())
    source = open_h5(path)
    child = source._process._child
    assert child is not None and child.poll() is None
    source.close()
    source.close()
    assert child.returncode == -signal.SIGKILL
    path.write_bytes(plain())
    with open_h5(path) as source:
        assert source._process._child is None  # all contiguous: not needed any more


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    content = io.BytesIO()
    legacy_h5(content, {"a": {"w": np.ones(9)}}, chunks=True)
    path.write_bytes(content.getvalue())
    code = (
        "import os, sys; from pathlib import Path; from porting.sources.keras_h5 import open_h5\n"
        f"s = open_h5(Path({str(path)!r})); print(s._process._child.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    child = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and ") Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} outlives its parent")
