"""Every way a source can be broken: one clear error, exit code 1, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from porting.convert import main
from tests.checkpoint_writer import KERNEL, UNIT, VARIANCE, golden_variables

SHARD = ".data-00000-of-00001"


@dataclass(frozen=True)
class Materials:
    """Whole sources to break: checkpoints that TensorFlow wrote, and a `.keras` file."""

    prefix: Callable[[str], Path]
    keras: Path


@pytest.fixture(scope="module")
def materials(variant: Callable[[str], Path], synthetic_source: Callable[[str], Path]) -> Materials:
    return Materials(variant, synthetic_source("xception"))


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """The command, run in this process, takes over SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# --- how a source is broken: each returns what to give as --src -----------------------------------------------------

Break = Callable[[Materials, Path], Path]


def absent(_: Materials, folder: Path) -> Path:
    return folder / "absent.ckpt"


def empty_folder(_: Materials, folder: Path) -> Path:
    (folder / "notes.txt").write_text("no checkpoint here")
    return folder


def data_file(materials: Materials, _: Path) -> Path:
    return Path(f"{materials.prefix('golden41')}{SHARD}")


def checkpoint(name: str, materials: Materials, _: Path) -> Path:
    return materials.prefix(name)


def missing_shard(materials: Materials, folder: Path) -> Path:
    for part in materials.prefix("sharded").parent.glob("model.ckpt.*"):
        if ".data-00001" not in part.name:
            os.link(part, folder / part.name)
    return folder / "model.ckpt"


def copied(materials: Materials, folder: Path) -> Path:
    for ending in (".index", SHARD):
        shutil.copyfile(f"{materials.prefix('golden41')}{ending}", folder / f"model.ckpt{ending}")
    return folder / "model.ckpt"


def truncated_shard(materials: Materials, folder: Path) -> Path:
    prefix = copied(materials, folder)
    os.truncate(f"{prefix}{SHARD}", 50_000_000)
    return prefix


def flipped_bit(materials: Materials, folder: Path) -> Path:
    prefix = copied(materials, folder)
    shard = Path(f"{prefix}{SHARD}")
    at = shard.read_bytes().index(golden_variables("xception41")[KERNEL].tobytes())
    with shard.open("r+b") as file:
        file.seek(at + 4321)
        byte = file.read(1)[0]
        file.seek(at + 4321)
        file.write(bytes([byte ^ 1]))
    return prefix


def truncated_index(materials: Materials, folder: Path) -> Path:
    prefix = copied(materials, folder)
    os.truncate(f"{prefix}.index", 9_000)
    return folder / "model.ckpt.index"


def keras_file(materials: Materials, _: Path) -> Path:
    return materials.keras


def truncated_keras(materials: Materials, folder: Path) -> Path:
    target = folder / "half.keras"
    data = materials.keras.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target


