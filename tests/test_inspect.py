"""`python -m porting.inspect`: what it says of sources that fit, that do not, and that are damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from porting import terminal
from porting.inspect import Inspection, inspect, main
from porting.writers.bundle import data_path, index_path, write_bundle

DEEPLAB = Path(__file__).parent / "data" / "deeplabv3_pascal_trainval.index"


@pytest.fixture(scope="module")
def slim(synthetic_source: Callable[[str], Path]) -> Inspection:
    return inspect(str(synthetic_source("xception41")))


def test_a_whole_checkpoint(slim: Inspection) -> None:
    assert (slim.container, slim.fits, slim.options, slim.nearest) == ("tf-checkpoint-v2", ["xception41"], [], None)
    assert (slim.integrity, slim.problems) == ("ok", [])
    golden = np.load(Path(__file__).parent / "golden" / "xception41.npz")
    expected = {
        str(name): [int(size) for size in shape if size]
        for name, shape in zip(golden["variable_names"], golden["variable_shapes"], strict=True)
    }
    by_name = {item["name"]: item for item in slim.variables}
    assert expected.items() <= {name: item["shape"] for name, item in by_name.items()}.items()
    roles = {name.rpartition("/")[2]: item["role"] for name, item in by_name.items()}
    assert roles["Momentum"] == "slot"
    assert roles["global_step"] == "step"
    assert roles["moving_mean"] == roles["moving_variance"] == "BN statistic"
    assert roles["gamma"] == roles["weights"] == roles["biases"] == "weight"
    assert by_name["global_step"]["shape"] == []
    assert by_name["global_step"]["bytes"] == 8


def test_a_real_index_without_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DEEPLAB), "--json"]) == terminal.DONE
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert len(found["variables"]) == 1173
    assert sum(item["role"] == "slot" for item in found["variables"]) == 440
    assert (found["fits"], found["options"]) == (["xception65"], ["--backbone-only"])
    assert found["integrity"] == "missing"
    assert "deeplabv3_pascal_trainval.data-00000-of-00001" in streams.err


def test_a_keras_file_in_a_table(synthetic_source: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(synthetic_source("xception"))]) == terminal.DONE
    text = capsys.readouterr().out
    assert "container  keras-zip" in text
    assert "fits       --arch xception" in text
    assert "integrity  ok" in text
    assert "layers/separable_conv2d_33/vars/0" in text


def test_a_damaged_tensor_is_named_and_fails(
    synthetic_source: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in synthetic_source("xception41").parent.iterdir():
        shutil.copy(file, tmp_path)
    shard = tmp_path / "model.ckpt.data-00000-of-00001"
    with shard.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    assert main([str(tmp_path), "--json"]) == terminal.FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["integrity"] == "corrupt"
    assert len(found["problems"]) == 1
    assert "crc32c" in found["problems"][0]
    assert found["fits"] == ["xception41"]


def test_nothing_fits_names_the_nearest(tmp_path: Path, synthetic_source: Callable[[str], Path]) -> None:
    # A checkpoint of another network: a lone Keras-free TF-Slim name.
    tensors = [("global_step", np.array(1)), ("resnet/conv1/weights", np.ones((7, 7, 3, 64), np.float32))]
    with data_path(tmp_path / "other").open("wb") as data, index_path(tmp_path / "other").open("wb") as index:
        write_bundle(data, index, tensors)
    found = inspect(str(tmp_path / "other"))
    assert (found.fits, found.integrity) == ([], "ok")
    assert found.nearest is not None
    assert found.nearest["arch"] in ("xception", "xception41")
    assert any("resnet/conv1/weights" in difference for difference in found.nearest["differences"])
    assert main([str(tmp_path / "other")]) == terminal.DONE


def test_an_unreadable_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not weights")
    done = subprocess.run(
        [sys.executable, "-m", "porting.inspect", str(path), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {path}: unsupported: ")
    assert "Traceback" not in done.stderr
