"""Archives of any container: read, cleaned up after, and refused where they reach outside or grow without end."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.sources import archive_members, open_source, tar_stream, zip_directory
from porting.sources.archive import UnpackedSource, open_tar
from porting.sources.keras_h5 import KerasSource
from tests.sources import wire
from tests.sources.conftest import Written
from tests.sources.keras_files import keras_zip, weights_h5

DISTRUST = "Do not trust this archive; fetch it from its publisher."
AGAIN = "Fetch or copy the file again."
VALUES = np.arange(24, dtype="float32").reshape(4, 6)
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where archives are unpacked in a test; nothing may be left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Files:
    folder = tmp_path / "made"
    wire.small_bundle({"net/weights": VALUES}).write(folder / "model.ckpt")
    files = {f"xception/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    return {**files, "xception/checkpoint": b'model_checkpoint_path: "model.ckpt"\n'}


@pytest.fixture
def h5(tmp_path: Path) -> bytes:
    content = io.BytesIO()
    weights_h5(content)
    return content.getvalue()


def write_tar(path: Path, files: Files, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("xception")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> None:
    keras_zip(path, list(files.items()), method)


WRITERS: dict[str, Callable[[Path, Files], None]] = {
    "pax.tar": lambda path, files: write_tar(path, files),
    "gnu.tar": lambda path, files: write_tar(path, files, form=tarfile.GNU_FORMAT),
    "ustar.tar": lambda path, files: write_tar(path, files, form=tarfile.USTAR_FORMAT),
    "pax.tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "gnu.tgz": lambda path, files: write_tar(path, files, "w:gz", tarfile.GNU_FORMAT),
    "deflated.zip": write_zip,
    "stored.zip": lambda path, files: write_zip(path, files, zipfile.ZIP_STORED),
}


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


def refusal(path: Path) -> str:
    with pytest.raises(PortingError) as caught:
        open_source(path).close()
    return str(caught.value)


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


def tar_with(path: Path, edit: Callable[[tarfile.TarInfo], None], checksum: bool = True, gz: bool = True) -> None:
    info = tarfile.TarInfo("a/b")
    edit(info)
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if not checksum:
        head[0] ^= 1
    content = bytes(head) + b"\0" * 1024
    path.write_bytes(gzip.compress(content) if gz else content)


def field(**values: object) -> Callable[[tarfile.TarInfo], None]:
    def edit(info: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(info, name, value)

    return edit


TARS = {
    "absolute": (field(name="/etc/passwd"), f"corrupt: '/etc/passwd': not a plain relative name\n{DISTRUST}"),
    "upwards": (field(name="../x"), f"corrupt: '../x': a name that leads out of the archive\n{DISTRUST}"),
    "inside upwards": (
        field(name="a/../../x"),
        f"corrupt: 'a/../../x': a name that leads out of the archive\n{DISTRUST}",
    ),
    "drive": (field(name="C:/x"), f"corrupt: 'C:/x': a name that leads out of the archive\n{DISTRUST}"),
    "backslash": (field(name="a\\b"), f"corrupt: 'a\\\\b': not a plain relative name\n{DISTRUST}"),
    "control": (field(name="a\nb"), f"corrupt: 'a\\nb': not a plain relative name\n{DISTRUST}"),
    "symbolic link": (
        field(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "unsupported: a/b: a symbolic link; only plain files are read",
    ),
    "hard link": (
        field(type=tarfile.LNKTYPE, linkname="c"),
        "unsupported: a/b: a hard link; only plain files are read",
    ),
    "device": (field(type=tarfile.CHRTYPE), "unsupported: a/b: a device; only plain files are read"),
    "pipe": (field(type=tarfile.FIFOTYPE), "unsupported: a/b: a named pipe; only plain files are read"),
    "sparse": (field(type=tarfile.GNUTYPE_SPARSE), "unsupported: a/b: a tar member of type b'S'"),
    "larger than the file": (
        field(size=5000),
        f"corrupt: tar content: expected more of it, found the end at byte 1536\n{AGAIN}",
    ),
    "larger than anything": (
        field(size=1 << 60),
        f"unsupported: a/b: {1 << 60} bytes; at most {16 << 30} are read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("gz", (True, False), ids=("gz", "plain"))
@pytest.mark.parametrize("case", TARS)
def test_a_hostile_tar_says_so(tmp_path: Path, case: str, gz: bool) -> None:
    edit, text = TARS[case]
    path = tmp_path / "a.tar"
    tar_with(path, edit, gz=gz)
    assert refusal(path) == f"{path}: {text}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "scratch"]


def test_tar_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    tar_with(path, field(), checksum=False)
    assert refusal(path) == f"{path}: corrupt: tar header at byte 0: a wrong checksum\n{AGAIN}"
    path.write_bytes(gzip.compress(b"words"))
    assert refusal(path) == f"{path}: corrupt: tar header: expected more of it, found the end at byte 5\n{AGAIN}"


@pytest.mark.parametrize(
    ("record", "text"),
    (
        (b"99 path=x\n", "corrupt: pax header: a record of length b'99'"),
        (b"x path=y\n", "corrupt: pax header: a record of length b'x'"),
        (b"11 pathxyz\n", "corrupt: pax header: a record without = or newline"),
        (b"13 path=../x\n", f"corrupt: '../x': a name that leads out of the archive\n{DISTRUST}"),
        (b"10 size=x\n", "corrupt: pax header: size 'x'"),
        (b"22 GNU.sparse.major=1\n", "unsupported: pax header: a sparse file"),
        (b"11 path=\xff\xfe\n", "corrupt: b'\\xff\\xfe': a name that is not UTF-8"),
    ),
)
def test_pax_headers(tmp_path: Path, record: bytes, text: str) -> None:
    path = tmp_path / "a.tar"
    extended = tarfile.TarInfo("pax")
    extended.type, extended.size = tarfile.XHDTYPE, len(record)
    content = extended.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    path.write_bytes(content + tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT) + b"\0" * 1024)
    assert refusal(path).removesuffix(f"\n{AGAIN}") == f"{path}: {text}"


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(member * 2 + b"\0" * 1024)
    assert refusal(path) == f"{path}: corrupt: a: two members of this name\n{DISTRUST}"
    path.write_bytes(gzip.compress(member * 2 + b"\0" * 1024))
    assert refusal(path) == f"{path}: corrupt: a: a file and a folder, or two files, of one name\n{DISTRUST}"


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files = {str(number): b"" for number in range(11)}
    monkeypatch.setattr(zip_directory, "MAX_MEMBERS", 10)
    monkeypatch.setattr(tar_stream, "MAX_MEMBERS", 10)
    write_zip(path, files)
    assert refusal(path) == f"{path}: unsupported: zip: 11 members; at most 10 are read"
    write_tar(path, files)
    assert refusal(path) == f"{path}: unsupported: tar: more than 10 members"


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_zip(path, {"a": b"x", "a/b": b"y"})
    assert refusal(path) == f"{path}: corrupt: a/b: a file and a folder, or two files, of one name\n{DISTRUST}"


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb"
    zeros = {"a.h5": bytes(8 << 20)}
    write_tar(path, zeros, "w:gz")
    stored = path.stat().st_size
    assert f"{path}: corrupt: gzip: expected at most 200 to 1, found {stored} bytes that unpack to " in refusal(path)
    write_zip(path, zeros)
    assert f"{path}: corrupt: a.h5: expected at most 200 to 1, found " in refusal(path)
    monkeypatch.setattr(archive_members, "MAX_TOTAL_BYTES", 1000)
    write_zip(path, {"a": b"x" * 600, "b": os.urandom(600)})
    assert refusal(path) == f"{path}: unsupported: 1200 bytes unpacked; at most 1000 are read"


@pytest.mark.parametrize("cut", (0.1, 0.5, 0.9, 0.999))
def test_a_cut_archive(tmp_path: Path, checkpoint: Files, cut: float) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, {**checkpoint, "noise": np.random.default_rng(0).bytes(100_000)}, "w:gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    assert refusal(path) == (
        f"{path}: corrupt: gzip: Compressed file ended before the end-of-stream marker was reached\n{AGAIN}"
    )


def test_a_flipped_bit_in_gzip(tmp_path: Path, checkpoint: Files) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, {**checkpoint, "noise": np.random.default_rng(0).bytes(100_000)}, "w:gz")
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: corrupt: gzip: CRC check failed")


def test_a_full_disk(tmp_path: Path, checkpoint: Files, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, checkpoint, "w:gz")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(PortingError) as caught:
            open_tar(path)
    assert caught.value.kind is ErrorKind.OUTPUT
    assert f"it cannot be unpacked in {scratch}: No space left on device\nFree some space" in str(caught.value)


STAYING = """
import os, signal, sys, tempfile
from porting.sources import open_source
tempfile.tempdir = sys.argv[2]
source = open_source(sys.argv[1])
assert os.listdir(sys.argv[2])
print("open", flush=True)
HOW
"""
ENDS = {
    "at exit": "",
    "by an error": "raise RuntimeError",
    "by SystemExit": "sys.exit(3)",
    "by SIGTERM": "signal.pause()",
    "by SIGINT": "signal.pause()",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_folder_goes_with_the_process(tmp_path: Path, checkpoint: Files, end: str) -> None:
    path, folder = tmp_path / "a.tar.gz", tmp_path / "mine"
    folder.mkdir()
    write_tar(path, checkpoint, "w:gz")
    child = subprocess.Popen(
        [sys.executable, "-c", STAYING.replace("HOW", ENDS[end]), path, folder],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    if "SIG" in end:
        time.sleep(0.1)
        child.send_signal(getattr(signal, end.removeprefix("by ")))
    code = child.wait(30)
    child.stdout.close()
    assert list(folder.iterdir()) == []
    assert code == {"at exit": 0, "by SystemExit": 3, "by SIGTERM": 143}.get(end, code)


def test_a_program_keeps_its_own_sigterm(tmp_path: Path, checkpoint: Files) -> None:
    write_tar(tmp_path / "a.tar.gz", checkpoint, "w:gz")
    before = signal.signal(signal.SIGTERM, mine := lambda *_: None)
    try:
        open_source(tmp_path / "a.tar.gz").close()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