def truncated_h5(materials: Materials, folder: Path) -> Path:
    target = folder / "half.h5"
    with zipfile.ZipFile(materials.keras) as archive:
        data = archive.read("model.weights.h5")
    target.write_bytes(data[: len(data) // 2])
    return target


def another_network(_: Materials, folder: Path) -> Path:
    with h5py.File(folder / "small.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv1", b"dense"]
        for layer, shape in (("conv1", (3, 3, 3, 32)), ("dense", (32, 10))):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/kernel:0".encode()]
            group.create_dataset(f"{layer}/kernel:0", data=np.ones(shape, np.float32))
    return folder / "small.h5"


def text_file(_: Materials, folder: Path) -> Path:
    (folder / "weights.h5").write_text("<html>404: not found</html>")
    return folder / "weights.h5"


# --- the table: what is broken, the arguments, what the one message must say ----------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    broken: Break
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ("--arch", "xception41")


DATA = ("--arch", "xception41", "--no-verify")  # found while reading: TensorFlow need not start for it
KERAS = ("--arch", "xception")
CASES = [
    Case("missing file", absent, ("absent.ckpt: missing: no such file", "Check the path")),
    Case("folder without a checkpoint", empty_folder, ("without a checkpoint", "Give a folder that holds")),
    Case("data file", data_file, ("a data file of a checkpoint", "Give the checkpoint's prefix", "model.ckpt.")),
    Case("missing shard", missing_shard, ("model.ckpt.data-00001-of-00003", "missing")),
    Case("truncated shard", truncated_shard, (f"model.ckpt{SHARD}", "corrupt", "50000000", "108347684")),
    Case("flipped bit", flipped_bit, (KERNEL, "corrupt", "crc32c", "Fetch or copy the file again"), DATA),
    Case("truncated index", truncated_index, ("model.ckpt.index: corrupt",)),
    Case("wrong arch", partial(checkpoint, "golden41"),
         ("network: expected xception65, found xception41", "Use --arch xception41."), ("--arch", "xception65")),
    Case("wrong arch, a Keras file", keras_file,
         ("network: expected xception71, found xception", "Use --arch xception."), ("--arch", "xception71")),
    Case("wrong arch and no head", partial(checkpoint, "headless"),
         ("Use --arch xception41 --backbone-only",), ("--arch", "xception71")),
    Case("missing variables", partial(checkpoint, "missing"),
         ("2 defects", f"{KERNEL}: expected shape [1, 1, 728, 728], found no such variable",
          f"{VARIANCE}: expected shape [728], found no such variable", "xception41 is the nearest")),
    Case("extra variable", partial(checkpoint, "extra"),
         (f"{UNIT}/separable_conv4_pointwise/weights: a variable that xception41 does not have, of shape",)),
    Case("wrong shape", partial(checkpoint, "shape"),
         (f"{KERNEL}: expected shape [1, 1, 728, 728], found shape [1, 1, 728, 700]",)),
    Case("same size, other shape", partial(checkpoint, "transposed"),
         ("depthwise_weights: expected shape [3, 3, 728, 1], found shape [3, 3, 1, 728]",)),
    Case("integers", partial(checkpoint, "integers"), (f"{VARIANCE}: expected a floating-point type, found int32",)),
    Case("NaN", partial(checkpoint, "nan"),
         (f"{KERNEL}: expected finite values, found 1 of 529984 not finite", "nan"), DATA),
    Case("infinite", partial(checkpoint, "infinite"),
         (f"{VARIANCE}: expected finite values, found 1 of 728", "-inf"), DATA),
    Case("too large for float32", partial(checkpoint, "overflow"),
         (f"{KERNEL}: expected finite values, found 1 of", "inf"), DATA),
    Case("truncated .keras", truncated_keras, ("half.keras: corrupt", "Fetch or copy the file again"), KERAS),
    Case("truncated .h5", truncated_h5,
         ("half.h5: corrupt: size: expected 183483644 bytes, found 91741822", "fetch it again"), KERAS),
    Case("another network's .h5", another_network,
         ("small.h5: mismatch", "block1_conv1/kernel", "No network fits"), KERAS),
    Case("not weights at all", text_file, ("weights.h5: unsupported", "<html>"), KERAS),
    Case("a seed that is none", lambda *_: Path("synthetic:many"), ("synthetic:many", "whole number", "synthetic:7")),
    Case("no shadows", partial(checkpoint, "golden41"),
         ("--ema", "no ExponentialMovingAverage", "Leave --ema out"), ("--arch", "xception41", "--ema")),
]  # fmt: skip


def failed(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run the command in this process; its one error message."""
    assert main(arguments) == 1
    streams = capfd.readouterr()
    assert streams.out == ""
    return one_error(streams.err)


def one_error(text: str) -> str:
    assert text.startswith("error: ") and text.count("error:") == 1, text
    assert "Traceback" not in text and "Warning" not in text
    return text


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this process go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_source(
    materials: Materials, tmp_path: Path, scratch: Path, capfd: pytest.CaptureFixture[str], case: Case
) -> None:
    folder, out = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    source = case.broken(materials, folder)
    message = failed(capfd, ["--src", str(source), "--out", str(out), *case.arguments])
    for text in case.says:
        assert text in message
    assert not out.exists() or list(out.iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_a_whole_source_passes_the_same_table(materials: Materials, tmp_path: Path, scratch: Path) -> None:
    """What is broken above is a source that ports: the errors come from the breaking alone."""
    folder = tmp_path / "source"
    folder.mkdir()
    for source, arch in ((copied(materials, folder), "xception41"), (materials.keras, "xception")):
        assert main(["--src", str(source), "--arch", arch, "--out", str(tmp_path / "out"), "--no-verify"]) == 0
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, ("missing", "labels cannot be read")),
        (b"one\ntwo\n", ("mismatch", "expected 1000 labels, found 2", "one label for each class")),
        (b"[1, 2, 3]", ("corrupt", "not a list of labels")),
        (b'["one", ', ("corrupt", "not a list of labels")),
        (b'{"1": "one", "2": "two"}', ("corrupt", "not a list of labels")),
        (b"\xff\xfe\x00garbage", ("corrupt", "not UTF-8")),
    ],
    ids=["missing", "count", "numbers", "broken JSON", "gaps", "garbage"],
)
def test_broken_labels(
    materials: Materials,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    content: bytes | None,
    says: tuple[str, ...],
) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "out"
    if content is not None:
        labels.write_bytes(content)
    source = str(materials.prefix("golden41"))
    message = failed(capfd, ["--src", source, "--arch", "xception41", "--out", str(out), "--labels", str(labels)])
    assert all(text in message for text in ("labels.txt", *says))
    assert not out.exists()
