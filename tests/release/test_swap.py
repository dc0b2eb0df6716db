"""A site changes at once, whatever happens meanwhile, and nothing is lost that no build wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from porting import PortingError
from porting.release import check, index, swap
from porting.release.build import build
from tests.release import samples
from tests.release.test_build import tree

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_the_old_site_or_the_new_one() -> None:
    """At chosen steps; tests.release.kills takes all, and makes sure each time that it would have seen a fault."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.release.kills", "--count", "4"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4 kills, 0 faults; a careless build is found out\n")


@pytest.fixture
def site(weights: Path, tmp_path: Path) -> Path:
    samples.add(weights, "xception41", 1)
    return build(weights, tmp_path / "site").site


@pytest.mark.parametrize("exchange", [True, False])
def test_what_no_build_wrote_stays(
    exchange: bool, site: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    (site / "CNAME").write_text("weights.example.org")
    (site / "blog" / "empty").mkdir(parents=True)
    (site / "blog" / "post.html").write_text("text")
    (site / "blog" / "latest").symlink_to("post.html")
    (site / "blog" / "gone").symlink_to("nowhere")
    (site / "cards" / "mine.txt").write_text("in a folder of ours")
    os.mkfifo(site / "blog" / "pipe")
    (site / "blog").chmod(0o750)
    number = (site / "CNAME").stat().st_ino
    samples.add(weights, "xception65", 2)
    assert build(weights, site).notes == ()
    assert (site / "CNAME").stat().st_ino == number
    assert (site / "blog" / "empty").is_dir()
    assert (site / "blog" / "post.html").read_text() == "text"
    assert (site / "blog" / "latest").readlink() == Path("post.html")
    assert (site / "blog" / "gone").readlink() == Path("nowhere")
    assert (site / "blog" / "pipe").is_fifo()
    assert (site / "blog").stat().st_mode & 0o777 == 0o750
    assert (site / "cards" / "mine.txt").read_text() == "in a folder of ours"
    assert len(list((site / "weights").glob("*.pth"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"site", "ported"}


def test_the_exchange_is_one_step_where_the_system_has_it(site: Path, tmp_path: Path) -> None:
    """Whoever looks meanwhile always finds a whole site."""
    other = tmp_path / "other"
    other.mkdir()
    samples.add(other, "xception65", 2)
    seen: list[str] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                (site / "index.json").read_bytes()
            except OSError as error:
                seen.append(str(error))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for folder in (other, tmp_path / "ported", other):
            assert build(folder, site).changed
    finally:
        stop.set()
        watcher.join()
    assert seen == []


def test_what_comes_or_changes_while_the_site_is_exchanged_is_kept(
    site: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "notes.txt").write_text("first")
    real = swap._exchange

    def late(stage: Path, place: Path) -> bool:
        (place / "came.txt").write_text("late")
        (place / "notes.txt").unlink()
        (place / "notes.txt").write_text("second")
        return real(stage, place)

    monkeypatch.setattr(swap, "_exchange", late)
    samples.add(weights, "xception65", 2)
    built = build(weights, site)
    assert (site / "came.txt").read_text() == "late"
    assert (site / "notes.txt").read_text() == "first"
    assert (tmp_path / "site.kept-1" / "notes.txt").read_text() == "second"
    assert list(tree(tmp_path / "site.kept-1")) == ["notes.txt"]
    assert built.notes == (
        f"notes.txt: changed while the site was built; the earlier one is kept in {tmp_path / 'site.kept-1'}",
    )


def test_a_file_of_somebody_else_in_the_way_stops_the_build(site: Path, weights: Path, tmp_path: Path) -> None:
    stem = samples.add(weights, "xception65", 2)
    (site / "cards" / f"{stem}.md").write_text("mine")
    before = tree(site)
    with pytest.raises(PortingError, match=f"cards/{stem}.md: expected nothing, or a file of this site's"):
        build(weights, site)
    assert tree(site) == before
    assert {path.name for path in tmp_path.iterdir()} == {"site", "ported"}


def test_an_error_half_way_leaves_the_old_site_and_nothing_else(
    site: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(site)
    samples.add(weights, "xception65", 2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(swap, "_sync", full)
    with pytest.raises(PortingError, match="No space left on device") as caught:
        build(weights, site)
    assert "Free some space" in str(caught.value)
    assert tree(site) == before
    assert {path.name for path in tmp_path.iterdir()} == {"site", "ported"}


def test_two_builds_at_once_take_turns(weights: Path, tmp_path: Path) -> None:
    samples.add(weights, "xception41", 1)
    other = tmp_path / "other"
    other.mkdir()
    samples.add(other, "xception65", 2)
    site, failed = tmp_path / "site", []

    def run(folder: Path) -> None:
        try:
            for _ in range(3):
                build(folder, site)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(folder,)) for folder in (weights, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert check.verify(str(site)).differences == ()
    assert {path.name for path in tmp_path.iterdir()} == {"site", "ported", "other"}


def test_what_a_build_wrote_is_known_by_its_index_and_its_checksums(site: Path) -> None:
    ours = index.written(site)
    assert ours == tree(site).keys() | {"SHA256SUMS.minisig"}
    (site / "SHA256SUMS").write_text((site / "SHA256SUMS").read_text() + f"{'0' * 64}  blog/post.html\n")
    assert index.written(site) == ours, "what is no file of a site is never ours, whatever the list says"
    (site / "index.json").write_text((site / "index.json").read_text() + " ")
    assert index.written(site) == frozenset()
