"""State dicts on disk: digests, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from models.scratch import give_name, remove_left, scratch_file
from porting.errors import ErrorKind, PortingError
from porting.sources.base import sha256

if TYPE_CHECKING:  # torch is loaded by what needs it: a trace is written where there may be none
    from torch import Tensor

NAME_DIGITS = 8  # hexadecimal digits of the sha256 in a file's name; torch.hub checks as many as it finds


def content_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over every tensor's name, dtype, shape and little-endian bytes, sorted by name.

    It does not depend on how a file is packed, so it is the claim that can be reproduced anywhere.
    """
    import torch

    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0"
        total.update(header.encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, as `sha256sum` prints it."""
    return sha256([path])


def prepare_folder(folder: Path) -> None:
    """Create the output folder and make sure that files can be made in it, before any work is done.

    What ports that were killed have left in it, and among this machine's temporary files, is removed.

    Raises:
        PortingError: output.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_file(folder):
            pass
    remove_left(Path(tempfile.gettempdir()))


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Let one process at a time look at a folder's manifests and replace them, so that none undoes another's verdict.

    The folder itself is locked: nothing is left to clean up, and a process that dies holds nothing.
    """
    with output_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # file systems without locks
                os.close(descriptor)
                raise
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """A file in `folder` that is gone afterwards, unless it was renamed."""
    with ExitStack() as stack:
        with output_errors(folder):
            file = stack.enter_context(scratch_file(folder))
        yield file


def write_state(file: IO[bytes], state: Mapping[str, Tensor]) -> None:
    """Save a state dict in torch's zip format and flush it to the disk.

    Saving to a file object, not to a path, keeps the file's name out of its bytes.
    """
    import torch

    folder = Path(file.name).parent
    with output_errors(folder):
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch reports a write that failed, or met Ctrl-C, so, after its own error
            if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                raise error.__context__ from None
            raise OSError(errno.EIO, str(error).splitlines()[0]) from None
        flush(file)


def write_safetensors(file: IO[bytes], state: Mapping[str, Tensor]) -> None:
    """Save a state dict in the safetensors format, whose bytes depend on nothing but its tensors, and flush it."""
    from safetensors.torch import save

    with output_errors(Path(file.name).parent):
        # The format's one piece of metadata that loaders ask for: which framework's tensors these are.
        file.write(save({name: value.contiguous() for name, value in state.items()}, metadata={"format": "pt"}))
        flush(file)


def flush(file: IO[bytes]) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def read_state(path: Path) -> dict[str, Tensor]:
    """Load a state dict as data, from torch's format or safetensors': nothing in it is unpickled beyond tensors."""
    import torch

    from models.weights import is_safetensors, load_safetensors

    if is_safetensors(path):
        return load_safetensors(path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def write_json(file: IO[bytes], value: Mapping[str, Any]) -> None:
    """Write an object as JSON and flush it to the disk."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: IO[bytes], text: str) -> None:
    """Write text as UTF-8 and flush it to the disk."""
    with output_errors(Path(file.name).parent):
        file.write(text.encode())
        flush(file)


def final_path(folder: Path, prefix: str, digest: str, ending: str = ".pth") -> tuple[Path, bool]:
    """Where a file of this digest belongs, `<prefix>-<8 hex><ending>`, and whether it is there already, whole.

    Raises:
        PortingError: output, where another file has the name's digits.
    """
    path = folder / f"{prefix}-{digest[:NAME_DIGITS]}{ending}"
    with output_errors(folder):
        found = file_digest(path) if path.exists() else ""
    if found != digest and found.startswith(digest[:NAME_DIGITS]):
        raise PortingError(
            ErrorKind.OUTPUT,
            path,
            [f"another file has these digits (sha256 {found})"],
            "Choose another folder with --out.",
        )
    return path, found == digest  # anything else under this name is damaged, and is replaced


def publish(files: Mapping[Path, IO[bytes]]) -> None:
    """Give files that are written and flushed their final names, one after the other; nothing can run out between."""
    for path, file in files.items():
        with output_errors(path.parent):
            path.parent.mkdir(exist_ok=True)  # a folder that is itself emitted
            Path(file.name).chmod(0o666 & ~umask())
            give_name(file, path)
            _sync_folder(path.parent)


def umask() -> int:
    """The permissions that this process takes from the files it makes."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Say of a write that fails what failed and what to do; raises PortingError: output."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = (
            "Free some space, or choose another folder with --out." if full else "Choose another folder with --out."
        )
        raise PortingError(
            ErrorKind.OUTPUT, folder, [f"cannot be written: {error.strerror or error}"], remedy
        ) from None
