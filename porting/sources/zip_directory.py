"""The members of a zip, checked before any of them is used.

Source: PKWARE "APPNOTE.TXT - .ZIP File Format Specification" 6.3, 4.3.7 (local headers) and 4.3.12 (directory).
"""

from __future__ import annotations

import itertools
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from porting.errors import ErrorKind, PortingError, corrupt, unsupported
from porting.sources.base import read_exactly

MAX_MEMBERS = 100_000
MAX_TOTAL_BYTES = 16 << 30  # twenty times the largest published Xception archive, unpacked
# Deflate reaches 1032 to 1 on zeros; real weights hardly compress. Small members may do as they like.
MAX_RATIO, RATIO_FLOOR = 200, 1 << 20
_LOCAL = struct.Struct("<4s5H3L2H")
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


@dataclass(frozen=True)
class Member:
    """One file in a zip: a checked relative name, where its bytes are, and how many they become. Bytes."""

    name: str
    offset: int
    stored: int
    size: int
    crc: int
    compressed: bool
    info: zipfile.ZipInfo


def checked_name(archive: object, name: str) -> str:
    """`name` if it is a plain relative path that stays inside the folder it is unpacked to.

    Raises:
        PortingError: corrupt; an absolute name, a drive letter, a backslash, a "..", or a control character.
    """
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or any(ord(c) < 32 for c in name):
        raise corrupt(archive, repr(name), "a name that is no plain relative path", remedy=_DISTRUST)
    if ".." in parts or (len(parts[0]) > 1 and parts[0][1] == ":"):
        raise corrupt(archive, repr(name), "a name that leads out of the archive", remedy=_DISTRUST)
    if max(len(os.fsencode(part)) for part in parts) > 255 or len(parts) > 64:
        raise corrupt(archive, repr(name[:40] + "..."), "a name too long for a file", remedy=_DISTRUST)
    return str(PurePosixPath(name))


_DISTRUST = "Do not trust this archive; fetch it from its publisher."


def check_expansion(archive: object, name: str, stored: int, size: int) -> None:
    """Refuse a member that would grow as no weights do.

    Raises:
        PortingError: corrupt.
    """
    if size > RATIO_FLOOR and size > MAX_RATIO * stored:
        raise corrupt(archive, name, f"{stored} bytes that unpack to {size}", f"at most {MAX_RATIO} to 1", _DISTRUST)


def read_directory(path: Path) -> tuple[Member, ...]:
    """The regular files in a zip, in the directory's order.

    Raises:
        PortingError: missing; corrupt (directory, names, overlaps, sizes); unsupported (encryption, links, compression
            methods other than deflate).
    """
    try:
        with path.open("rb") as file:
            return _members(path, file)
    except PortingError:
        raise
    except FileNotFoundError:
        raise PortingError(ErrorKind.MISSING, path, ["no such file"]) from None
    except NotImplementedError as error:
        raise unsupported(path, "zip", str(error)) from None
    except (zipfile.BadZipFile, OSError, ValueError, OverflowError, struct.error, EOFError, MemoryError) as error:
        raise corrupt(path, "zip", str(error) or type(error).__name__) from None


def _members(path: Path, file: BinaryIO) -> tuple[Member, ...]:
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise unsupported(path, "zip", f"{len(infos)} members; at most {MAX_MEMBERS} are read")
    members: list[Member] = []
    names: set[str] = set()
    total = 0
    for info in infos:
        name = checked_name(path, info.orig_filename.rstrip("/"))
        if name in names:
            raise corrupt(path, name, "two members of this name")
        names.add(name)
        mode = info.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise unsupported(path, name, "a link or a device; only plain files are read")
        if info.is_dir():
            continue
        if info.flag_bits & 0x41:
            raise unsupported(path, name, "an encrypted member")
        if info.compress_type not in _METHODS:
            raise unsupported(path, name, f"compression method {info.compress_type}; stored and deflated are read")
        check_expansion(path, name, info.compress_size, info.file_size)
        total += info.file_size
        members.append(_located(path, file.fileno(), size, info, name))
    if total > MAX_TOTAL_BYTES:
        raise unsupported(path, "zip", f"{total} bytes unpacked; at most {MAX_TOTAL_BYTES} are read")
    _check_overlap(path, members)
    return tuple(members)


def _located(path: Path, fd: int, size: int, info: zipfile.ZipInfo, name: str) -> Member:
    """Where a member's bytes start, by its own header, which must agree with the directory."""
    head = bytearray(_LOCAL.size)
    if info.header_offset < 0 or read_exactly(fd, memoryview(head), info.header_offset) < len(head):
        raise corrupt(path, name, f"a header at {info.header_offset}", f"one within the file's {size} bytes")
    magic, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack(head)
    if magic != b"PK\x03\x04" or method != info.compress_type or (flags ^ info.flag_bits) & 0x41:
        raise corrupt(path, name, "a header that contradicts the directory")
    raw = bytearray(name_length)
    read_exactly(fd, memoryview(raw), info.header_offset + _LOCAL.size)
    if bytes(raw) != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
        raise corrupt(path, name, "another name in its own header")
    offset = info.header_offset + _LOCAL.size + name_length + extra_length
    if offset + info.compress_size > size:
        raise corrupt(path, name, f"bytes {offset} to {offset + info.compress_size}", f"a place in {size} bytes")
    compressed = info.compress_type != zipfile.ZIP_STORED
    if not compressed and info.compress_size != info.file_size:
        raise corrupt(path, name, f"{info.compress_size} bytes stored", f"{info.file_size} bytes")
    return Member(name, offset, info.compress_size, info.file_size, info.CRC, compressed, info)


def _check_overlap(path: Path, members: list[Member]) -> None:
    placed = sorted(members, key=lambda m: m.info.header_offset)
    for one, two in itertools.pairwise(placed):
        if one.offset + one.stored > two.info.header_offset:
            raise corrupt(path, two.name, f"the same bytes as {one.name}", "bytes of its own", _DISTRUST)


def extract(path: Path, member: Member, target: BinaryIO) -> None:
    """Write one member's content to `target`, held to its declared size and checksum.

    Raises:
        PortingError: corrupt.
        OSError: `target` cannot be written.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive, archive.open(member.info) as source:
                content = iter(lambda: source.read(1 << 20), b"")
                done = 0
                for piece in content:
                    done += len(piece)
                    target.write(piece)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, struct.error) as error:
            raise corrupt(path, member.name, str(error) or type(error).__name__) from None
        except zlib.error as error:
            raise corrupt(path, member.name, f"not deflate data ({error})") from None
    if done != member.size:
        raise corrupt(path, member.name, f"{done} bytes", f"{member.size} bytes")
