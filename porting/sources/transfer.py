"""One file over http(s), in as many pieces as the line makes of it.

Source: RFC 9110, 14.2 (Range), 13.1.5 (If-Range), 15.3.7 (206) and 15.5.17 (416).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

from porting.errors import Defect, ErrorKind, PortingError, corrupt, unsupported

_PIECE = 1 << 18
_MAX_BYTES = 8 << 30  # ten times the largest published archive; stops a server that never ends
_PROGRESS_BYTES = 1 << 16  # an attempt that brought this much is not counted as failed
# RFC 9110: too busy, or a fault that may pass. Everything else from 400 on is final.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LINE_FAULTS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    socket.timeout,
    ssl.SSLError,
)


@dataclass(frozen=True)
class Retry:
    """How patiently: failed attempts in a row, seconds before the second (doubled each time), seconds without data."""

    attempts: int = 4
    pause: float = 1.0
    timeout: float = 30.0


@dataclass(frozen=True)
class Transfer:
    """What is fetched, into which unfinished file, and how long it must be (None: as the server says)."""

    url: str
    part: Path
    size: int | None


class _FailedError(Exception):
    """An attempt failed in a way that may pass."""


def by_hand(url: str) -> str:
    """The remedy for every failed download."""
    return f"Fetch {url} by hand and give the file's path as --src; --src synthetic needs no download."


def check_url(url: str) -> None:
    """Refuse what is not a plain http(s) URL.

    Raises:
        PortingError: unsupported.
    """
    try:
        parts = urlsplit(url)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or (parts.port == 0)
    except ValueError:
        bad = True
    if bad or re.search(r"[\x00-\x20\x7f-\U0010ffff]", url):
        raise unsupported(url, "URL", "not a plain http or https address", "Give an http(s) URL or a file's path.")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) only, and never from https to http."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (scheme == "http" and req.type == "https"):
            fp.close()
            raise unsupported(req.full_url, "redirect", f"to {newurl}", by_hand(req.full_url))
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener() -> urllib.request.OpenerDirector:
    """urllib without its file, ftp and data handlers; proxies as the environment says."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), _SafeRedirects(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def transfer(wanted: Transfer, retry: Retry, progress: bool | None) -> bool:
    """Bring all of `wanted.url` into `wanted.part`, which keeps what has come if this fails or is interrupted.

    Returns whether it was put together from more than one answer.

    Raises:
        PortingError: missing, corrupt (cut short, too long), or unsupported (a redirect elsewhere, a web page).
        OSError: the file cannot be written.
    """
    opener = _opener()
    resumed = False
    failures = 0
    # tqdm's own None means: only on a terminal.
    with tqdm(
        total=wanted.size, unit="B", unit_scale=True, unit_divisor=1024, leave=False,
        desc=wanted.url.rpartition("/")[2][:40], disable=None if progress is None else not progress,
    ) as bar:  # fmt: skip
        while True:
            before = _size(wanted.part)
            try:
                resumed |= _attempt(wanted, opener, retry.timeout, bar)
                return resumed
            except (_FailedError, *_LINE_FAULTS) as error:
                came = _size(wanted.part) - before
                failures = 1 if came >= _PROGRESS_BYTES else failures + 1
                distrusted = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
                if failures >= retry.attempts or distrusted:
                    raise _given_up(wanted, error) from None
                time.sleep(retry.pause * 2 ** (failures - 1))


def _attempt(wanted: Transfer, opener: urllib.request.OpenerDirector, timeout: float, bar: Any) -> bool:
    """One request, from where the unfinished file ends; returns whether it went on from there."""
    start = _size(wanted.part)
    note = wanted.part.with_name(wanted.part.name + ".json")
    headers = {"User-Agent": "xception-porting", "Accept-Encoding": "identity"}
    validator = _validator(note, wanted.url)
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    else:
        start = 0
    request = urllib.request.Request(wanted.url, headers=headers)
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                # The unfinished file is no beginning of what is there now.
                wanted.part.unlink(missing_ok=True)
                raise _FailedError("the server has less than was fetched before") from None
            if 300 <= error.code < 400:  # one that urllib did not follow: to another scheme, or in a circle
                circle = "infinite loop" in str(error.reason)
                found = "in a circle, or too many" if circle else f"to {error.headers.get('Location')}"
                raise unsupported(wanted.url, "redirect", found, by_hand(wanted.url)) from None
            if error.code in _PASSING:
                raise _FailedError(f"HTTP {error.code} {error.reason}") from None
            raise PortingError(
                ErrorKind.MISSING, wanted.url, [f"HTTP {error.code} {error.reason}"], by_hand(wanted.url)
            ) from None
    with response:
        _check_kind(wanted, response.headers)
        going_on = bool(response.status == 206)
        if going_on and not (start and _range_start(response.headers) == start):
            raise corrupt(wanted.url, "Content-Range", str(response.headers.get("Content-Range")), f"from {start}")
        start = start if going_on else 0
        length = _content_length(response.headers)
        total = None if length is None else start + length
        if wanted.size is not None and total not in (None, wanted.size):
            raise corrupt(wanted.url, "size", f"{total} bytes", f"{wanted.size} bytes", by_hand(wanted.url))
        limit = min(n for n in (wanted.size, total, _MAX_BYTES) if n is not None)
        note.write_text(json.dumps({"url": wanted.url, "validator": _strong(response.headers)}), encoding="utf-8")
        bar.total, bar.n = wanted.size or total, start
        bar.refresh()
        done = _receive(response, wanted, start, limit, bar)
    expected = wanted.size if wanted.size is not None else total
    if expected is not None and done < expected:
        raise _FailedError(f"{done} of {expected} bytes came")
    note.unlink(missing_ok=True)
    return going_on


def _receive(response: Any, wanted: Transfer, start: int, limit: int, bar: Any) -> int:
    with wanted.part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        done = start
        while piece := response.read(_PIECE):
            done += len(piece)
            if done > limit:
                raise corrupt(wanted.url, "size", f"more than {limit} bytes", f"{limit} bytes", by_hand(wanted.url))
            file.write(piece)
            bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
    return done


def _check_kind(wanted: Transfer, headers: Message) -> None:
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise unsupported(wanted.url, "Content-Encoding", str(headers["Content-Encoding"]), by_hand(wanted.url))
    if headers.get_content_type() == "text/html":
        # Portals and login pages answer 200, and their digest must not be the one that is trusted.
        raise unsupported(wanted.url, "Content-Type", "text/html, a web page and not weights", by_hand(wanted.url))


def _strong(headers: Message) -> str | None:
    """What If-Range may hold: a strong entity tag, or else the date."""
    tag = headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return headers.get("Last-Modified")


def _validator(note: Path, url: str) -> str | None:
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = kept.get("validator") if isinstance(kept, Mapping) and kept.get("url") == url else None
    return value if isinstance(value, str) and value.isprintable() else None


def _content_length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else None


def _range_start(headers: Message) -> int | None:
    match = re.match(r"bytes (\d{1,18})-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _given_up(wanted: Transfer, error: Exception) -> PortingError:
    reason = getattr(error, "reason", None) or error
    text = str(reason) or type(error).__name__
    came = _size(wanted.part)
    if isinstance(error, _FailedError) and came:
        remedy = "Run the same command again to go on from there. " + by_hand(wanted.url)
        return PortingError(ErrorKind.CORRUPT, wanted.url, [Defect("download", text)], remedy)
    found = f"{came} bytes came, then: {text}" if came else f"no connection: {text}"
    return PortingError(ErrorKind.MISSING, wanted.url, [Defect("download", found)], by_hand(wanted.url))
