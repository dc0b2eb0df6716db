"""Which checkpoint of a folder is meant: the `checkpoint` file that TensorFlow keeps there, or the only one there is.

Format: tensorflow/python/training/checkpoint_state.proto, as protobuf text. It is read as data, never as patterns.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from porting.errors import ErrorKind, PortingError, corrupt
from porting.sources.base import open_file, read_exactly
from porting.sources.checkpoint_v1 import v1_shards

_LIMIT = 1 << 20  # bytes; TensorFlow lists every checkpoint that is still kept, a line each
_NEWEST = re.compile(
    rb"""^\s*model_checkpoint_path\s*:\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')\s*[,;]?\s*(?:#.*)?$"""
)
_PATTERN = re.compile(r"-\?{5}-of-\d{5}$")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


def is_checkpoint(prefix: Path) -> bool:
    """Whether a V2 index, or a V1 checkpoint, whole or in shards, is there."""
    return prefix.with_name(prefix.name + ".index").is_file() or prefix.is_file() or bool(v1_shards(prefix))


def newest_prefix(folder: Path, within: Path | None = None) -> Path:
    """The prefix of the checkpoint that a folder stands for, which lies in `within` where that is given.

    Raises:
        PortingError: missing (no checkpoint, several and nothing that says which, or the named one is not there),
            corrupt (an unreadable `checkpoint` file).
    """
    state = folder / "checkpoint"
    if state.is_file():
        # Of a sharded V1 checkpoint it names a pattern, PREFIX-?????-of-00002.
        named = Path(_PATTERN.sub("", _unquoted(_named(state), state)))
        # Folders get copied and archived whole, so an absolute path is looked for beside the file first.
        places = [folder / named.name, named] if named.is_absolute() else [folder / named, folder / named.name]
        for prefix in places:
            if within is not None and not prefix.resolve().is_relative_to(within.resolve()):
                continue
            if named.name and is_checkpoint(prefix):
                return prefix
        raise PortingError(
            ErrorKind.MISSING, state, [f"the checkpoint it names, {named}, is not there"],
            "Give the prefix of the checkpoint that you mean.",
        )  # fmt: skip
    try:
        found = sorted(path.name.removesuffix(".index") for path in folder.glob("*.index") if path.is_file())
    except OSError as error:
        raise PortingError(ErrorKind.MISSING, folder, [error.strerror or str(error)], "Check the path.") from None
    if not found:
        raise PortingError(
            ErrorKind.MISSING, folder, ["a folder without a checkpoint: no `checkpoint` file and no .index file"],
            "Give a folder that holds a checkpoint, or a checkpoint's prefix.",
        )  # fmt: skip
    if len(found) > 1:
        raise PortingError(
            ErrorKind.MISSING, folder, [f"{len(found)} checkpoints and no `checkpoint` file: {', '.join(found)}"],
            f"Give the prefix of one, for example {folder / found[-1]}.",
        )  # fmt: skip
    return folder / found[0]


def _named(state: Path) -> bytes:
    """The quoted path in a `checkpoint` file."""
    fd = open_file(state)
    try:
        data = bytearray(min(os.fstat(fd).st_size, _LIMIT + 1))
        data = data[: read_exactly(fd, memoryview(data), 0)]
    finally:
        os.close(fd)
    if len(data) > _LIMIT:
        raise corrupt(state, "checkpoint file", "more than 1 MiB", "a few lines of text")
    found = [match for line in data.splitlines() if (match := _NEWEST.match(line))]
    if len(found) != 1:
        raise corrupt(
            state, "model_checkpoint_path", f"{len(found)} lines", "one line", "Give the prefix of the checkpoint."
        )
    return found[0].group(1)[1:-1]


def _unquoted(value: bytes, state: Path) -> str:
    def replaced(match: re.Match[bytes]) -> bytes:
        code = match.group(1)
        if code[:1].isdigit():
            return bytes([int(code, 8) & 0xFF])
        if code[:1] == b"x" and len(code) > 1:
            return bytes([int(code[1:], 16)])
        return _LETTERS.get(code, code)

    try:
        path = _ESCAPE.sub(replaced, value).decode()
    except UnicodeDecodeError:
        path = ""
    if not path or "\0" in path:
        raise corrupt(state, "model_checkpoint_path", repr(value[:80]), "a path")
    return path
