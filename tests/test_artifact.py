"""State dicts on disk: digests anyone can recompute, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from porting import artifact
from porting.errors import ErrorKind, PortingError


def state() -> dict[str, Tensor]:
    return {
        "fc.weight": torch.tensor([[1.5, -2.0, 3.25], [0.0, -0.0, 1e-30]]),
        "bn.num_batches_tracked": torch.tensor(7),
        "bn.weight": torch.tensor([1.0, 2.0], dtype=torch.float16),
    }


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def published(folder: Path, tensors: dict[str, Tensor], prefix: str = "net") -> Path:
    """As a port emits a state dict: nothing is renamed where the same file is there already."""
    with artifact.temporary_file(folder) as file:
        artifact.write_state(file, tensors)
        path, there = artifact.final_path(folder, prefix, artifact.file_digest(Path(file.name)))
        artifact.publish({} if there else {path: file})
    return path


def published_json(path: Path, value: dict[str, Any]) -> None:
    with artifact.temporary_file(path.parent) as file:
        artifact.write_json(file, value)
        artifact.publish({path: file})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_content_digest_by_hand() -> None:
    """sha256 over sorted (name, dtype, shape, little-endian bytes), without torch's help."""
    total = hashlib.sha256()
    total.update(b"bn.num_batches_tracked\0int64\0[]\0" + struct.pack("<q", 7))
    total.update(b"bn.weight\0float16\0[2]\0" + struct.pack("<2e", 1.0, 2.0))
    total.update(b"fc.weight\0float32\0[2, 3]\0" + struct.pack("<6f", 1.5, -2.0, 3.25, 0.0, -0.0, 1e-30))
    assert artifact.content_digest(state()) == total.hexdigest()


def test_the_content_digest_does_not_depend_on_order_or_memory() -> None:
    digest = artifact.content_digest(state())
    assert artifact.content_digest(dict(reversed(state().items()))) == digest
    spread = state()
    spread["fc.weight"] = spread["fc.weight"].t().contiguous().t()
    assert not spread["fc.weight"].is_contiguous()
    assert artifact.content_digest(spread) == digest


@pytest.mark.parametrize(
    "change",
    [
        {"fc.weight": torch.tensor([[1.5, -2.0, 3.25], [0.0, 0.0, 1e-30]])},  # the sign of a zero
        {"fc.weight": torch.tensor([[1.5, -2.0], [3.25, 0.0], [-0.0, 1e-30]])},  # the same bytes in another shape
        {"bn.weight": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)},
        {"bn.num_batches_tracked": torch.tensor([7])},
        {"more": torch.zeros(0)},
    ],
)
def test_the_content_digest_sees_every_change(change: dict[str, Tensor]) -> None:
    assert artifact.content_digest(state() | change) != artifact.content_digest(state())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 17])
def test_the_file_digest_is_sha256sum(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    assert artifact.file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_published_reads_back_under_its_digests_name(tmp_path: Path) -> None:
    path = published(tmp_path, state())
    assert path.name == f"net-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    back = artifact.read_state(path)
    assert list(back) == list(state())
    assert artifact.content_digest(back) == artifact.content_digest(state())
    assert names(tmp_path) == [path.name]


def test_the_bytes_do_not_depend_on_the_name(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    assert published(tmp_path / "one", state()).name == published(tmp_path / "other", state()).name


def test_an_identical_file_is_not_rewritten(tmp_path: Path) -> None:
    before = published(tmp_path, state()).stat()
    after = published(tmp_path, state()).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(names(tmp_path)) == 1


def test_other_weights_get_another_name(tmp_path: Path) -> None:
    assert published(tmp_path, state()) != published(tmp_path, state() | {"more": torch.ones(1)})
    assert len(names(tmp_path)) == 2


def test_a_damaged_file_under_the_name_is_replaced(tmp_path: Path) -> None:
    path = published(tmp_path, state())
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert published(tmp_path, state()) == path
    assert path.read_bytes() == whole
    assert names(tmp_path) == [path.name]


def test_another_file_with_the_same_digits_is_kept(tmp_path: Path) -> None:
    content = b"somebody else's"
    digits = hashlib.sha256(content).hexdigest()[:8]
    (tmp_path / f"net-{digits}.pth").write_bytes(content)
    with pytest.raises(PortingError) as raised:
        artifact.final_path(tmp_path, "net", digits + "0" * 56)  # as a collision would have it
    assert raised.value.kind is ErrorKind.OUTPUT
    assert "another file has these digits" in str(raised.value)
    assert artifact.final_path(tmp_path, "other", digits + "0" * 56) == (tmp_path / f"other-{digits}.pth", False)


def test_a_manifest_and_its_weights_are_named_in_their_order(tmp_path: Path) -> None:
    with artifact.temporary_file(tmp_path) as weights, artifact.temporary_file(tmp_path) as manifest:
        artifact.write_state(weights, state())
        artifact.write_json(manifest, {"a": 1})
        assert not [name for name in names(tmp_path) if name.endswith((".pth", ".json"))]
        artifact.publish({tmp_path / "net.pth": weights, tmp_path / "net.json": manifest})
        assert names(tmp_path) == ["net.json", "net.pth"]
    assert names(tmp_path) == ["net.json", "net.pth"]


@pytest.mark.usefixtures("umask")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    path = published(tmp_path, state())
    published_json(tmp_path / "m.json", {"a": 1})
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, tmp_path / "m.json")] == [0o640, 0o640]


