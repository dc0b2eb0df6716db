"""The server, for one test each."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.sources.downloads.local_server import Server, _Handler, _Quiet


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
