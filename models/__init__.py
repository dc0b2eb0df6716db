"""The Xception family in PyTorch, exact where the usual ports are not.

Names are imported when they are first used, so that `models.info` costs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.errors import ModelError
    from models.inference import optimize_for_inference
    from models.info import ModelInfo, Preprocessing, get_info, list_models
    from models.registry import create_model
    from models.weights import read_weights

__all__ = [
    "ModelError",
    "ModelInfo",
    "Preprocessing",
    "create_model",
    "get_info",
    "list_models",
    "optimize_for_inference",
    "read_weights",
]

_HOME = {
    "ModelError": "errors",
    "ModelInfo": "info",
    "Preprocessing": "info",
    "create_model": "registry",
    "get_info": "info",
    "list_models": "info",
    "optimize_for_inference": "inference",
    "read_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    value = getattr(import_module(f"models.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
