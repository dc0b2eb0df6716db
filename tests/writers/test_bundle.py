"""The writer of V2 checkpoints against this project's own reader; test_with_tensorflow.py holds it to TensorFlow's."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from porting.errors import PortingError
from porting.sources import open_source
from porting.sources.table import Table
from porting.writers.bundle import data_path, index_path, write_bundle
from porting.writers.table import table

random = np.random.default_rng(0)
TENSORS: dict[str, npt.NDArray[Any]] = {
    "a/scalar": np.array(2.5, np.float32),
    "a/empty": np.zeros((0, 3), np.float32),
    "b/view": random.standard_normal((3, 4, 5)).astype(np.float32).transpose(2, 0, 1),
    "c/double": random.standard_normal(300),
    "d/half": random.standard_normal(7).astype(np.float16),
    "e/step": np.array(1 << 40, np.int64),
    "f/flags": np.array([True, False, True]),
    "grün": random.integers(-128, 127, 1000).astype(np.int8),
}
# More than one block of an index, under names that share little.
MANY = {f"{n:04d}{'/layer' * 20}": np.array(n, np.float32) for n in range(2500)}


def written(folder: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> Path:
    prefix = folder / "model"
    with data_path(prefix).open("wb") as data, index_path(prefix).open("wb") as index:
        write_bundle(data, index, ((name, tensors[name]) for name in sorted(tensors, key=str.encode)))
    return prefix


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    with open_source(written(tmp_path, TENSORS)) as source:
        assert set(source.specs) == set(TENSORS)
        source.verify_files()
        for name, expected in TENSORS.items():
            found = source.read(name)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
            assert np.array_equal(found, expected), name
    with pytest.raises(KeyError):
        written(tmp_path, {"text": np.array(["a"])})


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], [""]])
def test_names_must_increase(tmp_path: Path, names: list[str]) -> None:
    data, index = io.BytesIO(), io.BytesIO()
    with pytest.raises(ValueError, match="after"):
        write_bundle(data, index, ((name, np.zeros(1, np.float32)) for name in names))


def many(count: int) -> list[tuple[bytes, bytes]]:
    return [(b"layer_%06d/weights" % n, b"%d" % n * 9) for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 16, 17, 20_000])
def test_a_table_of_any_size_reads_back(tmp_path: Path, count: int) -> None:
    path = tmp_path / "table"
    path.write_bytes(table(many(count)))
    found = Table(path)
    assert list(found.items()) == many(count)
    assert (len(found) > 1) == (count == 20_000)  # several blocks, each with a key in the index block
    for key, _ in many(count)[:: max(1, count // 50)]:
        number = found.block_of(key)
        assert number is not None and key in dict(found.block(number))
    found.close()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(PortingError, match="crc32c"):  # the control: the reader sees every byte
        broken = Table(path)
        list(broken.items())


def test_keys_of_a_table_must_increase() -> None:
    with pytest.raises(ValueError, match="after"):
        table(list(reversed(many(2))))
