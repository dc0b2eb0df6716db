"""Port TensorFlow Xception weights to PyTorch, and prove it layer by layer.

`port` is the whole job; `PortingError` is what bad input raises. Both are loaded when first used, so that importing the
package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from porting.errors import ErrorKind, PortingError
    from porting.pipeline import PortResult, port

__all__ = ["ErrorKind", "PortResult", "PortingError", "port"]

_HOMES = {"ErrorKind": "errors", "PortingError": "errors", "PortResult": "pipeline", "port": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
