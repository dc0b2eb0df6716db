"""Sources that several test files share, written once a session by TensorFlow in a process of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture(scope="session")
def _kept_reference() -> Iterator[Reference]:
    with Reference("tests") as reference:
        yield reference


def _few_runs(
    recognised: Recognised, arch: str, sizes: Sequence[tuple[int, int]] = (), fast: bool = False
) -> list[Run]:
    runs = proof_runs(recognised, arch, sizes, fast)
    return runs if sizes or fast else [runs[0], runs[1], runs[-1]]


@pytest.fixture
def one_reference(_kept_reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports and verifications of this test share the session's TensorFlow, whose start costs more than most proofs.

    test_convert and test_emission start and end it as users do, and make every run of a proof; here three small ones
    will do.
    """
    monkeypatch.setattr(runs, "DEFAULT_SIZE", (75, 86))
    for prover in (proof, verification):
        monkeypatch.setattr(prover, "proof_runs", _few_runs)
    shared = SimpleNamespace(take=lambda _file: _kept_reference)
    for module in (porting.reference, pipeline, verification, tracing):
        monkeypatch.setattr(module, "SharedReference", lambda *_: nullcontext(shared))


@pytest.fixture(scope="session")
def synthetic_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`synthetic_source(arch)`: what `--src synthetic` ports, kept for the session (seed 0); written on first use."""
    written: dict[str, Path] = {}

    def source(arch: str) -> Path:
        if arch not in written:
            folder = tmp_path_factory.mktemp(f"synthetic-{arch}")
            with Reference("synthetic") as reference:
                written[arch] = reference.synthesize(arch, 0, folder)
        return written[arch]

    return source


@pytest.fixture(scope="session")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """`variant(name)`: a checkpoint of golden weights with one thing changed (tests/checkpoint_writer.py)."""
    folder = tmp_path_factory.mktemp("variants")
    write_variants(folder)
    yield lambda name: folder / name / "model.ckpt"
    shutil.rmtree(folder)  # two gigabytes
