"""What every container reader gives: named tensors, and nothing about networks."""

from __future__ import annotations

import math
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from porting.errors import ErrorKind, PortingError

if TYPE_CHECKING:  # a mistyped path is told before NumPy is loaded
    import numpy as np
    import numpy.typing as npt

# Bytes an element takes, by the name NumPy (or, for bfloat16, TensorFlow) gives the type. Strings have no fixed size.
ITEM_SIZE: Mapping[str, int] = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of one stored tensor.

    `dtype` is NumPy's name, or "bfloat16", "string" or "resource", which NumPy does not have.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored values; 0 for types of no fixed size."""
        return self.size * ITEM_SIZE.get(self.dtype, 0)


class TensorSource(ABC):
    """A container of named tensors, open for reading.

    Attributes:
        path: what the user named, for messages.
        container: the format, for example "tf-checkpoint-v2".
        specs: every tensor in it, in the file's own order, partitioned variables merged.
        model_config: the Keras model's own configuration, as plain data, where the container holds one.
        layer_order: names of the top-level layers in the model's order, where the container lists them.
    """

    path: Path
    container: str
    specs: Mapping[str, TensorSpec]
    model_config: Mapping[str, Any] | None = None
    layer_order: Sequence[str] | None = None

    @abstractmethod
    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor, checked against its checksum where the format has one.

        The array may lie in a buffer that the next `read` reuses: copy what must outlive it. bfloat16 comes as
        float32, which holds it exactly.

        Raises:
            PortingError: corrupt (checksum, bytes missing), or unsupported (a string tensor, for example).
            KeyError: `name` is not in `specs`.
        """

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The files on disk that hold the container, in a fixed order."""

    def verify_files(self) -> None:
        """Check, without reading any tensor, that every file the container needs is there and long enough.

        Raises:
            PortingError: missing or corrupt, naming every such file. Containers of one file have nothing to check.
        """
        return

    @property
    def location(self) -> Path:
        """What TensorFlow's or Keras's own readers open: a prefix or a file, there until `close`."""
        return self.path

    def stored_name(self, name: str) -> str:
        """The name under which TensorFlow's own reader finds a tensor."""
        return name

    def digest(self) -> str:
        """sha256 over the bytes of `files()` in order: for one file, what `sha256sum` prints."""
        return sha256(self.files())

    def close(self) -> None:  # noqa: B027 - nothing to release is the common case
        """Release files, processes and temporary folders; safe to call twice."""

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


Opener = Callable[[Path], TensorSource]


def sha256(paths: Iterable[Path]) -> str:
    """sha256 over the bytes of files in order; for one file, what `sha256sum` prints."""
    import hashlib  # loads OpenSSL, which listing does not need

    total = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total.update(buffer[:count])
    return total.hexdigest()


def open_file(path: Path) -> int:
    """A descriptor of a regular file, open for reading.

    Raises:
        PortingError: missing, where it does not exist, is no regular file, or may not be read.
    """
    try:
        # A named pipe would block the open for ever without O_NONBLOCK; on regular files it does nothing.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        found = "no such file" if isinstance(error, FileNotFoundError) else reason
        raise PortingError(ErrorKind.MISSING, path, [found], "Check the path.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise PortingError(ErrorKind.MISSING, path, ["not a regular file"], "Check the path.")
    return fd


def read_exactly(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` by positional reads; returns the bytes read, fewer only at the end of the file.

    Positional reads, not a memory map: a file that shrinks while it is read is then an error and not a signal.
    """
    done = os.preadv(fd, [buffer], offset)
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def widen_bfloat16(raw: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bit patterns as float32: the upper half of the word, so nothing is rounded."""
    import numpy as np

    wide: npt.NDArray[np.float32] = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide
