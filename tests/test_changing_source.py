"""Sources that shrink, are replaced, or change their bytes while they are ported: one error that says so."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from porting import ErrorKind, PortingError, pipeline, port, proof, verification
from porting.runs import Run
from porting.sources import open_source

Change = Callable[[Path], None]


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    """As most programs save: another file under the name, here with other bytes."""
    other = path.with_name("other")
    shutil.copyfile(path, other)
    overwrite(other)
    other.replace(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        for place in range(1 << 16, path.stat().st_size, 1 << 16):
            file.seek(place)
            file.write(b"changed!")


def remove(path: Path) -> None:
    path.unlink()


SAID = {
    shrink: r"expected \d+ bytes, as when it was opened, found \d+ bytes",
    empty: r"expected \d+ bytes, as when it was opened, found 0 bytes",
    replace: "expected the file as it was, found another file of that name",
    overwrite: "expected the file as it was, found written to since",
    remove: "expected the file as it was, found gone",
}


class Meddler:
    """Somebody who changes the source at a step of a stage; the last, where it is -1."""

    def __init__(self, stage: str, step: int, change: Callable[[], None]) -> None:
        self.wanted, self.at, self.change = stage, step, change
        self.stage, self.left = "", 0

    def start(self, stage: str, total: int) -> None:
        self.stage, self.left = stage, self.at if self.at >= 0 else total
        self._perhaps()

    def step(self) -> None:
        self.left -= 1
        self._perhaps()

    def _perhaps(self) -> None:
        if self.stage == self.wanted and self.left == 0:
            self.change()


@pytest.fixture
def source(
    request: pytest.FixtureRequest,
    variant: Callable[[str], Path],
    synthetic_source: Callable[[str], Path],
    tmp_path: Path,
) -> tuple[Path, str, Path]:
    """A copy that may be changed: what to port, its network, and the file that holds the weights."""
    folder = tmp_path / "source"
    if request.param == "bundle":
        shutil.copytree(variant("golden41").parent, folder)
        return folder / "model.ckpt", "xception41", folder / "model.ckpt.data-00000-of-00001"
    folder.mkdir()
    keras = synthetic_source("xception")
    if request.param == "h5":
        with zipfile.ZipFile(keras) as archive:
            archive.extract("model.weights.h5", folder)
        path = folder / "model.weights.h5"
    else:
        path = Path(shutil.copy(keras, folder / "model.keras"))
    return path, "xception", path


def refused(source: tuple[Path, str, Path], change: Change, out: Path, watch: Meddler, verify: bool) -> None:
    src, arch, file = source
    with pytest.raises(PortingError) as caught:
        port(src, arch, out=out, verify=verify, progress=watch)
    assert caught.value.kind is ErrorKind.CORRUPT
    assert str(caught.value).startswith(f"{src}: corrupt: {file.name}: ") and len(caught.value.defects) == 1
    assert re.search(SAID[change], str(caught.value))
    assert caught.value.remedy.startswith("It changed while it was read: nothing is emitted or proved.")
    assert not out.exists() or list(out.iterdir()) == []


def cases(*pairs: tuple[str, Change]) -> pytest.MarkDecorator:
    """Kinds of source, each with a change."""
    ids = [f"{kind}-{change.__name__}" for kind, change in pairs]
    return pytest.mark.parametrize(("source", "change"), pairs, indirect=["source"], ids=ids)


@cases(
    *(("bundle", change) for change in SAID), ("h5", shrink), ("h5", overwrite), ("keras", empty), ("keras", replace)
)
def test_between_planning_and_reading(source: tuple[Path, str, Path], change: Change, tmp_path: Path) -> None:
    refused(source, change, tmp_path / "out", Meddler("reading", 0, lambda: change(source[2])), verify=False)


@cases(("bundle", overwrite), ("h5", replace), ("keras", remove))
def test_after_the_last_tensor_was_read(source: tuple[Path, str, Path], change: Change, tmp_path: Path) -> None:
    refused(source, change, tmp_path / "out", Meddler("reading", -1, lambda: change(source[2])), verify=False)


@pytest.mark.parametrize("source", ["bundle"], indirect=True)
def test_what_nobody_watches(source: tuple[Path, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nothing that was read is wrong, and the manifest names the digest of another file."""
    src, arch, file = source
    with open_source(src) as opened:
        before = opened.digest()
    monkeypatch.setattr(pipeline, "unchanging", lambda _source: nullcontext(lambda: None))
    watch = Meddler("reading", -1, lambda: overwrite(file))
    emitted = port(src, arch, out=tmp_path / "out", verify=False, progress=watch)
    assert emitted.manifest["source"]["digest"] != before


@pytest.mark.usefixtures("one_reference")
@cases(("bundle", empty), ("h5", remove), ("keras", replace))
def test_while_the_proof_runs(
    source: tuple[Path, str, Path], change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "proof_runs", lambda *_, **__: [Run((65, 65))])
    watch = Meddler("verifying against TensorFlow", 0, lambda: change(source[2]))
    refused(source, change, tmp_path / "out", watch, verify=True)


@pytest.mark.usefixtures("one_reference")
@pytest.mark.parametrize("source", ["bundle", "h5", "keras"], indirect=True)
def test_before_tensorflow_reads_it(
    source: tuple[Path, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TensorFlow makes of a file that was cut is not what the user is told."""
    real = proof.reference_source

    def cut(*arguments: object) -> object:
        shrink(source[2])
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(proof, "reference_source", cut)
    refused(source, shrink, tmp_path / "out", Meddler("", 0, lambda: None), verify=True)


@pytest.mark.parametrize("source", ["bundle"], indirect=True)
def test_while_a_port_is_held_to_it(
    source: tuple[Path, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, arch, file = source
    weights = port(src, arch, out=tmp_path / "out", verify=False).path
    real = verification.compare_weights

    def changed(*arguments: Any) -> Any:
        found = real(*arguments)
        overwrite(file)
        return found

    assert verification.verify(weights, src, weights_only=True).verdict == "verified"
    monkeypatch.setattr(verification, "compare_weights", changed)
    with pytest.raises(PortingError, match=SAID[overwrite]):
        verification.verify(weights, src, weights_only=True)
