"""SHA256SUMS, as coreutils' sha256sum writes and checks it: two spaces between digest and name, sorted by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from porting.errors import Defect, ErrorKind, PortingError
from porting.release import fields

MAX_BYTES = 16 << 20
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write(digests: Mapping[str, str]) -> bytes:
    """The file's bytes, from paths relative to it and their sha256."""
    return "".join(f"{digests[path]}  {path}\n" for path in sorted(digests)).encode()


def read(data: bytes, file: object) -> dict[str, str]:
    """Paths and their sha256.

    Raises:
        PortingError: corrupt, where a line is none of its, a path leads elsewhere, or a path comes twice.
    """
    defects, found = [], {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if not match or not fields.is_path(match[2]):
            defects.append(Defect(f"line {number}", repr(line[:120]), "a digest, two spaces and a plain path"))
        elif match[2] in found:
            defects.append(Defect(f"line {number}", f"{match[2]} again", "each path once"))
        else:
            found[match[2]] = match[1]
    if defects or not found:
        raise PortingError(ErrorKind.CORRUPT, file, defects[:20] or ["nothing in it"], "Build the site again.")
    return found
