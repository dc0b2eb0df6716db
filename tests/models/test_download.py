"""`pretrained=URL`: a file of any server, resumed, and checked before it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pages import Server, flip, offer, serving, tiny

import models.download
from models import ModelError, read_weights
from models.connection import Retry
from models.download import fetch


@pytest.fixture()
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    offer(folder, tiny())
    return folder


@pytest.fixture()
def server(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(models.download, "_RETRY", Retry(attempts=2, pause=0.0, timeout=5.0))
    with serving(site) as state:
        yield state


def weights_in(site: Path) -> Path:
    return next(iter(site.rglob("*.pth")))


def test_it_goes_on_where_it_was_cut(site: Path, server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/weights/{weights_in(site).name}"
    server.cuts = [200_000, 0]
    with pytest.raises(ModelError, match=r"cannot be fetched: .*; run this again to go on from there, or"):
        fetch(url)
    path = fetch(url)
    assert server.asked[-1] == (f"/weights/{path.name}", "bytes=200000-")
    assert path.read_bytes() == weights_in(site).read_bytes()
    assert path.parent == tmp_path / "home" / "hub" / "checkpoints"
    assert sorted(one.name for one in path.parent.iterdir()) == [path.with_suffix(".json").name, path.name]


def test_the_digest_in_a_name_is_checked_before_the_file_is_kept(site: Path, server: Server, tmp_path: Path) -> None:
    name = weights_in(site).name
    flip(weights_in(site))
    with pytest.raises(ModelError, match=rf"{name}: sha256: expected [0-9a-f]{{8}} \(from its name\), found"):
        fetch(f"{server.url}/weights/{name}")
    assert not list((tmp_path / "home").rglob("*.pth*"))
    flip(weights_in(site))
    assert fetch(f"{server.url}/weights/{name}").is_file()  # the control


def test_files_of_one_name_are_not_taken_for_each_other(site: Path, server: Server) -> None:
    """A name without a digest is that of many files."""
    for number in (1, 2):
        (site / str(number)).mkdir()
        torch.save(tiny(classes=number), site / str(number) / "model.pth")
    for number in (1, 2):
        assert read_weights(fetch(f"{server.url}/{number}/model.pth")).num_classes == number


def test_a_server_that_answers_everything_with_a_page_has_no_file(site: Path, server: Server, tmp_path: Path) -> None:
    weights_in(site).with_suffix(".json").unlink()
    assert read_weights(fetch(f"{server.url}/weights/{weights_in(site).name}")).manifest is None
    (site / "other.pth").write_bytes(b"<html>")
    (site / "other.json").write_bytes(b"<html>")
    server.kind = "text/html"
    with pytest.raises(ModelError, match="text/html, a web page and not weights"):
        fetch(f"{server.url}/other.pth")
    assert not list((tmp_path / "home").rglob("other*"))


@pytest.mark.parametrize("tail", ["", "/", "/..", "/%2e%2e", "/.hidden.pth", "/a%5cb.pth", "/a%00.pth"])
def test_no_name_of_a_file(server: Server, tail: str) -> None:
    with pytest.raises(ModelError, match=r"expected the address of a file|not a plain http"):
        fetch(server.url + tail)
    assert server.asked == []
