"""What a Keras graph holds after the features: one dense layer, a chain of layers, or what cannot be ported."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from porting import rules
from porting.keras_graph import Graph, Layer, consumers_of, describe
from porting.rules import HeadOp

# Layers that pass their input on unchanged at inference. PyTorch has the first two too, for training that goes on.
DROPOUTS = {"Dropout": "dropout", "AlphaDropout": "alpha_dropout"}
IDENTITIES = frozenset({"InputLayer", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", *DROPOUTS})
_POOLINGS = {"GlobalAveragePooling2D": "avg", "GlobalMaxPooling2D": "max"}

# Functions that PyTorch computes exactly as Keras does (`models.heads`). Not hard_sigmoid: Keras 2 and Keras 3 compute
# two different ones under that name, and a file does not always tell which of them it means.
_PORTED = frozenset(
    {"relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "hard_silu", "tanh", "sigmoid", "softplus"}
    | {"softsign", "mish"}
)
_OTHER_NAMES = {"swish": "silu", "hard_swish": "hard_silu"}
_FUNCTION_SLOPE, _LAYER_SLOPE = 0.2, 0.3  # Keras's defaults for leaky_relu and LeakyReLU
_ACTIVATION_LAYERS = frozenset({"Activation", "ReLU", "LeakyReLU", "ELU", "Softmax"})


@dataclass(frozen=True)
class HeadChain:
    """What follows the features.

    Attributes:
        layers: every layer after the features, "name (Class)", in the model's order.
        dense: path of the dense layer, where the head is one with a bias on the average-pooled features.
        activation: what is applied to the output ("softmax", ...), "" for none; not part of a port.
        pooling: how the features are pooled, "avg" or "max".
        ops: the modules of any other head that can be ported, in order; empty where `dense` says all.
        problems: why the head cannot be ported, one entry for each layer that is in the way.
    """

    layers: tuple[str, ...] = ()
    dense: str = ""
    activation: str = ""
    pooling: str = "avg"
    ops: tuple[HeadOp, ...] = ()
    problems: tuple[str, ...] = ()


def head_chain(graph: Graph, features: str) -> HeadChain:
    """The head behind a layer.

    Raises:
        ValueError, TypeError: a setting that no layer of Keras has.
    """
    consumers = consumers_of(graph)
    listed = tuple(describe(graph[path]) for path in _after(consumers, features) if graph[path].kind != "InputLayer")
    pooling, width = "", rules.FEATURES
    ops: list[HeadOp] = []
    problems: list[str] = []
    at = features
    while consumers.get(at):
        if len(consumers[at]) > 1:
            problems.append(f"{len(consumers[at])} layers take the output of {at}")
            break
        layer = graph[consumers[at][0]]
        at = layer.path
        if problem := _problem(layer, pooling):
            problems.append(f"{describe(layer)} {problem}")
        elif layer.kind in _POOLINGS:
            pooling = _POOLINGS[layer.kind]
        else:
            ops += _ops(layer, width) if pooling else []
            width = layer.config.get("units", width) if layer.kind == "Dense" else width
    activation, ops = _output(ops)
    for op in ops:
        if op.is_activation and op.kind not in _PORTED:
            problems.append(f"{describe(graph[op.layer])} applies {op.kind} inside the head, which has no equal here")
    if not problems and not any(op.kind == "linear" for op in ops):
        problems.append("no dense layer on the pooled features")
    if problems:
        return HeadChain(listed, problems=tuple(problems))
    kept = [op for op in ops if op.kind not in DROPOUTS.values()]
    if pooling == "avg" and len(kept) == 1 and kept[0].settings["bias"]:
        return HeadChain(listed, kept[0].layer, activation)
    return HeadChain(listed, "", activation, pooling, tuple(_checked(op) for op in ops))


def _after(consumers: Mapping[str, list[str]], features: str) -> list[str]:
    """Every layer behind the features, nearest first."""
    after: list[str] = []
    frontier = [features]
    while frontier:
        frontier = [path for source in frontier for path in consumers.get(source, ()) if path not in after]
        after += dict.fromkeys(frontier)
    return after


def _problem(layer: Layer, pooling: str) -> str:
    """Why a layer cannot be part of a head; "" where it can."""
    config = layer.config
    if len(layer.inputs) > 1:
        return f"has {len(layer.inputs)} inputs"
    if layer.kind in IDENTITIES:
        return ""
    if layer.kind in _POOLINGS and not pooling:
        plain = not config.get("keepdims") and config.get("data_format") in (None, "channels_last")
        return "" if plain else "does not pool the map to a vector"
    if layer.kind in ("Dense", "BatchNormalization", "Flatten", *_ACTIVATION_LAYERS):
        if not pooling:
            return "takes the map, not the pooled features"
        return _impossible(layer)
    return "is of a kind that is not ported in a head"


def _impossible(layer: Layer) -> str:
    config = layer.config
    if layer.kind == "BatchNormalization":
        if _plain(config.get("axis", -1)) not in (-1, 1):
            return f"normalises over axis {config['axis']}"
        other = [name for name in ("renorm", "virtual_batch_size", "adjustment", "fused_act") if config.get(name)]
        return f"is set to {', '.join(other)}" if other else ""
    if layer.kind == "ReLU" and not _relu(config):
        return "is a ReLU with a threshold or a limit that has no equal here"
    if layer.kind == "Softmax" and _plain(config.get("axis", -1)) not in (-1, 1):
        return f"is over axis {config['axis']}"
    return ""


def _plain(value: object) -> object:
    """[1] is 1."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _ops(layer: Layer, width: Any) -> list[HeadOp]:
    """The modules that compute a layer; settings are as the file has them."""
    config = layer.config
    if layer.kind == "Dense":
        settings = {"inputs": width, "outputs": config.get("units"), "bias": bool(config.get("use_bias", True))}
        function = _function(layer)
        return [HeadOp("linear", layer.path, settings), *([replace(function, fused=True)] if function else [])]
    if layer.kind == "BatchNormalization":
        has = {name: bool(config.get(name, True)) for name in ("scale", "center")}
        return [HeadOp("batch_norm", layer.path, {"channels": width, "eps": config.get("epsilon", 1e-3), **has})]
    if layer.kind in DROPOUTS:
        return [HeadOp(DROPOUTS[layer.kind], layer.path, {"rate": config.get("rate")})]
    function = _function(layer) if layer.kind in _ACTIVATION_LAYERS else None
    return [function] if function else []


