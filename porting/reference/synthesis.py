"""Full checkpoints of random weights, written by TensorFlow and Keras themselves.

The TF-Slim layout is the published one: every variable, a Momentum slot for each trained one, and global_step. Scales
are such that activations stay of order one through the whole network; batch-norm statistics are far from their
defaults, so that no swap can hide.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from porting import rules
from porting.reference.tensorflow_import import keras, tf
from porting.rules import Role, Rule

# Uniform ranges by the variable's leaf name; kernels are scaled by their fan-in instead.
_RANGES = {
    "gamma": (0.5, 1.5),
    "beta": (-0.3, 0.3),
    "moving_mean": (-0.3, 0.3),
    "moving_variance": (0.5, 2.0),
    "biases": (-0.3, 0.3),
    "bias": (-0.3, 0.3),
}


def values(rule: Rule, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random values for a rule's variable, a function of the seed and the variable's name alone."""
    leaf = rule.variable.rpartition("/")[2]
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(rule.variable.encode())]))
    if leaf in _RANGES:
        low, high = _RANGES[leaf]
    else:
        depthwise = leaf in ("depthwise_weights", "depthwise_kernel")
        fan_in = rule.shape[0] * rule.shape[1] if depthwise else int(np.prod(rule.shape[:-1]))
        high = (3.0 / fan_in) ** 0.5
        low = -high
    return random.uniform(low, high, rule.shape).astype(np.float32)


def write_checkpoint(arch: str, seed: int, folder: Path) -> Path:
    """Write a TF-Slim checkpoint of an aligned network; returns its prefix."""
    names, tensors = [], []
    for rule in rules.table(arch, rules.Head(rules.BACKGROUND_CLASSES)).rules:
        names.append(rule.variable)
        tensors.append(tf.constant(values(rule, seed)))
        if rule.role is Role.WEIGHT:
            names.append(f"{rule.variable}/Momentum")
            tensors.append(tf.zeros(rule.shape))
    names.append("global_step")
    tensors.append(tf.constant(seed, tf.int64))
    prefix = folder / "model.ckpt"
    order = np.argsort(names)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[names[i] for i in order],
        shape_and_slices=[""] * len(names),
        tensors=[tensors[i] for i in order],
    )
    tf.compat.v1.train.update_checkpoint_state(str(folder), "model.ckpt")
    return prefix


def write_keras(seed: int, folder: Path) -> Path:
    """Write a `.keras` file of keras.applications' Xception with an optimizer's state; returns its path."""
    model = keras.applications.Xception(weights=None)
    by_name = {rule.variable: values(rule, seed) for rule in rules.table(rules.KERAS_ARCH, rules.Head(1000)).rules}
    for layer, name in _named_layers(model):
        layer.set_weights([by_name[f"{name}/{weight.name}"] for weight in layer.weights])
    model.compile(optimizer=keras.optimizers.SGD(momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    path = folder / "xception.keras"
    model.save(path)
    return path


def _named_layers(model: Any) -> Iterator[tuple[Any, str]]:
    from porting.reference.original import fresh_names

    names = fresh_names(model)
    for layer in model.layers:
        if layer.weights:
            yield layer, names[layer.name]
