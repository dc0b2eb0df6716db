"""crc32c, the checksum of TensorFlow's files, and how they store it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any

_MASK_DELTA = 0xA282EAD8  # leveldb, util/crc32c.h


def _load() -> Callable[..., int]:
    """The package's compiled function.

    Importing the package the plain way reads its version through importlib.metadata, which costs 30 ms: more than
    listing a checkpoint. Where the package is laid out in another way, it is imported the plain way.
    """
    package = find_spec("crc32c")
    if package is not None and package.submodule_search_locations:
        spec = PathFinder.find_spec("_crc32c", list(package.submodule_search_locations))
        if spec is not None and spec.loader is not None:
            module: Any = module_from_spec(spec)
            spec.loader.exec_module(module)
            if hasattr(module, "crc32c"):
                return module.crc32c  # type: ignore[no-any-return]
    from crc32c import crc32c

    return crc32c  # type: ignore[no-any-return, unused-ignore]


# The crc32c of a buffer: crc32c(data), or crc32c(data, crc) to go on from another.
crc32c = _load()


def masked(crc: int) -> int:
    """A crc32c as files store it; they mask it because a crc over data that holds its own crc is weak."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """The crc32c behind a stored one."""
    rotated = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
