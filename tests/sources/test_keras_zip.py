"""`.keras` files: read in place where Keras stores them plainly, checked by the zip's checksums, never executed."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from porting.errors import PortingError
from porting.sources import open_source
from porting.sources.archive import open_zip
from porting.sources.zip_directory import read_directory
from tests.sources.keras_files import CONFIG, keras_zip, weights_h5

AGAIN = "Fetch or copy the file again."
DISTRUST = "Do not trust this archive; fetch it from its publisher."


def weights() -> bytes:
    content = io.BytesIO()
    weights_h5(content)
    return content.getvalue()


def members(**changes: bytes | None) -> list[tuple[str, bytes]]:
    plain = {"metadata.json": b"{}", "config.json": json.dumps(CONFIG).encode(), "model.weights.h5": weights()}
    return [(name, content) for name, content in {**plain, **changes}.items() if content is not None]


@pytest.mark.parametrize("method", (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
def test_both_ways_to_hold_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    path = tmp_path / "a.keras"
    keras_zip(path, method=method)
    with open_source(path) as source:
        assert source.container == "keras-zip" and source.model_config == CONFIG
        assert source.read("layers/dense/vars/1").tolist() == [19.0, 20.0]
        assert source.files() == (path,)
        assert list(scratch.iterdir()) == []  # not even while it is open


def test_extension_does_not_matter(tmp_path: Path) -> None:
    keras_zip(tmp_path / "weights.bin")
    with open_source(tmp_path / "weights.bin") as source:
        assert source.container == "keras-zip"


def test_nothing_in_the_configuration_is_run(tmp_path: Path) -> None:
    """A Lambda layer holds marshalled code, a custom object names a module; both are only data here."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    layers = [
        {"class_name": "Lambda", "module": "keras.layers", "config": {"function": ["4wEAAAAAAAAA", None, None]}},
        {"class_name": "Evil", "module": "evil_module", "registered_name": "evil_module>Evil", "config": {}},
    ]
    config = {**CONFIG, "config": {"layers": layers}}
    keras_zip(tmp_path / "a.keras", members(**{"config.json": json.dumps(config).encode()}))
    with open_zip(tmp_path / "a.keras") as source:
        assert source.model_config == config


def rewritten(path: Path, edit: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)


def flip_weights(content: bytearray) -> None:
    content[content.find(np.float32([19, 20]).tobytes()) + 2] ^= 1


def flip_deflated(content: bytearray) -> None:
    content[content.find(b"model.weights.h5") + 200] ^= 1


def directory(offset: int, value: bytes, name: bytes = b"model.weights.h5") -> Callable[[bytearray], None]:
    """Overwrite a field of the directory entry (APPNOTE 4.3.12: the name is at 46)."""

    def edit(content: bytearray) -> None:
        start = content.rfind(name) - 46
        assert content[start : start + 4] == b"PK\1\2"
        content[start + offset : start + offset + len(value)] = value

    return edit


def test_a_flipped_bit_in_the_weights(tmp_path: Path) -> None:
    """HDF5 has no checksums; the zip does, so the first read finds it, whichever tensor it is."""
    path = tmp_path / "a.keras"
    keras_zip(path)
    rewritten(path, flip_weights)
    with open_zip(path) as source:
        assert "layers/conv2d/vars/0" in source.specs
        for _ in range(2):
            with pytest.raises(
                PortingError, match=r"a\.keras: corrupt: HDF5 member: expected crc32 \w{8}, found crc32"
            ):
                source.read("layers/conv2d/vars/0")


