"""What TensorFlow and Keras make of exports: `python -m tests.writers.tensorflow_side FOLDER`, JSON on stdout.

A program of its own, because TensorFlow does not belong in the process that runs the tests. FOLDER holds what
test_with_tensorflow.py put there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")

import numpy as np
import tensorflow as tf

from tests.checkpoint_writer import golden_variables
from tests.golden_files import variable_shapes
from tests.writers.test_bundle import MANY, TENSORS

SMALL = "xception41"


def differ(pairs: Iterable[tuple[str, Any, Any]]) -> list[str]:
    """Names whose two arrays are not the same to the bit."""
    names = []
    for name, found, expected in pairs:
        found, expected = np.asarray(found), np.asarray(expected)
        if (found.dtype, found.shape, found.tobytes()) != (expected.dtype, expected.shape, expected.tobytes()):
            names.append(name)
    return names


def save(prefix: Path, tensors: dict[str, Any]) -> None:
    names = sorted(tensors)
    values = [tf.constant(tensors[name]) for name in names]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)


def restored(prefix: Path, names: list[str]) -> dict[str, Any]:
    """What tf.train.Saver restores into variables of a graph; each costs it 10 ms, so not all of them."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {name: tf.compat.v1.get_variable(name, variable_shapes(SMALL)[name]) for name in names}
        tf.compat.v1.train.Saver(variables).restore(session, str(prefix))
        found: dict[str, Any] = session.run(variables)
    return found


def network(classes: int) -> Any:
    """A new model, whose automatic names count from the first."""
    import keras

    keras.backend.clear_session()
    head: dict[str, Any] = {"classes": classes} if classes else {"include_top": False}
    return keras.applications.Xception(weights=None, **head)


def loaded(model: Any, path: Path) -> list[str]:
    """Weights that a model of keras.applications loads otherwise than they were."""
    expected = golden_variables("xception")
    model.load_weights(path)
    pairs = []
    for layer in model.layers:
        for weight in layer.weights:
            name = f"{layer.name}/{weight.name}"
            pairs.append((name, weight.numpy(), expected[name][..., : weight.shape[-1]]))
    assert len(pairs) in (234, 236)
    return differ(pairs)


def failure(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder: Path) -> None:
    answer: dict[str, Any] = {}
    save(folder / "theirs", golden_variables(SMALL))
    save(folder / "kinds", TENSORS)
    save(folder / "many", MANY)
    expected, ours = golden_variables(SMALL), tf.train.load_checkpoint(str(folder / "ours"))
    answer["listed"] = sorted(ours.get_variable_to_shape_map())
    answer["read"] = differ((name, ours.get_tensor(name), expected[name]) for name in expected)
    found = restored(folder / "ours", list(expected)[:10])
    answer["restored"] = differ((name, found[name], expected[name]) for name in found)
    first = next(iter(found))
    expected[first] = np.nextafter(expected[first], np.float32(9))
    answer["control"] = differ((name, found[name], expected[name]) for name in found) == [first]
    damaged = tf.train.load_checkpoint(str(folder / "damaged"))
    answer["damaged"] = [name for name in expected if failure(lambda name=name: damaged.get_tensor(name))]
    model = network(5)
    answer["loaded"] = [*loaded(model, folder / "5.weights.h5"), *loaded(network(0), folder / "0.weights.h5")]
    answer["swapped"] = loaded(model, folder / "swapped.weights.h5")
    answer["without"] = failure(lambda: loaded(model, folder / "without.weights.h5"))
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
