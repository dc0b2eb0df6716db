"""V1 checkpoints, held to TensorFlow's own reader and to what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.sources import open_source
from tests.sources import wire
from tests.sources.conftest import Written

V2_ONLY = {"types/uint16", "types/uint32", "types/uint64", "types/complex128", "types/bfloat16"}
# TensorFlow writes these into V1 checkpoints, but its reader of them refuses: held to what was written alone.
THEIR_READER_REFUSES = {"types/half", "types/complex", "parts/rows", "parts/columns"}


@pytest.mark.parametrize(("save", "pattern"), [("v1", "model.ckpt-5"), ("v1-sharded", "model.ckpt-5-?????-of-00002")])
def test_every_tensor(save: str, pattern: str, graph_files: Written, tf: Any) -> None:
    folder = graph_files.folder / save
    reader = tf.train.load_checkpoint(str(folder / pattern))
    with open_source(folder / "model.ckpt-5") as source:
        source.verify_files()
        assert source.container == "tf-checkpoint-v1"
        assert {name: list(spec.shape) for name, spec in source.specs.items()} == reader.get_variable_to_shape_map()
        types = {name: dtype.name for name, dtype in reader.get_variable_to_dtype_map().items()}
        assert {name: spec.dtype for name, spec in source.specs.items()} == types
        assert set(source.specs) == set(graph_files.arrays) - V2_ONLY
        for name in source.specs:
            ours, written = source.read(name), graph_files.arrays[name]
            assert ours.dtype == written.dtype
            assert ours.tobytes() == written.tobytes(), name
            if name not in THEIR_READER_REFUSES:
                theirs = reader.get_tensor(name)
                assert ours.shape == np.shape(theirs)
                assert ours.tobytes() == np.asarray(theirs).tobytes(), name


def test_folder_of_a_sharded_checkpoint(graph_files: Written) -> None:
    folder = graph_files.folder / "v1-sharded"
    with open_source(folder) as source:
        assert [path.name for path in source.files()] == [f"model.ckpt-5-{i:05d}-of-00002" for i in range(2)]


def test_snappy_blocks_give_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {f"layer{i}/weights": random.integers(0, 3, (9, i + 1)).astype(np.float32) for i in range(30)}
    sizes = []
    for snappy in (False, True):
        path = tmp_path / f"model-{snappy}"
        path.write_bytes(wire.v1_checkpoint(tensors, snappy))
        sizes.append(path.stat().st_size)
        with open_source(path) as source:
            assert set(source.specs) == set(tensors)
            assert all(np.array_equal(source.read(name), array) for name, array in tensors.items())
    assert sizes[1] < sizes[0]


def test_a_flipped_byte_is_named_when_its_block_is_read(graph_files: Written, tmp_path: Path) -> None:
    data = bytearray((graph_files.folder / "v1" / "model.ckpt-5").read_bytes())
    at = data.index(graph_files.arrays["net/unit_149/weights"].tobytes())
    data[at] ^= 1
    (tmp_path / "m").write_bytes(data)
    with (
        pytest.raises(PortingError, match=r"block \d+: expected crc32c 0x") as caught,
        open_source(tmp_path / "m") as s,
    ):
        s.read("net/unit_149/weights")
    assert caught.value.kind is ErrorKind.CORRUPT
