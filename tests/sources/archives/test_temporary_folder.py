"""The folder that archives are unpacked to goes away however the process ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from porting.errors import ErrorKind, PortingError
from porting.sources import open_source
from porting.sources.archive import open_tar
from tests.sources.archives.archive_files import Files, write_tar


def test_a_full_disk(tmp_path: Path, checkpoint: Files, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, checkpoint, "w:gz")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(PortingError) as caught:
            open_tar(path)
    assert caught.value.kind is ErrorKind.OUTPUT
    assert f"it cannot be unpacked in {scratch}: No space left on device\nFree some space" in str(caught.value)


STAYING = """
import os, signal, sys, tempfile
from porting.sources import open_source
tempfile.tempdir = sys.argv[2]
source = open_source(sys.argv[1])
assert os.listdir(sys.argv[2])
print("open", flush=True)
HOW
"""
ENDS = {
    "at exit": "",
    "by an error": "raise RuntimeError",
    "by SystemExit": "sys.exit(3)",
    "by SIGTERM": "signal.pause()",
    "by SIGINT": "signal.pause()",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_folder_goes_with_the_process(tmp_path: Path, checkpoint: Files, end: str) -> None:
    path, folder = tmp_path / "a.tar.gz", tmp_path / "mine"
    folder.mkdir()
    write_tar(path, checkpoint, "w:gz")
    child = subprocess.Popen(
        [sys.executable, "-c", STAYING.replace("HOW", ENDS[end]), path, folder],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    if "SIG" in end:
        time.sleep(0.1)
        child.send_signal(getattr(signal, end.removeprefix("by ")))
    code = child.wait(30)
    child.stdout.close()
    assert list(folder.iterdir()) == []
    assert code == {"at exit": 0, "by SystemExit": 3, "by SIGTERM": 143}.get(end, code)


def test_a_signal_during_the_removal(
    tmp_path: Path, checkpoint: Files, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar.gz", checkpoint, "w:gz")
    source = open_source(tmp_path / "a.tar.gz")
    plain, calls = shutil.rmtree, iter((True, False))

    def interrupted(path: Path, ignore_errors: bool) -> None:
        if next(calls):
            raise KeyboardInterrupt
        plain(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.close()
    monkeypatch.undo()
    assert not any(scratch.iterdir())


def test_a_program_keeps_its_own_sigterm(tmp_path: Path, checkpoint: Files) -> None:
    write_tar(tmp_path / "a.tar.gz", checkpoint, "w:gz")
    before = signal.signal(signal.SIGTERM, mine := lambda *_: None)
    try:
        open_source(tmp_path / "a.tar.gz").close()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
