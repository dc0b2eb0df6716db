"""V2 checkpoints, held to TensorFlow's own reader."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.sources import open_source
from porting.sources.bundle import BundleSource
from tests.sources import wire
from tests.sources.conftest import Written

INDEX = Path(__file__).parents[1] / "data" / "deeplabv3_pascal_trainval.index"
SAVES = ["v2", "v2-sharded"]


def _same(ours: np.ndarray, theirs: Any, dtype: str) -> bool:
    theirs = np.asarray(theirs)
    if dtype == "bfloat16":
        theirs = theirs.astype(np.float32)
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("save", SAVES)
def test_every_tensor_as_tensorflow_reads_it(save: str, graph_files: Written, tf: Any) -> None:
    prefix = graph_files.folder / save / "model.ckpt-5"
    reader = tf.train.load_checkpoint(str(prefix))
    with open_source(prefix) as source:
        source.verify_files()
        assert source.container == "tf-checkpoint-v2"
        assert {name: list(spec.shape) for name, spec in source.specs.items()} == reader.get_variable_to_shape_map()
        types = {name: dtype.name for name, dtype in reader.get_variable_to_dtype_map().items()}
        assert {name: spec.dtype for name, spec in source.specs.items()} == types
        for name, spec in source.specs.items():
            if spec.dtype != "string":
                assert _same(source.read(name), reader.get_tensor(name), spec.dtype), name


@pytest.mark.parametrize("save", SAVES)
def test_every_tensor_as_it_was_written(save: str, graph_files: Written) -> None:
    with open_source(graph_files.folder / save / "model.ckpt-5") as source:
        assert set(source.specs) == {*graph_files.arrays, "types/string"}
        for name, array in graph_files.arrays.items():
            assert _same(source.read(name), array, str(array.dtype)), name


def test_shards_and_index_blocks(graph_files: Written) -> None:
    with open_source(graph_files.folder / "v2-sharded" / "model.ckpt-5") as source:
        assert [path.name for path in source.files()] == [
            "model.ckpt-5.index", "model.ckpt-5.data-00000-of-00002", "model.ckpt-5.data-00001-of-00002"
        ]  # fmt: skip


def test_strings(graph_files: Written) -> None:
    with BundleSource(graph_files.folder / "v2" / "model.ckpt-5") as source:
        assert source.read_strings("types/string") == [b"a", b"", b"bc\0\n"]
        with pytest.raises(PortingError, match="types/string: a tensor of type string") as caught:
            source.read("types/string")
        assert caught.value.kind is ErrorKind.UNSUPPORTED


def test_names_of_one_checkpoint(graph_files: Written) -> None:
    folder = graph_files.folder / "v2"
    for path in (folder, folder / "model.ckpt-5", folder / "model.ckpt-5.index", os.fspath(folder / "model.ckpt-5")):
        with open_source(path) as source:
            assert len(source.specs) == len(graph_files.arrays) + 1


def test_missing_name(graph_files: Written) -> None:
    with open_source(graph_files.folder / "v2") as source, pytest.raises(KeyError):
        source.read("net/unit_0")


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    prefix = wire.small_bundle({"a": np.ones(3, np.float32)}).write(tmp_path / "m")
    files = [tmp_path / "m.index", tmp_path / "m.data-00000-of-00001"]
    with open_source(prefix) as source:
        assert list(source.files()) == files
        assert source.digest() == hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_a_shard_that_shrinks_while_open(tmp_path: Path) -> None:
    prefix = wire.small_bundle({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}).write(tmp_path / "m")
    with open_source(prefix) as source:
        source.read("a")
        os.truncate(tmp_path / "m.data-00000-of-00001", 16)
        with pytest.raises(
            PortingError, match=r"b: expected bytes 12 to 24, found shard m\.data-00000-of-00001 ends"
        ) as e:
            source.read("b")
        assert e.value.kind is ErrorKind.CORRUPT


def test_many_shards_are_not_all_open(tmp_path: Path) -> None:
    count = 150
    bundle = wire.Bundle({b"": wire.integer(1, count)})
    for i in range(count):
        value = np.float32([i])
        bundle.rows[b"v%03d" % i] = wire.entry(1, (1,), size=4, shard=i, crc=wire.crc32c(value.tobytes()))
        (tmp_path / f"m.data-{i:05d}-of-{count:05d}").write_bytes(value.tobytes())
    bundle.write(tmp_path / "m")
    with open_source(tmp_path / "m") as source:
        assert [float(source.read(name)[0]) for name in source.specs] == list(range(count))
        assert len(list(Path("/proc/self/fd").iterdir())) < count


@pytest.fixture(scope="module")
def their_rows(tf: Any) -> dict[str, Any]:
    """The entries of the DeepLab index, by TensorFlow's own protobuf classes."""
    from tensorflow.core.protobuf import tensor_bundle_pb2

    from porting.sources.table import Table

    table = Table(INDEX)
    rows = {key.decode(): tensor_bundle_pb2.BundleEntryProto.FromString(value) for key, value in table.items() if key}
    table.close()
    return rows


def test_a_real_index_lists_without_its_data(tf: Any, their_rows: dict[str, Any]) -> None:
    with open_source(INDEX) as source:
        assert len(source.specs) == 1173
        assert sum(name.endswith("/Momentum") for name in source.specs) == 440
        assert list(source.specs) == list(their_rows)
        for name, row in their_rows.items():
            spec = source.specs[name]
            assert spec.shape == tuple(dim.size for dim in row.shape.dim)
            assert spec.dtype == tf.dtypes.as_dtype(row.dtype).name
            assert spec.nbytes == row.size
        with pytest.raises(PortingError, match=r"trainval\.data-00000-of-00001: expected a shard") as caught:
            source.verify_files()
        assert caught.value.kind is ErrorKind.MISSING


def test_a_real_index_as_tensorflow_lists_it(tf: Any, tmp_path: Path) -> None:
    # TensorFlow's reader wants the data file to be there, if only in name.
    (tmp_path / "m.index").write_bytes(INDEX.read_bytes())
    (tmp_path / "m.data-00000-of-00001").write_bytes(b"")
    theirs = dict(tf.train.list_variables(str(tmp_path / "m")))
    with open_source(INDEX) as source:
        assert {name: list(spec.shape) for name, spec in source.specs.items()} == theirs


def test_importing_sources_is_light() -> None:
    heavy = "'torch', 'tensorflow', 'keras', 'h5py', 'tqdm'"
    code = f"import porting.sources, sys; porting.sources.open_source({str(INDEX)!r}); " + (
        f"found = {{{heavy}}} & set(sys.modules); sys.exit(f'imported {{found}}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
