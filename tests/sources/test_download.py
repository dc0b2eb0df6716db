"""Downloads, against a server on this machine that fails in every way a server or a line can."""

from __future__ import annotations

import hashlib
import http.server
import io
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.sources import download, official, transfer
from porting.sources.download import OfficialSource, Retry, cache_folder, fetch

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


@pytest.fixture
def server() -> Iterator[Server]:
    httpd = _Quiet(("127.0.0.1", 0), _Handler)
    httpd.state = Server(f"http://127.0.0.1:{httpd.server_port}/weights/model.h5")  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield httpd.state  # type: ignore[attr-defined]
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


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


def test_a_file_is_fetched_once(tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    path = fetch(entry(server), cache=tmp_path)
    assert path.name == "model.h5" and path.read_bytes() == CONTENT
    assert fetch(entry(server), cache=tmp_path) == path
    assert len(server.asked) == 1
    assert left(tmp_path) == ["model.h5"]
    assert capfd.readouterr() == ("", "")  # no bar where nobody sits at a terminal


def test_any_url(tmp_path: Path, server: Server) -> None:
    for tail in ("?x=1", "/", "/..%2f..%2fetc/passwd", "/.hidden", "/%00", "/" + "n" * 300):
        path = fetch(server.url + tail, cache=tmp_path)
        assert path.read_bytes() == CONTENT
        assert path.parent.parent == tmp_path and not path.name.startswith(".")
    assert len({path.parent for path in tmp_path.rglob("*.sha256")}) == 6


def test_progress(tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(entry(server), cache=tmp_path, progress=True)
    assert "model.h5" in capfd.readouterr().err


def test_an_interrupted_line_goes_on(tmp_path: Path, server: Server) -> None:
    server.cuts = [300_000, 200_000]
    assert fetch(entry(server), cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert {asked.get("If-Range") for asked in server.asked[1:]} == {'"one"'}
    assert left(tmp_path) == ["model.h5"]


def test_a_later_run_goes_on(tmp_path: Path, server: Server) -> None:
    server.cuts = [300_000, 0, 0, 0]
    error = refusal(entry(server), tmp_path)
    assert error.kind is ErrorKind.CORRUPT
    assert str(error) == (
        f"{server.url}: corrupt: download: 300000 of 900000 bytes came\n"
        f"Run the same command again to go on from there. {hand(server.url)}"
    )
    assert left(tmp_path) == ["model.h5.part", "model.h5.part.json"]
    server.cuts, server.asked = [], []
    assert fetch(entry(server), cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT
    assert [asked.get("Range") for asked in server.asked] == ["bytes=300000-"]


def test_a_file_that_changed_meanwhile_starts_anew(tmp_path: Path, server: Server) -> None:
    server.cuts = [300_000, 0, 0, 0]
    refusal(entry(server), tmp_path)
    server.cuts, server.etag, server.content = [], '"two"', CONTENT[::-1]
    wanted = entry(server, sha256=hashlib.sha256(server.content).hexdigest())
    assert fetch(wanted, cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("change", ({"etag": None}, {"etag": 'W/"one"'}, {"ranges": False}))
def test_without_a_way_to_resume_it_starts_anew(tmp_path: Path, server: Server, change: dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    server.cuts = [300_000]
    assert fetch(entry(server), cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT


def test_two_halves_of_different_files_are_noticed(tmp_path: Path, server: Server) -> None:
    """A server that keeps its entity tag while the file changes: the digest notices, and all is fetched again."""
    server.content = CONTENT[::-1]
    server.cuts = [300_000, 0, 0, 0]
    refusal(entry(server), tmp_path)
    server.content, server.cuts = CONTENT, []
    assert fetch(entry(server), cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT
    assert left(tmp_path) == ["model.h5"]


@pytest.mark.parametrize("right", (True, False))
def test_killed_before_the_last_step(tmp_path: Path, server: Server, right: bool) -> None:
    path = fetch(entry(server), cache=tmp_path)
    path.rename(path.with_name("model.h5.part"))
    if not right:
        path.with_name("model.h5.part").write_bytes(b"x" + CONTENT[1:])
    assert fetch(entry(server), cache=tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == (1 if right else 2)


def test_a_part_longer_than_the_file(tmp_path: Path, server: Server) -> None:
    server.cuts = [500_000, 0, 0, 0]
    refusal(entry(server, None, None), tmp_path)
    server.content, server.cuts = CONTENT[:400_000], []
    assert fetch(entry(server, None, None), cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT[:400_000]


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


def test_what_was_fetched_first_is_trusted(tmp_path: Path, server: Server) -> None:
    wanted = entry(server, None, None)
    path = fetch(wanted, cache=tmp_path)
    digest = path.with_name("model.h5.sha256")
    assert digest.read_text() == f"{DIGEST}\n"
    path.unlink()
    server.content = CONTENT[::-1]
    found = hashlib.sha256(server.content).hexdigest()
    assert str(refusal(wanted, tmp_path)) == (
        f"{server.url}: corrupt: sha256: expected {DIGEST}, as when it was first fetched, found {found}\n"
        f"If the publisher is known to have replaced it, delete {digest}."
    )
    assert left(tmp_path) == ["model.h5.sha256"]
    digest.unlink()
    assert fetch(wanted, cache=tmp_path).read_bytes() == CONTENT[::-1]


def test_a_cached_file_that_was_changed(tmp_path: Path, server: Server) -> None:
    path = fetch(entry(server), cache=tmp_path)
    path.write_bytes(b"x" + CONTENT[1:])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(refusal(entry(server), tmp_path)) == (
        f"{path}: corrupt: sha256: expected {DIGEST}, found {found}\nDelete it to fetch it again."
    )
    path.write_bytes(b"x")
    assert "corrupt: size: expected 900000 bytes, found 1 bytes" in str(refusal(entry(server), tmp_path))


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
    request = transfer.urllib.request.Request("https://example.org/x")
    with pytest.raises(PortingError, match=r"unsupported: redirect: to http://example\.org/y"):
        transfer._SafeRedirects().redirect_request(request, io.BytesIO(), 302, "", None, "http://example.org/y")  # type: ignore[arg-type]


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
        f"{url}: unsupported: URL: not a plain http or https address\nGive an http(s) URL or a file's path."
    )
    assert list(tmp_path.iterdir()) == []


def _fetch_in_process(url: str, cache: str, results: Any) -> None:
    try:
        results.put(fetch(url, cache=Path(cache), retry=HURRIED).read_bytes() == CONTENT)
    except BaseException as error:
        results.put(repr(error))


def test_several_at_once(tmp_path: Path, server: Server) -> None:
    server.cuts = [100_000]
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    children = [context.Process(target=_fetch_in_process, args=(server.url, str(tmp_path), results)) for _ in range(3)]
    for child in children:
        child.start()
    threads_found: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: threads_found.append(
                fetch(server.url, cache=tmp_path, retry=HURRIED).read_bytes() == CONTENT
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results.get(timeout=60) for _ in children] == [True] * 3
    for child in children:
        child.join()
    assert threads_found == [True] * 3
    assert len(server.asked) == 2  # one cut, one that went on; the others waited and found it
    assert left(tmp_path) == ["model.h5", "model.h5.sha256"]


def test_an_unwritable_cache(tmp_path: Path, server: Server) -> None:
    (tmp_path / "cache").write_text("a file")
    error = refusal(entry(server), tmp_path / "cache")
    assert error.kind is ErrorKind.OUTPUT
    assert "the cache cannot be used: Not a directory" in str(error)
    assert "XDG_CACHE_HOME" in str(error)


def test_a_full_disk(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    error = refusal(entry(server), tmp_path)
    assert error.kind is ErrorKind.OUTPUT and "No space left on device" in str(error)
    monkeypatch.undo()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "xception-porting"
    for given in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache" / "xception-porting"


def test_the_table() -> None:
    table = official.official_sources()
    assert list(table) == ["xception", "xception41", "xception65", "xception71"]
    for arch, source in table.items():
        assert source == download.official(arch) and source.arch == arch
        assert source.url.startswith("https://") and source.upstream.startswith("https://github.com/")
        assert re.fullmatch(r"MIT|Apache-2\.0", source.licence)
    # Published beside the file: github.com/fchollet/deep-learning-models, release v0.4.
    assert (table["xception"].bytes, (table["xception"].sha256 or "")[:8]) == (91_884_032, "c5bf1c05")


def test_the_table_is_one_file() -> None:
    root = Path(__file__).parents[2]
    assert (root / "porting/sources/sources.toml").read_bytes() == (root / "checkpoints/sources.toml").read_bytes()


def test_a_network_without_published_weights() -> None:
    with pytest.raises(PortingError) as caught:
        download.official("resnet50")
    assert str(caught.value) == (
        "resnet50: unsupported: no published weights are known\nKnown: xception, xception41, xception65, xception71."
    )


@pytest.mark.parametrize(
    "text",
    (
        '[a]\nurl = "u"\nlicence = "l"',
        '[a]\nurl = "u"\nlicence = "l"\nupstream = "p"\nmd5 = "1"',
        '[a]\nurl = "u"\nlicence = "l"\nupstream = "p"\nsha256 = "12"',
    ),
)
def test_a_wrong_table(text: str) -> None:
    with pytest.raises(ValueError, match=r"sources\.toml: \[a\]"):
        official.parse_sources(text)


def test_importing_is_light() -> None:
    code = "import sys, porting.sources.download; print([m for m in ('torch', 'h5py', 'requests') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
