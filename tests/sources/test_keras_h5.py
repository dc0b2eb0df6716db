"""Keras's HDF5 formats, held to what Keras and h5py hold; h5py stands in for the Keras of long ago."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.sources import open_source
from porting.sources.keras_h5 import KerasSource, open_h5
from tests.sources.keras_files import keras1_layers, keras_writes, legacy_h5, weights_h5

KERAS = tuple(int(part) for part in version("keras").split(".")[:2])
SMALL = ("small", "nested", "trained", "half", "brain", "double")
FORMATS = {".h5": "keras-h5", ".weights.h5": "keras-weights-h5", ".keras": "keras-zip"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    keras_writes(folder)
    return folder


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_tensor_is_what_keras_holds(written: Path, name: str, suffix: str) -> None:
    path = written / f"{name}{suffix}"
    with open_source(path) as source, np.load(f"{path}.npz") as expected:
        assert source.container == FORMATS[suffix]
        others = {n for n in source.specs if n.startswith("optimizer") or "/optimizer/" in n}
        assert set(source.specs) - others == set(expected)
        assert bool(others) == (name == "trained")
        for tensor in expected:
            assert same(source.read(tensor), expected[tensor]), tensor


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("suffix", (".h5", ".weights.h5"))
def test_every_dataset_is_what_h5py_reads(written: Path, name: str, suffix: str) -> None:
    path = written / f"{name}{suffix}"
    found: dict[str, h5py.Dataset] = {}
    with h5py.File(path) as file, open_source(path) as source:
        file.visititems(lambda n, o: found.update({n: o}) if isinstance(o, h5py.Dataset) else None)
        named = {n.removeprefix("model_weights/"): o for n, o in found.items()}
        assert set(named) == set(source.specs)
        for tensor, dataset in named.items():
            spec = source.specs[tensor]
            assert spec.shape == dataset.shape
            if spec.dtype == "bfloat16":
                wide = dataset[()].view("uint16").astype("uint32") << 16
                assert source.read(tensor).tobytes() == wide.tobytes()
            else:
                assert spec.dtype == dataset.dtype.name
                assert same(source.read(tensor), dataset[()])


def test_a_real_network_whole(written: Path) -> None:
    path = written / "xception.keras"
    with open_source(path) as source, np.load(f"{path}.npz") as expected:
        assert len(source.specs) == 236
        assert set(source.specs) == set(expected)
        assert all(same(source.read(tensor), expected[tensor]) for tensor in expected)
        assert source.digest()


def test_the_half_formats_are_named(written: Path) -> None:
    for name, dtype in {"half": "float16", "brain": "bfloat16", "double": "float64"}.items():
        with open_source(written / f"{name}.h5") as source:
            assert source.specs["block1_conv1/block1_conv1/kernel"].dtype == dtype


def test_legacy_order_and_configuration(written: Path) -> None:
    with open_source(written / "nested.h5") as source:
        assert source.layer_order is not None and list(source.layer_order)[-2:] == ["tiny", "head"]
        assert next(iter(source.specs)) == "tiny/block1_conv1/kernel"
        assert list(source.specs)[-2:] == ["head/head/kernel", "head/head/bias"]
        assert source.model_config is not None and source.model_config["class_name"] == "Functional"


def test_numbers_sort_as_numbers(written: Path) -> None:
    with open_source(written / "trained.weights.h5") as source:
        slots = [n for n in source.specs if n.startswith("optimizer/")]
        assert slots == [f"optimizer/vars/{i}" for i in range(len(slots))] and len(slots) > 10


def test_layer_names_that_the_file_notes(written: Path) -> None:
    with open_source(written / "nested.weights.h5") as source:
        assert isinstance(source, KerasSource)
        if KERAS < (3, 6):
            assert source.object_names == {}
            return
        assert source.object_names["layers/functional"] == "tiny"
        assert source.object_names["layers/functional/layers/conv2d"] == "block1_conv1"
        assert source.object_names["layers/dense"] == "head"


@pytest.mark.parametrize("root", ("", "model_weights"))
def test_keras_1_names(tmp_path: Path, root: str) -> None:
    layers = keras1_layers()
    legacy_h5(tmp_path / "official.h5", layers, root)
    with open_h5(tmp_path / "official.h5") as source:
        expected = {f"{a}/{b.removesuffix(':0')}": v for a, inner in layers.items() for b, v in inner.items()}
        assert list(source.specs) == list(expected) and len(expected) == 236
        assert "batchnormalization_7/batchnormalization_7_running_std" in expected
        assert source.layer_order == tuple(layers)
        assert all(same(source.read(n), v) for n, v in expected.items())


@pytest.mark.parametrize(
    "storage",
    (
        {"chunks": True},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
    ),
)
def test_chunked_and_compressed(tmp_path: Path, storage: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    values = {"kernel": rng.normal(size=(40, 33, 7)).astype("float32"), "steps": np.arange(70, dtype=">i8")}
    legacy_h5(tmp_path / "a.h5", {"layer": values}, **storage)
    with open_h5(tmp_path / "a.h5") as source:
        for _ in range(2):  # the buffer is used again
            for name, value in values.items():
                assert same(source.read(f"layer/{name}"), value.astype(value.dtype.newbyteorder("=")))


def test_a_chunked_tensor_larger_than_a_slab(tmp_path: Path) -> None:
    value = np.arange(9 << 20, dtype="float32").reshape(1 << 10, -1)  # 36 MiB, and slabs have 32
    legacy_h5(tmp_path / "a.h5", {"layer": {"kernel": value}}, chunks=(100, 1000))
    with open_h5(tmp_path / "a.h5") as source:
        assert same(source.read("layer/kernel"), value)


def test_compact_empty_scalar_and_foreign_byte_order(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        dataset = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F64LE, space, plist)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([1.0, 2.0, 3.0]))

    values = {"big": np.arange(6, dtype=">f4").reshape(2, 3), "none": np.zeros((0, 4), "float32"),
              "one": np.float64(3.5), "flag": np.array([True, False])}  # fmt: skip
    legacy_h5(tmp_path / "a.h5", {"layer": values}, edit=edit)
    with open_h5(tmp_path / "a.h5") as source:
        assert same(source.read("layer/big"), np.arange(6, dtype="float32").reshape(2, 3))
        assert source.read("layer/none").shape == (0, 4)
        assert source.read("layer/one")[()] == 3.5 and source.specs["layer/one"].shape == ()
        assert source.read("layer/flag").tolist() == [True, False]
        assert source.read("compact").tolist() == [1.0, 2.0, 3.0]


def test_names_cut_in_pieces(tmp_path: Path) -> None:
    """Keras cuts a list of names that is longer than an HDF5 attribute may be."""

    def edit(file: h5py.File) -> None:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:2], names[2:]

    legacy_h5(tmp_path / "a.h5", {n: {"w:0": np.zeros(2, "float32")} for n in ("c", "b", "a")}, edit=edit)
    with open_h5(tmp_path / "a.h5") as source:
        assert source.layer_order == ("c", "b", "a")
        assert list(source.specs) == ["c/w", "b/w", "a/w"]


def test_strings_are_listed_and_not_read(tmp_path: Path) -> None:
    weights_h5(tmp_path / "a.h5", lambda file: file.update({"layers/text/vars/0": "words"}))
    with open_h5(tmp_path / "a.h5") as source:
        assert source.specs["layers/text/vars/0"].dtype == "string"
        assert source.read("layers/conv2d/vars/0").shape == (9,)
        with pytest.raises(PortingError, match="unsupported: layers/text/vars/0: a string tensor"):
            source.read("layers/text/vars/0")


def test_bytes_that_went_missing_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    weights_h5(path)
    with open_h5(path) as source:
        os.truncate(path, 600)
        with pytest.raises(PortingError) as caught:
            source.read("layers/conv2d/vars/0")
    assert caught.value.kind is ErrorKind.CORRUPT
    assert "expected 36 bytes, found 0 bytes (the file shrank)" in str(caught.value)


def test_one_buffer_serves_all_reads(tmp_path: Path) -> None:
    legacy_h5(tmp_path / "a.h5", {"l": {"a": np.ones(100, "float32"), "b": np.zeros(50, "float32")}})
    with open_h5(tmp_path / "a.h5") as source:
        first = source.read("l/a")
        second = source.read("l/b")
        assert np.shares_memory(first, second)
        assert first[:50].tolist() == [0.0] * 50


def test_importing_the_readers_is_light() -> None:
    code = (
        "import sys, porting.sources, porting.sources.keras_h5, porting.sources.archive, porting.sources.keras_zip\n"
        "print([m for m in ('h5py', 'torch', 'tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_that_are_not_there() -> None:
    with pytest.raises(PortingError, match="missing: no such file"):
        open_h5(Path("nowhere.h5"))
