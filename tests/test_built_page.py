"""What porting.release publishes is what `pretrained=True` finds, on disk and on the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import models.download
from models import ModelError
from models.connection import Retry
from models.releases import find_weights
from porting.release.build import build
from tests.models.pages import flip, serving, tiny
from tests.release import samples


@pytest.fixture()
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(models.download, "_SHORT_RETRY", Retry(attempts=1))
    monkeypatch.setattr(samples, "state", lambda seed: tiny(classes=1000, fill=float(seed)))
    return tmp_path / "site"


def published(site: Path, *formats: Sequence[str], name: str = "xception") -> Path:
    folder = site.with_name("checkpoints")
    folder.mkdir()
    for seed, kinds in enumerate(formats, 1):
        samples.add(folder, name, seed=seed, formats=kinds, report=True)
    build(folder, site)
    return site


@pytest.mark.parametrize("formats", [("pth",), ("safetensors",), ("pth", "safetensors", "hf")])
def test_it_is_found_on_disk_and_on_the_network(
    site: Path, formats: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    published(site, formats)
    with serving(site) as server:
        for place in (str(site), server.url):
            monkeypatch.setenv("PORTING_WEIGHTS", place)
            found = find_weights("xception", False, None)
            assert found.path.suffix == f".{formats[0]}" and float(found.state["conv1.weight"][0, 0]) == 1.0
            assert found.manifest is not None and found.manifest.verified
    assert found.path.is_relative_to(site.with_name("home"))


def test_every_file_that_counts_is_held_to_the_page(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(site, ("pth",))
    monkeypatch.setenv("PORTING_WEIGHTS", str(site))
    entry = json.loads((site / "index.json").read_text())["weights"][0]
    weights = entry["files"][0]["path"]
    for path in ("index.json", "SHA256SUMS", entry["manifest"]["path"], weights):
        find_weights("xception", False, None)  # the control
        content = (site / path).read_bytes()
        (site / path).unlink()  # the builder links files: the source stays as it is
        (site / path).write_bytes(content)
        flip(site / path, content.index(weights.encode()) - 10 if path == "SHA256SUMS" else None)  # in its digest
        with pytest.raises(ModelError, match=r"sha256|SHA256SUMS"):
            find_weights("xception", False, None)
        (site / path).write_bytes(content)


def test_two_of_a_kind_need_a_choice(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(site, ("pth",), ("pth",))
    monkeypatch.setenv("PORTING_WEIGHTS", str(site))
    with pytest.raises(ModelError, match="several weights for xception: weights/"):
        find_weights("xception", False, None)
