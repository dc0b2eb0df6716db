"""Broken and hostile HDF5 files, each with the exact text it must produce."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from porting.errors import PortingError
from porting.sources.hdf5_process import Hdf5Process
from porting.sources.keras_h5 import open_h5
from tests.sources.hdf5_edits import (
    attribute,
    big_chunks,
    compound,
    cycle,
    deep,
    external,
    keras3,
    link,
    low,
    moved,
    named_type,
    odd_float,
    other_place,
    plain,
    renamed,
    second_name,
    shapeless,
    sparse_chunks,
    twice,
    unwritten,
    virtual,
    without,
)
from tests.sources.keras_files import legacy_h5

AGAIN = "Fetch or copy the file again."


@pytest.fixture(scope="module")
def process() -> Iterator[Hdf5Process]:
    one = Hdf5Process()
    yield one
    one.close()


KERAS = "Save it with model.save('x.keras') or model.save_weights('x.weights.h5')."
BROKEN = {
    "empty": (b"", f"corrupt: superblock: expected at least 48 bytes, found 0 bytes\n{AGAIN}"),
    "a few bytes": (plain()[:20], f"corrupt: superblock: expected at least 48 bytes, found 20 bytes\n{AGAIN}"),
    "cut in half": (
        plain()[: len(plain()) // 2],
        f"corrupt: size: expected {len(plain())} bytes, found {len(plain()) // 2} bytes\n"
        "The file is cut short: fetch it again.",
    ),
    "not HDF5": (
        b"x" * 100,
        "corrupt: signature: expected 89 48 44 46 0d 0a 1a 0a, found 78 78 78 78 78 78 78 78\n" + AGAIN,
    ),
    "a later version": (plain()[:8] + b"\7" + plain()[9:], "unsupported: superblock: version 7; 0 to 3 are read"),
    "narrow offsets": (
        plain()[:13] + b"\4" + plain()[14:],
        "unsupported: superblock: offsets and lengths of 4 and 8 bytes; 8 are read",
    ),
    "external storage": (
        keras3(external),
        "unsupported: layers/x/vars/0: external storage (its bytes lie in another file)",
    ),
    "virtual": (
        keras3(virtual),
        "unsupported: layers/x/vars/0: a virtual dataset (its bytes lie in other datasets)",
    ),
    "soft link": (
        keras3(link(h5py.SoftLink("/layers"))),
        "unsupported: layers/conv2d/linked: a soft link; Keras writes none",
    ),
    "external link": (
        keras3(link(h5py.ExternalLink("/etc/passwd", "/"))),
        "unsupported: layers/conv2d/linked: an external link (it leads to another file)",
    ),
    "cycle": (keras3(cycle), f"corrupt: layers/conv2d/again: the same object as layers\n{AGAIN}"),
    "second name": (
        keras3(second_name),
        f"corrupt: layers/conv2d/vars/1: the same object as layers/conv2d/vars/0\n{AGAIN}",
    ),
    "deep": (keras3(deep), f"unsupported: {'/'.join(['g'] * 65)}: groups nested more than 64 deep"),
    "never written": (
        keras3(unwritten),
        f"corrupt: layers/x/vars/0: expected 16 bytes (float32 [4]), found 0 bytes stored\n{AGAIN}",
    ),
    "chunks never written": (
        keras3(sparse_chunks),
        "corrupt: layers/x/vars/0: expected no more than 1100 to 1, found 0 bytes stored for 4194304\n" + AGAIN,
    ),
    "compound": (keras3(compound), "unsupported: layers/x/vars/0: HDF5 type class 6, which is no number"),
    "odd float": (
        keras3(odd_float),
        "unsupported: odd: a number type that NumPy's float64 does not hold bit for bit",
    ),
    "shapeless": (keras3(shapeless), "unsupported: layers/x/vars/0: a dataset without a shape"),
    "named type": (keras3(named_type), "unsupported: layers/kind: neither a group nor a dataset"),
    "lzf": (
        keras3(lambda file: file.create_dataset("z", data=np.zeros(64), compression="lzf")),
        "unsupported: z: filter 32000 (lzf); only gzip, shuffle and fletcher32 are read",
    ),
    "scale-offset": (
        keras3(low("z", lambda p: (p.set_chunk((64,)), p.set_scaleoffset(h5py.h5z.SO_INT, 4)))),
        "unsupported: z: filter 6 (scaleoffset); only gzip, shuffle and fletcher32 are read",
    ),
    "big chunks": (
        keras3(big_chunks),
        "unsupported: layers/x/vars/0: chunks of 268435456 bytes; at most 67108864 are read",
    ),
    "not Keras": (
        keras3(renamed),
        f"unsupported: HDF5: neither layer_names nor vars groups, so not Keras weights\n{KERAS}",
    ),
    "configuration is no JSON": (
        plain(attribute("model_config", "{")),
        "corrupt: model_config: not JSON (Expecting property name enclosed in double quotes: "
        f"line 1 column 2 (char 1))\n{AGAIN}",
    ),
    "configuration is a list": (
        plain(attribute("model_config", "[]")),
        f"corrupt: model_config: expected a JSON object, found list\n{AGAIN}",
    ),
    "configuration nests": (
        plain(attribute("model_config", "[" * 60000)),
        f"corrupt: model_config: JSON nested too deeply\n{AGAIN}",
    ),
    "configuration is a number": (
        plain(attribute("model_config", 5)),
        f"corrupt: /: attribute model_config: neither a string nor a list of strings\n{AGAIN}",
    ),
    "name is no text": (
        plain(attribute("weight_names", np.array([b"\xff\xfe"]), "one")),
        f"corrupt: one: attribute weight_names: text that is not UTF-8\n{AGAIN}",
    ),
    "two of a name": (plain(twice), f"corrupt: one/one/kernel: two datasets of this name\n{AGAIN}"),
    "a weight is missing": (
        plain(without("two/two/bias:0")),
        f"corrupt: two/two/bias:0: expected one, as weight_names lists it, found no dataset\n{AGAIN}",
    ),
    "a layer is missing": (
        plain(without("two")),
        f"corrupt: two: expected one, as layer_names lists it, found no group with weight_names\n{AGAIN}",
    ),
    "a weight listed twice": (
        plain(attribute("weight_names", np.array([b"one/kernel:0", b"one/kernel:0"]), "one")),
        f"corrupt: one/one/kernel:0: named twice in weight_names or layer_names\n{AGAIN}",
    ),
    "another's bytes": (
        other_place(),
        "corrupt: layers/conv2d/vars/0: expected bytes of its own, found the same bytes as layers/dense/vars/0\n"
        + AGAIN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_says_so(tmp_path: Path, process: Hdf5Process, case: str) -> None:
    content, text = BROKEN[case]
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with pytest.raises(PortingError) as caught:
        open_h5(path, process)
    assert str(caught.value) == f"{path}: {text}"


def test_the_unbroken_files_open(tmp_path: Path, process: Hdf5Process) -> None:
    for content in (plain(), keras3()):
        (tmp_path / "a.h5").write_bytes(content)
        with open_h5(tmp_path / "a.h5", process) as source:
            assert [source.read(name).size for name in source.specs]


@pytest.mark.parametrize(("offset", "size"), ((2048, 32), (2048, 2**63 - 1), (1 << 40, 36), (2**64 - 40, 36)))
def test_a_place_that_cannot_be(tmp_path: Path, process: Hdf5Process, offset: int, size: int) -> None:
    """HDF5 finds some of these itself, in words that depend on its version."""
    path = tmp_path / "a.h5"
    path.write_bytes(moved(offset, size))
    with pytest.raises(PortingError, match=r"corrupt: (HDF5 cannot read it: |layers/conv2d/vars/0: expected )"):
        open_h5(path, process)


def test_damaged_compressed_data(tmp_path: Path, process: Hdf5Process) -> None:
    content = io.BytesIO()
    value = np.random.default_rng(0).normal(size=2000)
    legacy_h5(content, {"a": {"w": value}}, compression="gzip", fletcher32=True)
    with h5py.File(content) as file:
        at = file["a/w"].id.get_chunk_info(0).byte_offset
    broken = bytearray(content.getvalue())
    broken[at + 100] ^= 1
    path = tmp_path / "a.h5"
    path.write_bytes(broken)
    with open_h5(path, process) as source, pytest.raises(PortingError) as caught:
        source.read("a/w")
    assert str(caught.value).startswith(f"{path}: corrupt: a/w: HDF5 cannot read it: ")


def test_a_tensor_that_takes_too_much_memory(tmp_path: Path, process: Hdf5Process) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("vars/0", (1, 48 << 20), "float32", chunks=(1, 4 << 20), compression="gzip")
        for start in range(0, 48 << 20, 4 << 20):  # 192 MiB in one row
            dataset[0, start : start + (4 << 20)] = 0
    assert path.stat().st_size < 1 << 20
    with open_h5(path, process) as source, pytest.raises(PortingError) as caught:
        source.read("vars/0")
    assert str(caught.value) == (f"{path}: unsupported: vars/0: HDF5 needs more than 167772160 bytes of memory for it")