def test_a_flipped_bit_where_the_weights_are_deflated(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    keras_zip(path, method=zipfile.ZIP_DEFLATED)
    rewritten(path, flip_deflated)
    with pytest.raises(PortingError, match=r"a\.keras: corrupt: model\.weights\.h5: "):
        open_zip(path)


BROKEN: dict[str, tuple[list[tuple[str, bytes]], Callable[[bytearray], None] | None, str]] = {
    "cut short": (
        members(),
        lambda c: c.__delitem__(slice(len(c) - 300, None)),
        "corrupt: zip: File is not a zip file",
    ),
    "no weights": (members(**{"model.weights.h5": None}), None, "corrupt: model.weights.h5: no such member"),
    "in shards": (
        members(**{"model.weights.h5": None, "model.weights.json": b"{}"}),
        None,
        "unsupported: model.weights.json: weights in shards\nSave the model again with model.save('x.keras').",
    ),
    "as npz": (
        members(**{"model.weights.h5": None, "model.weights.npz": b""}),
        None,
        "unsupported: model.weights.npz: weights as .npz\nSave the model again with model.save('x.keras').",
    ),
    "no JSON": (
        members(**{"config.json": b"\xff\xfe\xfd"}),
        None,
        "corrupt: config.json: text that is not UTF-8",
    ),
    "not an object": (
        members(**{"config.json": b"3"}),
        None,
        "corrupt: config.json: expected a JSON object, found int",
    ),
    "deep": (members(**{"config.json": b"[" * 300_000}), None, "corrupt: config.json: JSON nested too deeply"),
    "not HDF5": (
        members(**{"model.weights.h5": b"words" * 20}),
        None,
        "corrupt: signature: expected 89 48 44 46 0d 0a 1a 0a, found 77 6f 72 64 73 77 6f 72",
    ),
    "two of a name": (
        [*members(), ("model.weights.h5", weights())],
        None,
        f"corrupt: model.weights.h5: two members of this name\n{DISTRUST}",
    ),
    "absolute": (
        [*members(), ("/etc/passwd", b"")],
        None,
        f"corrupt: '/etc/passwd': not a plain relative name\n{DISTRUST}",
    ),
    "upwards": (
        [*members(), ("a/../../b", b"")],
        None,
        f"corrupt: 'a/../../b': a name that leads out of the archive\n{DISTRUST}",
    ),
    "drive": (
        [*members(), ("C:/b", b"")],
        None,
        f"corrupt: 'C:/b': a name that leads out of the archive\n{DISTRUST}",
    ),
    "backslash": (
        [*members(), ("a\\..\\b", b"")],
        None,
        f"corrupt: 'a\\\\..\\\\b': not a plain relative name\n{DISTRUST}",
    ),
    "encrypted": (members(), directory(8, b"\1\0"), "unsupported: model.weights.h5: an encrypted member"),
    "bzip2": (
        members(),
        directory(10, b"\x0c\0"),
        "unsupported: model.weights.h5: compression method 12; stored and deflated are read",
    ),
    "link": (
        members(),
        directory(38, struct.pack("<L", 0o120777 << 16)),
        "unsupported: model.weights.h5: a link or a device; only plain files are read",
    ),
    "two sizes": (
        members(),
        directory(24, struct.pack("<L", 77)),
        f"corrupt: model.weights.h5: expected 77 bytes, found {len(weights())} bytes stored",
    ),
    "past the end": (
        members(),
        directory(20, struct.pack("<LL", 1 << 30, 1 << 30)),
        "corrupt: model.weights.h5: expected a place in ",
    ),
    "another header": (
        members(),
        directory(42, struct.pack("<L", 0)),
        "corrupt: model.weights.h5: a header that contradicts the directory",
    ),
    "a bomb": (
        members(),
        directory(24, struct.pack("<L", 1 << 31), b"config.json"),
        f"corrupt: config.json: expected at most 200 to 1, found {len(json.dumps(CONFIG))} bytes that unpack to "
        f"2147483648\n{DISTRUST}",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_zip_says_so(tmp_path: Path, case: str) -> None:
    content, edit, text = BROKEN[case]
    path = tmp_path / "a.keras"
    with pytest.warns(UserWarning) if case == "two of a name" else nullcontext():
        keras_zip(path, content)
    if edit:
        rewritten(path, edit)
    with pytest.raises(PortingError) as caught:
        open_zip(path)
    found = str(caught.value)
    if text.startswith("corrupt") and "\n" not in text:
        found = found.removesuffix(f"\n{AGAIN}")
    if case == "past the end":
        assert found.startswith(f"{path}: {text}")
    else:
        assert found == f"{path}: {text}"


def test_overlapping_members(tmp_path: Path) -> None:
    """The directory points two entries at one header of the same name length, as zip bombs do."""
    path = tmp_path / "a.zip"
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("b", b"x" * 100)
    keras_zip(path, [("a", inner.getvalue()), ("b", b"x" * 100)])
    assert len(read_directory(path)) == 2
    nested = path.read_bytes().find(b"PK\3\4", 10)
    rewritten(path, directory(42, struct.pack("<L", nested), b"b"))
    with pytest.raises(PortingError, match="corrupt: b: expected bytes of its own, found the same bytes as a"):
        read_directory(path)


def test_more_bytes_than_declared(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    keras_zip(path, method=zipfile.ZIP_DEFLATED)
    rewritten(path, directory(24, struct.pack("<L", 5000)))
    with pytest.raises(PortingError, match="expected 5000 bytes, found more than 5000 bytes"):
        open_zip(path)
    rewritten(path, directory(24, struct.pack("<L", 50000)))
    with pytest.raises(
        PortingError, match=f"corrupt: model.weights.h5: expected 50000 bytes, found {len(weights())} byt"
    ):
        open_zip(path)
