"""python -m porting.evaluate: it counts what a plain loop counts, in any number of processes, and goes on."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import models.evaluation
from models import create_model
from models.preprocess import EvaluationTransform
from models.processes import Share
from porting.evaluate import main, parser
from porting.manifest import merged
from tests.evaluation_files import LABELS, READABLE, write_images, write_weights

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")

BATCH = "2"  # eight batches, the last of one image: four and four for two processes, three, three and two for three


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of seven classes with their manifest; two images of each class, and one that is damaged."""
    root = tmp_path_factory.mktemp("evaluate")
    write_images(root / "val")
    write_weights(root)
    return root


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in kept.items():
        signal.signal(number, handler)


def weights(place: Path) -> Path:
    return next(place.glob("xception-*.pth"))


def arguments(place: Path, *more: object) -> list[str]:
    return [
        "--weights", str(weights(place)), "--data", str(place / "val"), "--batch-size", BATCH, "--workers", "0",
        "--device", "cpu", *map(str, more),
    ]  # fmt: skip


def result(text: str) -> dict[str, Any]:
    """The JSON object, without the speed."""
    found: dict[str, Any] = json.loads(text)
    assert found.pop("images_per_second") >= 0
    return found


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    """What a plain loop over single images counts."""
    network: Any = create_model("xception", pretrained=weights(place)).eval()
    transform = EvaluationTransform(network.preprocessing)
    top1 = top5 = images = 0
    loss = 0.0
    for target, name in enumerate(LABELS):
        for path in sorted((place / "val" / name).glob("[01].png")):
            if (name, path.name) == ("cat", "1.png"):
                continue
            with Image.open(path) as image, torch.no_grad():
                logits = network(transform(image)[None])[0].double()
            best = logits.topk(5).indices.tolist()
            top1, top5, images = top1 + (best[0] == target), top5 + (target in best), images + 1
            loss -= float(logits.log_softmax(0)[target])
    assert images == READABLE and 0 < top1 < top5 < images  # or the counts would show little
    return {"top1": top1, "top5": top5, "loss": loss / images}


@pytest.fixture(scope="module")
def one(place: Path) -> dict[str, Any]:
    """What one process says, to which two others bring the images."""
    torch.set_num_threads(1)
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert main(arguments(place, "--json", "--workers", "2")) == 0
    assert err.getvalue().count("not an image that can be read") == 2
    return result(out.getvalue())


def test_it_counts_what_a_plain_loop_counts(one: dict[str, Any], expected: dict[str, Any], place: Path) -> None:
    assert one["correct"] == {"top1": expected["top1"], "top5": expected["top5"]}
    assert one["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert one["top1"] == pytest.approx(100 * expected["top1"] / READABLE, abs=1e-6)
    assert one["images"] == READABLE and one["unreadable"] == 2 and one["arch"] == "xception"
    assert one["unreadable_images"] == [str(place / "val" / name) for name in ("cat/1.png", "fox/2.JPEG")]
    assert one["data"].startswith("val, 15 images of 7 classes, digest ") and one["published"] is None


@pytest.mark.slow
def test_any_number_of_processes_says_the_same(place: Path, one: dict[str, Any], tmp_path: Path) -> None:
    """To the last bit of the loss; and three go on where two have left off."""
    state = tmp_path / "state.jsonl"
    launcher = ["torch.distributed.run", "--standalone", "-m", "porting.evaluate"]

    def run(processes: int) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *launcher[:2], "--nproc-per-node", str(processes), *launcher[2:],
             *arguments(place, "--json", "--resume", state)],
            capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0 and result(done.stdout) == one, done.stderr
        return done.stderr

    err = run(2)
    assert err.count("cat/1.png: not an image that can be read") == 1
    assert err.count("fox/2.JPEG: not an image that can be read") == 1
    lines = state.read_text().splitlines(keepends=True)
    assert len(lines) == 9 and {json.loads(line)["batch"] for line in lines[1:]} == set(range(8))
    state.write_text("".join([lines[0], *(line for line in lines[1:] if json.loads(line)["batch"] in (1, 4, 6))]))
    assert "3 of 8 batches are done" in run(3)


