"""Small valid Keras files and archives, and mutations that reach past their outer checks."""

from __future__ import annotations

import atexit
import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from random import Random

import h5py
import numpy as np

from porting.sources.archive import open_tar, open_zip
from porting.sources.base import TensorSource
from porting.sources.hdf5_process import Hdf5Process
from porting.sources.keras_h5 import open_h5
from tests.sources import wire
from tests.sources.fuzzing import Files, Reader, mutate_bytes
from tests.sources.keras_files import CONFIG, keras_zip, legacy_h5, weights_h5

# One child for many files; a new one now and then, because what HDF5 leaks on broken files is never given back.
_FILES_A_CHILD = 500
_VALUES = (0, 1, 2, 8, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


class _Child:
    def __init__(self) -> None:
        self._process = Hdf5Process()
        self._left = _FILES_A_CHILD
        atexit.register(self._process.close)

    def __call__(self) -> Hdf5Process:
        self._left -= 1
        if not self._left:
            self._process.close()
            self._left = _FILES_A_CHILD
        return self._process


_child = _Child()


def _hdf5(folder: Path) -> list[Path]:
    paths = [folder / name / "a.h5" for name in ("legacy", "gzip", "counted", "late")]
    for path in paths:
        path.parent.mkdir(parents=True)
    layers = {"one": {"one/kernel:0": np.arange(6, dtype="float32"), "one/bias:0": np.ones(3, ">f4")}, "two": {}}

    def configured(file: h5py.File) -> None:
        file.attrs["model_config"] = json.dumps(CONFIG)

    legacy_h5(paths[0], layers, "model_weights", edit=configured)
    legacy_h5(paths[1], {"l": {"w": np.arange(99.0)}}, compression="gzip", shuffle=True, fletcher32=True)
    weights_h5(paths[2])
    with h5py.File(paths[3], "w", libver="latest") as file:  # superblock 3, version 2 headers, checksums
        file["layers/dense/vars/0"] = np.arange(6, dtype="float32").reshape(2, 3)
        file.create_dataset("layers/dense/vars/1", data=np.arange(64, dtype="int16"), chunks=(16,), compression="gzip")
    return paths


def _blocks(data: bytearray) -> list[int]:
    """Where HDF5's structures begin, by their signatures, and the offset after each object header's message."""
    found = []
    for sign in (b"TREE", b"HEAP", b"SNOD", b"GCOL", b"OHDR", b"FRHP", b"FHDB", b"BTHD", b"BTLF", b"FADB", b"\x89HDF"):
        at = data.find(sign)
        while at >= 0:
            found.append(at)
            at = data.find(sign, at + 1)
    # Version 1 object headers have no signature: version 1, reserved 0, then a plausible count, references and size.
    found += [
        at
        for at in range(0, len(data) - 16, 8)
        if data[at : at + 2] == b"\1\0" and data[at + 4 : at + 8] == b"\1\0\0\0"
    ]
    return sorted(found)


def _mutate_hdf5(files: Files, random: Random) -> Files:
    """Numbers and addresses within one structure; plain mutations mostly hit the values, which nothing can check."""
    data = bytearray(files["a.h5"])
    blocks = _blocks(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        start = random.choice(blocks)
        at = start + 4 * random.randrange(1, 24)
        width = random.choice((1, 2, 4, 8, 8))
        kind = random.randrange(4)
        if kind == 0:
            value = random.choice(_VALUES)
        elif kind == 1:
            value = random.choice(blocks)  # an address of something else: cycles, wrong types
        elif kind == 2:
            value = int.from_bytes(data[at : at + width], "little") + random.choice((-8, -1, 1, 8, 64))
        else:
            other = random.choice(blocks)
            data[start : start + 48] = data[other : other + 48]
            continue
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return {"a.h5": bytes(data)}


def _zips(folder: Path) -> list[Path]:
    stored, deflated, bundle, one = (folder / name / "a.zip" for name in ("stored", "deflated", "bundle", "one"))
    for path in (stored, deflated, bundle, one):
        path.parent.mkdir(parents=True)
    keras_zip(stored)
    keras_zip(deflated, method=zipfile.ZIP_DEFLATED)
    content = io.BytesIO()
    weights_h5(content)
    keras_zip(one, [("folder/a.h5", content.getvalue()), ("README.txt", b"words")])
    keras_zip(bundle, [(f"m/{n}", c) for n, c in _bundle(folder / "parts")], zipfile.ZIP_DEFLATED)
    return [stored, deflated, bundle, one]


def _bundle(folder: Path) -> list[tuple[str, bytes]]:
    wire.small_bundle({"w": np.arange(24, dtype="float32")}).write(folder / "model.ckpt")
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def _mutate_zip(files: Files, random: Random) -> Files:
    """Fields of the directory, of a local header or of the end record; or a member's content under a right checksum."""
    data = bytearray(files["a.zip"])
    if random.random() < 0.4:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
        victim = random.randrange(len(members))
        out = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
            warnings.simplefilter("ignore")  # two members of one name are meant
            for index, (info, content) in enumerate(members):
                name = info.filename
                if index == victim and random.random() < 0.7:
                    content = mutate_bytes(content, random)
                elif index == victim:
                    name = random.choice(
                        ("../a", "/etc/x", "C:/x", "a\\b", "config.json", "model.weights.h5", "x/", "ü")
                    )
                if random.random() < 0.9:
                    archive.writestr(zipfile.ZipInfo(name), content, info.compress_type)
        return {"a.zip": out.getvalue()}
    signs = [data.find(sign, random.randrange(len(data))) for sign in (b"PK\1\2", b"PK\3\4", b"PK\5\6")]
    start = random.choice([at for at in signs if at >= 0] or [0])
    at = start + random.randrange(4, 46)
    width = random.choice((1, 2, 4, 4))
    data[at : at + width] = (random.choice(_VALUES) % (1 << 8 * width)).to_bytes(width, "little")
    return {"a.zip": bytes(data)}


def _tars(folder: Path) -> list[Path]:
    plain, gz, pax = (folder / name / "a.tar" for name in ("plain", "gz", "pax"))
    for path, mode in ((plain, "w"), (gz, "w:gz"), (pax, "w:gz")):
        path.parent.mkdir(parents=True)
        with tarfile.open(path, mode, format=tarfile.PAX_FORMAT if path == pax else tarfile.GNU_FORMAT) as archive:
            for name, content in _bundle(folder / "parts"):
                info = tarfile.TarInfo(f"./xception/{'é' * 60 if path == pax else ''}/{name}")
                info.size, info.mtime = len(content), 1_600_000_000.5 if path == pax else 1_600_000_000
                archive.addfile(info, io.BytesIO(content))
    return [plain, gz, pax]


def _mutate_tar(files: Files, random: Random) -> Files:
    """One header's fields, its checksum made right again."""
    data = files["a.tar"]
    packed = data[:2] == b"\x1f\x8b"
    out = bytearray(gzip.decompress(data) if packed else data)
    heads = [at for at in range(0, len(out), 512) if out[at + 257 : at + 262] == b"ustar"]
    at = random.choice(heads)
    field, width = random.choice(((0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (512, 512)))
    part = mutate_bytes(bytes(out[at + field : at + field + width]), random)[:width]
    if field == 124 and random.random() < 0.5:
        part = random.choice(
            (b"77777777777\0", b"\x80" + b"\xff" * 11, b"0" * 12, struct.pack(">BxxxQ", 0x80, 1 << 40))
        )
    out[at + field : at + field + len(part)] = part
    out[at + 148 : at + 156] = b" " * 8
    out[at + 148 : at + 156] = f"{sum(out[at : at + 512]):06o}\0 ".encode()
    if random.random() < 0.1:
        out = out[: random.randrange(len(out))]
    return {"a.tar": gzip.compress(bytes(out), 1) if packed else bytes(out)}


def _open_h5(path: Path) -> TensorSource:
    return open_h5(path, _child())


def _open_zip(path: Path) -> TensorSource:
    return open_zip(path, _child())


def _open_tar(path: Path) -> TensorSource:
    return open_tar(path, _child())


READERS = [
    Reader("keras-h5", _hdf5, _open_h5, _mutate_hdf5),
    Reader("zip", _zips, _open_zip, _mutate_zip),
    Reader("tar", _tars, _open_tar, _mutate_tar),
]
