"""`open_source` goes by content and finds checkpoints as TensorFlow's own files name them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.sources import open_source
from tests.sources import wire


def _write(prefix: Path, value: float) -> Path:
    return wire.small_bundle({"w": np.float32([value])}).write(prefix)


def _value(path: Path) -> float:
    with open_source(path) as source:
        return float(source.read("w")[0])


@pytest.mark.parametrize(
    "state",
    [
        'model_checkpoint_path: "m-2"\nall_model_checkpoint_paths: "m-1"\nall_model_checkpoint_paths: "m-2"\n',
        "model_checkpoint_path: 'm-2'", 'model_checkpoint_path:"\\155-\\x32" # the newest\r\n',
        '# kept\nmodel_checkpoint_path : "./m-2";\n', 'model_checkpoint_path: "FOLDER/m-2"\n',
        'model_checkpoint_path: "/home/someone/elsewhere/m-2"\n',
    ],
)  # fmt: skip
def test_checkpoint_files(state: str, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        _write(tmp_path / f"m-{number}", number)
    (tmp_path / "checkpoint").write_text(state.replace("FOLDER", str(tmp_path)))
    assert _value(tmp_path) == 2


def test_a_checkpoint_elsewhere(tmp_path: Path) -> None:
    _write(tmp_path / "run" / "m", 4)
    (tmp_path / "best").mkdir()
    for path in (tmp_path / "run" / "m", Path("../run/m")):
        (tmp_path / "best" / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')
        assert _value(tmp_path / "best") == 4


def test_an_archive_may_not_name_what_lies_outside(tmp_path: Path) -> None:
    _write(tmp_path / "mine" / "m", 4)
    archive = tmp_path / "unpacked"
    (archive / "model").mkdir(parents=True)
    for path in (tmp_path / "mine" / "m", Path("../../mine/m")):
        (archive / "model" / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')
        assert _value(archive / "model") == 4
        with pytest.raises(PortingError, match="the checkpoint it names") as caught:
            open_source(archive / "model", within=archive)
        assert caught.value.kind is ErrorKind.MISSING
    _write(archive / "model" / "m", 5)
    with open_source(archive / "model", within=archive) as source:
        assert float(source.read("w")[0]) == 5


def test_a_copied_folder_means_its_own_files(tmp_path: Path) -> None:
    _write(tmp_path / "old" / "m", 1)
    (tmp_path / "old" / "checkpoint").write_text(f'model_checkpoint_path: "{tmp_path}/old/m"\n')
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    _write(tmp_path / "new" / "m", 2)
    assert _value(tmp_path / "new") == 2
    assert _value(tmp_path / "old") == 1


def test_the_only_checkpoint_of_a_folder(tmp_path: Path) -> None:
    _write(tmp_path / "model.ckpt", 3)
    assert _value(tmp_path) == 3


def test_a_name_with_patterns_in_it_is_a_name(tmp_path: Path) -> None:
    _write(tmp_path / "m[1]*", 5)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m[1]*"\n')
    assert _value(tmp_path) == 5
    assert _value(tmp_path / "m[1]*") == 5


def test_content_decides(tmp_path: Path) -> None:
    """A V1 checkpoint, a frozen graph and a SavedModel's variables under every misleading ending."""
    v1 = wire.v1_checkpoint({"w": np.float32([6])})
    frozen = wire.message(1, wire.const_node("w", wire.tensor(1, (1,), wire.message(4, np.float32([7]).tobytes()))))
    for ending in ("", ".h5", ".zip", ".pb", ".index", ".ckpt"):
        path = tmp_path / f"file{ending}"
        path.write_bytes(v1)
        assert _value(path) == 6
        if ending != ".index":  # whose footer would be missing
            path.write_bytes(frozen)
            assert _value(path) == 7


@pytest.mark.parametrize("path", ["", "/", "\0", "x" * 5000, "a/" * 3000, "/proc/self/mem", "/dev/zero"])
def test_odd_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PortingError) as caught:
        open_source(path)
    assert caught.value.kind in (ErrorKind.MISSING, ErrorKind.UNSUPPORTED)
