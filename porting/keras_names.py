"""Keras's containers under the one vocabulary of `porting.rules`, whatever names or numbers the file uses.

Three generations of names (see `porting.sources`): Keras 1's numbered layers, the layer names of legacy `.h5` files,
and the per-class counters of `.weights.h5` and `.keras` files. Where the file holds a graph, the graph decides; else
the order of the network, which Keras's writers keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from porting import rules
from porting.errors import PortingError, corrupt
from porting.keras_graph import Graph, Layer, read_graph, snake_case
from porting.keras_model import KerasModel, find_xception
from porting.plan import Contents, Options, Unread
from porting.rules import KerasClass
from porting.sources.base import TensorSource, TensorSpec

# Variables of each class in Keras's own order; a batch norm without scale or centre has fewer.
_BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "Normalization": ("mean", "variance", "count"),
}
_LEAVES = {
    KerasClass.CONV: ("kernel",),
    KerasClass.SEPARABLE: ("depthwise_kernel", "pointwise_kernel"),
    KerasClass.BATCH_NORM: _BATCH_NORM,
}


@dataclass(frozen=True)
class KerasContents:
    """A Keras source under the vocabulary's names.

    Attributes:
        contents: what a plan is built from.
        model: the Xception in the file's graph; None where the file holds weights only.
        store: prefix under which a nested Xception's weights lie in a file without a graph.
        nested: whether such a file nests the network in another model.
    """

    contents: Contents
    model: KerasModel | None
    store: str
    nested: bool


def is_keras(source: TensorSource) -> bool:
    """Whether a source comes from Keras, and so needs this module."""
    return source.container.startswith("keras")


def keras_contents(source: TensorSource, options: Options) -> KerasContents:
    """The source's variables under the vocabulary's names.

    Raises:
        PortingError: corrupt (an impossible configuration), unsupported, or mismatch.
    """
    model = None
    store = ""
    named: dict[str, str]
    graph: Graph = {}
    if source.model_config is not None:
        graph = read_graph(source.path, source.model_config)
        model = _xception(source, graph)
        named = _by_graph(source, graph, model) if model else {}
    elif source.container == "keras-weights-h5":
        store, named = _by_counters(source.specs)
    else:
        named = _by_keras1_numbers(source.specs) or _by_layer_names(source.specs)
    problem: str = ""
    layers: tuple[str, ...] = ()
    if model:
        problem, layers = model.head.problem, model.head.layers
    elif named:
        problem, layers = _dense_by_shape(source.specs, named, store)
    taken = set(named.values())
    unread = []
    specs = {name: replace(source.specs[own], name=name) for name, own in named.items()}
    for own, spec in source.specs.items():
        if own in taken:
            continue
        reason = _reason(own, graph, model, options)
        if reason:
            unread.append(Unread(own, reason))
        else:
            specs[own] = spec
    contents = Contents(
        str(source.path),
        specs,
        named,
        tuple(unread),
        layers,
        problem,
    )
    return KerasContents(contents, model, store, _is_nested(named))


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise corrupt(source.path, "model configuration", f"{type(error).__name__}: {error}") from None


def _own_names(source: TensorSource, layer: Layer) -> dict[str, str]:
    """Leaf name to the source's variable name, for one layer of the graph."""
    leaves: Sequence[str] = _VARIABLES.get(layer.kind, ())
    if layer.kind == "BatchNormalization":
        # Keras numbers only what exists.
        without = {"gamma": layer.config.get("scale", True), "beta": layer.config.get("center", True)}
        leaves = [leaf for leaf in _BATCH_NORM if without.get(leaf, True)]
    if source.container != "keras-h5":
        found = {leaf: f"{layer.store}/vars/{index}" for index, leaf in enumerate(leaves)}
    else:
        top = layer.path.partition("/")[0]
        by_leaf = _legacy_index(source.specs).get((top, layer.name), {})
        found = {leaf: by_leaf[leaf] for leaf in leaves if leaf in by_leaf}
    return {leaf: own for leaf, own in found.items() if own in source.specs}


_Index = dict[tuple[str, str], dict[str, str]]


def _legacy_index(specs: Mapping[str, TensorSpec]) -> _Index:
    """(top-level group, layer) to {leaf: name} of a legacy `.h5` file."""
    index: _Index = {}
    for own in specs:
        parts = own.split("/")
        if len(parts) >= 2:
            index.setdefault((parts[0], parts[-2]), {})[parts[-1]] = own
    return index


def _by_graph(source: TensorSource, graph: Graph, model: KerasModel) -> dict[str, str]:
    named = {}
    for name, path in model.layers.items():
        for leaf, own in _own_names(source, graph[path]).items():
            named[f"{name}/{leaf}"] = own
    if model.head.dense:
        for leaf, own in _own_names(source, graph[model.head.dense]).items():
            named[f"{rules.KERAS_HEAD}/{leaf}"] = own
    return named


def _by_counters(specs: Mapping[str, TensorSpec]) -> tuple[str, dict[str, str]]:
    """Names for a `.weights.h5` without a graph: the prefix of the nested model, and the names."""
    last = "layers/separable_conv2d_33/vars/0"  # only an Xception has 34 of them
    prefixes = [own.removesuffix(last) for own in specs if own.endswith(last)]
    if len(prefixes) != 1:
        return "", {}
    counts: Counter[str] = Counter()
    named = {}
    for layer in rules.keras_layers():
        snake = snake_case(layer.kind.value)
        place = f"{snake}_{counts[snake]}" if counts[snake] else snake
        counts[snake] += 1
        for index, leaf in enumerate(_LEAVES[layer.kind]):
            own = f"{prefixes[0]}layers/{place}/vars/{index}"
            if own in specs:
                named[f"{layer.name}/{leaf}"] = own
    return prefixes[0], named


