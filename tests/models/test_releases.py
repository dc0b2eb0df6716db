"""`pretrained=True`: from a folder, or from a page on disk or on the network; damaged anywhere, refused by name."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import Server, flip, listed, offer, serving, tiny, write_index
from torch import Tensor

import models.download
from models import ModelError
from models.connection import Retry
from models.releases import find_weights
from models.weights import Weights

VALUE = 3.0


@pytest.fixture()
def site(tmp_path: Path) -> Path:
    """A page of one file: 400 kB, few enough tensors to read at once."""
    folder = tmp_path / "site"
    folder.mkdir()
    write_index(folder, offer(folder, tiny(fill=VALUE)))
    return folder


@pytest.fixture()
def server(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(models.download, "_RETRY", Retry(attempts=2, pause=0.0, timeout=5.0))
    monkeypatch.setattr(models.download, "_SHORT_RETRY", Retry(attempts=1, pause=0.0, timeout=5.0))
    with serving(site) as state:
        monkeypatch.setenv("PORTING_WEIGHTS", state.url)
        yield state


def find(num_classes: int | None = None) -> Weights:
    return find_weights("xception", False, num_classes)


def value(weights: Weights) -> float:
    kernel: Tensor = weights.state["conv1.weight"]
    return float(kernel[0, 0])


def weights_in(folder: Path) -> Path:
    return next(iter(folder.rglob("*.pth")))


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home").rglob("*") if path.is_file())


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "index.json", "index.html"])
def test_a_page_on_disk(site: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("PORTING_WEIGHTS", str(site / place))
    found = find()
    assert value(found) == VALUE and found.path == weights_in(site)
    assert found.manifest is not None and found.manifest.labels is not None


def test_a_plain_folder_of_the_same_files(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of two, the verified one."""
    monkeypatch.setenv("PORTING_WEIGHTS", str(site / "weights"))
    assert value(find()) == VALUE
    offer(site, tiny(fill=1.0))
    with pytest.raises(ModelError, match=r"several weights for xception: .*unverified"):
        find()
    path = weights_in(site).with_suffix(".json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"parity": {"verdict": "verified"}}))
    assert find().path.stem == path.stem


def test_safetensors_where_that_is_all(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    pth = weights_in(site)
    other = pth.with_name("xception-other.safetensors")
    save_file(torch.load(pth, weights_only=True), other)
    manifest = json.loads(pth.with_suffix(".json").read_text())
    entry = {key: listed(pth.parent, other.name)[key] for key in ("bytes", "sha256")}
    manifest["files"].append({"name": other.name, "format": "safetensors", **entry})
    pth.with_suffix(".json").write_text(json.dumps(manifest))
    monkeypatch.setenv("PORTING_WEIGHTS", str(pth.parent))
    assert find().path == pth
    pth.unlink()
    found = find()
    assert found.path == other and value(found) == VALUE and found.manifest is not None


def damage_and_messages() -> list[Any]:
    return [
        pytest.param(lambda site: flip(weights_in(site)), r"\.pth: sha256: expected", id="weights"),
        pytest.param(
            lambda site: flip(weights_in(site).with_suffix(".json")),
            r"xception-\w+\.json: sha256: expected",
            id="manifest",
        ),
        pytest.param(lambda site: flip(site / "index.json"), r"index\.json: sha256: expected", id="index"),
        pytest.param(lambda site: flip(site / "SHA256SUMS", 5), r"SHA256SUMS|index\.json: ", id="sums"),
        pytest.param(lambda site: (site / "SHA256SUMS").write_text(""), r"index\.json: sha256", id="no sums"),
        pytest.param(
            lambda site: weights_in(site).write_bytes(weights_in(site).read_bytes()[:-1]), "size: expected", id="short"
        ),
        pytest.param(lambda site: weights_in(site).unlink(), "no such file|cannot be fetched: HTTP 404", id="missing"),
    ]


@pytest.mark.parametrize(("damage", "message"), damage_and_messages())
def test_a_byte_that_was_changed_on_disk(
    site: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], message: str
) -> None:
    monkeypatch.setenv("PORTING_WEIGHTS", str(site))
    find()  # the control
    damage(site)
    with pytest.raises(ModelError, match=message) as caught:
        find()
    assert str(site) in str(caught.value)


def test_every_line_of_the_sums_counts(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTING_WEIGHTS", str(site))
    text = (site / "SHA256SUMS").read_text()
    for line in text.splitlines():
        (site / "SHA256SUMS").write_text(text.replace(line, line[:10] + ("0" if line[10] != "0" else "1") + line[11:]))
        with pytest.raises(ModelError, match="SHA256SUMS"):
            find()
    (site / "SHA256SUMS").unlink()
    assert value(find()) == VALUE  # a page without them is held to its index alone


# --- on the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "/", "/index.html", "/index.json", "/#weights"])
def test_a_page_on_the_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("PORTING_WEIGHTS", server.url + place)
    found = find()
    assert value(found) == VALUE and found.path.is_relative_to(tmp_path / "home")
    assert found.manifest is not None and found.manifest.labels is not None
    asked = server.names()
    assert asked == ["index.json", "SHA256SUMS", found.path.with_suffix(".json").name, found.path.name]
    find()
    assert server.names()[4:] == ["index.json", "SHA256SUMS"]
    assert cached(tmp_path) == sorted(asked)


def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000, 0]
    with pytest.raises(ModelError, match=r"\.pth: cannot be fetched: .*run this again to go on from there"):
        find()
    assert not list((tmp_path / "home").rglob("*.pth")) and list((tmp_path / "home").rglob("*.pth.part"))
    server.asked.clear()
    assert value(find()) == VALUE
    assert server.asked[-1][1] == "bytes=300000-"
    assert not [name for name in cached(tmp_path) if name.endswith((".part", ".part.json", ".lock"))]


def test_a_server_that_knows_no_parts_starts_anew(server: Server) -> None:
    server.ranges = False
    server.cuts = [300_000]
    assert value(find()) == VALUE
    assert [part for path, part in server.asked if path.endswith(".pth")] == [None, "bytes=300000-"]


@pytest.mark.parametrize(("damage", "message"), damage_and_messages())
def test_a_byte_that_was_changed_on_the_server(
    site: Path, server: Server, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(site)
    with pytest.raises(ModelError, match=message) as caught:
        find()
    assert server.url in str(caught.value)
    assert not [name for name in cached(tmp_path) if name.endswith((".pth", ".part"))]


def test_a_cached_file_that_was_changed(server: Server, tmp_path: Path) -> None:
    path = find().path
    flip(path.with_suffix(".json"))
    find()  # the manifest is fetched again
    flip(path)
    with pytest.raises(ModelError, match="sha256: expected") as caught:
        find()
    assert str(path) in str(caught.value)


def test_a_page_that_is_published_again(site: Path, server: Server) -> None:
    """Its weights are the same; its manifest says more."""
    manifest = weights_in(site).with_suffix(".json")
    find()
    labels = [f"name {number}" for number in range(6)]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"labels": labels}))
    entry = json.loads((site / "index.json").read_text())["weights"][0]
    write_index(site, entry | {"manifest": listed(site, f"weights/{manifest.name}")})
    server.asked.clear()
    found = find()
    assert found.manifest is not None and found.manifest.labels == tuple(labels)
    assert server.names() == ["index.json", "SHA256SUMS", manifest.name]


