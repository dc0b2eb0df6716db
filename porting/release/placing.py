"""Files into a site that is being made: linked or copied, then hashed where they lie, so that what is published is
what was checked."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

from porting import artifact
from porting.errors import Defect, ErrorKind, PortingError
from porting.release.description import Description, Listed
from porting.release.index import WEIGHTS, Stored

# What no optimizer ever moves; everything else in a file of weights was learned.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def place(source: Path, stage: Path, earlier: Path, listed: Listed, copy: bool) -> Stored:
    """A file of weights in the site, its size and sha256 as its manifest lists them.

    The file of the site before this one stays, where it is right; else the source is linked, else copied.

    Args:
        source: the file, in the folder that was ported to.
        stage: the site that is being made.
        earlier: the site as it is, or where it will be.
        copy: whether a file of its own is wanted, that nobody changes by changing the source.

    Raises:
        PortingError: missing, mismatch (another size or digest), or output.
    """
    path = f"{WEIGHTS}/{listed.name}"
    target = stage / path
    if not source.is_file():
        raise PortingError(
            ErrorKind.MISSING, source, ["no such file, and a manifest lists it"], "Port the weights again."
        )
    if not os.access(source, os.R_OK):
        raise PortingError(ErrorKind.MISSING, source, ["cannot be read"], "Make it readable.")
    with artifact.output_errors(stage):
        target.parent.mkdir(parents=True, exist_ok=True)
        if _keep(earlier / path, target, source, copy) and not _defects(target, listed):
            return Stored(path, listed.bytes, listed.sha256)
        target.unlink(missing_ok=True)
        if copy or not _link(source, target):
            shutil.copyfile(source, target)
            target.chmod(0o666 & ~artifact.umask())
        if not target.is_file() or target.is_symlink():
            raise PortingError(ErrorKind.MISSING, source, ["no plain file"], "Port the weights again.")
        defects = _defects(target, listed)
    if defects:
        remedy = "The file is damaged or was changed: fetch it or port it again."
        raise PortingError(ErrorKind.MISMATCH, source, defects, remedy)
    return Stored(path, listed.bytes, listed.sha256)


def _keep(earlier: Path, target: Path, source: Path, copy: bool) -> bool:
    """Link the file of the site before this one, which spares a copy and leaves its date as it is."""
    if earlier.is_symlink() or not earlier.is_file():
        return False
    return not (copy and earlier.samefile(source)) and _link(earlier, target)


def _link(source: Path, target: Path) -> bool:
    """A second name for a file; False where the file system has none, or a server could not read it."""
    try:
        real = source.resolve(strict=True)  # a name for the file, not for a link to it
        readable = 0o444 & ~artifact.umask()
        if real.stat().st_mode & readable != readable:
            return False
        os.link(real, target)
    except OSError:
        return False
    return True


def _defects(path: Path, listed: Listed) -> list[Defect]:
    size = path.stat().st_size
    if size != listed.bytes:
        return [Defect("bytes", str(size), f"{listed.bytes}, as the manifest lists")]
    found = artifact.file_digest(path)
    if found != listed.sha256:
        return [Defect("sha256", found, f"{listed.sha256}, as the manifest lists")]
    return []


def write(stage: Path, path: str, data: bytes, earlier: Path) -> Stored:
    """A page or another small file of the site; one that says the same already stays, with its date.

    Raises:
        PortingError: output.
    """
    import hashlib

    target, before = stage / path, earlier / path
    with artifact.output_errors(stage):
        target.parent.mkdir(parents=True, exist_ok=True)
        same = not before.is_symlink() and before.is_file() and before.stat().st_size == len(data)
        if not (same and before.read_bytes() == data and _link(before, target)):
            target.write_bytes(data)
    return Stored(path, len(data), hashlib.sha256(data).hexdigest())


def contents(path: Path, described: Description, source: Path) -> tuple[str, int]:
    """The content digest of a file of weights and its learned numbers, read as data, never as code.

    Raises:
        PortingError: corrupt, where it holds no tensors; mismatch, where they are not the manifest's.
    """
    from models.errors import ModelError

    try:
        state = artifact.read_state(path)
        digest = artifact.content_digest(state)
        learned = sum(tensor.numel() for name, tensor in state.items() if not name.endswith(_STATISTICS))
    except (ModelError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PortingError(
            ErrorKind.CORRUPT, source, [f"no file of plain weights: {reason}"], "Port the weights again."
        ) from None
    wanted = described.manifest.get("content_digest")
    if wanted not in (None, digest):
        defect = Defect("content_digest", digest, f"{wanted}, as the manifest says")
        raise PortingError(ErrorKind.MISMATCH, source, [defect], "Port the weights again.")
    return digest, learned
