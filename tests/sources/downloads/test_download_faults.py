"""Servers and lines that fail, each with the text it must produce."""

from __future__ import annotations

import hashlib
import io
import socket
from pathlib import Path

import pytest

from models import connection, transfer
from porting.errors import ErrorKind, shown
from porting.sources.download import Retry, fetch
from tests.sources.downloads.local_server import CONTENT, DIGEST, HURRIED, Server, entry, hand, left, refusal


def test_faults_that_pass(tmp_path: Path, server: Server) -> None:
    server.statuses = [503, 429]
    assert fetch(entry(server), cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_faults_that_do_not_pass(tmp_path: Path, server: Server) -> None:
    server.statuses = [503] * 9
    error = refusal(entry(server), tmp_path)
    assert error.kind is ErrorKind.MISSING
    assert str(error) == (
        f"{server.url}: missing: download: no connection: HTTP 503 Service Unavailable\n{hand(server.url)}"
    )
    assert len(server.asked) == HURRIED.attempts
    assert left(tmp_path) == []


@pytest.mark.parametrize(("status", "text"), ((404, "404 Not Found"), (403, "403 Forbidden"), (410, "410 Gone")))
def test_a_file_that_is_not_there(tmp_path: Path, server: Server, status: int, text: str) -> None:
    server.statuses = [status]
    error = refusal(entry(server), tmp_path)
    assert error.kind is ErrorKind.MISSING
    assert str(error) == f"{server.url}: missing: HTTP {text}\n{hand(server.url)}"
    assert len(server.asked) == 1 and left(tmp_path) == []


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets it, and it refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/model.h5"
        error = refusal(url, tmp_path)
    assert str(error) == (f"{url}: missing: download: no connection: [Errno 111] Connection refused\n{hand(url)}")
    error = refusal("http://nowhere.invalid/model.h5", tmp_path)
    assert error.kind is ErrorKind.MISSING
    assert "missing: download: no connection: " in str(error) and "--src synthetic" in str(error)


def test_a_silent_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.h5"
        error = refusal(url, tmp_path, Retry(2, 0.0, 0.1))
    assert str(error) == f"{url}: missing: download: no connection: timed out\n{hand(url)}"


@pytest.mark.parametrize(
    ("size", "content", "text"),
    (
        (900_001, CONTENT, "expected 900001 bytes, found 900000 bytes"),
        (899_999, CONTENT, "expected 899999 bytes, found 900000 bytes"),
    ),
)
def test_a_wrong_size(tmp_path: Path, server: Server, size: int, content: bytes, text: str) -> None:
    error = refusal(entry(server, size), tmp_path)
    assert str(error) == f"{server.url}: corrupt: size: {text}\n{hand(server.url)}"
    assert left(tmp_path) == []


def test_truncated_without_a_length(tmp_path: Path, server: Server) -> None:
    """Without Content-Length a cut connection looks like the end; only the table's size tells."""
    server.headers, server.cuts = {"Content-Length": ""}, [1000] * 9
    error = refusal(entry(server), tmp_path)
    assert "corrupt: download: 3000 of 900000 bytes came" in str(error)


def test_more_than_promised_without_a_length(tmp_path: Path, server: Server) -> None:
    server.headers = {"Content-Length": ""}
    error = refusal(entry(server, 5000), tmp_path)
    assert (
        str(error)
        == f"{server.url}: corrupt: size: expected 5000 bytes, found more than 5000 bytes\n{hand(server.url)}"
    )


def test_an_endless_answer(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_MAX_BYTES", 100_000)
    server.headers = {"Content-Length": ""}
    assert "found more than 100000 bytes" in str(refusal(server.url, tmp_path))


def test_a_wrong_digest(tmp_path: Path, server: Server) -> None:
    server.content = b"x" + CONTENT[1:]
    found = hashlib.sha256(server.content).hexdigest()
    error = refusal(entry(server), tmp_path)
    assert error.kind is ErrorKind.CORRUPT
    assert str(error) == f"{server.url}: corrupt: sha256: expected {DIGEST}, found {found}\n{hand(server.url)}"
    assert left(tmp_path) == [] and len(server.asked) == 1


def test_an_empty_answer(tmp_path: Path, server: Server) -> None:
    server.content = b""
    assert "corrupt: size: expected weights, found 0 bytes" in str(refusal(server.url, tmp_path))
    assert left(tmp_path) == []


def test_redirects(tmp_path: Path, server: Server) -> None:
    server.redirect = "/end"
    assert fetch(entry(server), cache=tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("target", ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"))
def test_redirects_elsewhere(tmp_path: Path, server: Server, target: str) -> None:
    server.redirect = target
    error = refusal(entry(server), tmp_path)
    assert str(error) == f"{server.url}: unsupported: redirect: to {target}\n{hand(server.url)}"


def test_redirects_from_https_to_http() -> None:
    request = connection.urllib.request.Request("https://example.org/x")
    with pytest.raises(connection.TransferError, match=r"redirect: to http://example\.org/y"):
        connection._SafeRedirects().redirect_request(request, io.BytesIO(), 302, "", None, "http://example.org/y")  # type: ignore[arg-type]


def test_a_ring_of_redirects(tmp_path: Path, server: Server) -> None:
    server.redirect = server.url
    error = refusal(entry(server), tmp_path)
    assert str(error) == f"{server.url}: unsupported: redirect: in a circle, or too many\n{hand(server.url)}"


def test_a_web_page_is_no_file(tmp_path: Path, server: Server) -> None:
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    error = refusal(entry(server, None, None), tmp_path)
    assert str(error) == (
        f"{server.url}: unsupported: Content-Type: text/html, a web page and not weights\n{hand(server.url)}"
    )
    assert left(tmp_path) == []


def test_a_compressed_answer(tmp_path: Path, server: Server) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    assert "unsupported: Content-Encoding: gzip" in str(refusal(entry(server), tmp_path))


@pytest.mark.parametrize(
    "url",
    ("ftp://host/x", "file:///etc/passwd", "http://", "http:///x", "http://a b/", "http://h/\n", "http://[::1/x",
     "http://h:99999/", "javascript:1", "", "http://h/é"),
)  # fmt: skip
def test_urls_that_are_none(tmp_path: Path, url: str) -> None:
    error = refusal(url, tmp_path)
    assert str(error) == (
        f"{shown(url)}: unsupported: URL: not a plain http or https address\nGive an http(s) URL or a file's path."
    )
    assert list(tmp_path.iterdir()) == []
