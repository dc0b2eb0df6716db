"""Weights from a URL, into PyTorch's own cache folder."""

from __future__ import annotations

import os
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from models.errors import ModelError

_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20


def is_url(text: str) -> bool:
    """Whether `text` is an address and not a path."""
    return text.startswith(("http://", "https://"))


def _receive(url: str, target: Path) -> None:
    from tqdm import tqdm

    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            with tqdm(
                total=total, unit="B", unit_scale=True, desc=target.name, disable=not sys.stderr.isatty()
            ) as progress:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
            if total is not None and file.tell() != total:
                raise ModelError(f"{url}: expected {total} bytes, found {file.tell()}; try again")
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def fetch(url: str) -> Path:
    """The file at `url`, from the cache or the network; its manifest comes with it where the server has one.

    Its digest is checked when it is loaded, not here.

    Raises:
        ModelError: no such file, no network, or the transfer was cut short.
    """
    import torch

    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name:
        raise ModelError(f"{url}: expected the address of a file")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    target = folder / name
    if target.exists():
        return target
    manifest = target.with_suffix(".json")
    parts = urllib.parse.urlsplit(url)
    manifest_url = parts._replace(path=parts.path.removesuffix(Path(name).suffix) + ".json").geturl()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _receive(manifest_url, manifest)
        except urllib.error.HTTPError as error:
            if error.code not in (403, 404, 410):  # no manifest there: the weights can do without
                raise
        _receive(url, target)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"{url}: cannot be fetched: {reason}; fetch it by hand and pass its path") from error
    return target
