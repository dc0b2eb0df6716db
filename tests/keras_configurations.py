"""Keras model configurations as Keras 2 and Keras 3 write them, put together by hand: no Keras is needed.

The network is written out from keras/src/applications/xception.py, apart from the project's rule tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]
Inputs = Sequence[str]


def layer(kind: str, name: str, **config: Any) -> Config:
    return {"class_name": kind, "config": {"name": name, **config}, "name": name}


def input_layer(name: str = "input_layer", size: Sequence[int | None] = (299, 299, 3)) -> Config:
    return layer("InputLayer", name, batch_shape=[None, *size])


def _keras3_tensor(name: str, index: int) -> Config:
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None], "dtype": "float32", "keras_history": [name, 0, index]},
    }


@dataclass
class Builder:
    """A functional model under construction, in the form of one generation of Keras (2 or 3)."""

    keras: int = 3
    layers: list[Config] = field(default_factory=list)

    def add(self, item: Config, *inputs: str) -> str:
        """Append a layer (or a whole model) that takes the outputs of `inputs`; returns its name."""
        if self.keras == 3:
            tensors: Any = [_keras3_tensor(name, 0) for name in inputs]
            arguments = tensors if len(tensors) == 1 else [tensors]
            nodes: list[Any] = [{"args": arguments, "kwargs": {"mask": None}}] if inputs else []
        else:
            nodes = [[[name, 0, 0, {}] for name in inputs]] if inputs else []
        self.layers.append({**item, "inbound_nodes": nodes})
        return str(item["name"])

    def model(self, name: str, inputs: Inputs, outputs: Inputs, kind: str = "Functional") -> Config:
        config = {
            "name": name,
            "layers": self.layers,
            "input_layers": [[one, 0, 0] for one in inputs],
            "output_layers": [[one, 0, 0] for one in outputs],
        }
        return {"class_name": kind, "config": config, "name": name}


def sequential(name: str, *layers: Config) -> Config:
    return {"class_name": "Sequential", "config": {"name": name, "layers": list(layers)}, "name": name}


def batch_norm(name: str, **config: Any) -> Config:
    return layer("BatchNormalization", name, **{"epsilon": 1e-3, "center": True, "scale": True, **config})


def add_xception(to: Builder, source: str, shift: int = 0, norm: Mapping[str, Any] | None = None) -> str:
    """Append the network without a head after `source`; returns the features' layer.

    Args:
        shift: where the automatic names start counting ("conv2d_5" for 5).
        norm: settings of every batch norm.
    """
    settings = dict(norm or {})
    shortcut = 0

    def automatic(name: str, index: int) -> str:
        return f"{name}_{index + shift}" if index + shift else name

    def conv(at: str, kind: str, name: str, norm_name: str) -> str:
        return to.add(batch_norm(norm_name, **settings), to.add(layer(kind, name, use_bias=False), at))

    def relu(at: str, name: str) -> str:
        return to.add(layer("Activation", name, activation="relu"), at)

    at = source
    for n in (1, 2):
        at = relu(conv(at, "Conv2D", f"block1_conv{n}", f"block1_conv{n}_bn"), f"block1_conv{n}_act")
    for add, block in enumerate(range(2, 14)):
        first = at
        halves = block in (2, 3, 4, 13)
        residual = first
        if halves:  # created first, but sorted by depth into the layer list, as Keras lists them
            kernel_name, norm_name = automatic("conv2d", shortcut), automatic("batch_normalization", shortcut)
            shortcut += 1
        for n in range(1, 3 if halves else 4):
            if (block, n) != (2, 1):
                at = relu(at, f"block{block}_sepconv{n}_act")
            at = conv(at, "SeparableConv2D", f"block{block}_sepconv{n}", f"block{block}_sepconv{n}_bn")
        if halves:
            kernel = to.add(layer("Conv2D", kernel_name, use_bias=False), first)
            at = to.add(layer("MaxPooling2D", f"block{block}_pool"), at)
            residual = to.add(batch_norm(norm_name, **settings), kernel)
        at = to.add(layer("Add", automatic("add", add)), at, residual)
    for n in (1, 2):
        name = f"block14_sepconv{n}"
        at = relu(conv(at, "SeparableConv2D", name, f"{name}_bn"), f"{name}_act")
    return at


def xception(
    keras: int = 3,
    before: Sequence[Config] = (),
    after: Sequence[Config] = (),
    size: Sequence[int | None] = (299, 299, 3),
    shift: int = 0,
    norm: Mapping[str, Any] | None = None,
) -> Config:
    """A model in one level: the input, `before` in a chain, the network, `after` in a chain."""
    to = Builder(keras)
    at = to.add(input_layer(size=size))
    for item in before:
        at = to.add(item, at)
    at = add_xception(to, at, shift, norm)
    for item in after:
        at = to.add(item, at)
    return to.model("model", ["input_layer"], [at])


def nested_xception(
    keras: int = 3, before: Sequence[Config] = (), after: Sequence[Config] = (), pooling: bool = False, shift: int = 0
) -> Config:
    """A model that holds the network as a layer of its own, "xception"."""
    inner = Builder(keras)
    at = add_xception(inner, inner.add(input_layer("inner_input", (None, None, 3))), shift)
    if pooling:
        at = inner.add(layer("GlobalAveragePooling2D", "inner_pool"), at)
    backbone = inner.model("xception", ["inner_input"], [at])
    outer = Builder(keras)
    at = outer.add(input_layer())
    for item in before:
        at = outer.add(item, at)
    at = outer.add(backbone, at)
    for item in after:
        at = outer.add(item, at)
    return outer.model("model", ["input_layer"], [at])
