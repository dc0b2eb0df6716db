"""Downloads that come whole, in pieces, several at once, or from the cache."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from porting.errors import ErrorKind
from porting.sources.download import cache_folder, fetch
from tests.sources.downloads.local_server import CONTENT, DIGEST, HURRIED, Server, entry, hand, left, refusal


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
