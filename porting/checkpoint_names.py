"""TensorFlow's containers under the one vocabulary of `porting.rules`: what each variable is, by its name."""

from __future__ import annotations

import re
from dataclasses import replace

from porting import rules
from porting.errors import unsupported
from porting.keras_generations import by_layer_names, one_dense_layer
from porting.plan import Contents, Unread
from porting.sources.base import TensorSource

# What a variable of a TF-Slim network is called at its end; a frozen graph's other constants are none.
_VARIABLE_LEAVES = frozenset(
    ["weights", "biases", "depthwise_weights", "pointwise_weights", "gamma", "beta", "moving_mean", "moving_variance"]
)
# DeepLab trained with regularize_depthwise=True: one scope a separable convolution, one batch norm after both.
_REGULARIZED = re.compile(r"/separable_conv\d/depthwise_weights$")
_SCOPES = frozenset(rules.ALIGNED_SCOPES.values())
# Variables of Keras's optimizers that belong to no weight, by their last name.
_OPTIMIZER_STATE = frozenset(
    ["iter", "iteration", "learning_rate", "decay", "beta_1", "beta_2", "rho", "momentum", "epsilon"]
)
# Keras 2's slots: `<variable>/<slot>`.
_KERAS_SLOTS = frozenset(["m", "v", "vhat", "momentum", "rms", "accumulator", "accum_grad", "accum_var"])


def holds_keras_names(source: TensorSource) -> bool:
    """Whether a TensorFlow container holds a Keras model, its variables named after its layers."""
    return any(name.split("/")[-2:] == [rules.KERAS_INPUT, "kernel"] for name in source.specs)


def checkpoint_contents(source: TensorSource) -> Contents:
    """An aligned network's variables, TF-Slim's names, and what lies beside them.

    Raises:
        PortingError: unsupported (trained with regularize_depthwise).
    """
    merged = [name for name in source.specs if _REGULARIZED.search(name)]
    if merged:
        raise unsupported(
            source.path,
            merged[0],
            "trained with regularize_depthwise=True: its separable convolutions have no batch norm between depthwise "
            "and pointwise, and its last unit no ReLU there, so it is none of the four networks",
            "Port a checkpoint trained with regularize_depthwise=False.",
        )
    explained: list[Unread] = []
    outside: dict[str, str] = {}
    frozen = source.container == "tf-frozen-graph"
    for name, spec in source.specs.items():
        scope, _, rest = name.partition("/")
        family = scope.rstrip("0123456789")
        if frozen and name.rpartition("/")[2] not in _VARIABLE_LEAVES:
            explained.append(Unread(name, "constant of the graph, not a variable"))
        elif spec.dtype == "string":
            explained.append(Unread(name, "text, not a weight"))
        elif scope not in _SCOPES and rest:
            outside[name] = family  # aspp0, aspp1 ... are one family
    unread = {item.name for item in explained}
    specs = {name: spec for name, spec in source.specs.items() if name not in unread}
    families = tuple(dict.fromkeys(outside.values()))
    return Contents(str(source.path), specs, {}, tuple(explained), outside, families)


def layer_name_contents(source: TensorSource) -> Contents:
    """A Keras network's variables from a TensorFlow container that names them after their layers."""
    named = by_layer_names(source.specs)
    taken = set(named.values())
    optimizers = {name.partition("/")[0] for name in source.specs if name.endswith("/iteration")}
    explained, outside = [], []
    for own, spec in source.specs.items():
        if own in taken:
            continue
        variable, _, leaf = own.rpartition("/")
        if own.partition("/")[0] in optimizers or leaf in _OPTIMIZER_STATE or variable in source.specs:
            explained.append(Unread(own, "optimizer state"))
        elif own == "save_counter":
            explained.append(Unread(own, "checkpoint counter"))
        elif leaf in ("total", "count"):
            explained.append(Unread(own, "metric state"))
        elif "seed_generator" in own or spec.dtype not in ("float16", "bfloat16", "float32", "float64"):
            explained.append(Unread(own, "random seed state" if "seed" in own else "not a weight"))
        else:
            outside.append(own)
    head, problem, listed = one_dense_layer(source.specs, outside)
    named |= head
    specs = {name: replace(source.specs[own], name=name) for name, own in named.items()}
    specs |= {own: source.specs[own] for own in outside if own not in head.values()}
    layers = {own: own.rpartition("/")[0] for own in outside if own not in head.values()}
    return Contents(str(source.path), specs, named, tuple(explained), layers, listed, (problem,) if problem else ())
