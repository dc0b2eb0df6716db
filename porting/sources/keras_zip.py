"""The `.keras` zip of Keras 3: config.json, metadata.json, and an HDF5 file in it.

Keras stores the HDF5 member uncompressed, so it is read where it lies. Nothing in the configuration is imported or run.
Source: keras/src/saving/saving_lib.py in Keras 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from porting.errors import corrupt, unsupported
from porting.sources.archive_members import Member
from porting.sources.hdf5_process import Hdf5Process, Window
from porting.sources.keras_h5 import MAX_CONFIG_BYTES, KerasSource, parse_config
from porting.sources.temporary_folder import TemporaryFolder
from porting.sources.zip_directory import copy_member, member_bytes

CONFIG, WEIGHTS = "config.json", "model.weights.h5"


def is_keras(members: Sequence[Member]) -> bool:
    """Whether a zip with these members is a `.keras` file, or means to be one."""
    names = {m.name for m in members}
    return CONFIG in names and (WEIGHTS in names or "metadata.json" in names)


class KerasZipSource(KerasSource):
    """A `.keras` file."""

    def __init__(self, path: Path, members: Sequence[Member], process: Hdf5Process | None = None) -> None:
        """Open the weights of the zip at `path`, whose checked directory is `members`.

        Raises:
            PortingError: corrupt, or unsupported (weights in shards or in NumPy's format).
        """
        by_name = {m.name: m for m in members}
        if WEIGHTS not in by_name:
            for other, what in (("model.weights.json", "weights in shards"), ("model.weights.npz", "weights as .npz")):
                if other in by_name:
                    raise unsupported(path, other, what, "Save the model again with model.save('x.keras').")
            raise corrupt(path, WEIGHTS, "no such member")
        config = by_name[CONFIG]
        if config.size > MAX_CONFIG_BYTES:
            raise corrupt(path, CONFIG, f"{config.size} bytes", f"at most {MAX_CONFIG_BYTES} bytes")
        parsed = parse_config(path, CONFIG, member_bytes(path, config))
        weights = by_name[WEIGHTS]
        self._archive = path
        if weights.compressed:
            folder = TemporaryFolder()
            try:
                with folder.writer(path, WEIGHTS) as write:
                    copy_member(path, weights, write)
                super().__init__(folder.path / WEIGHTS, process=process, shown=path)
            finally:
                folder.close()  # the open file stays readable without a name
        else:
            super().__init__(path, Window(weights.offset, weights.size), weights.crc, process)
        self.container = "keras-zip"
        self.model_config = parsed

    @property
    def location(self) -> Path:
        return self._archive

    def files(self) -> Sequence[Path]:
        return (self._archive,)