def _by_layer_names(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Names for a legacy `.h5` without a graph: layer names, and the order of the file for the four shortcuts."""
    group = next((own.split("/")[0] for own in specs if own.split("/")[-2:-1] == [rules.KERAS_INPUT]), "")
    flat = group == rules.KERAS_INPUT
    layers = {name: leaves for (top, name), leaves in _legacy_index(specs).items() if flat or top == group}
    named = {}
    convs = [name for name, leaves in layers.items() if not name.startswith("block") and _is_conv(specs, leaves)]
    norms = [name for name, leaves in layers.items() if not name.startswith("block") and "moving_mean" in leaves]
    automatic = {
        **{rules.automatic_name("conv2d", index): name for index, name in enumerate(convs[:4])},
        **{rules.automatic_name("batch_normalization", index): name for index, name in enumerate(norms[:4])},
    }
    for layer in rules.keras_layers():
        leaves = layers.get(automatic.get(layer.name, layer.name), {})
        for leaf in _LEAVES[layer.kind]:
            if leaf in leaves:
                named[f"{layer.name}/{leaf}"] = leaves[leaf]
    return named


def _is_conv(specs: Mapping[str, TensorSpec], leaves: Mapping[str, str]) -> bool:
    return "kernel" in leaves and len(specs[leaves["kernel"]].shape) == 4


def _is_nested(named: Mapping[str, str]) -> bool:
    first = named.get(f"{rules.KERAS_INPUT}/kernel", "")
    return not first.startswith((f"{rules.KERAS_INPUT}/", "layers/conv2d/"))


def _by_keras1_numbers(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Names for Keras 1 files: layers count from 1 in creation order, a shortcut before its block's own layers."""
    if not any(own.startswith("separableconvolution2d_") for own in specs):
        return {}
    counts: Counter[str] = Counter()
    named = {}
    classes = {
        KerasClass.CONV: ("convolution2d", {"W": "kernel"}),
        KerasClass.SEPARABLE: (
            "separableconvolution2d",
            {"depthwise_kernel": "depthwise_kernel", "pointwise_kernel": "pointwise_kernel"},
        ),
        KerasClass.BATCH_NORM: (
            "batchnormalization",
            # Keras 1 called the running variance running_std; it holds the variance.
            {"gamma": "gamma", "beta": "beta", "running_mean": "moving_mean", "running_std": "moving_variance"},
        ),
    }
    for layer in _creation_order():
        prefix, leaves = classes[layer.kind]
        counts[prefix] += 1
        place = f"{prefix}_{counts[prefix]}"
        for leaf, name in leaves.items():
            own = f"{place}/{place}_{leaf}"
            if own in specs:
                named[f"{layer.name}/{name}"] = own
    return named


def _creation_order() -> list[rules.KerasLayer]:
    """The layers as the network's code creates them: a shortcut's convolution and batch norm before its block."""
    layers = list(rules.keras_layers())
    by_name = {layer.name: layer for layer in layers}
    ordered = [layer for layer in layers if layer.name.startswith("block")]
    for index, block in reversed(list(enumerate(rules.SHORTCUT_BLOCKS))):
        first = next(i for i, layer in enumerate(ordered) if layer.name.startswith(f"block{block}_"))
        shortcut = [by_name[rules.automatic_name(name, index)] for name in ("conv2d", "batch_normalization")]
        ordered[first:first] = shortcut
    return ordered


def _dense_by_shape(specs: Mapping[str, TensorSpec], named: dict[str, str], store: str) -> tuple[str, tuple[str, ...]]:
    """Without a graph, find the one dense layer and add its names to `named`; returns (problem, layers)."""
    taken = set(named.values())
    rest = [own for own in specs if own not in taken and not _is_state(own)]
    layers: dict[str, list[str]] = {}
    for own in rest:
        layers.setdefault(own.rsplit("/vars/", 1)[0] if "/vars/" in own else own.rpartition("/")[0], []).append(own)
    listed = tuple(
        f"{layer} ({', '.join(str(list(specs[own].shape)) for own in owns)})" for layer, owns in layers.items()
    )
    dense = [
        owns for owns in layers.values()
        if sorted(len(specs[own].shape) for own in owns) == [1, 2]
    ]  # fmt: skip
    if len(layers) == 1 and len(dense) == 1:
        for own in dense[0]:
            leaf = "kernel" if len(specs[own].shape) == 2 else "bias"
            named[f"{rules.KERAS_HEAD}/{leaf}"] = own
        return "", listed
    return ("more than one layer after the features" if layers else "no dense layer on the pooled features"), listed


def _is_state(own: str) -> bool:
    return own.startswith(("optimizer/", "optimizer_weights/")) or "seed_generator" in own


def _reason(own: str, graph: Graph, model: KerasModel | None, options: Options) -> str:
    """Why a variable outside the network is left out; "" where nothing explains it."""
    if own.startswith(("optimizer/", "optimizer_weights/")):
        return "optimizer state"
    if "seed_generator" in own:
        return "random seed state"
    if own.startswith("metrics/"):
        return "metric state"
    if model and any(
        layer.kind == "Normalization" and own.startswith((f"{layer.store}/", f"{layer.path.partition('/')[0]}/"))
        for layer in graph.values()
    ):
        return "input normalisation; the manifest's preprocessing holds it"
    if options.backbone_only and (model or "block1_conv1" not in own):
        return "outside the backbone, left out by --backbone-only"
    return ""
