"""Fine-tuned Keras classifiers with heads of several layers: ported whole, proved, rebuilt, or refused by layer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import ModelError, create_model
from models.heads import apply_activation, build_chain, read_chain
from porting import PortingError, PortResult, port
from porting.errors import ErrorKind
from porting.forms import PLAIN
from porting.origins import Quiet
from porting.parity import Run
from porting.plan import Options, Plan, build_plan
from porting.proof import Proof, compare, reference_frames
from porting.recognition import recognise, reference_source
from porting.reference import Reference
from porting.sources import open_source
from porting.verification import verify
from tests.commands import ROOT
from tests.keras_head_writer import EPSILON, FUNCTIONS, PORTED

BOUND = 2e-5  # of the largest; both sides compute in float32
SMALL = (43, 52)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("heads")
    command = [sys.executable, "-m", "tests.keras_head_writer", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ported(written: Path) -> Callable[[str], PortResult]:
    """`ported(file)`: each file's port, made once; the proof is the tests' own."""
    return lru_cache(None)(lambda file: port(written / file, "xception", out=written / f"{file} out", verify=False))


@pytest.fixture(scope="module")
def proved(written: Path, _kept_reference: Reference) -> Iterator[Callable[..., Proof]]:
    """`proved(model, result, change)`: the emitted file's network, after `change`, held to the user's own model."""
    opened: list[str] = []
    with ExitStack() as stack:

        @lru_cache(None)
        def planned(model: str) -> tuple[Any, Plan]:
            recognised = recognise(stack.enter_context(open_source(written / f"{model}.keras")))
            return recognised, build_plan(recognised.contents, "xception", Options())

        def run(
            model: str, result: PortResult, change: Callable[[nn.Sequential], None] | None, runs: list[Run]
        ) -> Proof:
            recognised, plan = planned(model)
            state = torch.load(result.path, weights_only=True)

            def networks(_: int) -> nn.Module:
                made: Any = PLAIN.network(plan, state)
                if change:
                    change(made.fc)
                return made  # type: ignore[no-any-return]

            if opened != [model]:
                _kept_reference.open(reference_source(recognised, plan))
                opened[:] = [model]
            return compare(plan, reference_frames(_kept_reference), networks, runs, "Keras", Quiet())

        yield run


@pytest.mark.parametrize("model", PORTED)
def test_the_emitted_file_gives_what_keras_predicts(
    written: Path, ported: Callable[[str], PortResult], model: str
) -> None:
    result = ported(f"{model}.keras")
    rebuilt: Any = create_model("xception", pretrained=result.path)
    assert rebuilt.num_classes == result.manifest["num_classes"] == {"chain": 5, "mixed": 1}[model]
    assert isinstance(rebuilt.get_classifier(), nn.Sequential)
    with np.load(written / "computed.npz") as values, torch.inference_mode():
        logits = rebuilt.eval()(torch.from_numpy(values["image"]).permute(0, 3, 1, 2))
        found = apply_activation(logits, result.manifest["head"]["activation"]).numpy()
        expected = values[model]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= BOUND * np.abs(expected).max()
    assert np.abs(found[::-1] - expected).max() > 100 * BOUND * np.abs(expected).max()  # the comparison can see


def test_the_modules_are_the_keras_layers(ported: Callable[[str], PortResult]) -> None:
    def built(model: str) -> list[str]:
        network: Any = create_model("xception", pretrained=ported(f"{model}.keras").path)
        return [str(module) for module in network.fc]

    assert [text.partition("(")[0] for text in built("chain")] == ["Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    assert f"eps={EPSILON}" in built("chain")[2] and "p=0.4" in built("chain")[3]
    names = ["BatchNorm1d", "Linear", "GELU", "LeakyReLU", "Linear", "ELU", "AlphaDropout", "Linear", "Softplus"]
    assert [text.partition("(")[0] for text in built("mixed")] == [*names, "BatchNorm1d", "Linear"]
    state = torch.load(ported("mixed.keras").path, weights_only=True)
    counters = {"running_mean", "running_var", "num_batches_tracked"}
    assert {key[5:] for key in state if key.startswith("fc.0.")} == {"bias", *counters}  # scale=False
    assert {key[5:] for key in state if key.startswith("fc.9.")} == {"weight", *counters}  # center=False
    assert ported("mixed.keras").manifest["head"]["pooling"] == "max"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_activation_is_exactly_keras_s(written: Path, name: str) -> None:
    linear = {"kind": "linear", "inputs": 2048, "outputs": 3, "bias": True}
    module = build_chain(read_chain({"pooling": "avg", "modules": [linear, {"kind": name}]}))[1]
    with np.load(written / "functions.npz") as values:
        found = module(torch.from_numpy(values["x"])).numpy()
        errors = {other: float(np.abs(found - values[other]).max()) for other in FUNCTIONS}
    # TensorFlow's gelu holds the root of 2 in float32, whatever the type of its input.
    bound = 1e-8 if name == "gelu" else 1e-13
    assert {other for other, error in errors.items() if error <= bound} == {name}


def test_the_legacy_format_holds_the_same(ported: Callable[[str], PortResult]) -> None:
    one, other = ported("chain.keras").manifest, ported("chain.h5").manifest
    assert one["content_digest"] == other["content_digest"]
    assert one["head"] == other["head"] and one["head"]["activation"] == "softmax"


def _wrong_epsilon_and_no_relu(head: nn.Sequential) -> None:
    head[1] = nn.Identity()
    head[2].eps = 1e-3


def _exchanged_and_other_functions(head: nn.Sequential) -> None:
    head[2], head[3] = nn.GELU(approximate="tanh"), nn.LeakyReLU(0.3001)
    head[4], head[7] = head[7], head[4]


class _Halved(nn.Module):
    """A layer that loses precision where it does not matter in float64."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.module(x)
        return y.half().float() if y.dtype is torch.float32 else y