def test_without_a_network_what_is_cached_loads(
    site: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = offer(site, tiny(classes=4), classes=4)
    entry = json.loads((site / "index.json").read_text())["weights"][0]
    write_index(site, entry, other)
    path = find(6).path
    with caplog.at_level(logging.WARNING):
        assert not caplog.records
        with monkeypatch.context() as patch:

            def unplugged(*_: object) -> None:
                raise ConnectionRefusedError("unplugged")

            patch.setattr("socket.socket.connect", unplugged)
            assert value(find(6)) == VALUE
            assert "cannot be reached" in caplog.text and "as on the last visit" in caplog.text
            with pytest.raises(ModelError, match="not in the cache, and the page cannot be reached"):
                find(4)
            with pytest.raises(ModelError, match="several weights"):
                find()
            manifest = path.with_suffix(".json")
            kept = manifest.read_bytes()
            flip(manifest)
            with pytest.raises(ModelError, match=r"\.json: sha256: expected"):
                find(6)
            manifest.write_bytes(kept)
            flip(path)
            with pytest.raises(ModelError, match=r"\.pth: sha256: expected"):
                find(6)
            shutil.rmtree(tmp_path / "home")
            with pytest.raises(ModelError, match=r"index\.json: cannot be fetched"):
                find(6)


def test_a_server_that_answers_is_believed(site: Path, server: Server) -> None:
    """A page that is gone is no page that cannot be reached."""
    find()
    (site / "index.json").unlink()
    with pytest.raises(ModelError, match=r"index\.json: cannot be fetched: HTTP 404"):
        find()
    write_index(site)
    with pytest.raises(ModelError, match="no weights for xception"):
        find()
    server.kind = "text/html"
    with pytest.raises(ModelError, match="a web page"):
        find()


def test_an_index_without_end(site: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "index.json").write_text("[" * 2000)
    monkeypatch.setattr(models.download.fetch_document, "__defaults__", (1000,))
    with pytest.raises(ModelError, match=r"index\.json: cannot be fetched: size: expected at most 1000 bytes"):
        find()


def test_several_at_once_fetch_once(server: Server) -> None:
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.append(value(find()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [VALUE] * 4
    assert sum(name.endswith(".pth") for name in server.names()) == 1


def test_a_query_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTING_WEIGHTS", f"{server.url}/?key=1")
    with pytest.raises(ModelError, match="without a query"):
        find()


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ModelError, match=r"the cache cannot be written: .*TORCH_HOME"):
        find()
