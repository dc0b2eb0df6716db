"""The writer of `.weights.h5` files; test_with_tensorflow.py has Keras load them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from porting.writers.keras_weights import write_weights_h5

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3).T  # a view in another order
VARIABLES = [("layers/dense/vars/0", "d", KERNEL), ("layers/dense/vars/1", "d", np.ones(2, np.float32))]


def test_the_bytes_depend_on_the_variables_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_weights_h5(tmp_path / name, VARIABLES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_weights_h5(tmp_path / "b", VARIABLES[:1])  # a file that is there is replaced
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_groups_as_keras_has_them(tmp_path: Path) -> None:
    write_weights_h5(tmp_path / "a", VARIABLES)
    with h5py.File(tmp_path / "a") as file:
        assert set(file) == {"layers", "vars"} and len(file["vars"]) == 0
        assert dict(file["layers/dense/vars"].attrs) == {"name": "d"}
        assert np.array_equal(file["layers/dense/vars/0"], KERNEL)


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a"):
        write_weights_h5(tmp_path / "none" / "a", VARIABLES)
