"""Xception from every file that Keras writes, held to what Keras itself computed before it wrote them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import create_model
from porting import PortingError, PortResult, keras_names, port, runs
from porting.errors import ErrorKind
from tests.commands import ROOT
from tests.keras_model_writer import CLASSES, FORMATS, RESCALING, SIZE

pytestmark = pytest.mark.usefixtures("one_reference")

BOUND = 2e-5  # of the largest; both sides compute in float32


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("keras")
    command = [sys.executable, "-m", "tests.keras_model_writer", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ported(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., PortResult]]:
    """`ported(file)`: each file's port, made once; those of `PROVED` with proof."""
    folder = tmp_path_factory.mktemp("emitted")

    @lru_cache(None)
    def run(file: str, backbone_only: bool = False) -> PortResult:
        out = folder / f"{file} {'backbone' if backbone_only else ''}"
        return port(written / file, "xception", out=out, verify=file in PROVED, backbone_only=backbone_only)

    yield run
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def predicted(written: Path) -> Callable[[str], dict[str, np.ndarray[Any, Any]]]:
    def load(model: str) -> dict[str, np.ndarray[Any, Any]]:
        with np.load(written / f"{model}.npz") as file:
            return dict(file)

    return load


def computed(result: PortResult, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the emitted file computes on an image as the source's own model takes it."""
    manifest = result.manifest
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2)
    if manifest["preprocessing"]["source"] != "published":
        mean, std = (torch.tensor(manifest["preprocessing"][key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        pixels = (pixels / 255 - mean) / std
    with torch.device("meta"):  # nothing is drawn that the weights then replace
        model = create_model("xception", num_classes=manifest["num_classes"])
    model.load_state_dict(torch.load(result.path, weights_only=True), strict=True, assign=True)
    with torch.inference_mode():
        values: np.ndarray[Any, Any] = model.eval()(pixels).numpy()
    return values


def error(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


FILES = [f"{model}.{ending}" for model in ("top", "flat", "nested", "sequential") for ending in FORMATS]
FILES += ["top-legacy.h5", "nested-legacy.h5"]
HEADLESS = [*(f"notop.{ending}" for ending in FORMATS), "notop-legacy.h5", "nested.h5", "sequential.weights.h5"]
LEFT_OUT = {"nested.h5": {"dense_1"}, "sequential.weights.h5": {"layers/dense"}}
# The rest is ported without proof here: what Keras predicted is a proof of another kind.
PROVED = {"nested.keras", "nested.weights.h5", "nested-legacy.h5", "notop.h5"}
SLOW = {"nested.weights.h5", "nested-legacy.h5", "notop.h5"}


def cases(files: list[str]) -> list[Any]:
    return [pytest.param(file, marks=pytest.mark.slow) if file in SLOW else file for file in files]


def model_of(file: str) -> str:
    return file.split(".")[0].removesuffix("-legacy")


@pytest.mark.parametrize("file", cases(FILES))
def test_logits_are_what_keras_predicted(ported: Any, predicted: Any, file: str) -> None:
    model = model_of(file)
    # A file of weights alone does not say what came before the network.
    has_graph = not file.endswith(("weights.h5", "legacy.h5"))
    result = ported(file)
    assert result.manifest["num_classes"] == (1000 if model == "top" else CLASSES)
    assert result.manifest["head"]["activation"] == ("softmax" if has_graph else None)
    assert result.manifest["mapped"] == 236
    if file in PROVED:
        proof = result.manifest["parity"]
        assert proof["verdict"] == "verified" and proof["worst"]["error"] < 1e-12
        assert proof["runs"][0]["size"] == ([SIZE, SIZE] if has_graph else list(runs.DEFAULT_SIZE))
        assert (proof["reference"] == "the file's own Keras model") is has_graph
    image = predicted(model)["image"]
    if model == "nested" and not has_graph:
        image = image * np.float32(RESCALING[0]) + np.float32(RESCALING[1])
    expected = predicted(model)["logits"]
    found = computed(result, image)
    assert error(found, expected) <= BOUND
    assert found.argmax() == expected.argmax()
    assert error(np.roll(found, 1), expected) > 100 * BOUND  # the comparison can see


@pytest.mark.parametrize("file", cases(HEADLESS))
def test_features_are_what_keras_predicted(ported: Any, predicted: Any, file: str) -> None:
    result = ported(file, backbone_only=True)
    assert result.manifest["num_classes"] == 0 and result.manifest["mapped"] == 234
    assert result.manifest["parity"]["verdict"] == ("verified" if file in PROVED else "unverified")
    left_out = {re.split(r"/vars/|/dense_1/", item["name"])[0] for item in result.manifest["unread"]}
    assert left_out == LEFT_OUT.get(file, set())
    values = predicted(model_of(file))
    assert error(computed(result, values["image"]), values["features"]) <= BOUND


@pytest.mark.parametrize("file", HEADLESS[:4])
def test_a_missing_head_is_an_error_that_names_the_option(written: Path, tmp_path: Path, file: str) -> None:
    with pytest.raises(PortingError, match="--backbone-only") as caught:
        port(written / file, "xception", out=tmp_path / "out")
    assert caught.value.kind is ErrorKind.MISMATCH
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["top", "flat", pytest.param("nested", marks=pytest.mark.slow), "sequential"])
def test_the_formats_of_one_model_hold_one_network(ported: Any, model: str) -> None:
    files = [file for file in FILES if model_of(file) == model]
    digests = {ported(file).manifest["content_digest"] for file in files}
    assert len(digests) == 1 and len(files) >= len(FORMATS)


def test_preprocessing_is_the_source_s_own(ported: Any) -> None:
    for file in ("nested.keras", "nested.h5"):
        found = ported(file).manifest["preprocessing"]
        scale, offset = RESCALING
        assert found["input_size"] == [3, SIZE, SIZE]
        np.testing.assert_allclose(found["std"], [1 / (255 * scale)] * 3)
        np.testing.assert_allclose(found["mean"], [-offset / (255 * scale)] * 3)
        assert "Rescaling" in found["source"]
    found = ported("top.keras").manifest["preprocessing"]
    assert (found["input_size"], found["mean"], found["source"]) == ([3, 299, 299], [0.5] * 3, "published")


def test_automatic_names_were_shifted(written: Path) -> None:
    """The writer did what these tests rely on: no two models call their shortcuts alike."""
    import h5py

    def shortcuts(file: h5py.File) -> list[str]:
        names = [n.decode() if isinstance(n, bytes) else n for n in file["model_weights"].attrs["layer_names"]]
        return sorted(name for name in names if name.startswith("conv2d"))

    with h5py.File(written / "top.h5") as first, h5py.File(written / "notop.h5") as second:
        assert shortcuts(first) == ["conv2d", "conv2d_1", "conv2d_2", "conv2d_3"]
        assert shortcuts(second) == ["conv2d_4", "conv2d_5", "conv2d_6", "conv2d_7"]


# --- a wrong mapping does not get through ---------------------------------------------------------------------------


def exchanged(names: dict[str, str], one: str, other: str) -> dict[str, str]:
    """The mapping with two layers' places exchanged."""
    swap = {one: other, other: one}
    result = {}
    for name in names:
        layer, slash, leaf = name.rpartition("/")
        result[name] = names[f"{swap.get(layer, layer)}{slash}{leaf}"]
    return result


def test_exchanged_batch_norms_of_a_shortcut_fail_the_proof(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shortcut's batch norm counted before its block's own, as Keras 1 did: every shape fits."""
    right = keras_names.by_counters

    def wrong(specs: Any) -> tuple[str, dict[str, str]]:
        store, names = right(specs)
        return store, exchanged(names, "batch_normalization", "block2_sepconv2_bn")

    monkeypatch.setattr(keras_names, "by_counters", wrong)
    with pytest.raises(PortingError) as caught:
        port(written / "top.weights.h5", "xception", out=tmp_path)
    assert caught.value.kind is ErrorKind.PARITY
    assert caught.value.defects[0].subject.startswith("block2_sepconv2_bn (PyTorch block1.rep.4) at 75x86")
    assert list(tmp_path.iterdir()) == []


def test_exchanged_shortcut_convolutions_fail_on_their_shapes(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = keras_names.by_layer_names
    monkeypatch.setattr(keras_names, "by_layer_names", lambda specs: exchanged(right(specs), "conv2d", "conv2d_1"))
    with pytest.raises(PortingError) as caught:
        port(written / "nested-legacy.h5", "xception", out=tmp_path)
    assert caught.value.kind is ErrorKind.MISMATCH
    text = str(caught.value)
    assert "expected shape [1, 1, 64, 128], found shape [1, 1, 128, 256]" in text
    assert "expected shape [1, 1, 128, 256], found shape [1, 1, 64, 128]" in text
