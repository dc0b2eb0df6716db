"""Archives that reach outside, grow without end, or are broken, each with the text it must produce."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from porting.sources import archive_members, tar_stream, zip_directory
from tests.sources.archives.archive_files import AGAIN, DISTRUST, Files, refusal, write_tar, write_zip


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
