"""`release verify` sees every difference, here and over http, and says which; each test breaks one thing."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from porting import PortingError
from porting.errors import ErrorKind
from porting.release import check, checksums, places, serve
from tests.release import samples


def differences(site: object) -> str:
    return "\n".join(str(defect) for defect in check.verify(str(site)).differences)


def listed_again(site: Path) -> None:
    """Make SHA256SUMS fit the files, as whoever tampers with a site would."""
    old = checksums.read((site / "SHA256SUMS").read_bytes(), site)
    digests = {path: hashlib.sha256((site / path).read_bytes()).hexdigest() for path in old if (site / path).exists()}
    (site / "SHA256SUMS").write_bytes(checksums.write(digests))


def edit_index(site: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((site / "index.json").read_bytes())
    change(value)
    samples.write_json(site / "index.json", value)
    listed_again(site)


def weights_of(site: Path) -> Path:
    return next((site / "weights").glob("*.safetensors"))


@pytest.fixture(scope="module")
def address(mixed_site: Path) -> Iterator[str]:
    with serve.server(mixed_site) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield serve.address(running)
        running.shutdown()


def test_a_whole_site_passes_here_and_over_http(mixed_site: Path, address: str) -> None:
    here, there = check.verify(str(mixed_site)), check.verify(address)
    assert here.differences == there.differences == ()
    assert (here.files, here.bytes, here.weights) == (there.files, there.bytes, there.weights)
    assert here.files == len((mixed_site / "SHA256SUMS").read_text().splitlines())
    assert here.signature == "none"


def test_a_changed_a_longer_and_a_missing_file_are_each_named(site_copy: Path) -> None:
    path = weights_of(site_copy)
    name = path.relative_to(site_copy).as_posix()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert differences(site_copy).startswith(f"{name}: expected ")
    assert "as in SHA256SUMS, found sha256" in differences(site_copy)
    path.write_bytes(data + b"x")
    assert differences(site_copy) == f"{name}: expected at most {len(data)} bytes, found a larger file"
    path.write_bytes(data[:-1])
    assert differences(site_copy) == f"{name}: expected {len(data)}, as in index.json, found {len(data) - 1} bytes"
    path.unlink()
    found = differences(site_copy)
    assert f"{name}: missing" in found
    path.symlink_to(__file__)
    assert f"{name}: a symbolic link" in differences(site_copy)


def test_every_file_that_is_tampered_with_is_seen(site_copy: Path) -> None:
    whole = {path: path.read_bytes() for path in site_copy.rglob("*") if path.is_file()}
    assert len(whole) > 20
    for path, data in whole.items():
        path.write_bytes(data + b" ")
        try:
            assert path.relative_to(site_copy).as_posix() in differences(site_copy)
        except PortingError as error:
            assert path.name == "SHA256SUMS", error
        path.write_bytes(data)
    assert differences(site_copy) == ""


def test_files_that_nobody_lists_are_seen(site_copy: Path) -> None:
    (site_copy / "CNAME").write_text("elsewhere is anybody's")
    assert differences(site_copy) == ""
    (site_copy / "weights" / "evil-12345678.pth").write_bytes(b"x")
    assert differences(site_copy) == "weights/evil-12345678.pth: a file that the site does not list"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", "unverified"),
        ("synthetic", True),
        ("licence", "CC0"),
        ("num_classes", 7),
        ("content_digest", "00" * 32),
        ("upstream", "https://example.org"),
        ("arch", "xception71"),
        ("evaluation", {"top1": 100.0}),
        ("published", {"top1": 100.0, "top5": 100.0}),
    ],
)
def test_an_index_that_says_something_else_than_the_manifest_is_seen(
    field: str, value: object, site_copy: Path
) -> None:
    edit_index(site_copy, lambda found: found["weights"][-1].update({field: value}))
    assert f": {field}: expected" in differences(site_copy)


def test_an_index_that_leaves_out_or_exchanges_files_is_seen(mixed_site: Path, tmp_path: Path) -> None:
    def tampered(change: Callable[[dict[str, Any]], None]) -> str:
        shutil.rmtree(tmp_path / "site", ignore_errors=True)
        site = shutil.copytree(mixed_site, tmp_path / "site")
        edit_index(site, change)
        return differences(site)

    assert "files: expected those that the manifest lists" in tampered(lambda v: v["weights"][1]["files"].reverse())
    assert "knows nothing of it" in tampered(lambda v: v["weights"].pop())
    assert "weights in another order" in tampered(lambda v: v["weights"].reverse())
    assert "as in SHA256SUMS" in tampered(lambda v: v["weights"][0]["files"][0].update(sha256="00" * 32))
    assert "not in SHA256SUMS" in tampered(lambda v: v["weights"][0]["files"][0].update(path="weights/none"))


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "weights/../../x", "cards/x", "weights//x", 3, None])
def test_a_path_that_leads_elsewhere_is_never_opened(path: object, site_copy: Path) -> None:
    (site_copy.parent / "outside").write_text("secret")
    with pytest.raises(PortingError, match=r"weights\[0\].files\[0\].path: expected a path in weights/") as caught:
        edit_index(site_copy, lambda value: value["weights"][0]["files"][0].update(path=path))
        check.verify(str(site_copy))
    assert caught.value.kind is ErrorKind.CORRUPT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{'0' * 64}  ../outside", "expected a digest, two spaces and a plain path"),
        (f"{'0' * 64}  index.html", "index.html again"),
        (f"{'0' * 63}  x", "a digest, two spaces"),
        (f"{'0' * 64} x", "a digest, two spaces"),
        (f"{'0' * 64}  a\\nb", "a digest, two spaces"),
    ],
)
def test_a_list_that_is_none_is_refused(line: str, message: str, site_copy: Path) -> None:
    with (site_copy / "SHA256SUMS").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(PortingError, match="SHA256SUMS") as caught:
        check.verify(str(site_copy))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        ('<a href="weights/none.pth">x</a>', "weights/none.pth"),
        ('<a href="../outside">x</a>', "../outside"),
        ('<a href="/index.html">x</a>', "/index.html"),
        ('<a href="#nowhere">x</a>', "#nowhere"),
        ('<a href="javascript:alert(1)">x</a>', "javascript:alert(1)"),
        ('<a href="//example.org/x">x</a>', "//example.org/x"),
        ('<img src="https://example.org/x.png">', "https://example.org/x.png"),
        ('<script src="data:,alert(1)"></script>', "data:,alert(1)"),
    ],
)
def test_links_that_lead_nowhere_or_fetch_something_are_seen(planted: str, seen: str, site_copy: Path) -> None:
    page = site_copy / "index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", f"{planted}</main>"), encoding="utf-8")
    listed_again(site_copy)
    found = differences(site_copy)
    assert f"found a link to {seen!r}" in found
    assert "\n" not in found


def test_no_site_at_all(tmp_path: Path) -> None:
    with pytest.raises(PortingError, match="SHA256SUMS: missing") as caught:
        check.verify(str(tmp_path))
    assert caught.value.kind is ErrorKind.MISSING


# --- over http --------------------------------------------------------------------------------------------------------


class Unruly(BaseHTTPRequestHandler):
    """Serves a site, and some paths otherwise."""

    site: Path
    otherwise: dict[str, Callable[[Unruly], None]]

    def do_GET(self) -> None:
        special = self.otherwise.get(self.path)
        if special:
            special(self)
            return
        path = self.site / self.path.lstrip("/")
        self.send_response(200 if path.is_file() else 404)
        self.end_headers()
        if path.is_file():
            self.wfile.write(path.read_bytes())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def unruly(mixed_site: Path) -> Iterator[Callable[..., str]]:
    running: list[ThreadingHTTPServer] = []

    def start(**otherwise: Callable[[Unruly], None]) -> str:
        paths = {f"/{weights_of(mixed_site).relative_to(mixed_site)}": what for what in otherwise.values()}
        handler = type("Handler", (Unruly,), {"site": mixed_site, "otherwise": paths})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def endless(request: Unruly) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(b"\0" * 65536)
    except OSError:
        pass


def short(request: Unruly) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x")


def redirected_to(where: str) -> Callable[[Unruly], None]:
    def answer(request: Unruly) -> None:
        request.send_response(302)
        request.send_header("Location", where)
        request.end_headers()

    return answer


def test_what_a_server_does_wrong_is_a_difference_and_ends(
    unruly: Callable[..., str], mixed_site: Path, tmp_path: Path
) -> None:
    name = weights_of(mixed_site).relative_to(mixed_site).as_posix()
    secret = tmp_path / "secret"
    secret.write_bytes(weights_of(mixed_site).read_bytes())
    assert differences(unruly()) == "", "the server itself is all right"
    assert differences(unruly(one=endless)).startswith(f"{name}: expected at most")
    assert differences(unruly(one=short)).startswith(f"{name}: expected")
    assert differences(unruly(one=redirected_to(secret.as_uri()))).startswith(f"{name}: ")
    assert differences(unruly(one=redirected_to("ftp://127.0.0.1/x"))).startswith(f"{name}: ")
    assert differences(unruly(one=lambda request: request.send_error(404))) == f"{name}: missing"
    assert differences(unruly(one=lambda request: request.send_error(403))) == f"{name}: HTTP 403"


def test_a_server_that_fails_once_is_asked_again(unruly: Callable[..., str]) -> None:
    asked: list[int] = []

    def once(request: Unruly) -> None:
        asked.append(1)
        if len(asked) == 1:
            request.send_error(503)
        else:
            request.send_response(200)
            request.end_headers()
            request.wfile.write(weights_of(request.site).read_bytes())

    assert differences(unruly(one=once)) == ""
    assert len(asked) == 2
    assert places._ATTEMPTS > 2
