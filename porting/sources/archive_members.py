"""What a member of any archive may be called, and how far it may grow."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

from porting.errors import corrupt, unsupported

MAX_MEMBERS = 10_000  # a hundred times what a published checkpoint has
MAX_TOTAL_BYTES = 16 << 30  # ten times the largest published Xception archive, unpacked
# Deflate reaches 1032 to 1 on zeros, and weights hardly compress. Small members may do as they like.
MAX_RATIO, RATIO_FLOOR = 200, 1 << 20
MAX_NAME_BYTES, MAX_DEPTH = 255, 32
DISTRUST = "Do not trust this archive; fetch it from its publisher."


@dataclass(frozen=True)
class Member:
    """One file in an archive: a checked relative name, where its bytes lie, and how many they become. Bytes.

    `start` is where its header begins; `crc` is None in a tar, which has no checksums of content.
    """

    name: str
    start: int
    offset: int
    stored: int
    size: int
    crc: int | None = None
    compressed: bool = False


def checked_name(archive: object, name: str) -> str:
    """`name`, made plain, if it is a relative path that stays inside the folder it is unpacked to.

    Raises:
        PortingError: corrupt; an absolute name, a drive letter, a backslash, a "..", a control character, a name too
            long for a file, or too many folders.
    """
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise corrupt(archive, repr(name[:80]), "not a plain relative name", remedy=DISTRUST)
    if ".." in parts or ":" in parts[0][1:2]:
        raise corrupt(archive, repr(name[:80]), "a name that leads out of the archive", remedy=DISTRUST)
    if max(len(os.fsencode(part)) for part in parts) > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
        raise corrupt(archive, repr(name[:80]), "a name too long, or too deep, for a file", remedy=DISTRUST)
    return str(PurePosixPath(name))


def check_expansion(archive: object, name: str, stored: int, size: int) -> None:
    """Refuse what would grow as no weights do.

    Raises:
        PortingError: corrupt.
    """
    if size > RATIO_FLOOR and size > MAX_RATIO * stored:
        raise corrupt(archive, name, f"{stored} bytes that unpack to {size}", f"at most {MAX_RATIO} to 1", DISTRUST)


def check_members(archive: object, members: Iterable[Member]) -> None:
    """No name twice, no bytes shared, and no more in all than a model can be.

    Raises:
        PortingError: corrupt, or unsupported (too large).
    """
    names: set[str] = set()
    for member in members:
        if member.name in names:
            raise corrupt(archive, member.name, "two members of this name", remedy=DISTRUST)
        names.add(member.name)
    total = sum(member.size for member in members)
    if total > MAX_TOTAL_BYTES:
        raise unsupported(archive, "", f"{total} bytes unpacked; at most {MAX_TOTAL_BYTES} are read")
    for one, two in pairwise(sorted(members, key=lambda m: m.start)):
        if one.offset + one.stored > two.start:
            raise corrupt(archive, two.name, f"the same bytes as {one.name}", "bytes of its own", DISTRUST)
