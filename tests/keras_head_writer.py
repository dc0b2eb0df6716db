"""Has Keras write Xceptions with heads of their own: `python -m tests.keras_head_writer FOLDER`.

A program of its own, because TensorFlow does not belong in the process that runs the tests. It writes one backbone
under several heads, as MODEL.keras (and chain.h5), and computed.npz with an `image` and what `predict()` gives for it,
after the last activation, by each MODEL that can be ported; and functions.npz, with what Keras's own activations give.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.keras_model_writer import randomise

SIZE = 75  # pixels a side
PORTED = ("chain", "mixed")
FUNCTIONS = ("relu", "relu6", "selu", "gelu", "silu", "hard_silu", "tanh", "sigmoid", "softplus", "softsign", "mish")
EPSILON = 2e-2  # of the head's batch norm, far from every default


def build(keras: Any) -> dict[str, Any]:
    """The models by name."""
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3), name="image")
    backbone = keras.applications.Xception(weights=None, include_top=False)
    randomise(backbone, 0)
    features = backbone(inputs)
    pooled = layers.GlobalAveragePooling2D(name="avg")(features)
    models = {}

    def classifier(name: str, seed: int, source: Any, *chain: Any, output: Any = None) -> None:
        x = source
        for layer in chain:
            x = layer(x)
            randomise(layer, seed)
            seed += 1
        models[name] = keras.Model(inputs if output is None else [inputs, output], x)

    classifier(
        "chain", 10, pooled,
        layers.Dense(64, activation="relu", name="hidden"),
        layers.BatchNormalization(epsilon=EPSILON, name="normed"),
        layers.Dropout(0.4),
        layers.Dense(5, activation="softmax", name="out"),
    )  # fmt: skip
    classifier(
        "mixed", 20, features,
        layers.GlobalMaxPooling2D(name="max"),
        layers.Flatten(),
        layers.BatchNormalization(scale=False, name="first"),
        layers.Dense(24, use_bias=False, activation="gelu", name="one"),
        layers.LeakyReLU(0.3, name="leaky"),
        layers.GaussianNoise(0.1),
        layers.Dense(24, activation=layers.ELU(0.7), name="two"),
        layers.AlphaDropout(0.1),
        layers.Dense(24, name="three"),
        layers.Activation("softplus", name="soft"),
        layers.BatchNormalization(center=False, name="last"),
        layers.Dense(1, name="score"),
        layers.Activation("sigmoid"),
    )  # fmt: skip
    classifier("unknown", 40, pooled, layers.Dense(6, name="hidden"), layers.PReLU(name="bent"), layers.Dense(5),
               layers.UnitNormalization(name="unit"))  # fmt: skip
    age = keras.Input((1,), name="age")
    joined = layers.Concatenate(name="join")([pooled, age])
    classifier("second", 50, joined, layers.Dense(5, name="out"), output=age)
    return models


def main(folder: Path) -> None:
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")
    import keras

    image = np.random.default_rng(1).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    models = build(keras)
    for name, model in models.items():
        model.save(str(folder / f"{name}.keras"))
        if name == "chain":
            model.save(str(folder / f"{name}.h5"))
    both = keras.Model(models["chain"].input, [models[name].output for name in PORTED])
    both.compile(run_eagerly=True)  # two images are not worth tracing a graph for
    outputs = dict(zip(PORTED, both.predict(image, verbose=0), strict=True))
    np.savez(folder / "computed.npz", image=image, **outputs)
    x = np.linspace(-60, 60, 4001)
    functions = {
        name: np.asarray(getattr(keras.activations, name)(keras.ops.convert_to_tensor(x))) for name in FUNCTIONS
    }
    np.savez(folder / "functions.npz", x=x, **functions)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
