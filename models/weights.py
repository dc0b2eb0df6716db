"""Find, verify and read weight files."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.download import DIGEST_IN_NAME, sha256
from models.errors import ModelError
from models.layers import BN_EPS
from models.manifest import Manifest, find_manifest, read_manifest

# A classifier that is an nn.Sequential at `fc`: its modules' positions.
_CHAIN_KEY = re.compile(r"fc\.(\d+)\.")

# What this project puts into the name of weights for another batch-norm epsilon.
_EPSILON_IN_NAME = re.compile(r"_eps([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)(?:_[a-z0-9]+)*-")

# The package refuses longer headers too (safetensors' format specification).
_LONGEST_HEADER = 100_000_000

_UNITS = {13: "xception41", 21: "xception65", 23: "xception71"}


@dataclass(frozen=True)
class Weights:
    """A weight file that has been read: its state dict, what network it is for, and its manifest, if it has one."""

    path: Path
    state: Mapping[str, Tensor]
    arch: str | None
    num_classes: int
    folded: bool
    manifest: Manifest | None

    @property
    def is_chain(self) -> bool:
        """Whether the classifier is more than one dense layer, which only the manifest describes in full."""
        return any(_CHAIN_KEY.match(key) for key in self.state)

    @property
    def bn_eps(self) -> float:
        """The epsilon of the batch norms that the weights are for: the manifest's, else the one in the file's name."""
        return epsilon_of(self.path, self.manifest.bn_eps if self.manifest else None)


def epsilon_of(path: Path, recorded: float | None) -> float:
    """The batch-norm epsilon that a file is for: the recorded one, else the one in its name, else TensorFlow's."""
    if recorded is not None:
        return recorded
    in_name = _EPSILON_IN_NAME.search(path.name)
    return float(in_name.group(1)) if in_name else BN_EPS


def _verify(path: Path, manifest: Manifest | None, listed: Mapping[str, str]) -> None:
    in_name = DIGEST_IN_NAME.search(path.name)
    claims: dict[str, str | None] = {"its name": in_name.group(1) if in_name else None, **listed}
    if manifest is not None:
        claims[manifest.path.name] = manifest.sha256
    if not any(claims.values()):
        return
    found = sha256(path)
    for where, expected in claims.items():
        if expected and not found.startswith(expected):
            raise ModelError(
                f"{path}: sha256: expected {expected} (from {where}), found {found[: max(8, len(expected))]}; "
                "the file is damaged or was changed: fetch or port it again"
            )


def is_safetensors(path: Path) -> bool:
    """Whether a file has that format's name or its first bytes: a length, and a JSON object of that length.

    Raises:
        OSError: it cannot be read.
    """
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        return start[8:] == b"{" and length <= min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size - 8)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ModelError: the package is missing, or the file is damaged.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ModelError(f"{path}: reading it needs the safetensors package: pip install safetensors") from None
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file: {error}") from error
    return state


def _load(path: Path) -> Mapping[str, Tensor]:
    try:
        if is_safetensors(path):
            return load_safetensors(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}: not a file of plain PyTorch weights: {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise ModelError(f"{path}: expected a state dict, names to tensors, found {type(loaded).__name__}")
    return loaded


def arch_of(state: Mapping[str, Tensor]) -> str | None:
    """The network whose keys these are, or None."""
    if "conv1.weight" in state and "block12.skip.weight" in state:
        return "xception"
    units = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    return _UNITS.get(len(units)) if "stem.0.conv.weight" in state else None


def classes_of(state: Mapping[str, Tensor]) -> int:
    """Outputs of the classifier in a state dict; 0 where there is none."""
    dense = next((state[key] for key in ("head.fc.weight", "fc.weight") if key in state), None)
    if dense is not None:
        return int(dense.shape[0])
    chain = ((_CHAIN_KEY.match(key), tensor) for key, tensor in state.items())
    rows = [(int(found.group(1)), int(tensor.shape[0])) for found, tensor in chain if found and tensor.ndim]
    return max(rows, default=(0, 0))[1]


def is_folded(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a network without batch norms: its convolutions have a bias."""
    return "stem.0.conv.bias" in state or "conv1.bias" in state


def read_weights(file: str | os.PathLike[str], listed: Mapping[str, str] | None = None) -> Weights:
    """Read a `.pth` or `.safetensors` file, after checking its sha256 against its name and its manifest, if any.

    The manifest is found as `models.manifest.find_manifest` says. Only tensors are unpickled (`weights_only`).

    Args:
        listed: sha256 that others than the file's name and manifest state: their names, and what they state.

    Raises:
        ModelError: missing, damaged, not a state dict, or contradicting its manifest.
    """
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    found = find_manifest(path)
    manifest = read_manifest(*found) if found else None
    _verify(path, manifest, listed or {})
    state = _load(path)
    weights = Weights(
        path=path,
        state=state,
        arch=arch_of(state),
        num_classes=classes_of(state),
        folded=is_folded(state),
        manifest=manifest,
    )
    if manifest is not None:
        _check_manifest(weights, manifest)
    return weights


def _check_manifest(weights: Weights, manifest: Manifest) -> None:
    said = (manifest.arch, manifest.num_classes, manifest.folded)
    found = (weights.arch, weights.num_classes, weights.folded)
    for name, expected, actual in zip(("arch", "num_classes", "folded"), said, found, strict=True):
        if expected != actual:
            raise ModelError(f"{weights.path}: {name}: expected {expected} (from {manifest.path.name}), found {actual}")
