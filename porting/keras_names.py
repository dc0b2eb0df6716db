"""Keras's containers under the one vocabulary of `porting.rules`, whatever names or numbers the file uses.

Where the file holds the model's graph, the graph decides which layer is which; else `porting.keras_generations` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from porting import rules
from porting.errors import PortingError, corrupt
from porting.keras_generations import (
    BATCH_NORM_LEAVES,
    by_counters,
    by_keras1_numbers,
    by_layer_names,
    legacy_index,
    one_dense_layer,
)
from porting.keras_graph import Graph, Layer, read_graph
from porting.keras_head import HeadChain
from porting.keras_model import KerasModel, find_xception
from porting.plan import Contents, Unread
from porting.rules import Head
from porting.sources.base import TensorSource

# Variables of each class in Keras's own order; a batch norm without scale or centre has fewer.
_VARIABLES: Mapping[str, Sequence[str]] = {
    "Conv2D": ("kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "Normalization": ("mean", "variance", "count"),
}


@dataclass(frozen=True)
class KerasContents:
    """A Keras source under the vocabulary's names.

    Attributes:
        contents: what a plan is built from.
        model: the Xception in the file's graph; None where the file holds weights only.
        store: prefix under which a nested Xception's weights lie in a `.weights.h5` without a graph.
        nested: whether a file without a graph nests the network in another model.
    """

    contents: Contents
    model: KerasModel | None
    store: str
    nested: bool


def is_keras(source: TensorSource) -> bool:
    """Whether a source comes from Keras, and so needs this module."""
    return source.container.startswith("keras")


def keras_contents(source: TensorSource) -> KerasContents:
    """The source's variables under the vocabulary's names.

    Raises:
        PortingError: corrupt (an impossible configuration), unsupported, or mismatch.
    """
    explained = {own: reason for own in source.specs if (reason := _state_reason(own))}
    if source.model_config is not None:
        return _from_graph(source, read_graph(source.path, source.model_config), explained)
    store = ""
    if source.container == "keras-h5":
        named = by_keras1_numbers(source.specs) or by_layer_names(source.specs)
    else:
        store, named = by_counters(source.specs)
    taken = {*named.values(), *explained}
    outside = [own for own in source.specs if own not in taken]
    head, problem, listed = one_dense_layer(source.specs, outside)
    left_over = {own: own.rpartition("/")[0] for own in outside} if named else {}
    chain = HeadChain(listed, problems=(problem,) if problem else ())
    contents = _contents(source, named | head, explained, left_over, chain)
    first = named.get(f"{rules.KERAS_INPUT}/kernel", rules.KERAS_INPUT)
    nested = not first.startswith((rules.KERAS_INPUT, "layers/conv2d/", "convolution2d_"))
    return KerasContents(contents, None, store, nested)


def _from_graph(source: TensorSource, graph: Graph, explained: dict[str, str]) -> KerasContents:
    model = _xception(source, graph)
    if model is None:
        return KerasContents(_contents(source, {}, explained, {}, HeadChain()), None, "", False)
    backbone = set(model.layers.values())
    named: dict[str, str] = {}
    classifier = [(rules.KERAS_HEAD, model.head.dense)] if model.head.dense else []
    classifier += [(rules.chain_place(i), op.layer) for i, op in enumerate(model.head.ops) if not op.is_activation]
    for name, path in (*model.layers.items(), *classifier):
        named |= {f"{name}/{leaf}": own for leaf, own in _own_names(source, graph[path]).items()}
    owners = _owners(source, graph)
    outside = {}
    for own in source.specs:
        owner = owners.get(own)
        if owner is None or owner.path in backbone or own in explained:
            continue
        if owner.path in model.inputs.understood:
            explained[own] = "input normalisation; the manifest's preprocessing holds it"
        else:
            outside[own] = owner.path
    return KerasContents(_contents(source, named, explained, outside, model.head), model, "", False)


def _contents(
    source: TensorSource,
    named: Mapping[str, str],
    explained: Mapping[str, str],
    outside: Mapping[str, str],
    head: HeadChain,
) -> Contents:
    widths = [op.settings["outputs"] for op in head.ops if op.kind == "linear"]
    taken = set(named.values())
    specs = {name: replace(source.specs[own], name=name) for name, own in named.items()}
    specs |= {own: spec for own, spec in source.specs.items() if own not in taken and own not in explained}
    return Contents(
        str(source.path),
        specs,
        named,
        tuple(Unread(own, reason) for own, reason in explained.items()),
        {own: layer for own, layer in outside.items() if own not in taken},
        head.layers,
        head.problems,
        Head(widths[-1], chain=head.ops, pooling=head.pooling) if widths else None,
    )


def _xception(source: TensorSource, graph: Graph) -> KerasModel | None:
    def statistics(layer: Layer) -> Sequence[Sequence[float]] | None:
        if layer.config.get("mean") is not None and layer.config.get("variance") is not None:
            return [layer.config["mean"], layer.config["variance"]]
        own = _own_names(source, layer)
        if "mean" not in own or "variance" not in own:
            return None
        return [source.read(own[leaf]).reshape(-1).tolist() for leaf in ("mean", "variance")]

    try:
        return find_xception(source.path, graph, statistics)
    except PortingError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise corrupt(source.path, "model configuration", f"{type(error).__name__}: {error}") from None


def _own_names(source: TensorSource, layer: Layer) -> dict[str, str]:
    """Leaf name to the source's variable name, for one layer of the graph."""
    leaves = _VARIABLES.get(layer.kind, ())
    if layer.kind == "BatchNormalization":
        # Keras numbers only what exists.
        exists = {"gamma": layer.config.get("scale", True), "beta": layer.config.get("center", True)}
        leaves = [leaf for leaf in BATCH_NORM_LEAVES if exists.get(leaf, True)]
    if source.container == "keras-h5":
        top = layer.path.partition("/")[0]
        found = legacy_index(source.specs).get((top, layer.name), {})
    else:
        found = {leaf: f"{layer.store}/vars/{index}" for index, leaf in enumerate(leaves)}
    return {leaf: found[leaf] for leaf in leaves if found.get(leaf) in source.specs}


def _owners(source: TensorSource, graph: Graph) -> dict[str, Layer]:
    """Which layer of the graph each variable belongs to."""
    owners = {}
    if source.container == "keras-h5":
        by_place = {(layer.path.partition("/")[0], layer.name): layer for layer in graph.values()}
        for place, leaves in legacy_index(source.specs).items():
            if place in by_place:
                owners.update(dict.fromkeys(leaves.values(), by_place[place]))
        return owners
    by_store = {layer.store: layer for layer in graph.values()}
    for own in source.specs:
        parts = own.split("/")
        for end in range(len(parts) - 1, 1, -1):  # a layer may hold others (Bidirectional, TimeDistributed)
            if layer := by_store.get("/".join(parts[:end])):
                owners[own] = layer
                break
    return owners


def _state_reason(own: str) -> str:
    """Why a variable that belongs to training is left out; "" for any other."""
    if own.startswith("optimizer_weights/") or "optimizer" in own.split("/")[:-2]:  # a nested model may have its own
        return "optimizer state"
    if "seed_generator" in own:
        return "random seed state"
    return "metric state" if own.startswith("metrics/") else ""
