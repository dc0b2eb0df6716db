"""A real, fine-tuned Xception that a package registry serves, on real photographs.

`sklesion` (MIT) ships the model: Xception at 254x254 with a Normalization layer before it, as one layer of a model with
two inputs. The photographs are scikit-learn's. All lie in wheels that are fetched once, checked against their
digests, and kept in pytest's cache folder; nothing of them is installed or run.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import create_model
from models.preprocess import EvaluationTransform
from porting import ErrorKind, PortingError, PortResult, port
from porting.evaluate import main as evaluate

pytestmark = pytest.mark.slow  # and fetched: the plain command needs no network


@dataclass(frozen=True)
class Member:
    """One file of a published wheel."""

    package: str
    wheel: str  # sha256
    path: str
    sha256: str
    options: tuple[str, ...] = ()


MODEL = Member(
    "sklesion==0.2.2",
    "a4ef0ebc99c6b0a7e1e55b1a0c3ba418f0d6d6cfdffd18a7dd414460a0f671b0",
    "sklesion/model.keras",
    "df1a81a62ffabeda48384c4a733138133af8bb463959503545422a2a1c1e75b1",
)
PHOTOGRAPH = Member(
    "scikit-learn==1.5.2",
    "f8b0ccd4a902836493e026c03256e8b206656f91fbcc4fde28c57a5b752561f1",
    "sklearn/datasets/images/china.jpg",
    "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    # One wheel for every machine: only a picture is taken from it.
    ("--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.11", "--implementation=cp"),
)
FLOWER = replace(
    PHOTOGRAPH,
    path="sklearn/datasets/images/flower.jpg",
    sha256="a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
)
# What pip says where nothing answered; any other failure (a wrong digest, a package that is gone) is a failure here.
NO_REGISTRY = ("Failed to establish a new connection", "Temporary failure in name resolution", "ConnectTimeout",
               "Network is unreachable", "Connection refused", "ProxyError", "Read timed out")  # fmt: skip

# Keras runs the user's own file, whole as it was saved, up to the Xception's output.
KERAS_PROGRAM = """
import sys
import keras, numpy as np, tensorflow as tf
model_file, photograph, target = sys.argv[1:]
model = keras.saving.load_model(model_file)
picture = tf.io.decode_jpeg(tf.io.read_file(photograph))
picture = tf.image.resize(tf.cast(picture, tf.float32), (254, 254), antialias=True)[None].numpy()
picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
features = keras.Model(model.inputs, model.get_layer("dropout").input)
other = np.zeros((1, 10), np.float32)
np.savez(target, picture=picture, features=features.predict([picture.astype(np.float32), other], verbose=0))
"""


def fetch(member: Member, folder: Path) -> Path:
    """The member's file, from the folder or else from the registry; skips where no registry answers."""
    path = folder / Path(member.path).name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == member.sha256:
        return path
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{member.package} --hash=sha256:{member.wheel}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--retries=2"]
    command += ["--disable-pip-version-check", *member.options, "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and any(sign in done.stderr for sign in NO_REGISTRY):
        pytest.skip(f"no package registry answers for {member.package}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob(f"{member.package.split('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(member.path))
    wheel.unlink()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == member.sha256
    return path


@pytest.fixture(scope="module")
def fetched(pytestconfig: pytest.Config) -> Callable[[Member], Path]:
    folder = pytestconfig.cache.mkdir("real-weights")
    return lambda member: fetch(member, folder)


@pytest.fixture(scope="module")
def result(fetched: Callable[[Member], Path], tmp_path_factory: pytest.TempPathFactory) -> PortResult:
    out = tmp_path_factory.mktemp("real")
    return port(fetched(MODEL), "xception", out=out, backbone_only=True, licence="MIT")


def test_the_backbone_is_proved_against_the_user_s_own_model(result: PortResult) -> None:
    manifest = result.manifest
    proof = manifest["parity"]
    assert proof["verdict"] == "verified" and proof["reference"] == "the file's own Keras model"
    assert proof["runs"][0]["size"] == [254, 254]
    assert proof["worst"]["error"] < 1e-12 and proof["float32"]["worst"]["error"] < 3e-6
    assert len(result.traces[0].layers) == 132  # every activation up to the pooled features
    assert manifest["source"]["synthetic"] is False and manifest["num_classes"] == 0 and manifest["licence"] == "MIT"
    reasons = [item["reason"] for item in manifest["unread"]]
    assert sum("outside the backbone" in reason for reason in reasons) == 26
    assert sum("input normalisation" in reason for reason in reasons) == 3
    preprocessing = manifest["preprocessing"]
    assert preprocessing["input_size"] == [3, 254, 254] and "Normalization" in preprocessing["source"]
    np.testing.assert_allclose(np.array(preprocessing["mean"]) * 255, [194.11, 138.98, 143.80], atol=0.01)
    np.testing.assert_allclose((np.array(preprocessing["std"]) * 255) ** 2, [1288.3, 1515.5, 1880.3], atol=0.1)


def test_features_of_a_photograph_are_what_keras_computes(
    result: PortResult, fetched: Callable[[Member], Path], tmp_path: Path
) -> None:
    target = tmp_path / "keras.npz"
    arguments = [str(fetched(MODEL)), str(fetched(PHOTOGRAPH)), str(target)]
    done = subprocess.run(
        [sys.executable, "-c", KERAS_PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(target) as file:
        picture, expected = file["picture"], file["features"]
    assert picture.shape == (1, 254, 254, 3) and picture.std() > 40  # a photograph, not a blank
    preprocessing = result.manifest["preprocessing"]

    def features(mean: Any, std: Any) -> np.ndarray[Any, Any]:
        pixels = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        model = create_model("xception", num_classes=0)
        model.load_state_dict(torch.load(result.path, weights_only=True), strict=True)
        with torch.inference_mode():
            values: np.ndarray[Any, Any] = model.eval()(pixels).numpy()
        return values

    found = features(preprocessing["mean"], preprocessing["std"])
    assert found.shape == expected.shape == (1, 2048)
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 2e-5 * largest
    # The published preprocessing gives other features: the manifest's is what makes them equal.
    assert np.abs(features([0.5] * 3, [0.5] * 3) - expected).max() > 1e-2 * largest


def pictures(folder: Path, fetched: Callable[[Member], Path]) -> Path:
    """Cuttings of two photographs: of their left halves to train on, of their right halves to evaluate on."""
    from PIL import Image

    for name, photograph in (("temple", PHOTOGRAPH), ("flower", FLOWER)):
        with Image.open(fetched(photograph)) as image:
            for split, left in (("train", 0), ("val", image.width // 2)):
                (folder / split / name).mkdir(parents=True)
                for number in range(3 if split == "train" else 2):
                    x, y = left + 40 * number, 90 * number
                    image.crop((x, y, x + 220, y + 220)).save(folder / split / name / f"{number}.png")
    return folder


def test_accuracy_of_a_head_on_real_pictures(
    result: PortResult,
    fetched: Callable[[Member], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ported backbone under a head that is trained here, evaluated as any weights."""
    from PIL import Image

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own handlers stay
    labels = ["flower", "temple"]
    place = pictures(tmp_path, fetched)
    network: Any = create_model("xception", pretrained=result.path).eval()
    transform = EvaluationTransform(network.preprocessing)

    def features_of(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        paths = sorted((place / split).rglob("*.png"))
        with torch.no_grad():
            found = network(torch.stack([transform(Image.open(path)) for path in paths]))
        return found, torch.tensor([labels.index(path.parent.name) for path in paths])

    features, targets = features_of("train")
    head = torch.nn.Linear(2048, 2)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5 / float(features.square().sum(1).mean()))
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), targets).backward()
        optimizer.step()

    state = network.state_dict() | {f"fc.{name}": value.detach() for name, value in head.named_parameters()}
    torch.save(state, tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    entry = {"name": "weights.pth", "format": "pth", "bytes": (tmp_path / "weights.pth").stat().st_size}
    manifest = {**result.manifest, "num_classes": 2, "labels": labels, "files": [{**entry, "sha256": digest}]}
    manifest["head"] = {"kind": "dense", "activation": "softmax"}
    (tmp_path / "weights.json").write_text(json.dumps(manifest))
    command = ["--weights", str(tmp_path / "weights.pth"), "--data", str(place / "val"), "--workers", "0"]
    assert evaluate([*command, "--write"]) == 0
    found = json.loads((tmp_path / "weights.json").read_text())["evaluation"]
    features, targets = features_of("val")
    with torch.no_grad():
        right = int((head(features).argmax(1) == targets).sum())
    assert right >= 3 and (found["images"], found["unreadable"]) == (4, 0)
    assert found["top1"] == pytest.approx(100 * right / 4, abs=1e-6) and found["loss"] < 0.5
    assert f"{100 * right / 4:.3f} %" in capsys.readouterr().out

    # The control: the same outputs under each other's names.
    (tmp_path / "weights.json").write_text(json.dumps({**manifest, "labels": labels[::-1]}))
    assert evaluate([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["correct"] == {"top1": 4 - right, "top5": 4}


def test_its_head_is_refused_layer_by_layer(fetched: Callable[[Member], Path], tmp_path: Path) -> None:
    with pytest.raises(PortingError, match="--backbone-only") as caught:
        port(fetched(MODEL), "xception", out=tmp_path / "out")
    assert caught.value.kind is ErrorKind.MISMATCH
    for layer in ("dropout (Dropout)", "dense (Dense)", "batch_normalization_4 (BatchNormalization)",
                  "concatenate (Concatenate)", "dense_3 (Dense)", "dense_4 (Dense)"):  # fmt: skip
        assert layer in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_registry_that_serves_something_else_is_a_failure(tmp_path: Path) -> None:
    """The skip is for silence only: a wheel of another digest fails."""
    other = Member(PHOTOGRAPH.package, "0" * 64, PHOTOGRAPH.path, PHOTOGRAPH.sha256, PHOTOGRAPH.options)
    with pytest.raises(AssertionError, match="HASHES"):
        fetch(other, tmp_path)
