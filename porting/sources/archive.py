"""Zips and tars of any container that is read here.

A `.keras` file is a zip. Of the rest, an HDF5 file that lies uncompressed in its archive is read in place; anything
else is unpacked to a temporary folder. Published TensorFlow checkpoints come as `.tar.gz`, which allows nothing better.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from porting.errors import Defect, PortingError, corrupt, unsupported
from porting.sources.archive_members import DISTRUST, Member
from porting.sources.base import TensorSource, open_file
from porting.sources.container_choice import choose_container, is_hdf5_alone
from porting.sources.hdf5_process import Hdf5Process, Window
from porting.sources.keras_h5 import KerasSource
from porting.sources.keras_zip import KerasZipSource, is_keras
from porting.sources.tar_stream import TarStream, is_gzip, read_plain_tar
from porting.sources.temporary_folder import TemporaryFolder
from porting.sources.zip_directory import copy_member, read_directory


class UnpackedSource(TensorSource):
    """A container that was unpacked; the errors name the archive and the member, never the temporary folder.

    Attributes:
        inner: the container's own reader.
        member: what it is called in the archive.
    """

    def __init__(self, path: Path, folder: TemporaryFolder) -> None:
        """Open the one container in `folder`, which was unpacked from `path` and is this source's from now on.

        Raises:
            PortingError: what the container's reader raises; unsupported, where there is none, or more than one.
        """
        from porting.sources import open_source

        self.path = path
        self._folder = folder
        self.inner: TensorSource | None = None
        with self._renamed():
            chosen = choose_container(path, folder.path)
            self.member = chosen.relative_to(folder.path).as_posix()
            self.inner = open_source(chosen)
        root = folder.path.resolve()
        # A `checkpoint` file may name any path.
        if any(not file.resolve().is_relative_to(root) for file in self.inner.files()):
            self.inner.close()
            raise corrupt(path, self.member, "a checkpoint that lies outside the archive", remedy=DISTRUST)
        self.container = self.inner.container
        self.specs = self.inner.specs
        self.model_config = self.inner.model_config
        self.layer_order = self.inner.layer_order

    @contextmanager
    def _renamed(self) -> Iterator[None]:
        try:
            yield
        except PortingError as error:
            raise renamed(error, self._folder.path, self.path) from None

    def __getattr__(self, name: str) -> Any:
        # What single readers add (an object graph, layers' own names) is asked of this one too.
        if name.startswith("_") or self.__dict__.get("inner") is None:
            raise AttributeError(name)
        return getattr(self.inner, name)

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor, as the container's reader gives it; raises as it does."""
        assert self.inner is not None
        with self._renamed():
            return self.inner.read(name)

    def verify_files(self) -> None:
        assert self.inner is not None
        with self._renamed():
            self.inner.verify_files()

    def files(self) -> Sequence[Path]:
        return (self.path,)

    @property
    def location(self) -> Path:
        """The unpacked container, gone with `close`."""
        assert self.inner is not None
        return self.inner.location

    def stored_name(self, name: str) -> str:
        assert self.inner is not None
        return self.inner.stored_name(name)

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()
        self._folder.close()


def renamed(error: PortingError, folder: Path, archive: Path) -> PortingError:
    """An error about a file in `folder` as one about `archive`."""

    def shown(text: str) -> str:
        return text.replace(f"{folder}{os.sep}", f"{archive}: ").replace(str(folder), str(archive))

    defects = [Defect(shown(d.subject), shown(d.found), shown(d.expected)) for d in error.defects]
    return PortingError(error.kind, shown(error.file), defects, shown(error.remedy))


def open_zip(path: Path, process: Hdf5Process | None = None) -> TensorSource:
    """Open a `.keras` file, or a zip of another container.

    Raises:
        PortingError: missing, corrupt, or unsupported.
    """
    members = read_directory(path)
    if is_keras(members):
        return KerasZipSource(path, members, process)
    return _open_members(path, members, process)


def open_tar(path: Path, process: Hdf5Process | None = None) -> TensorSource:
    """Open a container inside a tar, gzip-compressed or not.

    Raises:
        PortingError: missing, corrupt, or unsupported.
    """
    fd = open_file(path)
    try:
        if not is_gzip(fd):
            return _open_members(path, read_plain_tar(path, fd), process)
        folder = TemporaryFolder()
        try:
            with os.fdopen(os.dup(fd), "rb") as file, gzip.GzipFile(fileobj=file) as stream:
                tar = TarStream(path, stream, os.fstat(fd).st_size)
                for member in tar.members():
                    folder.write(path, member.name, tar.pieces())
            return UnpackedSource(path, folder)
        except BaseException:
            folder.close()
            raise
    finally:
        os.close(fd)


def _open_members(path: Path, members: Sequence[Member], process: Hdf5Process | None) -> TensorSource:
    if not members:
        raise unsupported(path, "archive", "no files in it")
    if (member := is_hdf5_alone(path, members)) is not None:
        return KerasSource(path, Window(member.offset, member.size), member.crc, process)
    folder = TemporaryFolder()
    try:
        for member in members:
            with folder.writer(path, member.name) as write:
                copy_member(path, member, write)
        return UnpackedSource(path, folder)
    except BaseException:
        folder.close()
        raise
