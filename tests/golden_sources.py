"""Have TensorFlow write the golden weights to disk: `python -m tests.golden_sources FOLDER ARCH...`.

Aligned networks become a checkpoint `FOLDER/<arch>/model.ckpt`, the original `FOLDER/xception/xception.weights.h5`.
Only this process imports TensorFlow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")

import tensorflow as tf

from tests.golden import recipe
from tests.golden_files import golden, variable_shapes


def golden_values(arch: str) -> Callable[[str], Any]:
    shapes, seed = variable_shapes(arch), int(golden(arch)["seed"])
    return lambda name: recipe.variable(seed, name, shapes[name])


def write_checkpoint(arch: str, folder: Path) -> None:
    value, names = golden_values(arch), sorted(variable_shapes(arch))
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(value(name)) for name in names],
    )


def write_keras(folder: Path) -> None:
    import keras

    value = golden_values("xception")
    model = keras.applications.Xception(weights=None)  # first in its process: automatic names count from the start
    for layer in model.layers:
        layer.set_weights([value(f"{layer.name}/{weight.name}") for weight in layer.weights])
    model.save_weights(folder / "xception.weights.h5")


def main() -> None:
    for arch in sys.argv[2:]:
        folder = Path(sys.argv[1], arch)
        folder.mkdir()
        if arch == "xception":
            write_keras(folder)
        else:
            write_checkpoint(arch, folder)


if __name__ == "__main__":
    main()
