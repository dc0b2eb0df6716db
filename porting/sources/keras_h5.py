"""Keras weights in HDF5: the legacy `.h5` of Keras 1 to 3, and the `.weights.h5` of Keras 3.

Names are the file's own; what a layer's number means is for the rules to say. Source: keras/src/legacy/saving/
legacy_h5_format.py (`layer_names`, `weight_names`) and keras/src/saving/saving_lib.py (`vars` groups) in Keras 3.
"""

from __future__ import annotations

import json
import os
import re
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from porting.errors import corrupt, unsupported
from porting.sources.base import TensorSource, TensorSpec, open_file, read_exactly, widen_bfloat16
from porting.sources.hdf5_index import Dataset, Hdf5Index, read_index
from porting.sources.hdf5_process import Hdf5File, Hdf5Process, Window
from porting.sources.temporary_folder import TemporaryFolder

MAX_CONFIG_BYTES = 64 << 20


class KerasSource(TensorSource):
    """Keras weights in an HDF5 file, which may be a stored member of a zip.

    Attributes:
        object_names: the layer's name for each `layers/.../vars` group that notes one (Keras 3.6 and later), by the
            path above `vars`.
    """

    def __init__(
        self,
        path: Path,
        window: Window | None = None,
        crc: int | None = None,
        process: Hdf5Process | None = None,
        shown: Path | None = None,
    ) -> None:
        """Open `path`, or the part of it in `window`; `crc` is the zip's checksum of that part.

        Args:
            process: a child to use and leave running; without one, this source has its own.
            shown: what the user named, where `path` is a temporary file.

        Raises:
            PortingError: missing, corrupt, or unsupported.
        """
        self.path = shown or path
        self._process = process or Hdf5Process()
        self._owns_process = process is None
        self._crc = crc
        self._buffer = bytearray()
        self._copy: TemporaryFolder | None = None
        self._fd = open_file(path)
        # Closes the file and reaps the child even where nobody calls close().
        self._finalizer = weakref.finalize(self, _release, self._fd, self._process if self._owns_process else None)
        try:
            self._window = window or Window(0, os.fstat(self._fd).st_size)
            self._file = Hdf5File(path, self.path, self._fd, self._window)
            index = read_index(self._file, self._process)
            self._name_tensors(index)
        except BaseException:
            self.close()
            raise
        if self._owns_process and all(d.offset is not None or d.stored == 0 for d in self._datasets.values()):
            self._process.close()  # everything can be read without it

    def _name_tensors(self, index: Hdf5Index) -> None:
        root, names = "", index.attributes.get("", {})
        if "layer_names" not in names and "layer_names0" not in names and "model_weights" in index.attributes:
            root, names = "model_weights/", index.attributes["model_weights"]
        paths = {d.spec.name for d in index.datasets}
        if listed := _joined(names, "layer_names"):
            self.container = "keras-h5"
            self.layer_order = listed
            ordered = _legacy_order(self.path, index, root, listed, paths)
        elif any("vars" in path.split("/") for path in (*paths, *index.attributes)):
            self.container = "keras-weights-h5"
            ordered = sorted(paths, key=_counting)
        else:
            raise unsupported(
                self.path, "HDF5", "neither layer_names nor vars groups, so not Keras weights",
                "Save it with model.save('x.keras') or model.save_weights('x.weights.h5').",
            )  # fmt: skip
        by_path = {d.spec.name: d for d in index.datasets}
        self._datasets: dict[str, Dataset] = {}
        for path in ordered:
            name = path.removeprefix(root).removesuffix(":0")
            if name in self._datasets:
                raise corrupt(self.path, name, "two datasets of this name")
            self._datasets[name] = by_path[path]
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(name, d.spec.dtype, d.spec.shape) for name, d in self._datasets.items()
        }
        config = index.attributes.get("", {}).get("model_config")
        if isinstance(config, str):
            self.model_config = parse_config(self.path, "model_config", config)
        self.object_names = {
            path.removesuffix("vars").removesuffix("/"): values["name"]
            for path, values in index.attributes.items()
            if isinstance(values.get("name"), str)
        }

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor, in a buffer that the next `read` reuses.

        Raises:
            PortingError: corrupt (the zip's checksum, or bytes missing), or unsupported (a string tensor).
            KeyError: `name` is not in `specs`.
        """
        dataset = self._datasets[name]
        spec = dataset.spec
        if spec.dtype == "string":
            raise unsupported(self.path, name, "a string tensor")
        if self._crc is not None:
            self._check_crc(self._crc)
            self._crc = None
        if len(self._buffer) < spec.nbytes:
            self._buffer = bytearray(spec.nbytes)
        view = memoryview(self._buffer)[: spec.nbytes]
        if dataset.offset is not None:
            count = read_exactly(self._fd, view, self._window.offset + dataset.offset)
            if count < spec.nbytes:
                raise corrupt(self.path, name, f"{count} bytes (the file shrank)", f"{spec.nbytes} bytes")
        elif spec.nbytes:
            self._process.read(self._file, spec.name, view)
        stored = np.dtype("uint16" if spec.dtype == "bfloat16" else spec.dtype)
        array = np.frombuffer(view, stored.newbyteorder(">" if dataset.big_endian else "<")).reshape(spec.shape)
        if spec.dtype == "bfloat16":
            return widen_bfloat16(array)
        return array.astype(stored, copy=False)

    def _check_crc(self, expected: int) -> None:
        """HDF5 keeps no checksums and the zip does, so the whole member is checked once, before the first tensor."""
        found = 0
        for part in self._pieces():
            found = zlib.crc32(part, found)
        if found != expected:
            raise corrupt(self.path, "HDF5 member", f"crc32 {found:08x}", f"crc32 {expected:08x}")

    def _pieces(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(1 << 20))
        done, size = 0, self._window.size
        while done < size:
            part = buffer[: size - done]
            count = read_exactly(self._fd, part, self._window.offset + done)
            if count < len(part):
                raise corrupt(self.path, "size", f"{done + count} bytes (the file shrank)", f"{size} bytes")
            yield part
            done += count

    def files(self) -> Sequence[Path]:
        return (self.path,)

    @property
    def location(self) -> Path:
        """A file that Keras itself can open: the user's own, or a copy of the archive's member, gone with `close`."""
        if self._window == Window(0, os.fstat(self._fd).st_size):
            return self.path
        if self._copy is None:
            self._copy = TemporaryFolder()
            with self._copy.writer(self.path, "weights.h5") as write:
                for piece in self._pieces():
                    write(piece)
        return self._copy.path / "weights.h5"

    def close(self) -> None:
        self._finalizer()
        if self._copy is not None:
            self._copy.close()


def open_h5(path: Path, process: Hdf5Process | None = None) -> KerasSource:
    """Open a Keras `.h5` or `.weights.h5`; which one it is, its content says.

    Raises:
        PortingError: missing, corrupt, or unsupported.
    """
    return KerasSource(Path(path), process=process)


def parse_config(file: object, subject: str, text: str | bytes) -> Mapping[str, Any]:
    """A Keras model's configuration as plain data; nothing that it names is imported or run.

    Raises:
        PortingError: corrupt, where it is not a JSON object, or too large or too deeply nested for one.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise corrupt(file, subject, f"{len(text)} bytes", f"at most {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError:
        raise corrupt(file, subject, "text that is not UTF-8") from None
    except RecursionError:
        raise corrupt(file, subject, "JSON nested too deeply") from None
    except ValueError as error:
        raise corrupt(file, subject, f"not JSON ({error})") from None
    if not isinstance(config, dict):
        raise corrupt(file, subject, type(config).__name__, "a JSON object")
    return config


def _joined(attributes: Mapping[str, str | tuple[str, ...]], key: str) -> tuple[str, ...]:
    """A list that Keras may have cut into `key0`, `key1`, ... because HDF5 bounds an attribute at 64 KB."""
    if key in attributes:
        value = attributes[key]
        return value if isinstance(value, tuple) else (value,)
    parts: list[str] = []
    while f"{key}{len(parts)}" in attributes:
        parts.append(f"{key}{len(parts)}")
    return tuple(name for part in parts for name in attributes[part])


def _legacy_order(file: Path, index: Hdf5Index, root: str, layers: Sequence[str], paths: set[str]) -> list[str]:
    """Dataset paths by layer and then by weight, as Keras loads them; what no list names comes last."""
    ordered: dict[str, None] = {}
    for layer in layers:
        group = f"{root}{layer}"
        if group not in index.attributes:
            raise corrupt(file, layer, "no group with weight_names", "one, as layer_names lists it")
        for weight in _joined(index.attributes[group], "weight_names"):
            path = f"{group}/{weight}"
            if path not in paths:
                raise corrupt(file, f"{layer}/{weight}", "no dataset", "one, as weight_names lists it")
            if path in ordered:
                raise corrupt(file, f"{layer}/{weight}", "named twice in weight_names or layer_names")
            ordered[path] = None
    return [*ordered, *sorted(paths - set(ordered), key=_counting)]


def _counting(path: str) -> list[tuple[int, int, str]]:
    """Sorts `vars/2` before `vars/10`, and `conv2d_2` before `conv2d_10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", path)]


def _release(fd: int, process: Hdf5Process | None) -> None:
    os.close(fd)
    if process is not None:
        process.close()
