"""The members of a zip, checked before any of them is used.

Source: PKWARE "APPNOTE.TXT - .ZIP File Format Specification" 6.3: 4.3.7 (local headers) and 4.3.12 (directory).
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from porting.errors import corrupt, unsupported
from porting.sources.archive_members import MAX_MEMBERS, Member, check_expansion, check_members, checked_name
from porting.sources.base import open_file, read_exactly

_LOCAL = struct.Struct("<4s5H3L2H")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x41  # flag bits 0 and 6
_PIECE = 1 << 20
# What the standard library raises on bad zips; it promises BadZipFile alone.
_BAD = (zipfile.BadZipFile, OSError, ValueError, OverflowError, struct.error, EOFError, MemoryError, IndexError)


def read_directory(path: Path) -> tuple[Member, ...]:
    """The regular files in a zip, in the directory's order.

    Raises:
        PortingError: missing; corrupt (directory, names, overlaps, sizes); unsupported (encryption, links, compression
            methods other than deflate).
    """
    with os.fdopen(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except NotImplementedError as error:
            raise unsupported(path, "zip", str(error)) from None
        except _BAD as error:
            raise corrupt(path, "zip", str(error) or type(error).__name__) from None
        if len(infos) > MAX_MEMBERS:
            raise unsupported(path, "zip", f"{len(infos)} members; at most {MAX_MEMBERS} are read")
        found = [_member(path, file.fileno(), size, info) for info in infos]
    members = [member for member in found if member is not None]
    check_members(path, members)
    return tuple(members)


def _member(path: Path, fd: int, size: int, info: zipfile.ZipInfo) -> Member | None:
    """One entry of the directory, with its bytes found through its own header; None for a folder."""
    name = checked_name(path, info.orig_filename.rstrip("/"))
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise unsupported(path, name, "a link or a device; only plain files are read")
    if info.is_dir():
        return None
    if info.flag_bits & _ENCRYPTED:
        raise unsupported(path, name, "an encrypted member")
    if info.compress_type not in _METHODS:
        raise unsupported(path, name, f"compression method {info.compress_type}; stored and deflated are read")
    check_expansion(path, name, info.compress_size, info.file_size)
    head = bytearray(_LOCAL.size)
    if info.header_offset < 0 or info.header_offset + len(head) > size:
        raise corrupt(path, name, f"a header at {info.header_offset}", f"one within the file's {size} bytes")
    read_exactly(fd, memoryview(head), info.header_offset)
    magic, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack(head)
    raw = bytearray(name_length)
    read_exactly(fd, memoryview(raw), info.header_offset + _LOCAL.size)
    same_name = bytes(raw) == info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
    if magic != b"PK\x03\x04" or method != info.compress_type or flags & _ENCRYPTED or not same_name:
        raise corrupt(path, name, "a header that contradicts the directory")
    offset = info.header_offset + _LOCAL.size + name_length + extra_length
    if offset + info.compress_size > size:
        raise corrupt(path, name, f"bytes {offset} to {offset + info.compress_size}", f"a place in {size} bytes")
    compressed = info.compress_type != zipfile.ZIP_STORED
    if not compressed and info.compress_size != info.file_size:
        raise corrupt(path, name, f"{info.compress_size} bytes stored", f"{info.file_size} bytes")
    return Member(
        name, info.header_offset, offset, info.compress_size, info.file_size, info.CRC, compressed
    )  # fmt: skip


def copy_member(path: Path, member: Member, write: Callable[[memoryview | bytes], object]) -> None:
    """Hand `write` a member's content piece by piece, held to the declared size, and to the checksum if it has one.

    Raises:
        PortingError: corrupt; `write` may then have had part of it.
    """
    inflate = zlib.decompressobj(-15) if member.compressed else None
    crc, done, left, at = 0, 0, member.stored, member.offset
    fd = open_file(path)
    try:
        buffer = memoryview(bytearray(min(_PIECE, max(left, 1))))
        while left:
            part = buffer[:left]
            if read_exactly(fd, part, at) < len(part):
                raise corrupt(path, member.name, "fewer bytes than when it was opened")
            left, at = left - len(part), at + len(part)
            for piece in _inflated(path, member, inflate, part) if inflate else (part,):
                done += len(piece)
                if done > member.size:
                    raise corrupt(path, member.name, f"more than {member.size} bytes", f"{member.size} bytes")
                crc = zlib.crc32(piece, crc)
                write(piece)
    finally:
        os.close(fd)
    if done != member.size or (inflate and not inflate.eof):
        raise corrupt(path, member.name, f"{done} bytes", f"{member.size} bytes")
    if member.crc is not None and crc != member.crc:
        raise corrupt(path, member.name, f"crc32 {crc:08x}", f"crc32 {member.crc:08x}")


def _inflated(path: Path, member: Member, inflate: zlib._Decompress, part: memoryview) -> Iterator[bytes]:
    """What some deflated bytes become, in pieces, so that no input can take more memory than one piece."""
    data: memoryview | bytes = part
    while data and not inflate.eof:
        try:
            piece = inflate.decompress(data, _PIECE)
        except zlib.error as error:
            raise corrupt(path, member.name, f"not deflate data ({error})") from None
        data = inflate.unconsumed_tail
        yield piece
    if inflate.eof and (data or inflate.unused_data):
        raise corrupt(path, member.name, "bytes after the end of its deflate data")


def member_bytes(path: Path, member: Member) -> bytes:
    """A small member's whole content.

    Raises:
        PortingError: corrupt.
    """
    content = io.BytesIO()
    copy_member(path, member, content.write)
    return content.getvalue()
