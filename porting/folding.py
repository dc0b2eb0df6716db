"""Folding every batch norm of a network into the convolution before it, and moving batch norms to another epsilon.

Both are arithmetic on state dicts: in float64, rounded to float32 once. The arithmetic of a fold is
`models.inference.fold_parameters`, which `models.optimize_for_inference` uses too. Which convolution a batch norm
follows is read off the network that `models` builds. Batch norms of a classifier that is a chain follow no convolution
and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from models.inference import conv_before_each_norm, fold_parameters
from models.registry import untrained

# What a batch norm may hold: the last two are missing where it was built without a scale or a centre.
LEAVES = ("running_mean", "running_var", "weight", "bias", "num_batches_tracked")


@lru_cache(None)
def _pairs(arch: str) -> tuple[tuple[str, str], ...]:
    with torch.device("meta"):
        return tuple(conv_before_each_norm(untrained(arch, 0)).items())


def norms(arch: str) -> dict[str, str]:
    """Path of every convolution that a batch norm follows -> path of that batch norm.

    Raises:
        models.ModelError: no such network.
    """
    return {conv: norm for norm, conv in _pairs(arch)}


def fold(arch: str, state: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """The state dict of `create_model(arch, folded=True)` for that of the plain network: no batch norm is left.

    Args:
        state: float32; the whole network's, or some convolutions with their batch norms. A batch norm may lack its
            scale (`weight`) or its centre (`bias`).
        epsilon: of the batch norms.

    Raises:
        KeyError: a convolution without the statistics of its batch norm.
    """
    after = norms(arch)
    gone = {f"{norm}.{leaf}" for norm in after.values() for leaf in LEAVES}
    folded: dict[str, Tensor] = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if module in after and leaf == "weight":
            mean, variance, scale, centre = (state.get(f"{after[module]}.{leaf}") for leaf in LEAVES[:4])
            if mean is None or variance is None:
                raise KeyError(f"{after[module]}.{LEAVES[0] if mean is None else LEAVES[1]}")
            own_bias = state.get(f"{module}.bias")
            kernel, bias = fold_parameters(value, own_bias, mean, variance, scale, centre, epsilon)
            folded[name], folded[f"{module}.bias"] = kernel.float(), bias.float()
        elif name not in gone and not (module in after and leaf == "bias"):
            folded[name] = value
    return folded


def wrong_folds(arch: str, state: Mapping[str, Tensor], epsilon: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What goes wrong in folding, in words, and the state dict that comes of it.

    Args:
        state: one convolution's `weight`, with its batch norm.
    """
    ones = {name: torch.ones_like(value) for name, value in state.items()}
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    yield "folded with epsilon 1e-5", fold(arch, state, 1e-5)
    for leaf, what, other in (
        ("running_mean", "without the moving mean", zeros),
        ("running_var", "without the moving variance", ones),
        ("weight", "without gamma", ones),
        ("bias", "without beta", zeros),
    ):
        norms_own = [name for name in state if name.endswith(f".{leaf}") and state[name].dim() == 1]
        yield f"folded {what}", fold(arch, {**state, **{name: other[name] for name in norms_own}}, epsilon)
    kernels = {name: value for name, value in state.items() if value.dim() == 4}
    yield "not folded", kernels
    for name, kernel in kernels.items():
        turned = fold(arch, {**state, name: kernel.transpose(0, 1)}, epsilon) if _is_square(kernel) else {}
        yield "scaled along its inputs, not its outputs", {name: turned[name].transpose(0, 1)} if turned else {}


def _is_square(kernel: Tensor) -> bool:
    return kernel.shape[0] == kernel.shape[1]


def with_epsilon(arch: str, state: Mapping[str, Tensor], old: float, new: float) -> dict[str, Tensor]:
    """The state dict of a network built with another epsilon that computes the same function.

    A batch norm with epsilon `old` and variance v equals one with epsilon `new` and variance v + old - new. Where `new`
    is larger that can be negative, which is no variance; what PyTorch takes the root of stays positive.

    Args:
        state: float32.
    """
    variances = {f"{norm}.running_var" for norm in norms(arch).values()}
    return {
        name: (value.double() + (old - new)).float() if name in variances else value for name, value in state.items()
    }
