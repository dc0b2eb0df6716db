"""A server on this machine that fails in every way a server or a line can."""

from __future__ import annotations

import hashlib
import http.server
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.errors import PortingError
from porting.sources.download import OfficialSource, Retry, fetch

CONTENT = np.random.default_rng(0).bytes(900_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HURRIED = Retry(attempts=3, pause=0.0, timeout=5.0)


@dataclass
class Server:
    """What it answers, and what it was asked.

    `cuts` are the bytes after which the next answers break off; `statuses` are codes that the next answers have.
    """

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state: Server = self.server.state
        state.asked.append(dict(self.headers))
        if state.redirect and self.path != "/end":
            self.send_response(302)
            self.send_header("Location", state.redirect)
            self.end_headers()
            return
        if state.statuses:
            self.send_error(state.statuses.pop(0))
            return
        start = 0
        if (asked := self.headers.get("Range")) and state.ranges and self.headers.get("If-Range") == state.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(state.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
        else:
            self.send_response(200)
        body = state.content[start:]
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream", **state.headers}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if state.etag:
            self.send_header("ETag", state.etag)
        self.end_headers()
        self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""


def entry(server: Server, size: int | None = len(CONTENT), sha256: str | None = DIGEST) -> OfficialSource:
    return OfficialSource("xception", server.url, "MIT", "upstream", size, sha256)


def refusal(source: OfficialSource | str, cache: Path, retry: Retry = HURRIED) -> PortingError:
    with pytest.raises(PortingError) as caught:
        fetch(source, cache=cache, retry=retry)
    return caught.value


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


def hand(url: str) -> str:
    return f"Fetch {url} by hand and give the file's path as --src; --src synthetic needs no download."
