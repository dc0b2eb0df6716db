"""Temporary files and folders: gone with their makers, and those of makers that were killed with whoever comes next."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from models import scratch
from models.scratch import give_name, make_folder, remove_folder, remove_left, scratch_file, scratch_folder
from tests.commands import ROOT

HOLD = """
import sys; from pathlib import Path; from models.scratch import scratch_file, scratch_folder
here = Path(sys.argv[1])
with scratch_file(here) as file, scratch_folder(here) as folder:
    (folder / "sub").mkdir(); (folder / "sub" / "x").write_text("x"); file.write(b"x" * 9999)
    print(Path(file.name).name, folder.name, flush=True); sys.stdin.readline()
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def holder(folder: Path) -> tuple[subprocess.Popen[str], set[str]]:
    """A process that has made a file and a folder, and their names."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes)
    assert process.stdout is not None
    return process, set(process.stdout.readline().split())


def test_what_the_killed_left_is_removed_and_what_the_living_hold_is_not(tmp_path: Path) -> None:
    killed, left = holder(tmp_path)
    living, held = holder(tmp_path)
    assert len(left) == len(held) == 2 and names(tmp_path) == left | held
    remove_left(tmp_path)
    assert names(tmp_path) == left | held  # both live
    killed.kill()
    killed.communicate()
    with scratch_file(tmp_path) as file:
        assert names(tmp_path) == held | {Path(file.name).name}
    living.communicate("\n")
    assert living.returncode == 0 and names(tmp_path) == set()


def test_everything_is_gone_afterwards_but_what_got_a_name(tmp_path: Path) -> None:
    with scratch_file(tmp_path) as file, scratch_file(tmp_path) as other, scratch_folder(tmp_path) as folder:
        other.write(b"x")
        (folder / "x").write_text("x")
        file.write(b"content")
        file.flush()
        give_name(file, tmp_path / "named")
    assert names(tmp_path) == {"named"} and (tmp_path / "named").read_bytes() == b"content"


def kill_between(step: str, number: int, folder: Path) -> None:
    """A process that is killed between making a file or folder and locking it."""
    child = os.fork()
    if child == 0:
        scratch._is_own = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
        scratch._new(folder, getattr(scratch, step))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL and len(names(folder)) == number


@pytest.mark.parametrize("step", ["_make_file", "_make_folder"])
def test_a_maker_that_is_taken_for_dead_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Somebody clears up between its making and its locking."""
    real, made = getattr(scratch, step), []

    def make(path: Path) -> int:
        descriptor: int = real(path)
        made.append(path)
        if len(made) == 1:
            remove_left(tmp_path)
            assert not path.exists()
        return descriptor

    path, descriptor = scratch._new(tmp_path, make)
    assert len(made) == 2 and path.exists() and path == made[1]
    os.close(descriptor)
    kill_between(step, 2, tmp_path)
    remove_left(tmp_path)
    assert names(tmp_path) == set()
    # The control: a maker that does not look again holds what is not there.
    made.clear()
    monkeypatch.setattr(scratch, "_is_own", lambda *_: True)
    path, descriptor = scratch._new(tmp_path, make)
    assert not path.exists()
    os.close(descriptor)


def test_nobody_else_s_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    here = tmp_path / "here"
    here.mkdir()
    (here / ".porting-link.tmp").symlink_to(outside)
    (here / ".porting-file-link.tmp").symlink_to(outside / "kept")
    os.mkfifo(here / ".porting-pipe.tmp")
    for name in ("porting-x.tmp", ".porting-x", "x.pth"):
        (here / name).write_text("kept")
    before = names(here)
    remove_left(here)
    assert names(here) == before and names(outside) == {"kept"}
    (here / ".porting-x.tmp").write_text("left")
    with monkeypatch.context() as other_user:
        other_user.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_left(here)
    assert names(here) == before | {".porting-x.tmp"}
    remove_left(here)  # the control
    assert names(here) == before


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".porting-x.tmp").write_text("perhaps in use")
    for change in ((fcntl, "flock", none), (scratch, "fcntl", None)):
        with monkeypatch.context() as system:
            system.setattr(*change)
            with scratch_file(tmp_path), scratch_folder(tmp_path):
                assert len(names(tmp_path) - {"named"}) == 3
            with scratch_file(tmp_path) as file:
                file.write(b"x")
                file.flush()
                give_name(file, tmp_path / "named")
            assert names(tmp_path) == {".porting-x.tmp", "named"}


def test_a_folder_that_cannot_be_used_is_the_system_s_error(tmp_path: Path) -> None:
    remove_left(tmp_path / "none")
    with pytest.raises(FileNotFoundError), scratch_file(tmp_path / "none"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "file")


def _make_many(folder: Path, count: int) -> None:
    for _ in range(count):
        with ExitStack() as stack:
            file = stack.enter_context(scratch_file(folder))
            path, descriptor = make_folder(folder)
            stack.callback(remove_folder, path, descriptor)
            (path / "x").touch()
            if not (Path(file.name).exists() and (path / "x").exists()):
                os._exit(1)
    os._exit(0)


def test_many_at_once_never_take_each_other_s(tmp_path: Path) -> None:
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            _make_many(tmp_path, 100)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert names(tmp_path) == set()
