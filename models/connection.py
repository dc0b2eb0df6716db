"""What any answer over http(s) may be: failures and their kinds, redirects that are followed, short documents.

Imports nothing but the standard library. Source: RFC 9110.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from enum import Enum
from typing import IO
from urllib.parse import urlsplit

from models.errors import ModelError

_PIECE = 1 << 18
# RFC 9110: too busy, or a fault that may pass. Everything else from 400 on is final.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
LINE_FAULTS = (
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


class Fault(Enum):
    """What sort of failure a transfer had."""

    MISSING = "missing"  # not there, or no connection
    CORRUPT = "corrupt"  # cut short, too long
    UNSUPPORTED = "unsupported"  # not http(s), a web page, a redirect elsewhere


class TransferError(ModelError):
    """A file did not come.

    Attributes:
        url: whose file.
        kind: what sort of failure.
        subject, found, expected: as in `subject: expected X, found Y`; `expected` may be empty.
        status: of the server's final answer, if that was the failure.
        again: whether what has come is kept, so that the same call goes on from there.
        remedy: what to do, where it is not to fetch the file by hand.
    """

    def __init__(
        self, url: str, kind: Fault, subject: str, found: str, expected: str = "",
        *, status: int | None = None, again: bool = False, remedy: str = "",
    ) -> None:  # fmt: skip
        self.url, self.kind = url, kind
        self.subject, self.found, self.expected = subject, found, expected
        self.status, self.again, self.remedy = status, again, remedy
        super().__init__(f"{url}: {self.text}")

    @property
    def text(self) -> str:
        """What was found, without the address."""
        found = f"expected {self.expected}, found {self.found}" if self.expected else self.found
        return f"{self.subject}: {found}" if self.subject else found

    @property
    def unreachable(self) -> bool:
        """Whether no server gave a final answer; another time it may."""
        return self.kind is Fault.MISSING and self.status is None


class FailedError(Exception):
    """An attempt failed in a way that may pass."""


def check_url(url: str) -> None:
    """Refuse what is not a plain http(s) URL.

    Raises:
        TransferError: unsupported.
    """
    try:
        parts = urlsplit(url)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or (parts.port == 0)
    except ValueError:
        bad = True
    if bad or re.search(r"[\x00-\x20\x7f-\U0010ffff]", url):
        raise TransferError(
            url, Fault.UNSUPPORTED, "URL", "not a plain http or https address",
            remedy="Give an http(s) URL or a file's path.",
        )  # fmt: skip


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) only, and never from https to http."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (scheme == "http" and req.type == "https"):
            fp.close()
            raise TransferError(req.full_url, Fault.UNSUPPORTED, "redirect", f"to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def new_opener() -> urllib.request.OpenerDirector:
    """urllib without its file, ftp and data handlers; proxies as the environment says."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), _SafeRedirects(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def refused(url: str, error: urllib.error.HTTPError) -> FailedError | TransferError:
    """What an answer that is not the file stands for: a fault that may pass, or the end."""
    with error:
        if 300 <= error.code < 400:  # one that urllib did not follow: to another scheme, or in a circle
            circle = "infinite loop" in str(error.reason)
            found = "in a circle, or too many" if circle else f"to {error.headers.get('Location')}"
            return TransferError(url, Fault.UNSUPPORTED, "redirect", found)
        text = f"HTTP {error.code} {error.reason}"
        if error.code in _PASSING:
            return FailedError(text)
        return TransferError(url, Fault.MISSING, "", text, status=error.code)


def check_kind(url: str, headers: Message) -> None:
    """Refuse what is not the bare bytes of a file.

    Raises:
        TransferError: unsupported.
    """
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise TransferError(url, Fault.UNSUPPORTED, "Content-Encoding", str(headers["Content-Encoding"]))
    if headers.get_content_type() == "text/html":
        # Portals and login pages answer 200, and their digest must not be the one that is trusted.
        raise TransferError(url, Fault.UNSUPPORTED, "Content-Type", "text/html, a web page and not weights")


def content_length(headers: Message) -> int | None:
    """Bytes of the body, where the server says."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else None


def document(url: str, limit: int, retry: Retry) -> bytes:
    """A short document, whole.

    Args:
        url: its http(s) address.
        limit: bytes that it may have at most.
        retry: how patiently; the whole document must come within four times its timeout.

    Raises:
        TransferError: missing, corrupt (too long, cut short), or unsupported (a redirect elsewhere, a web page).
    """
    check_url(url)
    opener = new_opener()
    failures = 0
    while True:
        try:
            return _document(url, limit, opener, retry.timeout)
        except (FailedError, *LINE_FAULTS) as error:
            failures += 1
            if failures >= retry.attempts:
                reason = getattr(error, "reason", None) or error
                text = str(reason) or type(error).__name__
                raise TransferError(url, Fault.MISSING, "download", f"no connection: {text}") from None
            time.sleep(retry.pause * 2 ** (failures - 1))


def _document(url: str, limit: int, opener: urllib.request.OpenerDirector, timeout: float) -> bytes:
    request = urllib.request.Request(
        url, headers={"User-Agent": "xception-porting", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
    )
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        raise refused(url, error) from None
    latest = time.monotonic() + 4 * timeout
    with response:
        check_kind(url, response.headers)
        length = content_length(response.headers)
        content = bytearray()
        while piece := response.read1(_PIECE):
            content += piece
            if len(content) > limit:
                raise TransferError(url, Fault.CORRUPT, "size", f"more than {limit} bytes", f"at most {limit} bytes")
            if time.monotonic() > latest:
                raise FailedError(f"{len(content)} bytes came in {4 * timeout:.0f} seconds")
    if length is not None and len(content) != length:
        raise FailedError(f"{len(content)} of {length} bytes came")
    return bytes(content)