def _half_precision(head: nn.Sequential) -> None:
    head[7] = _Halved(head[7])


POINTS = {
    "chain": "0/hidden 1/hidden/relu 2/normed 4/out",
    "mixed": "0/first 1/one 2/one/gelu 3/leaky 4/two 5/two/elu 7/three 8/soft 9/last 10/score",
}
IN_FLOAT32 = Run(SMALL, float32=True)


@pytest.mark.parametrize(
    ("model", "change", "faulty", "runs"),
    [  # by model: the reference loads each once
        ("chain", None, "", [Run(SMALL), Run(SMALL, probe=True)]),
        ("chain", _wrong_epsilon_and_no_relu, "1/hidden/relu 2/normed", [Run(SMALL)]),
        pytest.param("mixed", None, "", [IN_FLOAT32, Run(SMALL, probe=True)], marks=pytest.mark.slow),
        ("mixed", _exchanged_and_other_functions, "2/one/gelu 3/leaky 4/two 7/three", [Run(SMALL)]),
        ("mixed", _half_precision, "7/three 8/soft 9/last 10/score", [IN_FLOAT32]),
    ],
    ids=["chain", "wrong epsilon, no relu", "mixed", "exchanged layers, other functions", "half precision"],
)
def test_every_module_is_proved_and_every_fault_is_named(
    ported: Callable[[str], PortResult],
    proved: Callable[..., Proof],
    model: str,
    change: Callable[[nn.Sequential], None] | None,
    faulty: str,
    runs: list[Run],
) -> None:
    proof = proved(model, ported(f"{model}.keras"), change, runs)
    first = proof.traces[0]
    names = [layer.layer for layer in first.layers if layer.layer.startswith("head/")]
    assert names == [f"head/{name}" for name in POINTS[model].split()]
    assert [layer.layer for layer in first.faulty] == [f"head/{name}" for name in faulty.split()]
    assert proof.passed is not bool(faulty)
    if not faulty:
        assert proof.worst.error < 1e-11


@pytest.mark.parametrize(
    ("model", "listed"),
    [
        ("unknown", ["bent (PReLU) is of a kind that is not", "unit (UnitNormalization) is of a kind that is not"]),
        ("second", ["join (Concatenate) has 2 inputs"]),
    ],
)
def test_what_cannot_be_ported_is_listed_by_layer(written: Path, tmp_path: Path, model: str, listed: list[str]) -> None:
    with pytest.raises(PortingError, match="--backbone-only") as caught:
        port(written / f"{model}.keras", "xception", out=tmp_path, verify=False)
    assert caught.value.kind is ErrorKind.MISMATCH
    assert len(caught.value.defects) == len(listed)
    for defect, text in zip(caught.value.defects, listed, strict=True):
        assert defect.subject == "head" and text in str(defect)
    assert list(tmp_path.iterdir()) == []


