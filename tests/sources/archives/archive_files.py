"""Archives made for the tests."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from porting.errors import PortingError
from porting.sources import open_source
from tests.sources.keras_files import keras_zip

DISTRUST = "Do not trust this archive; fetch it from its publisher."
AGAIN = "Fetch or copy the file again."
VALUES = np.arange(24, dtype="float32").reshape(4, 6)
Files = dict[str, bytes]


def write_tar(path: Path, files: Files, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("xception")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> None:
    keras_zip(path, list(files.items()), method)


WRITERS: dict[str, Callable[[Path, Files], None]] = {
    "pax.tar": lambda path, files: write_tar(path, files),
    "gnu.tar": lambda path, files: write_tar(path, files, form=tarfile.GNU_FORMAT),
    "ustar.tar": lambda path, files: write_tar(path, files, form=tarfile.USTAR_FORMAT),
    "pax.tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "gnu.tgz": lambda path, files: write_tar(path, files, "w:gz", tarfile.GNU_FORMAT),
    "deflated.zip": write_zip,
    "stored.zip": lambda path, files: write_zip(path, files, zipfile.ZIP_STORED),
}


def refusal(path: Path) -> str:
    with pytest.raises(PortingError) as caught:
        open_source(path).close()
    return str(caught.value)
