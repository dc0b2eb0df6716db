"""Classifiers that are more than one dense layer: chains rebuilt from the manifest beside the weights.

A manifest's `head` of kind "chain" lists plain settings, never code: each module's `kind` and exactly the settings of
that kind. They are checked here, in full, before a network is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.layers import GlobalPool, Pooling

FEATURES = 2048  # channels of the pooled features, which a chain starts from

Settings = Mapping[str, Any]


def _width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> bool:
    return _finite(value) and value > 0  # type: ignore[operator]


def _rate(value: object) -> bool:
    return _finite(value) and 0 <= value <= 1  # type: ignore[operator]


def _batch_norm(settings: Settings) -> nn.Module:
    """Keras lets a batch norm lack its scale (gamma) or its centre (beta) alone; PyTorch's options know only both."""
    norm = nn.BatchNorm1d(settings["channels"], eps=settings["eps"])
    for name, wanted in (("weight", settings["scale"]), ("bias", settings["center"])):
        if not wanted:
            norm.register_parameter(name, None)
    norm.affine = settings["scale"] and settings["center"]
    return norm


@dataclass(frozen=True)
class _Kind:
    """A kind of module: the settings that it must have, each with its check, and what builds it."""

    settings: Mapping[str, Callable[[object], bool]]
    build: Callable[[Settings], nn.Module]


# Each computes what Keras's layer or activation of that meaning computes. Softplus: PyTorch's own threshold of 20 is
# off by 2e-9 there; above 40 the two cannot be told apart in float64.
_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(threshold=40.0),
    "softsign": nn.Softsign,
    "mish": nn.Mish,
    "hard_silu": nn.Hardswish,
}


def _activation_kind(build: Callable[[], nn.Module]) -> _Kind:
    return _Kind({}, lambda _: build())


_KINDS: Mapping[str, _Kind] = {
    "linear": _Kind(
        {"inputs": _width, "outputs": _width, "bias": _flag},
        lambda given: nn.Linear(given["inputs"], given["outputs"], bias=given["bias"]),
    ),
    "batch_norm": _Kind({"channels": _width, "eps": _positive, "scale": _flag, "center": _flag}, _batch_norm),
    "dropout": _Kind({"rate": _rate}, lambda given: nn.Dropout(given["rate"])),
    "alpha_dropout": _Kind({"rate": _rate}, lambda given: nn.AlphaDropout(given["rate"])),
    "leaky_relu": _Kind({"slope": _finite}, lambda given: nn.LeakyReLU(given["slope"])),
    "elu": _Kind({"alpha": _finite}, lambda given: nn.ELU(given["alpha"])),
    **{name: _activation_kind(build) for name, build in _ACTIVATIONS.items()},
}


@dataclass(frozen=True)
class Chain:
    """A classifier on the pooled features (N, 2048): modules in order, as the manifest lists them.

    Attributes:
        modules: each one's `kind` and settings.
        pooling: how the last map is pooled before them.
        num_classes: outputs of the last one.
    """

    modules: tuple[Settings, ...]
    pooling: Pooling
    num_classes: int


def read_chain(entry: Mapping[str, Any]) -> Chain:
    """The chain that a manifest's `head` describes.

    Raises:
        ModelError: an unknown kind, a setting missing, unknown or impossible, or widths that do not follow each other.
    """
    pooling, modules = entry.get("pooling"), entry.get("modules")
    if pooling not in (Pooling.AVG.value, Pooling.MAX.value):
        raise ModelError(f"head: pooling: expected 'avg' or 'max', found {pooling!r}")
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        raise ModelError("head: modules: expected a list of modules with their settings")
    width, dense = FEATURES, False
    for position, module in enumerate(modules):
        where = f"head: module {position}"
        kind = _KINDS.get(str(module.get("kind")))
        if kind is None:
            raise ModelError(f"{where}: kind: expected one of {', '.join(_KINDS)}, found {module.get('kind')!r}")
        if module.keys() != {"kind", *kind.settings}:
            expected = ", ".join(kind.settings) or "none"
            found = ", ".join(str(key) for key in module if key != "kind") or "none"
            raise ModelError(f"{where} ({module['kind']}): settings: expected {expected}, found {found}")
        for name, check in kind.settings.items():
            if not check(module[name]):
                raise ModelError(f"{where} ({module['kind']}): {name}: {module[name]!r} is impossible")
        taken = module.get("inputs", module.get("channels", width))
        if taken != width:
            raise ModelError(f"{where} ({module['kind']}): expected {width} inputs, found {taken}")
        width = module.get("outputs", width)
        dense = dense or module["kind"] == "linear"
    if not dense:
        raise ModelError("head: modules: expected a linear one among them, found none")
    return Chain(tuple(dict(module) for module in modules), Pooling(pooling), width)


def build_chain(chain: Chain) -> nn.Sequential:
    """The chain's modules, untrained: pooled features (N, 2048) to (N, num_classes)."""
    return nn.Sequential(*(_KINDS[module["kind"]].build(module) for module in chain.modules))


def attach(network: nn.Module, chain: Chain, pooling: Pooling | None = None) -> None:
    """Make a chain the classifier of an original Xception, in place.

    Args:
        pooling: instead of the chain's own.

    Raises:
        ModelError: another network; the aligned ones have no such heads.
    """
    if not isinstance(getattr(network, "fc", None), nn.Module):
        raise ModelError("head: a chain of layers is a classifier of the original xception alone")
    network.global_pool = GlobalPool(chain.pooling if pooling is None else pooling)
    network.fc = build_chain(chain)
    network.num_classes = chain.num_classes  # type: ignore[assignment]


def apply_activation(logits: Tensor, activation: str | None) -> Tensor:
    """What the source's own model gives for these logits (N, classes), in float64.

    Args:
        activation: as the manifest records it; without one, softmax, or sigmoid of a single output.

    Raises:
        ModelError: a function that only the source's model knows.
    """
    values = logits.double()
    name = activation or ("sigmoid" if logits.shape[1] == 1 else "softmax")
    if name == "softmax":
        return values.softmax(1)
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"activation: {name} is not known here; call the network itself, whose outputs are those before it"
        )
    result: Tensor = _ACTIVATIONS[name]()(values)
    return result


def named_probabilities(values: Tensor, activation: str | None, labels: int) -> Tensor:
    """One value for each label: a single sigmoid output with two labels is the second one's probability."""
    if values.shape[1] == 1 and labels == 2 and (activation or "sigmoid") == "sigmoid":
        return torch.cat([1 - values, values], 1)
    return values
