"""A Keras model's configuration, read as data: one flat graph of layers, nested models opened up.

Nothing in a configuration is imported or executed. Formats: Keras 2 and 3 `get_config()` of Functional and Sequential
models, as `model.save` writes them (keras/src/models/functional.py, sequential.py; saving/serialization_lib.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from porting.errors import corrupt, unsupported

MODELS = frozenset({"Functional", "Model", "Sequential"})
MAX_DEPTH = 16  # nested models; deeper is not something that people write


@dataclass(frozen=True)
class Layer:
    """One layer of the flat graph.

    Attributes:
        path: names from the outermost model inwards, "xception/block1_conv1".
        kind: the class's name.
        config: the layer's own configuration.
        inputs: paths of the layers whose outputs it takes, in order.
        store: where `.weights.h5` keeps its variables, "layers/functional/layers/conv2d".
    """

    path: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    store: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


Graph = dict[str, Layer]


def snake_case(name: str) -> str:
    """A class's name as Keras files spell it (keras/src/utils/naming.py): SeparableConv2D is separable_conv2d."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def read_graph(file: object, model: Mapping[str, Any]) -> Graph:
    """The flat graph of a model's configuration, in the model's layer order.

    Raises:
        PortingError: corrupt (not the structure Keras writes) or unsupported (not a Functional or Sequential model).
    """
    if str(model.get("class_name")) not in MODELS:
        raise unsupported(
            file,
            "model configuration",
            f"a {model.get('class_name')} model, whose graph its file does not hold",
            "Save the Xception inside it on its own, or save weights only.",
        )
    graph: Graph = {}
    try:
        _open_model(graph, model, "", "", None, 0)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        found = f"not the structure that Keras writes ({type(error).__name__}: {error})"
        raise corrupt(file, "model configuration", found) from None
    return graph


def consumers_of(graph: Graph) -> dict[str, list[str]]:
    """For each layer, the layers that take its output."""
    consumers: dict[str, list[str]] = {}
    for path, layer in graph.items():
        for source in layer.inputs:
            consumers.setdefault(source, []).append(path)
    return consumers


def describe(layer: Layer) -> str:
    """A layer as messages name it."""
    return f"{layer.path} ({layer.kind})"


def _open_model(
    graph: Graph, model: Mapping[str, Any], path: str, store: str, feeds: tuple[str, ...] | None, depth: int
) -> list[str]:
    """Add a model's layers to the graph; returns the paths of the layers that give its outputs."""
    if depth > MAX_DEPTH:
        raise ValueError(f"models nested more than {MAX_DEPTH} deep")
    config = model["config"]
    layers: Sequence[Mapping[str, Any]] = config["layers"] if isinstance(config, Mapping) else config
    counts: Counter[str] = Counter()
    outputs: dict[str, list[str]] = {}  # layer name to the paths that give its outputs; more than one for a model
    sequential = model["class_name"] == "Sequential"
    entries = _input_layers(config, layers)
    previous: list[str] | None = list(feeds) if feeds is not None else None
    for item in layers:
        kind, settings = str(item["class_name"]), item["config"]
        name = str(item.get("name") or settings["name"])
        snake = snake_case(kind)
        own_store = f"{store}layers/{snake}" + (f"_{counts[snake]}" if counts[snake] else "")
        counts[snake] += 1
        if sequential:
            inputs = tuple(previous or ())
        elif feeds is not None and name in entries:
            inputs = (feeds[entries.index(name)],) if entries.index(name) < len(feeds) else ()
        else:
            inputs = tuple(_producer(outputs, *source) for source in _inbound(item.get("inbound_nodes", [])))
        if name in outputs or f"{path}{name}" in graph:
            raise ValueError(f"two layers are called {name}")
        if kind in MODELS:
            outputs[name] = _open_model(graph, item, f"{path}{name}/", f"{own_store}/", inputs, depth + 1)
        elif not isinstance(settings, Mapping):
            raise ValueError(f"the configuration of {name} is no mapping")
        else:
            graph[f"{path}{name}"] = Layer(f"{path}{name}", kind, settings, inputs, own_store)
            outputs[name] = [f"{path}{name}"]
        previous = outputs[name]
    if sequential:
        return previous or []
    return [_producer(outputs, name, index) for name, index in _references(config["output_layers"])]


def _producer(outputs: Mapping[str, Sequence[str]], name: str, index: int) -> str:
    paths = outputs[name]
    return paths[index] if len(paths) > 1 else paths[0]


def _input_layers(config: Any, layers: Sequence[Mapping[str, Any]]) -> list[str]:
    if isinstance(config, Mapping) and "input_layers" in config:
        return [name for name, _ in _references(config["input_layers"])]
    return [str(item["config"]["name"]) for item in layers if item["class_name"] == "InputLayer"]


def _references(value: Any) -> list[tuple[str, int]]:
    """`["name", 0, 0]`, or a list of these."""
    if not value:
        return []
    if isinstance(value[0], str):
        value = [value]
    return [(str(name), int(index)) for name, _, index, *_ in value]


def _inbound(nodes: Any) -> Iterator[tuple[str, int]]:
    """Producers of a layer's inputs: (layer name, output index). Only the first call of a shared layer counts."""
    if not nodes:
        return
    first = nodes[0]
    if isinstance(first, Mapping):  # Keras 3: {"args": [tensors], "kwargs": {}}
        yield from _tensors([first.get("args", []), first.get("kwargs", {})], 0)
    elif first and isinstance(first[0], str):  # Keras 2, one input, flattened by some writers
        yield str(first[0]), int(first[2])
    else:  # Keras 2: [[name, node, index, kwargs], ...]
        for item in first:
            yield str(item[0]), int(item[2])


def _tensors(value: Any, depth: int) -> Iterator[tuple[str, int]]:
    if depth > MAX_DEPTH:
        raise ValueError(f"arguments nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            name, _, index = value["config"]["keras_history"]
            yield str(name), int(index)
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _tensors(item, depth + 1)
