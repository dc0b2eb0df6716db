"""A source's own graph as the reference: what it computes, where its activations are found, and what is refused.

TensorFlow builds, saves and runs everything in one process (tests/graph_cases.py); the project's own graph, which the
golden files hold to DeepLab's code, computes what is expected.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from porting import rules

pytestmark = pytest.mark.slow  # a minute of building and running; test_containers runs two such graphs

ROOT = Path(__file__).parents[1]
BOUND = 1e-12
UNIT = "xception_41/middle_flow/block1/unit_3/xception_module"
NORM = f"{UNIT}/separable_conv2_pointwise/BatchNorm"
POINTS = [point.name for point in rules.table("xception41", rules.Head(5)).points]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.graph_cases", str(tmp_path_factory.mktemp("graphs"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("case", "stride"),
    [
        ("frozen", 16),
        ("frozen, stride 8, six operations a batch norm", 8),
        ("frozen, for one size", 16),
        ("prefix", 16),
        ("meta", 16),
        ("meta of averages, stride 32, resource variables", 32),
        ("SavedModel", 16),
        ("probed", 16),
    ],
)
def test_every_activation_is_what_the_project_computes(cases: dict[str, Any], case: str, stride: int) -> None:
    assert sorted(cases[case]["errors"]) == sorted(POINTS)
    assert max(cases[case]["errors"].values()) < BOUND
    assert cases[case]["stride"] == stride


def test_float32(cases: dict[str, Any]) -> None:
    assert max(cases["float32"]["errors"].values()) < 1e-5
    assert 1e-8 < cases["float32 beside"] < 1e-4  # the same network read once, in both types: they do differ


def test_a_backbone_ends_with_its_pooled_features(cases: dict[str, Any]) -> None:
    assert sorted(cases["backbone"]["errors"]) == sorted(POINTS[:-1])
    assert max(cases["backbone"]["errors"].values()) < BOUND


@pytest.mark.parametrize("change", ["another epsilon", "default epsilon"])
def test_what_the_users_graph_does_otherwise_is_seen_where_it_is(cases: dict[str, Any], change: str) -> None:
    """The point of running the user's own graph, and the proof that it is what runs."""
    errors = cases["changed"][change]["errors"]
    position = {name: i for i, name in enumerate(POINTS)}
    first = min((name for name, error in errors.items() if error > BOUND), key=position.__getitem__)
    assert first == NORM
    assert errors[NORM] > 1e-4
    assert errors["xception_41/logits"] > 1e-6


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("training", f"its batch norms are in training mode ({NORM}/FusedBatchNormV3)"),
        ("default training", f"its batch norms are in training mode ({NORM}/FusedBatchNormV3)"),
        ("PyFunc", "operation PyFunc (inserted) is not among those that are run"),
        ("ReadFile", "operation ReadFile (inserted) is not among those that are run"),
        ("fed", "it needs what is fed to inserted"),
        ("no ReLU", f"no activation was found for {UNIT}/Relu_2: what enters its convolution is a FusedBatchNormV3"),
        ("twice", f"2 convolutions take {UNIT}/separable_conv2_pointwise/weights"),
        ("circle", f"it goes in a circle at {NORM}/FusedBatchNormV3"),
        ("no such node", "a node takes nowhere, which is not in it"),
        ("channels first", f"{NORM}/FusedBatchNormV3 has data format NCHW"),
    ],
)
def test_a_graph_that_cannot_be_the_reference_says_why(cases: dict[str, Any], case: str, reason: str) -> None:
    assert cases["refused"][case].startswith(reason)


def test_files_that_are_no_graph(cases: dict[str, Any]) -> None:
    assert cases["no graph"].startswith("it cannot be read (NotADirectoryError")
    assert cases["torn"].startswith("it cannot be read (DecodeError")


def test_strides_and_sizes_that_a_graph_runs(cases: dict[str, Any]) -> None:
    """A graph made for one size holds the paddings of its dilations, which fit sizes of the same remainder alone."""
    runs = cases["runs"]
    assert runs["its own stride"] == [True, True]
    assert runs["other strides"] == [False, False]
    assert runs["sizes like its own"] == [True, True]
    assert runs["other sizes"] == [False]


def test_the_worker_says_which_graph_runs_and_falls_back(cases: dict[str, Any]) -> None:
    said, *networks = cases["opened"]["frozen"]
    assert said == "the frozen graph itself, executed in float64, at output stride 16; at others the project's graph"
    assert networks == ["GraphNetwork", "AlignedXception"]
    said, *networks = cases["opened"]["constants"]
    why = "no convolutions take xception_41/entry_flow/conv1_1/weights"
    assert said == f"the project's graph (the frozen graph itself is not run: {why})"
    assert networks == ["AlignedXception", "AlignedXception"]
