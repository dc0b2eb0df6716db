"""Networks by name, with or without weights."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.download import fetch, is_url
from models.errors import ModelError
from models.heads import attach, read_chain
from models.info import MODELS, resolve_name
from models.layers import BN_EPS, Pooling, pooling_named
from models.releases import find_weights
from models.weights import Weights, read_weights
from models.xception import Xception
from models.xception_aligned import XCEPTION41, XCEPTION65, XCEPTION71, XceptionAligned

Network = Xception | XceptionAligned

log = logging.getLogger("models")

BUILDERS: Mapping[str, Callable[..., Network]] = {
    "xception": Xception,
    "xception41": partial(XceptionAligned, XCEPTION41),
    "xception65": partial(XceptionAligned, XCEPTION65),
    "xception71": partial(XceptionAligned, XCEPTION71),
}


def _find(
    arch: str, pretrained: bool | str | os.PathLike[str] | Weights, folded: bool, num_classes: int | None
) -> Weights:
    if isinstance(pretrained, Weights):
        return pretrained
    if pretrained is True:
        return find_weights(arch, folded, num_classes)
    text = os.fspath(pretrained)  # type: ignore[arg-type]
    return read_weights(fetch(text) if is_url(text) else text)


def adapt_first_conv(weight: Tensor, in_chans: int) -> Tensor:
    """A first convolution's kernel (O, 3, H, W) for `in_chans` inputs, as timm adapts it.

    One input takes the sum over the three; any other number repeats them in turn, scaled by 3 / `in_chans`.
    """
    if in_chans == weight.shape[1]:
        return weight
    if weight.shape[1] != 3:
        raise ModelError(f"in_chans: these weights take {weight.shape[1]} channels and cannot be adapted to {in_chans}")
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, math.ceil(in_chans / 3), 1, 1)[:, :in_chans]
    return (repeated * (3 / in_chans)).to(weight.dtype)


def _load(network: Network, weights: Weights, state: dict[str, Tensor]) -> None:
    """Load strictly, into a network on the meta device; only batch counters, which old files lack, may be missing."""
    target = network.state_dict()
    for key in target:
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.tensor(0)
    defects = [f"{key}: missing" for key in target if key not in state]
    defects += [f"{key}: not in the network" for key in state if key not in target]
    for key, tensor in target.items():
        if key in state and state[key].shape != tensor.shape:
            defects.append(f"{key}: expected shape {tuple(tensor.shape)}, found {tuple(state[key].shape)}")
    if defects:
        raise ModelError("\n  ".join([f"{weights.path}: {len(defects)} tensors do not fit the network:", *defects]))
    # Assigned, not copied; contiguous, because a file may hold another memory format (channels last)
    network.load_state_dict({key: state[key].to(x.dtype).contiguous() for key, x in target.items()}, assign=True)


def _check_arguments(
    num_classes: int | None,
    in_chans: int,
    features_only: bool,
    indices: object,
    pool: str | None,
    rates: Mapping[str, float],
) -> None:
    if num_classes is not None and num_classes < 0:
        raise ModelError(f"num_classes: expected 0 or more, found {num_classes}")
    if in_chans < 1:
        raise ModelError(f"in_chans: expected 1 or more, found {in_chans}")
    if indices is not None and not features_only:
        raise ModelError("out_indices: expected only with features_only=True")
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ModelError(f"{name}: expected 0 <= rate < 1, found {rate}")
    if pool == "" and num_classes != 0 and not features_only:
        raise ModelError(
            "global_pool: '' leaves the map unpooled, which a classifier cannot take; pass num_classes=0 too"
        )


def set_epsilon(network: Network, epsilon: float) -> None:
    """Give every batch norm of the network itself, not those of its classifier, another epsilon."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon


def untrained(
    arch: str,
    num_classes: int,
    chain: Mapping[str, Any] | None = None,
    output_stride: int = 32,
    folded: bool = False,
    bn_eps: float = BN_EPS,
) -> Network:
    """A new network, its classifier the chain that a manifest's `head` describes where one is given.

    Raises:
        ModelError: a chain that is impossible, or no network of this name.
    """
    network = create_model(arch, num_classes=0 if chain else num_classes, output_stride=output_stride, folded=folded)
    if bn_eps != BN_EPS:
        set_epsilon(network, bn_eps)
    if chain:
        attach(network, read_chain(chain))
    return network


