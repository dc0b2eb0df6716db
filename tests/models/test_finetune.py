"""python -m models.finetune: it learns, resumes to the bit, shares its work, and says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_weights import write
from torch import Tensor, nn

import models.processes
import models.training
from models import create_model, optimize_for_inference
from models.finetune import main
from models.predict import main as predict
from models.processes import Share
from models.training import learning_rate
from models.training_files import CHECKPOINT, METRICS

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")

COLOURS = {"blue": (40, 40, 210), "green": (40, 210, 40), "red": (210, 40, 40)}
# Three epochs of the classifier alone, then one of everything; two batches of five and four images an epoch.
RECIPE = ("--epochs", "4", "--freeze-epochs", "3", "--lr", "3e-3", "--batch-size", "5", "--min-crop", "0.5",
          "--drop-rate", "0.1", "--drop-path-rate", "0.1", "--workers", "0", "--classes", "3")  # fmt: skip


def pictures(root: Path) -> Path:
    """Nine pictures to train on and six to evaluate on, each of its class's colour and noise."""
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(colour, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and the weights of another task: random, with the statistics of real activations."""
    root = pictures(tmp_path_factory.mktemp("finetune"))
    torch.manual_seed(0)
    network = create_model("xception", num_classes=5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of the one batch that follows
    with torch.no_grad():
        network(torch.rand(8, 3, 71, 71) - 0.5 + torch.randn(8, 3, 1, 1))
    write(root, network)
    return root


@pytest.fixture(autouse=True)
def _signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here, and it takes seconds
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    weights = next(place.glob("xception-*.pth"))
    return [str(place), "--weights", str(weights), "--out", str(out), *RECIPE, *more]


def metrics(out: Path) -> list[dict[str, float]]:
    """Every epoch's numbers, without the speed."""
    epochs = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return [{key: value for key, value in epoch.items() if key != "images_per_second"} for epoch in epochs]


def weights_of(out: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(next(out.glob("*.pth")), weights_only=True)
    return state


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The folder of a run that nothing has interrupted."""
    torch.set_num_threads(1)
    assert main(arguments(place, place / "whole")) == 0
    return place / "whole"


def test_it_learns_and_its_weights_are_used_as_any(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = metrics(finished)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1]["val_accuracy"] == 1.0 and epochs[0]["train_accuracy"] < 1.0
    assert epochs[2]["train_loss"] < 0.6 * epochs[0]["train_loss"]  # then dropped paths add to it
    path = next(finished.glob("*.pth"))
    model: Any = create_model("xception", pretrained=path)
    assert model.labels == ("blue", "green", "red") and model.preprocessing.input_size == (3, 71, 71)
    capsys.readouterr()
    assert predict([str(place / "val"), "--weights", str(path), "--topk", "1", "--json"]) == 0
    guesses = json.loads(capsys.readouterr().out)
    assert [guess["predictions"][0]["label"] for guess in guesses] == [
        Path(one["image"]).parent.name for one in guesses
    ]


def test_the_backbone_learns_only_once_it_may(place: Path, finished: Path) -> None:
    """Also the control of the test below: what is bit-equal there has moved."""
    before: Any = torch.load(next(place.glob("xception-*.pth")), weights_only=True)
    after = weights_of(finished)
    assert not torch.equal(before["block5.rep.1.pointwise.weight"], after["block5.rep.1.pointwise.weight"])
    saved: Any = torch.load(finished / CHECKPOINT, weights_only=True)
    steps = {float(state["step"]) for state in saved["optimizer"]["state"].values()}
    assert steps == {2.0, 8.0}  # the backbone's and the classifier's


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process told to stop while it computes its `step`-th step."""
    count = 0

    def counted(*parts: Any) -> float:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return learning_rate(*parts)

    monkeypatch.setattr(models.training, "learning_rate", counted)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for step in (3, 4):  # after the first step of the second epoch, then after the first of the last
        with monkeypatch.context() as patch:
            interrupt_at(step, patch)
            assert main(arguments(place, out, "--resume")) == 130
        assert "pass --resume" in capsys.readouterr().err
        assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT, METRICS]
    assert len(metrics(out)) == 3
    shutil.copytree(out, tmp_path / "changed")
    assert main(arguments(place, out, "--resume")) == 0
    assert metrics(out) == metrics(finished)
    expected, found = weights_of(finished), weights_of(out)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert next(out.glob("*.pth")).name == next(finished.glob("*.pth")).name

    # The control: a checkpoint without the optimizer's memory leads elsewhere.
    saved: Any = torch.load(tmp_path / "changed" / CHECKPOINT, weights_only=True)
    for state in saved["optimizer"]["state"].values():
        state["exp_avg"].zero_()
    torch.save(saved, tmp_path / "changed" / CHECKPOINT)
    assert main(arguments(place, tmp_path / "changed", "--resume")) == 0
    found = weights_of(tmp_path / "changed")
    assert not all(torch.equal(found[key], expected[key]) for key in expected)


# --- several processes ------------------------------------------------------------------------------------------------

HEAD_ALONE = ("--epochs", "2", "--freeze-epochs", "2", "--drop-rate", "0", "--drop-path-rate", "0", "--lr", "1e-2",
              "--ema-decay", "0")  # fmt: skip


def differ(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest relative difference of two runs' losses; infinite where they disagree about an accuracy."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if any(a[name] != b[name] for name in ("train_accuracy", "val_accuracy")):
            return float("inf")
        worst = max(worst, *(abs(a[name] - b[name]) / abs(a[name]) for name in ("train_loss", "val_loss")))
    return worst


@pytest.mark.slow  # two processes share a set in test_evaluate too
def test_two_processes_do_what_one_does(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parts of a batch of five are three and two images, and of six evaluated ones in fives 3 + 2 and 1 + 0."""
    assert main(arguments(place, tmp_path / "one", *HEAD_ALONE)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "models.finetune"]
    done = subprocess.run(
        [*command, *arguments(place, tmp_path / "two", *HEAD_ALONE)],
        capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and done.stderr.count("epoch ") == 2, "one process writes"
    assert differ(metrics(tmp_path / "one"), metrics(tmp_path / "two")) < 1e-5

    # The control: half of each batch, and nothing from the other process.
    monkeypatch.setattr(Share, "total", lambda _, tensor: tensor)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    assert main(arguments(place, tmp_path / "half", *HEAD_ALONE)) == 0
    assert differ(metrics(tmp_path / "one"), metrics(tmp_path / "half")) > 1e-3


# --- what can be wrong ------------------------------------------------------------------------------------------------


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def damage(root: Path) -> None:
    (root / "train" / "green" / "1.png").write_bytes(b"not a picture")


def clear(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.unlink()


def only_red(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("blue", "green"):
            shutil.rmtree(root / split / name)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (remove("train"), (), "train: no such folder"),
        (clear, (), "train: no images; expected train/<class>/*.jpg"),
        (only_red, (), "train: expected at least 2 classes, found 1: red"),
        (remove("val", "green"), (), "val: classes: expected those of the training images, found missing green"),
        (remove("train", "green"), (), "val: classes: expected those of the training images, found unexpected green"),
        (damage, (), "green/1.png: not an image that can be read"),
        (damage, ("--workers", "1"), "green/1.png: not an image that can be read"),
        (None, ("--classes", "4"), "train: expected 4 classes, found 3: blue, green, red"),
        (None, ("--weights", "absent.pth"), "absent.pth: no such file"),
        (None, ("--keep-head",), "--keep-head: the weights have 5 classes, the images 3"),
        (None, ("--device", "moon"), "--device: moon cannot be used"),
    ],
)
def test_failures(
    place: Path,
    tmp_path: Path,
    change: Callable[[Path], None] | None,
    more: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split in ("train", "val"):
        shutil.copytree(place / split, tmp_path / split)
    if change is not None:
        change(tmp_path)
    assert main([str(tmp_path), *arguments(place, tmp_path / "out", *more)[1:]]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("out/*.pt*"))


def test_a_run_is_not_overwritten_nor_mixed_with_another(
    place: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, finished)) == 1
    assert "a run is there already; pass --resume" in capsys.readouterr().err
    assert main(arguments(place, finished, "--resume", "--lr", "1e-3")) == 1
    assert "other settings" in (err := capsys.readouterr().err) and "lr: expected 0.003, found 0.001" in err
    (tmp_path / CHECKPOINT).write_bytes((finished / CHECKPOINT).read_bytes()[:100_000])
    assert main(arguments(place, tmp_path, "--resume")) == 1
    assert "not a checkpoint of such a run" in capsys.readouterr().err


def test_folded_weights_have_nothing_to_train_with(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write(tmp_path, optimize_for_inference(create_model("xception", num_classes=3)))
    assert main(arguments(place, tmp_path / "out", "--weights", str(weights))) == 1
    assert "folded weights have no batch norms" in capsys.readouterr().err


def test_a_loss_that_is_not_a_number_ends_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left that a later run would go on from."""
    monkeypatch.setattr(models.training, "learning_rate", lambda *_: float("nan"))
    assert main(arguments(place, tmp_path)) == 1
    assert "the loss is not a number any more; lower --lr" in capsys.readouterr().err
    assert not (tmp_path / CHECKPOINT).exists()


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[tuple[list[str], str]] = [
        (["data"], "one of the arguments --weights --arch is required"),
        (["data", "--arch", "xception", "--epochs", "0"], "expected a whole number from 1, found 0"),
        (["data", "--arch", "xception", "--lr", "nan"], "expected a number from 0 to 1000, found nan"),
    ]
    for given, message in wrong:
        with pytest.raises(SystemExit) as status:
            main(given)
        assert status.value.code == 2 and message in capsys.readouterr().err


def test_help_loads_no_torch() -> None:
    code = "import sys, models.finetune as f\ntry: f.main(['-h'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
