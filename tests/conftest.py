"""Sources that several test files share, written once a session by TensorFlow in a process of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# As the commands do (porting/terminal.py): threads that spin while they wait take the cores from TensorFlow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import porting.reference
from porting import pipeline, proof, runs, tracing, verification
from porting.recognition import Recognised
from porting.reference import Reference
from porting.runs import Run, proof_runs
from tests.checkpoint_writer import write_variants

torch.set_num_threads(2)

_SHARED = "PORTING_TESTS_SHARED"  # the folder of what several test files take, for all processes of a session


@pytest.fixture(scope="session")
def _kept_reference() -> Iterator[Reference]:
    with Reference("tests") as reference:
        yield reference


def _few_runs(
    recognised: Recognised, arch: str, sizes: Sequence[tuple[int, int]] = (), fast: bool = False
) -> list[Run]:
    runs = proof_runs(recognised, arch, sizes, fast)
    return runs if sizes or fast else [runs[0], next(run for run in runs if run.probe)]


@pytest.fixture
def one_reference(_kept_reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports and verifications of this test share the session's TensorFlow, whose start costs more than most proofs.

    test_convert and test_emission start and end it as users do, and make every run of a proof; here two small ones will
    do.
    """
    monkeypatch.setattr(runs, "DEFAULT_SIZE", (75, 86))
    for prover in (proof, verification):
        monkeypatch.setattr(prover, "proof_runs", _few_runs)
    shared = SimpleNamespace(begin=lambda: None, take=lambda _file: _kept_reference)
    for module in (porting.reference, pipeline, verification, tracing):
        monkeypatch.setattr(module, "SharedReference", lambda *_: nullcontext(shared))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, the one that is installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses to run as root, as containers do, within its own sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that starts the others, which inherit its environment
        os.environ[_SHARED] = tempfile.mkdtemp(prefix="porting-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(_SHARED), ignore_errors=True)  # some gigabytes


# Minutes each, for a few tests: begun last, they would leave one process at work alone.
_LONGEST = ("test_convert", "test_keras_formats", "test_convert_options", "test_verify", "test_failed_port",
            "test_lockstep", "test_reference_golden", "test_containers", "test_forms", "test_head_chains",
            "test_graphs", "test_real_weights", "test_finetune", "test_emission", "test_evaluate")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def _made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder that whichever of the session's processes comes first has filled; nobody may change what is in it."""
    folder = Path(os.environ[_SHARED], name)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = folder.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def synthetic_source() -> Callable[[str], Path]:
    """`synthetic_source(arch)`: what `--src synthetic` ports, kept for the session (seed 0); written on first use."""

    def write(arch: str, folder: Path) -> None:
        with Reference("synthetic") as reference:
            path = reference.synthesize(arch, 0, folder)
        (folder / "name").write_text(path.name)

    @lru_cache(None)
    def source(arch: str) -> Path:
        folder = _made_once(f"synthetic-{arch}", partial(write, arch))
        return folder / (folder / "name").read_text()

    return source


@pytest.fixture(scope="session")
def variant() -> Callable[[str], Path]:
    """`variant(name)`: a checkpoint of golden weights with one thing changed (tests/checkpoint_writer.py)."""
    folder = _made_once("variants", write_variants)
    return lambda name: folder / name / "model.ckpt"
