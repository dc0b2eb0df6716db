"""Where `--src` leads: a path, a URL, a network's published file, or a synthetic source that is written on the spot."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from models.scratch import scratch_folder
from porting.errors import ErrorKind, PortingError, shown

if TYPE_CHECKING:
    from porting.reference import SharedReference

SYNTHETIC, OFFICIAL = "synthetic", "official"
AUTO = "auto"  # in a network's place: whichever the source fits
UNKNOWN = "unknown"


class Progress(Protocol):
    """What a caller is told while a port runs."""

    def start(self, stage: str, total: int) -> None: ...

    def step(self) -> None: ...


class Quiet:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int) -> None: ...

    def step(self) -> None: ...


@dataclass(frozen=True)
class Origin:
    """A source on disk, and what is known of where it came from.

    Attributes:
        path: what to open.
        name: for manifests and summaries.
        synthetic: whether its weights are random.
        licence, upstream: as published, or "unknown".
    """

    path: Path
    name: str
    synthetic: bool = False
    licence: str = UNKNOWN
    upstream: str = UNKNOWN


def is_path(src: str | Path) -> bool:
    """Whether this names something on this machine's disk."""
    text = str(src)
    return text != OFFICIAL and text.partition(":")[0] not in (SYNTHETIC, "http", "https")


def find(src: str | Path, arch: str, stack: ExitStack, progress: Progress, tensorflow: SharedReference) -> Origin:
    """Resolve what a user names to something on disk, fetching or writing it where that is asked for.

    Args:
        src: a path, an http(s) URL, "official", or "synthetic[:SEED]".
        arch: a network, or "auto".
        stack: what a synthetic source needs ends with it.
        tensorflow: writes a synthetic source.

    Raises:
        PortingError: as `porting.sources.download.fetch` says; a seed that is no number; or "auto" for what only the
            network's name leads to.
    """
    text = str(src)
    if arch == AUTO and text.partition(":")[0] in (OFFICIAL, SYNTHETIC):
        raise PortingError(ErrorKind.MISSING, src, ["there is one for each network"], "Say which with --arch.")
    if text == OFFICIAL:
        from porting.sources.download import fetch, official

        published = official(arch)
        return Origin(fetch(published), published.url, licence=published.licence, upstream=published.upstream)
    if text.startswith(("http://", "https://")):
        from porting.sources.download import fetch

        return Origin(fetch(text), text, upstream=text)
    kind, _, seed = text.partition(":")
    if kind != SYNTHETIC:
        return Origin(Path(src), shown(Path(src).name))
    if seed and not seed.isdecimal():
        raise PortingError(
            ErrorKind.MISSING, src, [f"the seed is a whole number, found {seed!r}"], "Give synthetic, or synthetic:7."
        )
    folder = stack.enter_context(scratch_folder(Path(tempfile.gettempdir())))
    progress.start("TensorFlow writes a synthetic source", 1)
    path = tensorflow.take(src).synthesize(arch, int(seed or 0), folder)
    progress.step()
    return Origin(path, text, synthetic=True)
