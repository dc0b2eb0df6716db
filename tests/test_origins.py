"""Where `--src` leads: paths, URLs, published names and synthetic sources."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import porting
from porting import PortingError, origins
from porting.reference import SharedReference
from porting.sources import download
from porting.sources.official import OfficialSource


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_url_is_fetched_ported_and_recorded(
    synthetic_source: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    source = synthetic_source("xception")
    with served(source.parent) as base:
        url = f"{base}/{source.name}"
        result = porting.port(url, "xception", out=tmp_path / "out", verify=False)
    assert result.manifest["upstream"] == result.manifest["source"]["name"] == url
    assert list(cache.rglob(source.name))
    again = porting.port(url, "xception", out=tmp_path / "out", verify=False)  # the server is gone: from the cache
    assert again.path == result.path


def test_official_takes_the_table_and_its_licence(
    synthetic_source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = synthetic_source("xception")
    with served(source.parent) as base:
        entry = OfficialSource("xception", f"{base}/{source.name}", "MIT", "https://example.org/xception")
        monkeypatch.setattr(download, "official", lambda arch: entry)
        result = porting.port("official", "xception", out=tmp_path / "out", verify=False)
        given = porting.port("official", "xception", out=tmp_path / "out", verify=False, licence="BSD-3-Clause")
    assert (result.manifest["licence"], result.manifest["upstream"]) == ("MIT", "https://example.org/xception")
    assert given.manifest["licence"] == "BSD-3-Clause"


def test_official_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = OfficialSource("xception41", "http://127.0.0.1:9/xception_41.tar.gz", "Apache-2.0", "https://example.org")
    monkeypatch.setattr(download, "official", lambda arch: entry)
    quick = download.Retry(attempts=1)
    monkeypatch.setattr(download, "fetch", partial(download.fetch, retry=quick))
    with pytest.raises(PortingError) as caught:
        porting.port("official", "xception41", out=tmp_path / "out")
    assert caught.value.kind is porting.ErrorKind.MISSING
    assert "--src synthetic" in str(caught.value)
    assert "http://127.0.0.1:9/xception_41.tar.gz" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["x", "-1", "1.5"])
def test_a_seed_is_a_whole_number(tmp_path: Path, seed: str) -> None:
    with pytest.raises(PortingError, match="whole number"):
        porting.port(f"synthetic:{seed}", "xception41", out=tmp_path)


def test_a_file_called_synthetic_is_still_reachable(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        origin = origins.find("./synthetic", "xception41", stack, origins.Quiet(), SharedReference())
    assert origin.path == Path("synthetic")
    assert not origin.synthetic