def test_a_process_that_hears_nothing_of_the_others_does_not_answer(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: half of the batches are not a result."""
    monkeypatch.setattr(Share, "total", lambda _, tensor: tensor)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    assert main(arguments(place)) == 1
    out, err = capsys.readouterr()
    assert out == "" and "counted twice or not at all" in err


def test_it_goes_on_after_a_kill(
    place: Path,
    one: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = tmp_path / "state.jsonl"
    compute = models.evaluation._outcome
    computed: list[int] = []

    def watched(batch: int, *rest: Any) -> Any:
        computed.append(batch)
        if len(computed) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(batch, *rest)

    monkeypatch.setattr(models.evaluation, "_outcome", watched)
    assert main(arguments(place, "--resume", state)) == 130
    assert f"repeat the command to go on from {state}" in capsys.readouterr().err
    state.write_bytes(state.read_bytes()[:-9])  # as a kill in the middle of a line leaves it
    shutil.copy(state, tmp_path / "edited")

    assert main(arguments(place, "--resume", state, "--json")) == 0
    out, err = capsys.readouterr()
    assert result(out) == one and "3 of 8 batches are done" in err and "cat/1.png: could not be read before" in err
    assert computed == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert main(arguments(place, "--resume", state, "--json")) == 0
    assert result(capsys.readouterr().out) == one and len(computed) == 9  # nothing is left to compute

    # The control: what the file says is what is counted.
    lines = (tmp_path / "edited").read_text().splitlines()
    wrong = json.loads(lines[1])
    wrong |= {"loss": wrong["loss"] + 1}
    (tmp_path / "edited").write_text("\n".join([lines[0], json.dumps(wrong), *lines[2:-1]]) + "\n")
    assert main(arguments(place, "--resume", tmp_path / "edited", "--json")) == 0
    assert result(capsys.readouterr().out)["loss"] == pytest.approx(one["loss"] + 1 / READABLE)


def test_the_result_is_written_and_stays(
    place: Path, one: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside it, the table that people read."""
    for path in (weights(place), weights(place).with_suffix(".json")):
        os.link(path, tmp_path / path.name) if path.suffix == ".pth" else shutil.copy(path, tmp_path)
    before = json.loads(weights(tmp_path).with_suffix(".json").read_text())
    shutil.copytree(place / "val", tmp_path / "val")
    for name in ("cat/1.png", "fox/2.JPEG"):
        (tmp_path / "val" / name).unlink()
    assert main(arguments(tmp_path, "--write")) == 0
    out, err = capsys.readouterr()
    assert f"wrote {weights(tmp_path).with_suffix('.json')}" in err
    after = json.loads(weights(tmp_path).with_suffix(".json").read_text())
    entry = after.pop("evaluation")
    assert after == before
    same = ("top1", "top5", "images")
    assert {name: entry[name] for name in same} == {name: one[name] for name in same} and entry["unreadable"] == 0
    assert sorted(entry) == ["data", "images", "loss", "top1", "top5", "unreadable"]
    assert f"top-1    {one['top1']:7.3f} %" in out and "images        13\n" in out and "images/s" in out

    assert merged(after, after | {"evaluation": entry})["evaluation"] == entry  # the same weights, ported again
    assert "evaluation" not in merged(after | {"content_digest": "1" * 64}, after | {"evaluation": entry})
    assert merged(after | {"evaluation": {}}, after | {"evaluation": entry})["evaluation"] == {}


def test_a_part_of_the_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, "--limit", "7", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] + found["unreadable"] == 7 and found["data"].startswith("part of val, 7 images of 7 classes")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--weights", "absent.pth"), "absent.pth: no such file"),
        (("--data", "absent"), "absent: no such folder"),
        (("--labels", "absent.txt"), "absent.txt: cannot be read"),
        (("--device", "moon"), "--device: moon cannot be used"),
        (("--resume", "."), ".: cannot be used"),
        (("--data", "{place}"), "images beside|no images of|expected folders named after the weights' classes"),
    ],
)
def test_failures(place: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, *(one.replace("{place}", str(place)) for one in more))) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and any(part in err for part in message.split("|"))


def test_weights_that_give_no_numbers_are_not_right(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is larger than a NaN, so each answer would count."""
    state = torch.load(weights(place), weights_only=True)
    state["fc.bias"][3] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    manifest = json.loads(weights(place).with_suffix(".json").read_text())
    (tmp_path / "broken.json").write_text(json.dumps(manifest | {"files": []}))
    assert main(arguments(place, "--weights", tmp_path / "broken.pth")) == 1
    out, err = capsys.readouterr()
    assert out == "" and "ant/0.png: logits: expected finite numbers" in err
    assert main(arguments(place, "--weights", tmp_path / "broken.pth", "--write")) == 1
    assert "sha256 of broken.pth: expected" in capsys.readouterr().err


def test_the_readme_s_commands_are_ones_that_the_program_takes() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text[text.index("### Measure accuracy\n") : text.index("## Back to TensorFlow\n")]
    commands = [shlex.split(line) for line in section.splitlines() if "-m porting.evaluate" in line]
    assert len(commands) == 2
    for command in commands:
        given = parser().parse_args(command[command.index("porting.evaluate") + 1 :])
        assert given.weights == "weights.pth" and (given.write or given.resume)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        ([], "--weights, --data"),
        (["--weights", "w", "--data", "d", "--limit", "0"], "expected a whole number from 1, found 0"),
        (["--weights", "w", "--data", "d", "--limit", "5", "--write"], "expected without --limit"),
        (["--weights", "https://h/w.pth", "--data", "d", "--write"], "found a URL"),
    ]
    for given, message in wrong:
        with pytest.raises(SystemExit) as status:
            main(given)
        assert status.value.code == 2 and message in capsys.readouterr().err
