"""The table of published weights, `checkpoints/sources.toml`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from porting.errors import ErrorKind, PortingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_REQUIRED, _KNOWN = {"url", "licence", "upstream"}, {"url", "licence", "upstream", "bytes", "sha256"}


@dataclass(frozen=True)
class OfficialSource:
    """One network's published file; `bytes` and `sha256` are None where the publisher's are not known."""

    arch: str
    url: str
    licence: str
    upstream: str
    bytes: int | None = None
    sha256: str | None = None


def official_sources() -> Mapping[str, OfficialSource]:
    """Every entry of the table, by network."""
    # In a checkout this is a link to checkpoints/sources.toml; a wheel holds a copy of it.
    text = resources.files("porting.sources").joinpath("sources.toml").read_text(encoding="utf-8")
    return parse_sources(text)


def parse_sources(text: str) -> Mapping[str, OfficialSource]:
    """The table's entries, each checked.

    Raises:
        ValueError: the table is wrong, which is a fault of this project and not of a user's file.
    """
    found: dict[str, OfficialSource] = {}
    for arch, entry in tomllib.loads(text).items():
        if not _REQUIRED <= entry.keys() <= _KNOWN:
            raise ValueError(f"sources.toml: [{arch}] has {sorted(entry)}")
        sha256 = entry.get("sha256")
        if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"sources.toml: [{arch}] sha256 is {sha256!r}")
        found[arch] = OfficialSource(arch, **entry)
    return found


def official(arch: str) -> OfficialSource:
    """Where the published weights of `arch` are.

    Raises:
        PortingError: unsupported, naming the networks that have published weights.
    """
    table = official_sources()
    if arch not in table:
        raise PortingError(
            ErrorKind.UNSUPPORTED, arch, ["no published weights are known"], f"Known: {', '.join(sorted(table))}."
        )
    return table[arch]
