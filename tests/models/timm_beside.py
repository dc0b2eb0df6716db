"""timm and torchvision, where a test environment has them.

timm needs torchvision, whose compiled operators may be absent (there is no build for every PyTorch). Its Python half
works without them once the registration of their shape functions is left out; nothing used here calls them.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any
from unittest import mock

import pytest
import torch


def _no_registration(*_args: Any, **_kwargs: Any) -> Any:
    return lambda function: function


def beside(name: str) -> Any:
    """The module `name`, or a skip that says what is missing."""
    for needed in ("torchvision", name.split(".")[0]):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"compares with {name}: {needed} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            with mock.patch.object(torch.library, "register_fake", _no_registration):
                importlib.import_module("torchvision")
        return importlib.import_module(name)
