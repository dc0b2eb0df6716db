"""What is written, held to TensorFlow: its own bytes for the same tensors, and what it and Keras load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from porting import rules
from porting.reverse import export
from porting.rules import Head
from porting.writers.bundle import data_path, index_path
from tests.checkpoint_writer import golden_variables
from tests.commands import ROOT
from tests.golden_files import stored_classes, variable_shapes
from tests.writers.test_bundle import MANY, TENSORS, written

pytestmark = pytest.mark.slow  # test_bundle and test_export read the same with this project's own readers

SMALL = "xception41"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the golden weights, right ones and damaged ones."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for arch, classes, name in ((SMALL, stored_classes(SMALL), "ours"), ("xception", 5, "5"), ("xception", 0, "0")):
            variables, state = golden_variables(arch), {}
            for rule in rules.table(arch, Head(classes) if classes else None).rules:
                value = variables[rule.variable][..., : rule.shape[-1]]
                state[rule.parameter] = torch.from_numpy(rule.float32(value))
            torch.save(state, folder / "weights.pth")
            export(folder / "weights.pth", folder / name)
    damaged = bytearray(data_path(folder / "ours").read_bytes())
    damaged[100] ^= 1  # in the first variable
    data_path(folder / "damaged").write_bytes(damaged)
    index_path(folder / "damaged").write_bytes(index_path(folder / "ours").read_bytes())
    for name in ("swapped", "without"):
        (folder / f"{name}.weights.h5").write_bytes((folder / "5.weights.h5").read_bytes())
    with h5py.File(folder / "swapped.weights.h5", "r+") as file:
        group = file["layers/batch_normalization_4/vars"]
        group.move("2", "x")
        group.move("3", "2")
        group.move("x", "3")
    with h5py.File(folder / "without.weights.h5", "r+") as file:
        del file["layers/conv2d_5/vars/0"]
    return folder


@pytest.fixture(scope="module")
def answer(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.writers.tensorflow_side", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_tensorflow_restores_a_checkpoint_to_the_bit(answer: dict[str, Any]) -> None:
    assert answer["listed"] == sorted(variable_shapes(SMALL))
    assert answer["read"] == answer["restored"] == []
    assert answer["control"]  # one bit more in what is expected is seen
    assert answer["damaged"] == sorted(variable_shapes(SMALL))[:1]


@pytest.mark.parametrize(("ours", "theirs"), [("ours", "theirs"), ("kinds", "kinds"), ("many", "many")])
def test_the_bytes_are_tensorflows_own(
    folder: Path, answer: dict[str, Any], tmp_path: Path, ours: str, theirs: str
) -> None:
    assert answer
    prefix = folder / "ours" if ours == "ours" else written(tmp_path, {"kinds": TENSORS, "many": MANY}[ours])
    for path in (data_path, index_path):
        assert path(prefix).read_bytes() == path(folder / theirs).read_bytes()


def test_keras_loads_a_file_to_the_bit(answer: dict[str, Any]) -> None:
    assert answer["loaded"] == []
    # The controls: mean and variance of a shortcut's batch norm exchanged, and a kernel taken away.
    assert set(answer["swapped"]) == {f"batch_normalization/moving_{leaf}" for leaf in ("mean", "variance")}
    assert "could not be loaded" in answer["without"]
