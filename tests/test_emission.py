"""Interrupted, killed, or run twice at once: a file appears whole or not at all, and no process is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from porting.artifact import file_digest
from tests.commands import ROOT, members, start_convert

ARCH = "xception41"
PATIENCE = 240  # seconds; a loaded machine is slow, and only a hang takes so long


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while the command runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"not reached; the command ended with {process.poll()}: {process.communicate()}")
        time.sleep(0.01)


def workers(session: int) -> list[int]:
    return [pid for pid, command in members(session).items() if "porting.reference.worker" in command]


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the command's temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def verifying(
    synthetic_source: Callable[[str], Path], tmp_path: Path, temporary: Path
) -> Callable[[], subprocess.Popen[str]]:
    """Start a port and return while it holds the written file to TensorFlow, under no name yet."""

    def start() -> subprocess.Popen[str]:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        out = tmp_path / "out"
        arguments = ("--src", synthetic_source(ARCH), "--arch", ARCH, "--out", out)
        process = start_convert(*arguments, env=environment)
        until(lambda: bool(workers(process.pid)), process)
        (worker,) = workers(process.pid)
        until(lambda: any(file.stat().st_size > 100_000_000 for file in out.glob(".porting-*.tmp")), process)
        # The file is whole, and TensorFlow, which took its import's time already, is at work on the trace.
        before = processor_seconds(worker)
        until(lambda: tracing(worker, before), process)
        return process

    return start


def tracing(worker: int, before: float) -> bool:
    # An idle worker that waits for the request sleeps in a read of its standard input.
    return processor_seconds(worker) > before + 0.3


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """How the command ended: its code and streams, nothing of its session still running."""
    out, err = process.communicate(timeout=PATIENCE)
    deadline = time.monotonic() + 5  # a process that was killed may take a moment to go
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert members(process.pid) == {}
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_port_leaves_nothing(
    verifying: Callable[[], subprocess.Popen[str]],
    tmp_path: Path,
    temporary: Path,
    number: signal.Signals,
    whole_group: bool,
) -> None:
    process = verifying()
    if whole_group:  # a terminal sends Ctrl-C to every process of the foreground
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code, out, err = ended(process)
    assert code == 130
    assert out == "" and err == "interrupted: nothing half-written stays\n"
    assert list((tmp_path / "out").iterdir()) == []
    assert list(temporary.iterdir()) == []


def test_a_killed_reference_is_one_clear_error(
    verifying: Callable[[], subprocess.Popen[str]], tmp_path: Path, temporary: Path
) -> None:
    process = verifying()
    (worker,) = workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    code, out, err = ended(process)
    assert code == 1 and out == ""
    assert err.startswith("error: ") and err.count("error:") == 1 and "Traceback" not in err
    assert "reference: TensorFlow could not run it: its process ended with status -9" in err
    assert "--no-verify" in err
    assert list((tmp_path / "out").iterdir()) == []
    assert list(temporary.iterdir()) == []


def test_a_killed_command_takes_its_reference_with_it(
    verifying: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Not even SIGKILL, after which nothing can be tidied, leaves a process or a file under a final name."""
    process = verifying()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + PATIENCE
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(process.pid) == {}
    assert [file for file in (tmp_path / "out").iterdir() if file.suffix in (".pth", ".json")] == []


@pytest.mark.slow
def test_ports_and_downloads_that_are_killed() -> None:
    """At chosen steps; tests.kills takes all, and makes sure each time that it would have seen a fault."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.kills", "--steps", "3"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "21 kills (21 at disk steps), 0 faults; careless writers found out: each\n"


# A port that says when its file is written, and goes on when it is told to: two of them are then sure to overlap.
PAUSED = """
import sys
from porting import artifact
real = artifact.one_writer
def one_writer(folder):
    print("written", file=sys.stderr, flush=True)
    sys.stdin.readline()
    return real(folder)
artifact.one_writer = one_writer
from porting.convert import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("second", ["pth", pytest.param("safetensors,hf", marks=pytest.mark.slow)])
def test_two_ports_at_once_make_one_of_each_file(
    synthetic_source: Callable[[str], Path], tmp_path: Path, second: str
) -> None:
    out = tmp_path / "out"
    arguments = ["--src", str(synthetic_source(ARCH)), "--arch", ARCH, "--out", str(out), "--no-verify"]
    processes = []
    for formats in ("pth", second):
        command = [sys.executable, "-c", PAUSED, *arguments, "--format", formats]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes))
    for process in processes:  # both have written theirs, and neither has given it its name
        assert process.stderr is not None and process.stderr.readline() == "written\n"
    assert {file.suffix for file in out.iterdir()} == {".tmp"}
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [ended(process) for process in processes]
    assert [code for code, _, _ in results] == [0, 0], results
    first, last = (Path(text.strip()) for _, text, _ in results)
    expected = {first.name, first.with_suffix(".json").name}
    if second == "pth":
        assert first == last
    else:
        expected |= {last.name, last.with_suffix(".json").name, *(file.name for file in out.iterdir() if file.is_dir())}
        assert last.suffix == ".safetensors" and sum(file.is_dir() for file in out.iterdir()) == 1
    assert {file.name for file in out.iterdir()} == expected
    for manifest in out.glob("*.json"):
        for entry in json.loads(manifest.read_text())["files"]:
            file = out / entry["name"]
            assert (file.stat().st_size, file_digest(file)) == (entry["bytes"], entry["sha256"])
