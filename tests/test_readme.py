"""The README's code does what it says, in a folder where the files that it names are."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import create_model
from models.finetune import _parser as finetune_parser
from models.finetune import main as finetune
from models.predict import main as predict
from tests.models.timm_beside import beside

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Use the weights") : README.index("### Which weights are which")]
# What makes a training command short; a later argument stands against an earlier one.
SHORT = ["--size", "64", "--epochs", "1", "--batch-size", "3", "--workers", "0"]


def blocks(language: str, text: str = SECTION) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PYTHON = blocks("python")
COMMANDS = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


def said(code: str) -> list[str]:
    """What the comments after its `print` calls say that they print."""
    return re.findall(r"^\s*print\(.*\)  # (.*)$", code, re.MULTILINE)


def printed(code: str) -> tuple[list[str], dict[str, Any]]:
    """What it prints, and the names that it leaves."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), names)
    return out.getvalue().splitlines(), names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """weights.pth, photo.jpg, and pictures of three classes."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    torch.save(create_model("xception65").state_dict(), folder / "weights.pth")
    random = np.random.default_rng(0)

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(path)

    write(folder / "photo.jpg")
    for split in ("train", "val"):
        for name in ("cat", "dog", "owl"):
            write(folder / "pictures" / split / name / "1.jpg")
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_section_answers() -> None:
    for question in ("On an image", "Features", "Fine-tune, or train from scratch", "In timm"):
        assert f"### {question}\n" in SECTION
    assert len(PYTHON) == 5 and [command[0] for command in COMMANDS] == ["python", "python", "torchrun", "python"]


@pytest.mark.parametrize("code", [code for code in PYTHON if "timm" not in code])
def test_python(code: str) -> None:
    out, _ = printed(code)
    assert said(code) and out == said(code)


def test_a_comment_that_is_wrong_is_seen() -> None:
    code = PYTHON[2].replace("# (1, 2048)\n", "# (1, 2047)\n")
    out, _ = printed(code)
    assert code != PYTHON[2] and out != said(code)


def test_timm() -> None:
    """The block of timm's, and the same logits as ours."""
    beside("timm")
    (code,) = (code for code in PYTHON if "timm" in code)
    _, names = printed(code)
    x = torch.rand(1, 3, 71, 71) * 2 - 1
    ours: Any = create_model("xception65", pretrained="weights.pth").eval()
    with torch.no_grad():
        expected = ours(x)
        assert (names["model"].eval()(x) - expected).abs().max() <= 1e-6 * expected.abs().max()
    with pytest.raises(RuntimeError, match="Missing key"):
        names["model"].load_state_dict({})  # the control: the block's loading is strict


def test_predict(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = (command for command in COMMANDS if command[2] == "models.predict")
    assert command[:3] == ["python", "-m", "models.predict"] and predict(command[3:]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "photo.jpg"


@pytest.mark.parametrize("start", ["--weights", "--arch"])
def test_finetune(start: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = next(one for one in COMMANDS if one[2] == "models.finetune" and one[0] == "python" and start in one)
    monkeypatch.setattr("os.fsync", lambda _: None)
    assert finetune([*command[3:], *SHORT]) == 0
    path = Path(capsys.readouterr().out.strip())
    out = path.parent
    assert out == Path(command[command.index("--out") + 1]) and (out / "metrics.jsonl").is_file()
    model = create_model("xception65" if start == "--weights" else "xception41", pretrained=path)
    assert model.labels == ("cat", "dog", "owl")


def test_torchrun_command_is_one_that_the_program_takes() -> None:
    """tests/models/test_finetune.py runs one on two processes."""
    (command,) = (command for command in COMMANDS if command[0] == "torchrun")
    assert command[:5] == ["torchrun", "--nproc-per-node", "4", "-m", "models.finetune"]
    assert finetune_parser().parse_args(command[5:]).batch_size == 256
    with pytest.raises(SystemExit), contextlib.redirect_stderr(sys.stdout):
        finetune_parser().parse_args([*command[5:], "--no-such-option"])
