"""Archives of any container: what is in them, read as it is outside."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from porting.errors import PortingError
from porting.sources import open_source
from porting.sources.archive import UnpackedSource
from porting.sources.keras_h5 import KerasSource
from tests.sources import wire
from tests.sources.archives.archive_files import DISTRUST, VALUES, WRITERS, Files, refusal, write_tar, write_zip
from tests.sources.conftest import Written
from tests.sources.keras_files import keras_zip


@pytest.mark.parametrize("kind", WRITERS)
def test_a_checkpoint_in_an_archive(tmp_path: Path, scratch: Path, checkpoint: Files, kind: str) -> None:
    path = tmp_path / kind
    long = f"xception/{'long' * 50}/note.txt"  # needs pax's, GNU's or ustar's way of writing long names
    WRITERS[kind](path, {**checkpoint, ("xception/" + "n" * 90 + "/note.txt" if "ustar" in kind else long): b"words"})
    with open_source(path) as source:
        assert source.container == "tf-checkpoint-v2" and source.path == path
        assert source.read("net/weights").tolist() == VALUES.tolist()
        assert source.files() == (path,)
        source.verify_files()
        assert isinstance(source, UnpackedSource) and source.member == "xception"
        assert source.location.is_relative_to(scratch)
        assert source.location.with_name("model.ckpt.index").exists()  # a prefix, as TensorFlow wants it
    source.close()


@pytest.mark.parametrize("kind", WRITERS)
def test_keras_files_in_an_archive(tmp_path: Path, scratch: Path, h5: bytes, kind: str) -> None:
    path = tmp_path / kind
    WRITERS[kind](path, {"xception/a.h5": h5, "xception/README.md": b"words"})
    in_place = kind.endswith(".tar") or kind == "stored.zip"
    with open_source(path) as source:
        assert isinstance(source, KerasSource if in_place else UnpackedSource)
        assert list(scratch.iterdir()) == [] or not in_place
        assert source.read("layers/dense/vars/1").tolist() == [19.0, 20.0]
        assert source.object_names == {"layers/dense": "predictions"}
        assert source.location.read_bytes() == h5
        assert source.files() == (path,)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_keras_file_in_an_archive(tmp_path: Path, kind: str) -> None:
    keras_zip(tmp_path / "a.keras")
    path = tmp_path / kind
    WRITERS[kind](path, {"a.keras": (tmp_path / "a.keras").read_bytes()})
    with open_source(path) as source:
        assert source.container == "keras-zip" and source.model_config
        assert source.read("layers/dense/vars/1").tolist() == [19.0, 20.0]


def test_a_checkpoint_goes_before_the_graph_beside_it(tmp_path: Path, checkpoint: Files) -> None:
    """DeepLab's archives hold both, and what a Mac adds."""
    files = {**checkpoint, "xception/frozen_inference_graph.pb": b"\n\0", "xception/._model.ckpt.index": b"mac"}
    write_tar(tmp_path / "a.tar.gz", files, "w:gz")
    with open_source(tmp_path / "a.tar.gz") as source:
        assert source.container == "tf-checkpoint-v2"


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_inside_decides(tmp_path: Path, checkpoint: Files, h5: bytes, kind: str) -> None:
    path = tmp_path / kind
    WRITERS[kind](path, {"a.txt": b"words", "b.csv": b"1,2"})
    assert refusal(path) == f"{path}: unsupported: archive: no weights that are read here among a.txt, b.csv"
    WRITERS[kind](path, {"a.h5": h5, "b.h5": h5})
    assert refusal(path) == (f"{path}: unsupported: archive: 2 containers: a.h5, b.h5\nUnpack it and name one of them.")
    WRITERS[kind](path, {"inner.tgz": gzip.compress(b"words"), "a.txt": b""})
    assert refusal(path) == (
        f"{path}: unsupported: inner.tgz (gzip): an archive in an archive\nUnpack the outer one first."
    )
    WRITERS[kind](path, {name: content for name, content in checkpoint.items() if ".data-" not in name})
    with open_source(path) as source:
        with pytest.raises(PortingError) as caught:
            source.verify_files()
        assert str(caught.value).startswith(f"{path}: xception/model.ckpt")
        assert "scratch" not in str(caught.value)


@pytest.mark.parametrize("relative", (True, False))
def test_a_checkpoint_file_that_leads_outside(tmp_path: Path, scratch: Path, checkpoint: Files, relative: bool) -> None:
    outside = tmp_path / "made" / "other.ckpt"
    wire.small_bundle({"secret": VALUES}).write(outside)
    target = f"../../../made/{outside.name}" if relative else str(outside)
    path = tmp_path / "a.tar.gz"
    write_tar(path, {**checkpoint, "xception/checkpoint": f'model_checkpoint_path: "{target}"'.encode()}, "w:gz")
    assert refusal(path) == f"{path}: corrupt: xception: a checkpoint that lies outside the archive\n{DISTRUST}"


def test_older_checkpoints_in_archives(tmp_path: Path) -> None:
    content = wire.v1_checkpoint({"net/weights": VALUES})
    write_tar(tmp_path / "a.tar.gz", {"a/model.ckpt": content, "a/README": b"words"}, "w:gz")
    with open_source(tmp_path / "a.tar.gz") as source:
        assert source.container == "tf-checkpoint-v1"
        assert source.read("net/weights").tolist() == VALUES.tolist()
    state = b'model_checkpoint_path: "/gone/model.ckpt-2"'
    write_zip(tmp_path / "a.zip", {"model.ckpt-1": content, "model.ckpt-2": content, "checkpoint": state})
    with open_source(tmp_path / "a.zip") as source:
        assert source.read("net/weights").tolist() == VALUES.tolist()


@pytest.mark.parametrize(("kind", "packed"), (("files", "export"), ("graph", "frozen.pb"), ("graph", "v2-sharded")))
def test_what_tensorflow_wrote(
    tmp_path: Path, graph_files: Written, keras_files: Written, kind: str, packed: str
) -> None:
    """A SavedModel, a frozen graph and a sharded checkpoint: in an archive as outside it."""
    whole = (keras_files if kind == "files" else graph_files).folder / packed
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(whole, f"./{packed}")
    with open_source(tmp_path / "a.tar.gz") as source, open_source(whole) as plain:
        assert source.container == plain.container
        assert dict(source.specs) == dict(plain.specs) and len(source.specs) > 5
        numbers = [name for name, spec in plain.specs.items() if spec.dtype != "string"]
        assert all(source.read(name).tobytes() == plain.read(name).tobytes() for name in numbers)


def test_empty_archives(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_zip(path, {})
    assert refusal(path) == f"{path}: unsupported: archive: no files in it"
    write_tar(path, {})
    assert refusal(path) == f"{path}: unsupported: archive: no files in it"


def test_errors_name_the_archive_and_the_member(tmp_path: Path, checkpoint: Files) -> None:
    path = tmp_path / "a.tar.gz"
    shard = next(name for name in checkpoint if ".data-" in name)
    broken = bytearray(checkpoint[shard])
    broken[5] ^= 1
    write_tar(path, {**checkpoint, shard: bytes(broken)}, "w:gz")
    with open_source(path) as source, pytest.raises(PortingError) as caught:
        source.read("net/weights")
    assert f"{path}: xception/" in str(caught.value) and "net/weights" in str(caught.value)
    assert "scratch" not in str(caught.value)