def test_the_backbone_alone_leaves_the_head_out(written: Path, tmp_path: Path) -> None:
    manifest = port(written / "chain.keras", "xception", out=tmp_path, verify=False, backbone_only=True).manifest
    assert (manifest["num_classes"], manifest["head"]["kind"], manifest["mapped"]) == (0, "none", 234)
    left_out = {item["name"].split("/")[1]: item["reason"] for item in manifest["unread"] if "dense" in item["name"]}
    assert left_out == dict.fromkeys(["dense", "dense_1"], "classifier, left out by --backbone-only")


def test_other_numbers_of_classes(ported: Callable[[str], PortResult], caplog: pytest.LogCaptureFixture) -> None:
    path = ported("mixed.keras").path
    assert isinstance(create_model("xception", pretrained=path, num_classes=0).get_classifier(), nn.Identity)
    assert caplog.text == ""
    replaced: Any = create_model("xception", pretrained=path, num_classes=3)
    assert isinstance(replaced.fc, nn.Linear) and replaced.num_classes == 3
    assert "classifier of 1 classes not loaded" in caplog.text
    maps = create_model("xception", pretrained=path, features_only=True)
    assert not hasattr(maps, "fc")


def test_a_chain_needs_its_manifest(ported: Callable[[str], PortResult], tmp_path: Path) -> None:
    path = shutil.copy(ported("chain.keras").path, tmp_path)
    with pytest.raises(ModelError, match="several layers, which the manifest beside it describes"):
        create_model("xception", pretrained=path)
    create_model("xception", pretrained=path, features_only=True)  # has no head


def test_verify_compares_every_weight_and_the_manifest_s_chain(
    written: Path, ported: Callable[[str], PortResult], tmp_path: Path
) -> None:
    source = written / "chain.keras"
    emitted = ported("chain.keras").path
    path = Path(shutil.copy(emitted, tmp_path))
    assert verify(path, source, weights_only=True).verdict == "verified"  # without a manifest
    manifest = json.loads(emitted.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(manifest))
    assert verify(path, source, weights_only=True).verdict == "verified"
    manifest["head"]["modules"][2]["eps"] = 1e-3
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(PortingError, match="would be rebuilt wrongly"):
        verify(path, source, weights_only=True)
    path.with_suffix(".json").unlink()
    state = torch.load(path, weights_only=True)
    state["fc.2.running_mean"], state["fc.2.running_var"] = state["fc.2.running_var"], state["fc.2.running_mean"]
    torch.save(state, path.with_name("swapped.pth"))
    faults = verify(path.with_name("swapped.pth"), source, weights_only=True).faults
    assert {fault.parameter for fault in faults} == {"fc.2.running_mean", "fc.2.running_var"}
    assert all("of the same layer" in fault.cause for fault in faults)


def test_two_names_for_one_sigmoid(written: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("healthy\nill\n")
    source = written / "mixed.keras"
    result = port(source, "xception", out=tmp_path / "out", verify=False, labels=names)
    assert result.manifest["labels"] == ["healthy", "ill"]
    labelled: Any = create_model("xception", pretrained=result.path)
    assert (labelled.num_classes, labelled.labels) == (1, ("healthy", "ill"))
    names.write_text("healthy\nill\ndead\n")
    with pytest.raises(PortingError, match="expected 1 labels, found 3"):
        port(source, "xception", out=tmp_path / "out", verify=False, labels=names)


def test_a_manifest_with_another_chain_is_refused(ported: Callable[[str], PortResult], tmp_path: Path) -> None:
    path = Path(shutil.copy(ported("chain.keras").path, tmp_path))
    manifest = json.loads(ported("chain.keras").path.with_suffix(".json").read_text())
    manifest["head"]["modules"][2]["scale"] = False
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"fc\.2\.weight: not in the network"):
        create_model("xception", pretrained=path)
