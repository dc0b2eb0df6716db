"""Where nothing can be written, nothing proved, or the port is wrong: one clear error, and nothing emitted."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from porting import ErrorKind, PortingError, port
from tests.checkpoint_writer import KERNEL
from tests.commands import ROOT, convert, convert_command

ARCH = "xception41"


@pytest.fixture(scope="module")
def checkpoint(variant: Callable[[str], Path]) -> Path:
    """A whole source."""
    return variant("golden41")


@pytest.fixture(scope="module")
def emitted_bytes(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    return port(checkpoint, ARCH, out=tmp_path_factory.mktemp("whole"), verify=False).path.stat().st_size


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that failed."""
    assert done.returncode == 1 and done.stdout == ""
    text = done.stderr
    assert text.startswith("error: ") and text.count("error:") == 1, text
    assert "Traceback" not in text and "Warning" not in text
    return text


# --- where it cannot be written -------------------------------------------------------------------------------------


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("kept")
    return folder / "file" / "out"


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("kept")
    return folder / "file"


def no_permission(folder: Path) -> Path:
    if os.getuid() == 0:
        return Path("/sys/porting")  # where not even root may make a folder
    (folder / "closed").mkdir(mode=0o500)
    return folder / "closed"


@pytest.mark.parametrize("place", [below_a_file, a_file, no_permission])
def test_an_unwritable_folder(checkpoint: Path, tmp_path: Path, place: Callable[[Path], Path]) -> None:
    out = place(tmp_path)
    with pytest.raises(PortingError) as caught:
        port(checkpoint, ARCH, out=out, verify=False)
    message = str(caught.value)
    assert caught.value.kind is ErrorKind.OUTPUT
    assert message.startswith(f"{out}: output: cannot be written: ") and "Choose another folder with --out" in message
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("file", ["weights", "manifest"])
def test_a_full_disk(checkpoint: Path, emitted_bytes: int, tmp_path: Path, file: str) -> None:
    """On a small file system of its own, or, where none can be made, under a limit on the size of a file."""
    page = os.sysconf("SC_PAGE_SIZE")
    # The last page that fits is the last of the weights: not a byte of a manifest fits after it.
    room = 20 << 20 if file == "weights" else -(-emitted_bytes // page) * page
    out = tmp_path / "out"
    out.mkdir()
    command = convert_command("--src", checkpoint, "--arch", ARCH, "--out", out, "--no-verify")
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size={room} none "$0"'
    own = shutil.which("unshare") and subprocess.run([*within, mount, out], capture_output=True, check=False)
    if own and own.returncode == 0:
        # The file system goes with its namespace, so its content is listed from inside.
        script = f'{mount} && {{ "$@"; code=$?; ls -A "$0"; exit $code; }}'
        done = subprocess.run([*within, script, out, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "No space left on device" in done.stderr and "Free some space" in done.stderr
    else:  # a limit on each file cannot let the larger one pass and stop the smaller
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20 << 20, 20 << 20))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert f"error: {out}: output: cannot be written: " in one_error(done)
    assert list(out.iterdir()) == []


# --- without TensorFlow ---------------------------------------------------------------------------------------------

HIDE_TENSORFLOW = """
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ("tensorflow", "keras") else real(name, path, target)
PathFinder.find_spec = find_spec
"""


@pytest.mark.slow
def test_tensorflow_is_needed_for_the_proof_alone(
    checkpoint: Path, synthetic_source: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE_TENSORFLOW)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    out = tmp_path / "out"
    arguments = ("--src", checkpoint, "--arch", ARCH, "--out", out)
    message = one_error(convert(*arguments, env=environment))
    assert "TensorFlow is not installed" in message and "pip install tensorflow" in message
    assert "--no-verify" in message and "Reading a source does not need it" in message
    assert not out.exists()
    for source, arch in ((checkpoint, ARCH), (synthetic_source("xception"), "xception")):
        done = convert("--src", source, "--arch", arch, "--out", out, "--no-verify", env=environment)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).is_file()


# --- a port that is wrong -------------------------------------------------------------------------------------------

EXCHANGE = """
import sys
from dataclasses import replace
from porting import rules
right, one, other = rules.table, sys.argv[1], sys.argv[2]
swap = {one: other, other: one}
def wrong(arch, head):
    table = right(arch, head)
    exchanged = [replace(rule, variable=swap.get(rule.variable, rule.variable)) for rule in table.rules]
    return replace(table, rules=tuple(exchanged))
rules.table = wrong
from porting.convert import main
sys.exit(main(sys.argv[3:]))
"""


def test_a_wrong_port_is_not_emitted(checkpoint: Path, tmp_path: Path) -> None:
    """Two kernels of one shape exchanged: names and shapes all fit."""
    one, other = KERNEL, KERNEL.replace("unit_3", "unit_4")
    out = tmp_path / "out"
    arguments = ["--src", str(checkpoint), "--arch", ARCH, "--out", str(out), "--fast"]
    command = [sys.executable, "-c", EXCHANGE, one, other, *arguments]
    message = one_error(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False))
    number = r"(-?\d\.\d+(?:e-?\d+)?)"
    found = re.search(
        rf"parity: {KERNEL.replace('weights', 'Conv2D')} \(PyTorch blocks\.5\.stack\.conv2\.conv_pw\) "
        r"at 299x299, index \[0, \d+, \d+, \d+\]: "
        rf"expected {number} as TensorFlow computes, found {number}; error \S+ of the layer's largest, bound 1e-10",
        message,
    )
    assert found and abs(float(found[1]) - float(found[2])) > 1e-3
    assert "Nothing was emitted" in message and re.search(r"\d+ of 226 layers are faulty; this is the first", message)
    assert list(out.iterdir()) == []
