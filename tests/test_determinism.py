"""The same source gives the same bytes and names wherever, whenever and however the command is run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.commands import ROOT, convert
from tests.killed_jobs import checkpoint, tree

pytestmark = pytest.mark.slow

ARCH = "xception41"
FORMATS = ("--no-verify", "--format", "pth,safetensors,hf")
LATER = """
import pathlib, time
pathlib.Path(__file__).with_name("was imported").touch()
for name, shift in (("time", 400 * 86400), ("time_ns", 400 * 86400 * 10**9)):
    setattr(time, name, lambda real=getattr(time, name), shift=shift: real() + shift)
"""


def locales() -> list[str]:
    """All that this machine has."""
    return subprocess.run(["locale", "-a"], capture_output=True, text=True, check=True).stdout.split()


@dataclass(frozen=True)
class Surroundings:
    """What a run finds: the folder it is started in, how it names the source and `out`, and the process's settings."""

    cwd: str
    src: str
    out: str
    umask: int
    variables: dict[str, str] = field(default_factory=dict)


# Folders are named from the test's own, in which `source` lies.
FIRST = Surroundings(
    *(".", "source/model.ckpt", "first", 0o022),
    {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
)
OTHERS = (
    Surroundings(
        *("source", "model.ckpt", "../a second/where", 0o077),
        {"PYTHONHASHSEED": "1", "TZ": "Asia/Kolkata", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
         "OMP_NUM_THREADS": "2", "HOME": "/nonexistent", "SOURCE_DATE_EPOCH": "1", "COLUMNS": "40"},
    ),
    Surroundings(
        *("..", "{folder}/./source/model.ckpt", "{folder}/drüben", 0o002),
        {"PYTHONHASHSEED": "4294967295", "TZ": "Pacific/Auckland", "LC_ALL": "{locale}", "OMP_NUM_THREADS": "3",
         "PYTHONPATH": "{folder}/later:{root}", "PYTHONOPTIMIZE": "2"},
    ),
)  # fmt: skip


def emitted(folder: Path, how: Surroundings) -> dict[str, str]:
    """What a run makes: names and digests, a manifest's too."""
    given = partial(str.format, folder=folder.name if how.cwd == ".." else folder, root=ROOT, locale=locales()[-1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **{name: given(text) for name, text in how.variables.items()}}
    environment["PYTHONPATH"] = environment["PYTHONPATH"].replace(f"{folder.name}/later", str(folder / "later"))
    arguments = ("--src", given(how.src), "--arch", ARCH, "--out", given(how.out), *FORMATS)
    cwd = folder / how.cwd
    done = convert(*arguments, cwd=cwd, env=environment, umask=how.umask, errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    out = cwd / given(how.out)
    assert Path(done.stdout.strip()).resolve().parent == out.resolve()
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~how.umask}
    return tree(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("determinism")
    checkpoint(folder / "source", real=True)
    (folder / "later").mkdir()
    (folder / "later" / "sitecustomize.py").write_text(LATER)  # a year and a month from now
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, str]:
    return emitted(folder, FIRST)


@pytest.mark.parametrize("how", OTHERS, ids=["C locale, another folder", "another locale, year and interpreter"])
def test_the_same_bytes_and_names(folder: Path, first: dict[str, str], how: Surroundings) -> None:
    assert len(first) == 6
    assert emitted(folder, how) == first
    if how is OTHERS[1]:
        assert (folder / "later" / "was imported").exists()


def test_other_weights_differ(folder: Path, first: dict[str, str]) -> None:
    """The control: what is compared depends on the weights."""
    checkpoint(folder / "other" / "source", real=True, seed_offset=1)
    found = emitted(folder / "other", FIRST)
    assert not first.keys() & found.keys()
    same = set(found.values()) & set(first.values())
    assert {Path(name).name for name, digest in found.items() if digest in same} == {"config.json"}
