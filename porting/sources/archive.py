"""Zips and tars: the content decides what is in them."""

from __future__ import annotations

from pathlib import Path

from porting.errors import unsupported
from porting.sources.base import TensorSource
from porting.sources.hdf5_process import Hdf5Process
from porting.sources.keras_zip import KerasZipSource, is_keras
from porting.sources.zip_directory import read_directory


def open_zip(path: Path, process: Hdf5Process | None = None) -> TensorSource:
    """Open a `.keras` file, or a zip of another container.

    Raises:
        PortingError: missing, corrupt, or unsupported.
    """
    members = read_directory(path)
    if is_keras(members):
        return KerasZipSource(path, members, process)
    raise unsupported(path, "zip", "not a .keras file")


def open_tar(path: Path) -> TensorSource:
    """Open a container inside a tar.

    Raises:
        PortingError: missing, corrupt, or unsupported.
    """
    raise unsupported(path, "tar", "tar archives are not read yet")
