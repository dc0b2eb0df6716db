"""Has Keras write Xceptions in every format, with what it computes: `python -m tests.keras_model_writer FOLDER`.

A program of its own, because TensorFlow does not belong in the process that runs the tests. For each MODEL of `MODELS`
it writes MODEL.h5, MODEL.weights.h5, MODEL.keras, and MODEL.npz with an `image` as the model takes it and what
`predict()` gives: `features` (pooled) and `logits` (before the softmax). For some it also writes MODEL-legacy.h5, the
layout of Keras 2's `save_weights`, which Keras 3 reads but no longer writes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("h5", "weights.h5", "keras")
SIZE = 120  # pixels a side, of the model whose input is fixed
CLASSES = 7
RESCALING = (1 / 64, -1.5)  # scale and offset; not the usual ones, so that no default passes for them


def randomise(model: Any, seed: int) -> None:
    """Weights that keep activations of order one, and statistics far from their defaults."""
    random = np.random.default_rng(seed)
    ranges = {"gamma": (0.5, 1.5), "beta": (-0.3, 0.3), "moving_mean": (-0.3, 0.3), "moving_variance": (0.5, 2.0)}
    ranges["bias"] = (-0.3, 0.3)
    for variable in model.variables:
        leaf, shape = variable.path.rsplit("/", 1)[-1], tuple(variable.shape)
        if leaf in ranges:
            low, high = ranges[leaf]
        elif "kernel" in leaf:
            high = (3.0 / (9 if leaf == "depthwise_kernel" else np.prod(shape[:-1]))) ** 0.5
            low = -high
        else:
            continue  # a dropout's seed
        variable.assign(random.uniform(low, high, shape).astype(np.float32))


def build(keras: Any) -> dict[str, Any]:
    """The models by name. `top` comes first, with the automatic names of a fresh process; the others' are shifted."""
    layers = keras.layers
    models = {"top": keras.applications.Xception(weights=None)}
    base = keras.applications.Xception(weights=None, include_top=False)
    pooled = keras.applications.Xception(weights=None, include_top=False, pooling="avg")
    for seed, model in enumerate((models["top"], base, pooled)):
        randomise(model, seed)
    models["notop"] = base

    def dense(seed: int, **options: Any) -> Any:
        layer = layers.Dense(CLASSES, **options)
        layer.build((None, 2048))
        randomise(layer, seed)
        return layer

    # A head of the user's own on the same graph, which stays flat.
    x = layers.GlobalAveragePooling2D()(base.output)
    models["flat"] = keras.Model(base.input, dense(10, activation="softmax")(layers.Dropout(0.3)(x)))
    # As a layer of another model, behind a rescaling, at a fixed size.
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(RESCALING[0], offset=RESCALING[1])(inputs)
    x = layers.Dropout(0.3)(pooled(x, training=False))
    models["nested"] = keras.Model(inputs, dense(11, activation="softmax")(x))
    # In a Sequential, with the softmax in a layer of its own.
    sequence = [keras.Input((None, None, 3)), base, layers.GlobalAveragePooling2D(), dense(12), layers.Softmax()]
    models["sequential"] = keras.Sequential(sequence)
    return models


def computed(keras: Any, model: Any, seed: int) -> dict[str, Any]:
    """An image and what Keras predicts for it."""
    random = np.random.default_rng([7, seed])
    height, width, _ = (side or size for side, size in zip(model.inputs[0].shape[1:], (97, 130, 3), strict=True))
    low, high = (0, 255) if any(layer.name.startswith("rescaling") for layer in model.layers) else (-1, 1)
    image = random.uniform(low, high, (1, height, width, 3)).astype(np.float32)
    outputs = [keras.layers.GlobalAveragePooling2D()(model.outputs[0])] if len(model.outputs[0].shape) == 4 else []
    names = ["features"] if outputs else ["features", "logits"]
    if not outputs:
        head = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1]
        head.activation = keras.activations.linear  # it is saved by now
        outputs = [head.input, head(head.input)]
    whole = keras.Model(model.inputs, outputs)
    whole.compile(run_eagerly=True)  # one image is not worth tracing a graph for
    values = whole.predict(image, verbose=0)
    values = values if isinstance(values, list) else [values]
    return {"image": image, **dict(zip(names, values, strict=True))}


def write_legacy_weights(full: Path, target: Path) -> None:
    """Keras 2's `save_weights`: the group that a whole model's file calls model_weights, at the top."""
    import h5py

    with h5py.File(full) as source, h5py.File(target, "w") as file:
        group = source["model_weights"]
        for name, value in group.attrs.items():
            file.attrs[name] = value
        for name in group:
            source.copy(group[name], file, name)


def main(folder: Path) -> None:
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")
    import keras

    for seed, (name, model) in enumerate(build(keras).items()):
        for ending in FORMATS:
            path = str(folder / f"{name}.{ending}")
            if ending == "weights.h5":
                model.save_weights(path)
            else:
                model.save(path)
        if name in ("top", "nested", "notop"):
            write_legacy_weights(folder / f"{name}.h5", folder / f"{name}-legacy.h5")
        np.savez(folder / f"{name}.npz", **computed(keras, model, seed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
