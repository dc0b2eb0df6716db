"""What a Keras graph says about the Xception inside it: where its layers are, what feeds it, and what follows.

Layers are recognised by keras.applications' own names; the shortcuts, which get automatic names, by their place in the
graph (the `Add` after each block's pool, the batch norm and the convolution behind its other input).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from porting import rules
from porting.errors import Defect, ErrorKind, PortingError, unsupported
from porting.keras_graph import Graph, Layer, consumers_of, describe
from porting.keras_head import IDENTITIES, HeadChain, head_chain


@dataclass(frozen=True)
class InputChain:
    """What comes before the network.

    Attributes:
        size: height and width that the input asks for; None where they are free.
        affine: per-channel scale and offset from pixels of 0..255 to the network's input; None where no layer says.
        layers: every layer, "name (Class)", in order.
        unknown: those whose effect is not known, described likewise.
        understood: paths of those that `affine` holds.
    """

    size: tuple[int, int] | None
    affine: tuple[tuple[float, ...], tuple[float, ...]] | None
    layers: tuple[str, ...]
    unknown: tuple[str, ...]
    understood: tuple[str, ...] = ()


@dataclass(frozen=True)
class KerasModel:
    """An Xception found in a Keras graph.

    Attributes:
        layers: the vocabulary's layer names (`porting.rules`) to paths in the graph.
        head: what follows the features.
        inputs: what comes before the network.
    """

    layers: Mapping[str, str]
    head: HeadChain
    inputs: InputChain


def find_xception(
    file: object, graph: Graph, statistics: Callable[[Layer], Sequence[Sequence[float]] | None]
) -> KerasModel | None:
    """The one Xception in a graph, or None.

    Args:
        statistics: mean and variance of a Normalization layer whose configuration does not hold them.

    Raises:
        PortingError: unsupported (several in one graph), or mismatch (its layers are there but differ from
            keras.applications' in a setting that changes what is computed).
    """
    found = [path for path, layer in graph.items() if layer.name == rules.KERAS_INPUT]
    if not found:
        return None
    if len(found) > 1:
        raise unsupported(file, "model", f"{len(found)} Xceptions in it ({', '.join(found)})", "Save the one you mean.")
    layers = _locate(graph, found[0].removesuffix(rules.KERAS_INPUT))
    if layers is None:
        return None
    _check_settings(file, graph, layers)
    features = layers[rules.KERAS_FEATURES]
    return KerasModel(layers, head_chain(graph, features), _inputs(graph, graph[found[0]], statistics))


def _locate(graph: Graph, prefix: str) -> dict[str, str] | None:
    """Vocabulary name to path for every layer of the network; None where one is missing."""
    consumers = consumers_of(graph)
    layers: dict[str, str] = {}
    for point in rules.keras_trace():
        if point.name.startswith("block"):
            layers[point.name] = f"{prefix}{point.name}"
    if not all(path in graph for path in layers.values()):
        return None
    for index, block in enumerate(range(2, 14)):
        shortcut = block in rules.SHORTCUT_BLOCKS
        last = layers[f"block{block}_pool" if shortcut else f"block{block}_sepconv3_bn"]
        adds = [path for path in consumers.get(last, ()) if graph[path].kind == "Add"]
        if len(adds) != 1:
            return None
        layers[rules.automatic_name("add", index)] = adds[0]
        if shortcut:
            norms = [path for path in graph[adds[0]].inputs if path != last]
            if len(norms) != 1 or graph[norms[0]].kind != "BatchNormalization" or len(graph[norms[0]].inputs) != 1:
                return None
            place = rules.SHORTCUT_BLOCKS.index(block)
            layers[rules.automatic_name("batch_normalization", place)] = norms[0]
            layers[rules.automatic_name("conv2d", place)] = graph[norms[0]].inputs[0]
    return layers


def _settings(layer: Layer) -> dict[str, object]:
    """What keras.applications sets where another value would compute something else (applications/xception.py)."""
    if layer.kind == "BatchNormalization":
        return {"epsilon": rules.BATCH_NORM_EPSILON}
    if layer.kind == "Activation":
        return {"activation": "relu"}
    if layer.kind == "MaxPooling2D":
        return {"pool_size": 3, "strides": 2, "padding": "same"}
    if layer.kind not in ("Conv2D", "SeparableConv2D"):
        return {}
    stem = layer.name.startswith("block1_")
    strides = 1 if layer.kind == "SeparableConv2D" or layer.name == "block1_conv2" else 2
    plain: dict[str, object] = {"use_bias": False, "activation": "linear", "dilation_rate": 1, "groups": 1}
    return {**plain, "strides": strides, "padding": "valid" if stem else "same", "depth_multiplier": 1}


def _check_settings(file: object, graph: Graph, layers: Mapping[str, str]) -> None:
    """A configuration that computes something else than the network is refused before any data is read."""
    defects = []
    for path in layers.values():
        layer = graph[path]
        for name, expected in {**_settings(layer), "data_format": "channels_last"}.items():
            found = _plain(layer.config.get(name, expected))
            if found != expected:
                defects.append(Defect(path, f"{name} {found}", f"{name} {expected}"))
    if defects:
        raise PortingError(
            ErrorKind.MISMATCH, file, defects, "This is not keras.applications' Xception; it cannot be ported as one."
        )


def _plain(value: object) -> object:
    """A setting as keras.applications' code gives it: [3, 3] is 3, and a serialized function its name."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return value[0]
    if isinstance(value, Mapping):
        return value.get("config") if isinstance(value.get("config"), str) else value.get("class_name")
    return value


def _inputs(graph: Graph, first: Layer, statistics: Callable[[Layer], Sequence[Sequence[float]] | None]) -> InputChain:
    chain: list[Layer] = []
    layer = first
    while len(layer.inputs) == 1:
        layer = graph[layer.inputs[0]]
        chain.append(layer)
    scale, offset = [1.0] * 3, [0.0] * 3
    unknown, understood = [], []
    for layer in reversed(chain):
        if layer.kind == "Rescaling":
            factor, shift = _per_channel(layer.config["scale"]), _per_channel(layer.config.get("offset", 0.0))
        elif layer.kind == "Normalization" and not layer.config.get("invert"):
            moments = statistics(layer)
            if moments is None:
                unknown.append(describe(layer))
                continue
            mean, variance = (_per_channel(values) for values in moments)
            factor = [
                1 / max(math.sqrt(value), 1e-7) for value in variance
            ]  # keras/src/layers/preprocessing/normalization.py
            shift = [-m * f for m, f in zip(mean, factor, strict=True)]
        else:
            if layer.kind not in IDENTITIES and not layer.kind.startswith("Random"):
                unknown.append(describe(layer))
            continue
        understood.append(layer.path)
        scale = [s * f for s, f in zip(scale, factor, strict=True)]
        offset = [o * f + t for o, f, t in zip(offset, factor, shift, strict=True)]
    names = tuple(describe(layer) for layer in reversed(chain) if layer.kind != "InputLayer")
    affine = (tuple(scale), tuple(offset)) if understood else None
    return InputChain(_input_size(chain), affine, names, tuple(unknown), tuple(understood))


def _per_channel(value: object) -> list[float]:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        if len(value) != 3:
            raise ValueError(f"3 channels were expected, found {len(value)}")
        return [float(item) for item in value]
    return [float(value)] * 3  # type: ignore[arg-type]


def _input_size(chain: Sequence[Layer]) -> tuple[int, int] | None:
    """Height and width that the innermost input layer asks for; None where they are free."""
    for layer in chain:
        shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
        if layer.kind == "InputLayer" and shape and len(shape) == 4 and shape[1] and shape[2]:
            return int(shape[1]), int(shape[2])
    return None