def create_model(
    name: str,
    pretrained: bool | str | os.PathLike[str] | Weights = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    output_stride: int = 32,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    global_pool: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    folded: bool = False,
) -> Network:
    """The network `name`, which takes images (N, in_chans, H, W), in training mode.

    Args:
        name: one of `list_models()`, or an alias.
        pretrained: a `.pth` or `.safetensors` file, its URL, what `read_weights` has read of one, or True for the one
            in $PORTING_WEIGHTS, a folder or the URL of a downloads page (`checkpoints/` unless set; `models.releases`
            says which is taken). Weights for another batch-norm epsilon, as their manifest or name says, give a
            network with it.
        num_classes: classes; None for the weights' own, else 1000; 0 for the pooled features (N, 2048). Where it is
            not the weights' own number, everything but the classifier is loaded, and a log message says so. A
            classifier of several layers is rebuilt from the manifest beside the weights.
        in_chans: channels; other than 3 adapts the first convolution.
        output_stride: 32; the aligned networks also take 16 and 8.
        features_only: the network returns a list of maps, those of `feature_info`.
        out_indices: which of the five maps, all by default.
        global_pool: "avg", "max", "avgmax", or "" (with num_classes=0) for the map itself; None for the weights' own,
            else "avg".
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        folded: biased convolutions without batch norm; takes folded weights.

    Raises:
        ModelError: a wrong argument, or weights that are missing, damaged or another network's.
    """
    arch = resolve_name(name)
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    _check_arguments(num_classes, in_chans, features_only, out_indices, global_pool, rates)
    pool = None if global_pool is None else pooling_named(global_pool)
    indices = range(5) if features_only and out_indices is None else out_indices
    build = partial(
        BUILDERS[arch],
        in_chans=in_chans,
        output_stride=output_stride,
        global_pool=Pooling.AVG if pool is None else pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        folded=folded,
        out_indices=indices,
    )
    if pretrained is False:
        return build(num_classes=1000 if num_classes is None else num_classes)

    weights = _find(arch, pretrained, folded, num_classes)
    if weights.arch not in (None, arch):
        raise ModelError(f"{weights.path}: expected weights of {arch}, found {weights.arch}")
    if weights.arch is not None and weights.folded != folded:
        hint = "pass folded=True" if weights.folded else "leave folded out; models.optimize_for_inference folds"
        raise ModelError(f"{weights.path}: expected {'' if folded else 'un'}folded weights, found the other; {hint}")
    state = dict(weights.state)
    if features_only:
        state = {key: value for key, value in state.items() if not key.startswith(("fc.", "head."))}
    first = f"{MODELS[arch].first_conv}.weight"
    if first in state:
        state[first] = adapt_first_conv(state[first], in_chans)
    chain = weights.manifest.chain if weights.manifest and not features_only else None
    if weights.is_chain and chain is None and not features_only:
        raise ModelError(
            f"{weights.path}: a classifier of several layers, which the manifest beside it describes: put the "
            f"{weights.path.with_suffix('.json').name} that was written with it back there"
        )
    with torch.device("meta"):  # nothing is initialised that the weights then replace
        network = build(num_classes=0 if chain else weights.num_classes)
        set_epsilon(network, weights.bn_eps)
        if chain:
            attach(network, chain, pool)
    _load(network, weights, state)
    if num_classes is not None and num_classes != weights.num_classes and not features_only:
        if num_classes > 0:
            log.warning(
                "%s: classifier of %d classes not loaded: a new, untrained one of %d classes takes its place",
                weights.path, weights.num_classes, num_classes,
            )  # fmt: skip
        network.reset_classifier(num_classes)
    if weights.manifest is not None:
        network.preprocessing = weights.manifest.preprocessing
        if network.num_classes == weights.num_classes:
            network.labels = weights.manifest.labels
    return network
