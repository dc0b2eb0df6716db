"""Tars, read from start to end without the standard library's extraction, which follows links and restores owners.

Source: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format", for
long names and base-256 numbers.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from porting.errors import PortingError, corrupt, unsupported
from porting.sources.archive_members import (
    MAX_MEMBERS,
    MAX_TOTAL_BYTES,
    Member,
    check_expansion,
    check_members,
    checked_name,
)

_BLOCK = 512
_PIECE = 1 << 20
_MAX_EXTENDED = 1 << 20  # bytes of a long name or a pax header
_LINKS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe"}


class ByteStream(Protocol):
    """What a tar is read from: a file, or what gzip makes of one."""

    def read(self, size: int, /) -> bytes: ...


class TarStream:
    """The members of a tar in order; between two of them, `pieces` gives the content of the first."""

    def __init__(self, path: Path, stream: ByteStream, stored: int) -> None:
        """Read `stream`; `stored` is how many bytes of `path` it can come from."""
        self._path, self._stream, self._stored = path, stream, stored
        self._at = 0
        self._left = 0  # bytes of the current member not yet read
        self._padding = 0

    def members(self) -> Iterator[Member]:
        """Every regular file; folders pass unmentioned.

        Raises:
            PortingError: corrupt, or unsupported (links, devices, sparse files).
        """
        extended: dict[str, str] = {}
        for _ in range(MAX_MEMBERS):
            start = self._at
            head = self._read(_BLOCK, "header")
            if not any(head):
                self._drain()
                return
            kind, name, size = self._parse(head)
            if kind in b"xgLK":
                values = self._extended(kind, size)
                extended |= {} if kind == b"g" else values
                continue
            name, size = extended.get("path", name), self._declared(extended, size)
            extended = {}
            plain = checked_name(self._path, name.rstrip("/") or name)
            if kind in _LINKS:
                raise unsupported(self._path, plain, f"{_LINKS[kind]}; only plain files are read")
            if kind not in (b"0", b"\0", b"7", b"5"):
                raise unsupported(self._path, plain, f"a tar member of type {kind!r}")
            if size > MAX_TOTAL_BYTES:
                raise unsupported(self._path, plain, f"{size} bytes; at most {MAX_TOTAL_BYTES} are read")
            self._left, self._padding = size, -size % _BLOCK
            if kind != b"5" and not (kind == b"\0" and name.endswith("/")):
                yield Member(plain, start, self._at, size, size)
            self._skip()
        raise unsupported(self._path, "tar", f"more than {MAX_MEMBERS} members")

    def pieces(self) -> Iterator[bytes]:
        """The content of the member given last.

        Raises:
            PortingError: corrupt, where it ends early.
        """
        while self._left:
            piece = self._read(min(self._left, _PIECE), "content")
            self._left -= len(piece)
            yield piece

    def _skip(self) -> None:
        seek = getattr(self._stream, "seek", None) if not isinstance(self._stream, gzip.GzipFile) else None
        if seek is not None and self._at + self._left <= self._stored:
            self._at += self._left
            self._left = 0
            seek(self._at)
        for _ in self.pieces():
            pass
        if self._padding:
            self._read(self._padding, "padding")
            self._padding = 0

    def _drain(self) -> None:
        """To the stream's end, so that gzip's own checksum is read; what follows the end of a tar is not looked at."""
        while piece := self._some(_PIECE):
            self._count(len(piece))

    def _read(self, size: int, what: str) -> bytes:
        content = b""
        while len(content) < size:
            piece = self._some(size - len(content))
            if not piece:
                raise corrupt(self._path, f"tar {what}", f"the end at byte {self._at}", "more of it")
            self._count(len(piece))
            content = content + piece if content else piece
        return content

    def _some(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise corrupt(self._path, "gzip", str(error)) from None

    def _count(self, size: int) -> None:
        self._at += size
        if self._at > MAX_TOTAL_BYTES:
            raise unsupported(self._path, "tar", f"more than {MAX_TOTAL_BYTES} bytes unpacked")
        check_expansion(self._path, "gzip", self._stored, self._at)

    def _parse(self, head: bytes) -> tuple[bytes, str, int]:
        """Type, name and size of one header block, whose checksum must be right."""
        total = sum(head[:148]) + 8 * 32 + sum(head[156:])
        if self._number(head[148:156]) != total:
            raise corrupt(self._path, f"tar header at byte {self._at - _BLOCK}", "a wrong checksum")
        name = head[:100].split(b"\0", 1)[0]
        if head[257:263] == b"ustar\0" and head[345]:
            name = head[345:500].split(b"\0", 1)[0] + b"/" + name
        return head[156:157], self._text(name), self._number(head[124:136])

    def _text(self, name: bytes) -> str:
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError:
            raise corrupt(self._path, repr(name[:80]), "a name that is not UTF-8") from None

    def _number(self, field: bytes) -> int:
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        text = field.strip(b" \0")
        if not text:
            return 0
        if not all(c in b"01234567" for c in text):
            raise corrupt(self._path, f"tar header at byte {self._at - _BLOCK}", f"{text!r} for a number")
        return int(text, 8)

    def _declared(self, extended: dict[str, str], size: int) -> int:
        text = extended.get("size")
        if text is None:
            return size
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise corrupt(self._path, "pax header", f"size {text[:40]!r}")
        return int(text)

    def _extended(self, kind: bytes, size: int) -> dict[str, str]:
        """What a pax or GNU header says about the member after it: its path and size."""
        if size > _MAX_EXTENDED:
            raise corrupt(self._path, "tar extended header", f"{size} bytes", f"at most {_MAX_EXTENDED}")
        content = self._read(size + -size % _BLOCK, "extended header")[:size]
        if kind == b"K":  # a link's target; the link itself is refused
            return {}
        if kind == b"L":
            return {"path": self._text(content.rstrip(b"\0"))}
        found: dict[str, str] = {}
        while content:
            digits = content.partition(b" ")[0]
            if not (digits.isdigit() and len(digits) < 8 and len(digits) + 3 < int(digits) <= len(content)):
                raise corrupt(self._path, "pax header", f"a record of length {digits[:12]!r}")
            record, content = content[len(digits) + 1 : int(digits)], content[int(digits) :]
            key, equals, value = record[:-1].partition(b"=")
            if not equals or record[-1:] != b"\n":
                raise corrupt(self._path, "pax header", "a record without = or newline")
            if key.startswith(b"GNU.sparse"):
                raise unsupported(self._path, "pax header", "a sparse file")
            if key in (b"path", b"size"):
                found[key.decode()] = self._text(value)
        return found


def is_gzip(fd: int) -> bool:
    """Whether an open file begins as gzip does (RFC 1952, 2.3.1)."""
    return os.pread(fd, 2, 0) == b"\x1f\x8b"


def read_plain_tar(path: Path, fd: int) -> tuple[Member, ...]:
    """The members of an uncompressed tar, whose content is not read.

    Raises:
        PortingError: corrupt, or unsupported.
    """
    size = os.fstat(fd).st_size
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        try:
            members = tuple(TarStream(path, file, size).members())
        except PortingError:
            raise
        except (OSError, ValueError, OverflowError) as error:
            raise corrupt(path, "tar", str(error)) from None
    check_members(path, members)
    return members