def _function(layer: Layer) -> HeadOp | None:
    """The activation that a layer applies; None where it applies none."""
    kind, config = layer.kind, layer.config
    if kind in ("Dense", "Activation"):
        value = config.get("activation", "linear")
        if not isinstance(value, Mapping):
            return _named(layer, str(value))
        kind, inner = str(value.get("class_name", "unknown")), value.get("config")
        if kind == "function":  # of the user's own
            own = str(inner)
            return HeadOp(f"a function {own}" if own in _PORTED else own, layer.path, is_activation=True)
        if not isinstance(inner, Mapping):
            return HeadOp(kind, layer.path, is_activation=True)
        config = inner
    if kind == "Softmax":
        return HeadOp("softmax", layer.path, is_activation=True)
    if kind == "LeakyReLU":
        slope = config.get("negative_slope", config.get("alpha", _LAYER_SLOPE))
        return HeadOp("leaky_relu", layer.path, {"slope": slope}, is_activation=True)
    if kind == "ELU":
        return HeadOp("elu", layer.path, {"alpha": config.get("alpha", 1.0)}, is_activation=True)
    if kind == "ReLU":
        name, settings = _relu(config) or ("ReLU", {})
        return HeadOp(name, layer.path, settings, is_activation=True)
    return HeadOp(kind, layer.path, is_activation=True)


def _named(layer: Layer, name: str) -> HeadOp | None:
    name = _OTHER_NAMES.get(name, name)
    if name in ("linear", "None"):
        return None
    settings = {"leaky_relu": {"slope": _FUNCTION_SLOPE}, "elu": {"alpha": 1.0}}.get(name, {})
    return HeadOp(name, layer.path, settings, is_activation=True)


def _relu(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Which of PyTorch's functions a ReLU layer with these settings is; None where it is none of them."""
    limit, slope, threshold = (config.get(name) for name in ("max_value", "negative_slope", "threshold"))
    if threshold or (limit is not None and (slope or limit != 6)):
        return None
    if slope:
        return "leaky_relu", {"slope": slope}
    return ("relu" if limit is None else "relu6"), {}


def _output(ops: list[HeadOp]) -> tuple[str, list[HeadOp]]:
    """The activation of the output, as a manifest records it, and the modules before it."""

    def without_dropouts(items: list[HeadOp]) -> list[HeadOp]:
        while items and items[-1].kind in DROPOUTS.values():
            items = items[:-1]
        return items

    ops = without_dropouts(ops)
    if not ops or not ops[-1].is_activation:
        return "", ops
    last = ops[-1]
    settings = {} if last.settings == {"alpha": 1.0} else last.settings
    listed = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{last.kind}({listed})" if listed else last.kind, without_dropouts(ops[:-1])


def _checked(op: HeadOp) -> HeadOp:
    """The module, its settings being possible ones."""
    settings = dict(op.settings)
    for name, value in settings.items():
        if name in ("inputs", "outputs", "channels"):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{op.layer}: {name} {value!r}")
        elif name not in ("bias", "scale", "center"):
            number = float(value)
            possible = {"eps": number > 0, "rate": 0 <= number <= 1}.get(name, True)
            if not (possible and math.isfinite(number)):
                raise ValueError(f"{op.layer}: {name} {value!r}")
            # TensorFlow holds this one setting in float32, whatever the tensor's type is (LeakyReluOp's alpha).
            settings[name] = struct.unpack("f", struct.pack("f", number))[0] if name == "slope" else number
    return replace(op, settings=settings)
