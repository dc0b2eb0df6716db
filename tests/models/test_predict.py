"""python -m models.predict, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_networks import randomise
from test_weights import write

from models import create_model
from models.predict import find_images, main
from models.preprocess import EvaluationTransform

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A weight file, and a folder of three pictures, one of them damaged."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(2)
    weights = write(folder, randomise(create_model("xception", num_classes=6)))
    pictures = folder / "pictures"
    (pictures / "inner").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "inner/b.jpg")):
        pixels = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / name)
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    return weights, pictures


def test_json_agrees_with_the_network(place: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    weights, pictures = place
    assert (
        main([str(pictures / "a.png"), str(pictures / "inner"), "--weights", str(weights), "--topk", "3", "--json"])
        == 0
    )
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and [Path(one["image"]).name for one in found] == ["a.png", "b.jpg"]
    network: Any = create_model("xception", pretrained=weights).eval()
    with Image.open(pictures / "a.png") as image, torch.no_grad():
        expected = network(EvaluationTransform(network.preprocessing)(image)[None])[0].softmax(0)
    top = expected.topk(3)
    assert [guess["index"] for guess in found[0]["predictions"]] == top.indices.tolist()
    assert [guess["probability"] for guess in found[0]["predictions"]] == pytest.approx(top.values.tolist(), rel=1e-4)
    assert found[0]["predictions"][0]["label"] == f"kind {int(top.indices[0])}"


def test_text_and_a_damaged_picture(place: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    weights, pictures = place
    assert main([str(pictures), "--weights", str(weights), "--topk", "2", "--batch-size", "2"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 6 and lines[0].endswith("a.png") and "%  kind " in lines[1]
    assert "broken.jpg: not an image" in err


def test_what_names_stand_for(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, pictures = place
    assert [path.name for path in find_images([str(pictures)])] == ["a.png", "broken.jpg", "b.jpg"]
    assert [path.name for path in find_images([str(pictures / "*.png"), str(pictures / "a.png")])] == ["a.png"]
    monkeypatch.chdir(pictures)
    assert [path.name for path in find_images(["**/*.jpg"])] == ["broken.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "absent.png: no such file"),
        (["absent*.png"], "no images there"),
        (["--weights", "absent.pth", "{a}"], "absent.pth: no such file"),
    ],
)
def test_failures(
    place: tuple[Path, Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, pictures = place
    filled = [argument.replace("{a}", str(pictures / "a.png")) for argument in arguments]
    if "--weights" not in filled:
        filled += ["--weights", str(weights)]
    assert main(filled) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_weights_without_a_classifier(
    place: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, create_model("xception", num_classes=0))
    assert main([str(place[1] / "a.png"), "--weights", str(path)]) == 1
    assert "no classifier" in capsys.readouterr().err


def test_as_a_process(place: tuple[Path, Path]) -> None:
    """Wrong arguments are status 2; nothing of the progress bar reaches a pipe."""
    weights, pictures = place
    command = [sys.executable, "-m", "models.predict"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    usage = subprocess.run(
        [*command, "--topk", "0", "x", "--weights", "y"], capture_output=True, text=True, check=False
    )
    assert usage.returncode == 2 and "expected a number from 1" in usage.stderr
    done = subprocess.run(
        [*command, str(pictures / "a.png"), "--weights", str(weights)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 6
