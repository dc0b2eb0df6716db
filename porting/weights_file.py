"""Reading a PyTorch weights file, whoever made it, as a state dict under this project's names."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from porting import artifact
from porting.errors import Defect, ErrorKind, PortingError
from porting.manifest import Manifest

# Other ports' names for the classifier: Cadene's pretrained-models calls it last_linear.
OTHER_NAMES = {"last_linear": "fc"}


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """The file's tensors under this project's names, loaded with `weights_only=True`.

    Raises:
        PortingError: missing, corrupt, or unsupported (not a mapping of names to tensors).
    """
    if not path.is_file():
        raise PortingError(ErrorKind.MISSING, path, ["no such file"], "Check the path.")
    try:
        loaded: Any = artifact.read_state(path)
    except ModelError as error:  # of a safetensors file
        raise PortingError(
            ErrorKind.CORRUPT, path, [str(error).removeprefix(f"{path}: ")], "Fetch or copy the file again."
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PortingError(
            ErrorKind.CORRUPT, path, [f"not a state dict that loads with weights_only=True ({reason})"],
            "Give a file of plain tensors, as torch.save writes a state dict.",
        ) from None  # fmt: skip
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    state: dict[str, Tensor] = {}
    for name, value in loaded.items() if isinstance(loaded, Mapping) else [("", None)]:
        if not isinstance(value, Tensor):
            raise PortingError(ErrorKind.UNSUPPORTED, path, ["not a state dict"], "Give a mapping of names to tensors.")
        module, _, leaf = str(name).rpartition(".")
        state[f"{OTHER_NAMES.get(module, module)}.{leaf}" if module else leaf] = value.detach()
    return state


def check_digest(weights: Path, manifest: Manifest) -> str:
    """The file's sha256, which the manifest beside it must list.

    Raises:
        PortingError: corrupt, where it does not.
    """
    digest = artifact.file_digest(weights)
    recorded = [entry["sha256"] for entry in manifest["files"]]
    if digest not in recorded:
        raise PortingError(
            ErrorKind.CORRUPT,
            weights,
            [Defect("sha256", digest, f"{' or '.join(recorded)}, as the manifest beside it says")],
            "The file was changed after it was emitted: port it again, or remove the manifest to verify it as it is.",
        )
    return digest


def with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the batch counters that older files lack."""
    complete = dict(state)
    for name in state:
        if name.endswith(".running_var"):
            complete.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return complete