def test_the_umask_is_left_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        published(tmp_path, state())
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [PortingError(ErrorKind.PARITY, "f", ["x"]), KeyboardInterrupt(), ValueError("x")])
def test_a_temporary_file_is_gone_after_any_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), artifact.temporary_file(tmp_path) as file:
        artifact.write_state(file, state())
        assert names(tmp_path) == [Path(file.name).name]
        assert not file.name.endswith(".pth")
        raise error
    assert names(tmp_path) == []


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(PortingError, match="No space left") as raised:
        published(tmp_path, state())
    assert raised.value.kind is ErrorKind.OUTPUT
    assert "Free some space" in raised.value.remedy
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_a_failed_write_inside_torch_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(PortingError, match="unexpected pos") as raised:
        published(tmp_path, state())
    assert raised.value.kind is ErrorKind.OUTPUT
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EDQUOT, "quota")], ids=["Ctrl-C", "quota"])
def test_ctrl_c_inside_torch_is_ctrl_c(tmp_path: Path, error: BaseException) -> None:
    """torch makes a RuntimeError of whatever one of its writes raises."""

    class Interrupted:
        name, written = str(tmp_path / "file"), 0

        def write(self, data: Any) -> int:
            self.written += 1
            if self.written == 3:
                raise error
            return len(data)

    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else PortingError
    with pytest.raises(expected):
        artifact.write_state(Interrupted(), state())  # type: ignore[arg-type]


def test_a_failed_json_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    published_json(path, {"version": 1})
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(PortingError):
        published_json(path, {"version": 2})
    monkeypatch.undo()
    assert json.loads(path.read_bytes()) == {"version": 1}
    assert names(tmp_path) == ["m.json"]


def test_json_is_utf8_and_ends_with_a_newline(tmp_path: Path) -> None:
    published_json(tmp_path / "m.json", {"labels": ["Weißkopfseeadler"]})
    assert (tmp_path / "m.json").read_bytes().endswith('Weißkopfseeadler"\n  ]\n}\n'.encode())


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_is_created_and_left_empty(tmp_path: Path) -> None:
    artifact.prepare_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []
    artifact.prepare_folder(tmp_path / "a" / "b")


def test_a_file_in_the_folders_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(PortingError) as raised:
            artifact.prepare_folder(folder)
        assert raised.value.kind is ErrorKind.OUTPUT
        assert "--out" in raised.value.remedy


def test_a_folder_that_nothing_can_be_made_in_is_an_output_error() -> None:
    with pytest.raises(PortingError) as raised:  # procfs refuses new files even to root
        artifact.prepare_folder(Path("/proc/self"))
    assert raised.value.kind is ErrorKind.OUTPUT


# --- reading ----------------------------------------------------------------------------------------------------------


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.flag),)


def test_code_in_a_state_dict_is_refused(tmp_path: Path) -> None:
    flag, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"fc.weight": Payload(flag)}, path)
    with pytest.raises(pickle.UnpicklingError):
        artifact.read_state(path)
    assert not flag.exists()
    torch.load(path, weights_only=False)  # negative control: it would have run
    assert flag.exists()


def test_one_writer_waits_for_the_other(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from porting.artifact import one_writer\n"
        "with one_writer(Path(sys.argv[1])):\n    print('in', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "in\n"
    second = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert select.select([second.stdout], [], [], 0.5)[0] == []  # it waits
    first.kill()  # a process that dies holds nothing
    first.communicate()
    assert second.stdout.readline() == "in\n"
    second.communicate("\n")
    assert second.returncode == 0
    assert list(tmp_path.iterdir()) == []
