"""The Xception family in PyTorch, exact where the usual ports are not."""

from models.errors import ModelError
from models.registry import create_model, list_models

__all__ = ["ModelError", "create_model", "list_models"]
