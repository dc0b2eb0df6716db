"""Has Keras write every format it can, and notes what Keras itself holds: `python keras_writer.py FOLDER`.

A program of its own, because TensorFlow does not belong in the process that tests the readers.
Beside each file NAME lies NAME.npz with every variable under the raw name that its format gives it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np


def small(dtype: str = "float32") -> Any:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="block1_conv1", dtype=dtype)(inputs)
    x = keras.layers.BatchNormalization(name="block1_conv1_bn", dtype=dtype)(x)
    x = keras.layers.Conv2D(4, 1, name="second", dtype=dtype)(x)
    x = keras.layers.SeparableConv2D(5, 3, use_bias=False, name="block2_sepconv1", dtype=dtype)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="predictions", dtype=dtype)(x), name="tiny")


def nested() -> Any:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = keras.layers.Dense(2, name="head")(small()(x))
    return keras.Model(inputs, x, name="outer")


def trained() -> Any:
    model = small()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def randomise(model: Any) -> None:
    rng = np.random.default_rng(7)
    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(rng.normal(size=variable.shape).astype("float32") * 3 + 1)


def legacy_names(model: Any) -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        for variable in layer.weights:
            yield f"{layer.name}/{variable.path}", variable


def counted_names(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    counts: dict[str, int] = {}
    for layer in model.layers:
        kind = keras.src.utils.naming.to_snake_case(type(layer).__name__)
        counts[kind] = counts.get(kind, 0) + 1
        name = kind if counts[kind] == 1 else f"{kind}_{counts[kind] - 1}"
        if isinstance(layer, keras.Model):
            yield from counted_names(layer, f"{prefix}layers/{name}/")
        for index, variable in enumerate([] if isinstance(layer, keras.Model) else layer._trainable_variables):
            yield f"{prefix}layers/{name}/vars/{index}", variable
        others = [] if isinstance(layer, keras.Model) else layer._non_trainable_variables
        first = 0 if isinstance(layer, keras.Model) else len(layer._trainable_variables)
        for index, variable in enumerate(others):
            yield f"{prefix}layers/{name}/vars/{first + index}", variable


def values(named: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    # NumPy files have no bfloat16; float32 holds it exactly.
    return {name: keras.ops.convert_to_numpy(keras.ops.cast(v, "float32" if v.dtype == "bfloat16" else v.dtype))
            for name, v in named}  # fmt: skip


def main(folder: Path) -> None:
    models = {"small": small(), "nested": nested(), "trained": trained(), "half": small("float16"),
              "brain": small("bfloat16"), "double": small("float64"),
              "xception": keras.applications.Xception(weights=None)}  # fmt: skip
    for name, model in models.items():
        if name != "xception":
            randomise(model)
        legacy, counted = values(legacy_names(model)), values(counted_names(model))
        model.save(folder / f"{name}.keras")
        np.savez(folder / f"{name}.keras.npz", **counted)
        if name == "xception":
            continue
        model.save(folder / f"{name}.h5")
        np.savez(folder / f"{name}.h5.npz", **legacy)
        model.save_weights(folder / f"{name}.weights.h5")
        np.savez(folder / f"{name}.weights.h5.npz", **counted)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
