"""Names in Keras files that hold weights and no graph, by the generation that wrote them.

The order of the network stands in for the graph: Keras 1 numbered layers in creation order, legacy `.h5` files list
them in layer order, and `.weights.h5` files count each class in layer order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from porting import rules
from porting.keras_graph import snake_case
from porting.rules import KerasClass, KerasLayer
from porting.sources.base import TensorSpec

Specs = Mapping[str, TensorSpec]
_AUTOMATIC = re.compile(r"batch_normalization(_\d+)?")

LegacyIndex = dict[tuple[str, str], dict[str, str]]

BATCH_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
_LEAVES = {
    KerasClass.CONV: ("kernel",),
    KerasClass.SEPARABLE: ("depthwise_kernel", "pointwise_kernel"),
    KerasClass.BATCH_NORM: BATCH_NORM_LEAVES,
}
_LAST_SEPARABLE = "layers/separable_conv2d_33/vars/0"  # only an Xception has 34 of them
# Keras 1's layer prefixes, and its leaf names where they differ; running_std holds the variance.
_KERAS1 = {
    KerasClass.CONV: ("convolution2d", {"kernel": "W"}),
    KerasClass.SEPARABLE: ("separableconvolution2d", {}),
    KerasClass.BATCH_NORM: (
        "batchnormalization",
        {"moving_mean": "running_mean", "moving_variance": "running_std"},
    ),
}


def legacy_index(specs: Specs) -> LegacyIndex:
    """(top-level group, layer) to {leaf: name} of a legacy `.h5` file."""
    index: LegacyIndex = {}
    for own in specs:
        parts = own.split("/")
        if len(parts) >= 2:
            index.setdefault((parts[0], parts[-2]), {})[parts[-1]] = own
    return index


def by_counters(specs: Specs) -> tuple[str, dict[str, str]]:
    """Names for a `.weights.h5`: the prefix of the model that holds the network, and vocabulary name to own name."""
    prefixes = [own.removesuffix(_LAST_SEPARABLE) for own in specs if own.endswith(_LAST_SEPARABLE)]
    if len(prefixes) != 1:
        return "", {}
    named = ((name, f"{prefixes[0]}{own}") for name, own in counted_names().items())
    return prefixes[0], {name: own for name, own in named if own in specs}


def counted_names() -> dict[str, str]:
    """Vocabulary name to the name in the `.weights.h5` of the network alone, without its head, in layer order."""
    counts: Counter[str] = Counter()
    named = {}
    for layer in rules.keras_layers():
        snake = snake_case(layer.kind.value)
        place = f"{snake}_{counts[snake]}" if counts[snake] else snake
        counts[snake] += 1
        for index, leaf in enumerate(_LEAVES[layer.kind]):
            named[f"{layer.name}/{leaf}"] = f"layers/{place}/vars/{index}"
    return named


def counted_head() -> dict[str, str]:
    """The same of the network's own dense layer. A file may have others in its place, so it is no way to read one."""
    place = f"layers/{snake_case(KerasClass.DENSE.value)}/vars"
    return {f"{rules.KERAS_HEAD}/{leaf}": f"{place}/{index}" for index, leaf in enumerate(("kernel", "bias"))}


def by_layer_names(specs: Specs) -> dict[str, str]:
    """Names for a legacy `.h5`: the layers' own, and the order of the file for the four shortcuts."""
    group = next((own.split("/")[0] for own in specs if own.split("/")[-2:-1] == [rules.KERAS_INPUT]), "")
    flat = group == rules.KERAS_INPUT
    layers = {name: leaves for (top, name), leaves in legacy_index(specs).items() if flat or top == group}
    automatic = [(name, leaves) for name, leaves in layers.items() if not name.startswith("block")]
    if all(_AUTOMATIC.fullmatch(name) for name, leaves in automatic if "moving_mean" in leaves):
        # Automatic names count in creation order; TensorFlow's containers list them in another.
        automatic.sort(key=lambda item: [int(number) for number in re.findall(r"_(\d+)$", item[0])])
    convs = [name for name, leaves in automatic if "kernel" in leaves and len(specs[leaves["kernel"]].shape) == 4]
    norms = [name for name, leaves in automatic if "moving_mean" in leaves]
    stored = {}
    for index, (conv, norm) in enumerate(zip(convs[:4], norms[:4], strict=False)):
        stored[rules.automatic_name("conv2d", index)] = conv
        stored[rules.automatic_name("batch_normalization", index)] = norm
    named = {}
    for layer in rules.keras_layers():
        leaves = layers.get(stored.get(layer.name, layer.name), {})
        named.update({f"{layer.name}/{leaf}": leaves[leaf] for leaf in _LEAVES[layer.kind] if leaf in leaves})
    return named


def by_keras1_numbers(specs: Specs) -> dict[str, str]:
    """Names for Keras 1 files: `convolution2d_3/convolution2d_3_W`; nothing for any other file."""
    counts: Counter[str] = Counter()
    named = {}
    for layer in _creation_order():
        prefix, renamed = _KERAS1[layer.kind]
        counts[prefix] += 1
        place = f"{prefix}_{counts[prefix]}"
        for leaf in _LEAVES[layer.kind]:
            own = f"{place}/{place}_{renamed.get(leaf, leaf)}"
            if own in specs:
                named[f"{layer.name}/{leaf}"] = own
    return named


def _creation_order() -> list[KerasLayer]:
    """The layers as the network's code creates them: a shortcut's convolution and batch norm before its block."""
    layers = {layer.name: layer for layer in rules.keras_layers()}
    ordered = [layer for layer in layers.values() if layer.name.startswith("block")]
    for index, block in enumerate(rules.SHORTCUT_BLOCKS):
        first = next(i for i, layer in enumerate(ordered) if layer.name.startswith(f"block{block}_"))
        ordered[first:first] = [layers[rules.automatic_name(name, index)] for name in ("conv2d", "batch_normalization")]
    return ordered


def one_dense_layer(specs: Specs, outside: list[str]) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """The head of a file without a graph: its names, why it is not one dense layer, and its layers described."""
    layers: dict[str, list[str]] = {}
    for own in outside:
        layers.setdefault(own.rpartition("/")[0].removesuffix("/vars"), []).append(own)
    listed = tuple(
        f"{layer} ({', '.join(str(list(specs[own].shape)) for own in owns)})" for layer, owns in layers.items()
    )
    if not layers:
        return {}, "no dense layer on the pooled features", listed
    shapes = sorted((len(specs[own].shape), own) for own in outside)
    if len(layers) > 1 or [rank for rank, _ in shapes] != [1, 2]:
        return {}, "not one dense layer", listed
    (_, bias), (_, kernel) = shapes
    return {f"{rules.KERAS_HEAD}/kernel": kernel, f"{rules.KERAS_HEAD}/bias": bias}, "", listed
