"""Rewrites synthetic sources in every other container; TensorFlow and Keras do the writing. Run as a module."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import tensorflow as tf

from tests.slim_graphs import Slim, freeze


def write_slim(prefix: str, folder: Path) -> None:
    """V1, frozen graph, segmentation and regularized forms of a TF-Slim checkpoint."""
    reader = tf.train.load_checkpoint(prefix)
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.Variable(value, name=name) for name, value in values.items()]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, write_version=tf.compat.v1.train.SaverDef.V1)
        saver.save(session, str(folder / "v1.ckpt"), write_state=False, write_meta_graph=False)

    (folder / "frozen.pb").write_bytes(freeze(Slim(32, given=values)).SerializeToString())

    def save(name: str, tensors: dict[str, object]) -> None:
        names = sorted(tensors)
        tf.raw_ops.SaveV2(
            prefix=str(folder / name),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(tensors[n]) for n in names],
        )

    backbone = {name: value for name, value in values.items() if "/logits/" not in name}
    beside = {
        "aspp0/weights": tf.ones([1, 1, 2048, 4]),
        "aspp0/weights/Momentum": tf.ones([1, 1, 2048, 4]),
        "aspp1_depthwise/depthwise_weights": tf.ones([3, 3, 2048, 1]),
        "decoder/feature_projection0/weights": tf.ones([1, 1, 256, 48]),
        "image_pooling/BatchNorm/gamma": tf.ones([4]),
        "logits/semantic/weights": tf.ones([1, 1, 4, 21]),
        "logits/semantic/biases": tf.ones([21]),
    }
    save("segmentation.ckpt", {**backbone, **beside})
    merged = {name: value for name, value in values.items() if "separable_conv1" not in name}
    scope = "xception_41/entry_flow/block1/unit_1/xception_module/separable_conv1"
    save("regularized.ckpt", {**merged, f"{scope}/depthwise_weights": tf.ones([3, 3, 64, 1])})


def write_keras(path: str, folder: Path) -> None:
    """An object-based checkpoint with an optimizer, and a SavedModel, of a Keras file's model."""
    model = keras.models.load_model(path)
    tf.train.Checkpoint(model=model).save(str(folder / "object" / "ckpt"))
    model.export(str(folder / "saved_model"), verbose=False)


if __name__ == "__main__":
    write_slim(sys.argv[1], Path(sys.argv[3]))
    write_keras(sys.argv[2], Path(sys.argv[3]))
