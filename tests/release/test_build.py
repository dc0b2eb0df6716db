"""What a build publishes, and that the same input gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from porting.release import check, placing
from porting.release.build import build
from tests.release import samples


def read(site: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((site / "index.json").read_text(encoding="utf-8"))
    return value


def tree(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def dates(site: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(site).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in site.rglob("*")
        if path.is_file()
    }


# --- what is published ------------------------------------------------------------------------------------------------


def test_the_index_says_what_the_manifests_say(mixed_weights: Path, mixed_site: Path) -> None:
    value = read(mixed_site)
    assert {key: value[key] for key in ("schema_version", "title", "base_url")} == {
        "schema_version": 1,
        "title": "Xception weights",
        "base_url": None,
    }
    names = [(entry["arch"], entry["stem"]) for entry in value["weights"]]
    assert names == sorted(names)
    assert {stem for _, stem in names} == {
        path.stem for path in mixed_weights.glob("*.json") if not path.name.endswith(".report.json")
    }
    for entry in value["weights"]:
        manifest = json.loads((mixed_weights / f"{entry['stem']}.json").read_bytes())
        for field in ("arch", "num_classes", "variant", "content_digest", "licence", "upstream"):
            assert entry[field] == manifest[field]
        assert (entry["synthetic"], entry["verdict"]) == (False, "verified")
        assert (entry["parameters"], entry["gmacs"] > 8) == (10, True), "a running mean is not learned"
        assert entry["evaluation"] == manifest.get("evaluation")
        assert entry["manifest"]["path"] == f"weights/{entry['stem']}.json"
        assert [(one["path"], one["sha256"], one["format"]) for one in entry["files"]] == [
            (f"weights/{one['name']}", one["sha256"], one["format"]) for one in manifest["files"]
        ]
        for stored in (entry["manifest"], entry["card"], *entry["files"]):
            data = (mixed_site / stored["path"]).read_bytes()
            assert (stored["bytes"], stored["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert [entry["stem"] for entry in value["weights"] if entry["report"]] == [
        entry["stem"] for entry in value["weights"] if entry["evaluation"]
    ]


def test_published_accuracy_is_given_to_the_upstreams_own_weights_alone(weights: Path, tmp_path: Path) -> None:
    own = samples.add(weights, "xception65", 1)
    samples.add(weights, "xception65", 2, num_classes=3)
    samples.add(weights, "xception65", 3, upstream="https://example.org/tensorflow/models")
    samples.add(weights, "xception65", 4, upstream="https://github.com/tensorflow/models-of-mine")
    found = {entry["stem"]: entry["published"] for entry in read(build(weights, tmp_path / "site").site)["weights"]}
    assert found.pop(own) == {"top1": 79.558, "top5": 94.656}
    assert list(found.values()) == [None] * 3


def test_coreutils_agree_and_every_file_is_listed(mixed_site: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=mixed_site, check=False)
    assert done.returncode == 0
    listed = {line[66:] for line in (mixed_site / "SHA256SUMS").read_text().splitlines()}
    assert listed == tree(mixed_site).keys() - {"SHA256SUMS"}


def test_weights_are_linked_or_copied_and_readable(weights: Path, tmp_path: Path) -> None:
    stem = samples.add(weights, "xception41")
    source = weights / f"{stem}.pth"
    assert (build(weights, tmp_path / "linked").site / "weights" / source.name).samefile(source)
    copied = build(weights, tmp_path / "copied", copy=True).site / "weights" / source.name
    assert not copied.samefile(source)
    # What was a link before becomes a copy where one is asked for.
    assert not (build(weights, tmp_path / "linked", copy=True).site / "weights" / source.name).samefile(source)
    source.chmod(0o600)  # a server could not read it
    shutil.rmtree(tmp_path / "linked")
    served = build(weights, tmp_path / "linked").site / "weights" / source.name
    assert not served.samefile(source)
    assert served.stat().st_mode & 0o444 == 0o444 & ~placing.artifact.umask()


def test_weights_trained_here_get_their_digest_from_the_file(weights: Path, tmp_path: Path) -> None:
    stem = samples.add(weights, "xception41", parity={"verdict": "unverified"})
    value = json.loads((weights / f"{stem}.json").read_bytes())
    digest = value.pop("content_digest")
    del value["source"]["digest"]
    samples.write_json(weights / f"{stem}.json", value)
    site = build(weights, tmp_path / "site", allow_unverified=True).site
    assert read(site)["weights"][0]["content_digest"] == digest
    assert check.verify(str(site)).differences == ()


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes_elsewhere(
    mixed_weights: Path, mixed_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "with a space"
    elsewhere.mkdir()
    for path in sorted(mixed_weights.iterdir(), reverse=True):  # another order in the folder, too
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, elsewhere / path.name)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    before = os.umask(0o077)
    try:
        again = build(elsewhere, tmp_path / "another" / "name", copy=True).site
    finally:
        os.umask(before)
    assert tree(again) == tree(mixed_site)
    samples.edit(next(elsewhere.glob("xception-*.json")), licence="another")  # negative control
    assert tree(build(elsewhere, again).site) != tree(mixed_site)


def test_a_second_build_leaves_what_has_not_changed_alone(weights: Path, tmp_path: Path) -> None:
    kept = samples.add(weights, "xception41", 1)
    changed = samples.add(weights, "xception65", 2)
    gone = samples.add(weights, "xception71", 3)
    first = build(weights, tmp_path / "site", copy=True)
    assert first.changed
    before = dates(first.site)
    assert not build(weights, first.site, copy=True).changed
    assert dates(first.site) == before
    samples.edit(weights / f"{changed}.json", licence="BSD-3-Clause")
    for ending in ("json", "pth"):
        (weights / f"{gone}.{ending}").unlink()
    assert build(weights, first.site, copy=True).changed
    after = dates(first.site)
    same = {name for name in after if after[name] == before.get(name)}
    assert same == {
        *(f"weights/{kept}.{ending}" for ending in ("json", "pth")),
        *(f"cards/{kept}.{ending}" for ending in ("md", "html")),
        f"weights/{changed}.pth",
    }
    assert not any(gone in name for name in after)
    assert check.verify(str(first.site)).differences == ()


def test_a_damaged_file_of_the_site_is_not_taken_for_the_real_one(weights: Path, tmp_path: Path) -> None:
    stem = samples.add(weights, "xception41")
    site = build(weights, tmp_path / "site", copy=True).site
    path = site / "weights" / f"{stem}.pth"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert len(check.verify(str(site)).differences) == 1
    assert build(weights, site, copy=True).changed
    assert check.verify(str(site)).differences == ()
