"""How the pages put things: sizes, counts, names and links, from text that anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from models.info import get_info
from porting.forms import short
from porting.release.description import Description, Listed
from porting.release.index import WEIGHTS
from porting.release.snippets import NO_ADDRESS, filling, kind_of
from porting.request import HF
from porting.rules import BATCH_NORM_EPSILON

TIMES = "\u00d7"


def plain(text: str) -> str:
    """One line that a page can show: control and direction characters, which can disguise text, become a mark."""
    return "".join(letter if letter.isprintable() else " " if letter in "\r\n\t" else "\ufffd" for letter in text)


def brief(text: str) -> str:
    """The start of a text, as `plain`; the card has all of it."""
    clean = plain(text)
    return clean if len(clean) <= 80 else f"{clean[:79]}…"


def size(number: int) -> str:
    """Bytes as people write them, in powers of a thousand."""
    value = float(number)
    for unit in ("B", "kB", "MB"):
        if value < 999.95 or (unit == "B" and value < 1000):
            return f"{number} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def millions(number: int) -> str:
    """A number of parameters: in millions, where there are any."""
    return f"{number / 1e6:.2f} M" if number >= 10_000 else f"{number:,}"


def count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else plural}"


def network(arch: str) -> str:
    """What is known of a network, in a few words."""
    return get_info(arch).paper.replace("arXiv:", "arXiv ")


def upstream(text: str) -> dict[str, str]:
    """Where weights come from: a link where it is an http(s) address, else its text."""
    clean = plain(text)
    try:
        parts = urlsplit(clean)
        host = parts.hostname if parts.scheme in ("http", "https") and clean.isascii() else None
    except ValueError:
        host = None
    if not host:
        return {"href": "", "text": brief(text)}
    path = "/".join(parts.path.split("/")[:3]).rstrip("/")
    return {"href": clean, "text": f"{host.removeprefix('www.')}{path}"}


def flags(described: Description, format_: str) -> list[dict[str, Any]]:
    """What sets a file apart, in a word or two each."""
    variant = described.manifest["variant"]
    found: list[dict[str, Any]] = []
    if described.synthetic:
        found.append({"text": "synthetic: random weights", "warn": True})
    if variant["folded"]:
        found.append({"text": "batch norm folded", "warn": False})
    if variant["bn_eps"] != BATCH_NORM_EPSILON:
        found.append({"text": f"epsilon {short(variant['bn_eps'])}", "warn": False})
    if variant["dtype"] != "float32":
        found.append({"text": variant["dtype"], "warn": False})
    if format_ == HF:
        found.append({"text": "timm folder", "warn": False})
    return found


def files(described: Description, base: str | None) -> list[dict[str, Any]]:
    """What can be downloaded: each file, timm's folder being one, with what fills in the templates of code for it."""
    found = []
    folders: dict[str, list[Listed]] = {}
    for one in described.files:
        if one.format == HF:
            folders.setdefault(PurePosixPath(one.name).parent.as_posix(), []).append(one)
        else:
            found.append(_file(described, one, one.name, one.bytes, base))
    for folder, inside in folders.items():
        weights = next((one for one in inside if one.name.endswith(".safetensors")), inside[0])
        found.append(_file(described, weights, f"{folder}/", sum(one.bytes for one in inside), base))
    return found


def _file(described: Description, listed: Listed, name: str, total: int, base: str | None) -> dict[str, Any]:
    values = filling(described, listed)
    root = base or NO_ADDRESS
    return {
        "name": name,
        "folder": name.endswith("/"),
        "href": f"{WEIGHTS}/{listed.name}",
        "sha256": listed.sha256,
        "bytes": total,
        "size": size(total),
        "format": listed.format,
        "kind": kind_of(described, listed),
        "values": {**values, "BASE": root, "URL": f"{root}{values['PATH']}"},
    }


def percent(evaluation: Mapping[str, Any]) -> str:
    """Top-1 and top-5, and what they were measured on."""
    unreadable = f", {evaluation['unreadable']:,} unreadable" if evaluation["unreadable"] else ""
    on = f"{plain(evaluation['data'])}: {count(evaluation['images'], 'image')}{unreadable}"
    return f"{evaluation['top1']:.3f} / {evaluation['top5']:.3f} percent, loss {evaluation['loss']:.4f}, on {on}"
