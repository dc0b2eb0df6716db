"""Names, streams and terminals that a command may meet: it ends as it says it does, and never with a traceback."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from porting.errors import shown
from tests.commands import ROOT
from tests.killed_jobs import checkpoint

ARCH = "xception41"
# The whole command, but for weights that are few and so soon written.
SMALL = """
import sys
from porting.convert import main
if "--no-verify" in sys.argv:
    import torch
    from porting import pipeline
    from porting.sources.bundle import BundleSource
    def few(plan, *_):
        return {rule.parameter: torch.ones(2, 3) for rule in plan.table.rules[:3]}
    pipeline.read_weights, BundleSource.digest = few, lambda _: "0" * 64
sys.exit(main())
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(*arguments: object, closed: str = "", **options: Any) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of the command; `closed` is what a shell is told: ">&-", for example.

    No traceback and no complaint of the interpreter's may be on stderr, whatever else is.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-c", SMALL, *map(os.fsencode, map(str, arguments))]
    if closed:
        command = ["bash", "-c", f'"$@" {closed}', "bash", *command]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=300, check=False, **options)
    for complaint in (b"Traceback", b"Exception ignored", b"Warning"):
        assert complaint not in done.stderr, done.stderr.decode(errors="replace")
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("surroundings") / "source", real=False)


def port_of(source: Path, out: Path) -> tuple[object, ...]:
    return ("--src", source, "--arch", ARCH, "--out", out, "--no-verify")


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = {
    "spaces": " a  b ",
    "non-ASCII": "Grüße, 世界 🐙",
    "quotes": "'\"`$(x)*?[",
    "newline": "two\nlines",
    "escape": "\x1b[31mred",
    "not UTF-8": "caf\udce9",
    "a dash": "-rf",
    "long": "n" * 200,
}


@pytest.mark.parametrize(
    ("name", "locale"),
    [*((name, {"LC_ALL": "C.UTF-8"}) for name in NAMES), ("non-ASCII", ASCII), ("not UTF-8", ASCII)],
)
def test_a_file_that_is_not_there(tmp_path: Path, name: str, locale: dict[str, str]) -> None:
    path = tmp_path / ("p" * 200) / NAMES[name]
    code, out, err = run(f"--src={path}", "--arch", ARCH, env=locale)
    assert code == 1 and out == b""
    first = err.split(b"\n")[0].decode()  # in an ASCII locale escaped once more
    assert first.startswith("error: ") and first.endswith(": missing: no such file, folder or checkpoint prefix")
    assert first.isprintable() and err.count(b"error:") == 1
    if locale is not ASCII:
        assert f"error: {shown(str(path))}: " in first


@pytest.mark.parametrize("name", ["n" * 256, "m/" * 2100], ids=["a part", "the whole"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    code, out, err = run("--src", name, "--arch", ARCH)
    assert code == 1 and out == b"" and err.startswith(b"error: ") and b": missing: " in err


@pytest.mark.parametrize(
    "locale", [pytest.param({"LC_ALL": "C.UTF-8"}, marks=pytest.mark.slow), ASCII], ids=["UTF-8", "ASCII"]
)
def test_a_port_between_such_names(source: Path, tmp_path: Path, locale: dict[str, str]) -> None:
    """From a checkpoint and into a folder whose paths hold all of them."""
    strange = [name for name in NAMES.values() if name != "-rf"]
    folder = tmp_path.joinpath(*strange)
    folder.mkdir(parents=True)
    for ending in (".index", ".data-00000-of-00001"):
        os.link(f"{source}{ending}", folder / f"caf\udce9\n{ending}")
    code, out, err = run(*port_of(folder / "caf\udce9\n", folder / "out"), env=locale)
    assert code == 0, err
    (weights,) = (folder / "out").glob("*.pth")
    assert out == os.fsencode(weights) + b"\n"
    assert "from caf\\udce9\\n" in err.decode().replace("\\\\", "\\")
    assert '"name": "caf\\\\udce9\\\\n"' in weights.with_suffix(".json").read_text(encoding="utf-8")


def test_a_file_whose_name_leaves_no_room_for_an_ending(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 252 + ".h5")
    path.write_bytes(b"not HDF5")
    code, _, err = run("--src", path, "--arch", ARCH)
    assert code == 1 and b"n.h5: unsupported: " in err


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [pytest.param("2>&-", marks=pytest.mark.slow), "<&- >&- 2>&-", "> >(:)"])
def test_a_stream_that_is_closed(source: Path, tmp_path: Path, closed: str) -> None:
    """The result is on the disk, so it is no failure; nothing gets into a file that takes a closed stream's number."""
    code, out, _ = run(*port_of(source, tmp_path / "out"), closed=closed)
    (weights,) = (tmp_path / "out").glob("*.pth")
    assert code == 0
    assert out == (b"" if closed[0] in "><" else os.fsencode(weights) + b"\n")
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(("closed", "code"), [("> >(:)", 0), pytest.param("> /dev/full", 1, marks=pytest.mark.slow)])
def test_the_sources_after_one_whose_path_nobody_takes(source: Path, tmp_path: Path, closed: str, code: int) -> None:
    """All are ported; the names of two, and one that is not there between them, make the loop go on three times."""
    second = tmp_path / "second"
    shutil.copytree(source.parent, second)
    sources = ("--src", source, "--src", tmp_path / "none", "--src", second / source.name)
    out = tmp_path / "out"
    found, _, err = run(*sources, "--arch", ARCH, "--out", out, "--no-verify", closed=closed)
    assert found == 1 and err.count(b"\n  time ") == 2 and b"1 of 3 sources failed" in err
    found, _, err = run(*sources[:2], *sources[4:], "--arch", ARCH, "--out", out, "--no-verify", closed=closed)
    assert found == code and err.count(b"\n  time ") == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "2> >(:)", "2> /dev/full"])
def test_an_error_that_nobody_can_read(tmp_path: Path, closed: str) -> None:
    code, out, err = run("--src", tmp_path / "none", "--arch", ARCH, closed=closed)
    assert code == 1 and out == b""
    assert err.startswith(b"error: ") if closed == ">&-" else err == b""


def test_no_room_for_the_result_s_path(source: Path, tmp_path: Path) -> None:
    """What reads it must not take nothing for a success."""
    code, _, err = run(*port_of(source, tmp_path / "out"), closed="> /dev/full")
    assert code == 1 and err.endswith(b"error: stdout: output: cannot be written: No space left on device\n")


@pytest.mark.parametrize("kind", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "NO_COLOR"])
def test_a_terminal_without_colours(source: Path, tmp_path: Path, kind: dict[str, str]) -> None:
    """Nothing that such a terminal would show as rubbish."""
    arguments = port_of(source, tmp_path / "out") if "TERM" in kind else ("--help",)
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", **kind, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SMALL, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    text = b""
    while True:
        try:
            text += os.read(leader, 4096)
        except OSError:  # the terminal's other end is closed
            break
    os.close(leader)
    assert process.wait() == 0
    assert text and b"\x1b" not in text
