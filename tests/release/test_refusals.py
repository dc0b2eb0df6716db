"""What a build refuses to publish, and how it says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from porting import PortingError
from porting.errors import ErrorKind
from porting.release import index
from porting.release.build import build
from tests.release import samples
from tests.release.test_build import tree


def test_unverified_and_synthetic_weights_need_to_be_asked_for(weights: Path, tmp_path: Path, refused: Any) -> None:
    samples.add(weights, "xception41", 1, parity={"verdict": "unverified"})
    samples.add(weights, "xception65", 2, source__synthetic=True)
    text = refused(weights)
    assert "parity.verdict: expected verified, found unverified" in text
    assert "source.synthetic: expected false, found true: random weights" in text
    assert "--allow-synthetic and --allow-unverified" in text
    assert "source.synthetic" not in refused(weights, allow_synthetic=True)
    assert "parity.verdict" not in refused(weights, allow_unverified=True)
    site = build(weights, tmp_path / "site", allow_unverified=True, allow_synthetic=True).site
    page = (site / "index.html").read_text(encoding="utf-8")
    assert '<span class="bad">unverified</span>' in page
    assert '<span class="flag warn">synthetic: random weights</span>' in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "resnet50"}, "arch: expected one of xception"),
        ({"num_classes": -1}, "num_classes: expected a whole number, found -1"),
        ({"num_classes": True}, "num_classes: expected a whole number, found true"),
        ({"variant__dtype": "int8"}, "variant.dtype: expected one of float32"),
        ({"variant__bn_eps": 0}, "variant.bn_eps: expected a positive number, found 0"),
        ({"source": None}, "source.synthetic: expected true or false, found nothing"),
        ({"parity__verdict": "fine"}, "parity.verdict: expected verified or unverified"),
        ({"licence": 3}, "licence: expected text, found 3"),
        ({"licence": "x" * 5000}, "licence: expected text"),
        ({"content_digest": "AB" * 32}, "content_digest: expected 64 hexadecimal digits"),
        ({"labels": [1]}, "labels: expected a list of text, or null"),
        ({"files": []}, "files: expected a list of files"),
        ({"files": [{}]}, "files[0].name: expected a plain name, found nothing"),
        ({"evaluation": {**samples.EVALUATION, "top1": 101}}, "evaluation.top1: expected percent, found 101"),
        ({"evaluation": {"top1": 1}}, "evaluation.top5: expected percent, found nothing"),
        ({"evaluation": []}, "evaluation.top1: expected percent, found nothing"),
        ({"schema_version": 2}, "schema_version: 2; this is version 1"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused_by_its_field(
    change: dict[str, Any], message: str, weights: Path, refused: Any
) -> None:
    stem = samples.add(weights, "xception65")
    samples.edit(weights / f"{stem}.json", **change)
    text = refused(weights)
    assert message in text
    assert f"{stem}.json" in text


@pytest.mark.parametrize(
    "name",
    ["../x-{}.pth", "/etc/x-{}.pth", "a/../x-{}.pth", ".x-{}.pth", "-x-{}.pth", "x y-{}.pth", "x;id-{}.pth",
     "x\n-{}.pth", "x\\y-{}.pth", "a/x-{}.pth", "x-{}.exe", "x.pth", "x-00000000.pth", "x-.pth", "x-1-{}.json", ""],
)  # fmt: skip
def test_a_file_name_that_leads_elsewhere_or_lacks_its_digest_is_refused(
    name: str, weights: Path, refused: Any
) -> None:
    stem = samples.add(weights, "xception65")
    manifest = json.loads((weights / f"{stem}.json").read_bytes())
    manifest["files"][0]["name"] = name.format(manifest["files"][0]["sha256"][:8])
    samples.write_json(weights / f"{stem}.json", manifest)
    assert "files[0].name: expected a" in refused(weights)


def test_the_first_digits_in_a_name_are_the_digest(weights: Path, refused: Any) -> None:
    """torch.hub takes the first match: `x-1.5-abcdef01.pth` would be checked against "1"."""
    stem = samples.add(weights, "xception65")
    manifest = json.loads((weights / f"{stem}.json").read_bytes())
    name = f"x-1.5-{manifest['files'][0]['sha256'][:8]}.pth"
    (weights / f"{stem}.pth").rename(weights / name)
    manifest["files"][0]["name"] = name
    samples.write_json(weights / f"{stem}.json", manifest)
    assert f"expected a name that ends in -{manifest['files'][0]['sha256'][:8]}.pth, found {name}" in refused(weights)


def test_a_changed_byte_of_the_weights_is_refused_by_name(weights: Path, refused: Any) -> None:
    stem = samples.add(weights, "xception65")
    path = weights / f"{stem}.pth"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert f"{path}: mismatch: sha256: expected" in refused(weights)
    path.write_bytes(data + b"x")
    assert "mismatch: bytes: expected" in refused(weights)
    path.unlink()
    assert f"{path}: missing" in refused(weights)


def test_weights_whose_content_is_another_are_refused(weights: Path, refused: Any) -> None:
    stem = samples.add(weights, "xception65", content_digest="00" * 32)
    assert f"{stem}.pth: mismatch: content_digest: expected {'00' * 32}" in refused(weights)


def test_formats_of_different_weights_are_refused(weights: Path, refused: Any) -> None:
    stems = [samples.add(weights, "xception65", seed) for seed in (1, 2)]
    first, second = (json.loads((weights / f"{stem}.json").read_bytes()) for stem in stems)
    first["files"] += second["files"]
    first.pop("content_digest")
    (weights / f"{stems[1]}.json").unlink()
    samples.write_json(weights / f"{stems[0]}.json", first)
    assert "files: expected the same weights in each, found 2 different contents" in refused(weights)


def test_what_is_no_file_of_tensors_is_refused_and_not_run(weights: Path, tmp_path: Path, refused: Any) -> None:
    ran = tmp_path / "ran"
    code = f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode()
    for data in (b"nothing", code, b""):
        stem = samples.add(weights, "xception65")
        digest = hashlib.sha256(data).hexdigest()
        (weights / f"x-{digest[:8]}.pth").write_bytes(data)
        files = [{"name": f"x-{digest[:8]}.pth", "format": "pth", "bytes": len(data), "sha256": digest}]
        samples.edit(weights / f"{stem}.json", files=files)
        assert "corrupt: no file of plain weights" in refused(weights)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "xception71"}, "arch: expected xception65, as its manifest says, found xception71"),
        ({"weights__content_digest": "00" * 32}, "weights.content_digest: expected"),
    ],
)
def test_a_report_about_other_weights_is_refused(
    change: dict[str, Any], message: str, weights: Path, refused: Any
) -> None:
    stem = samples.add(weights, "xception65", report=True)
    samples.edit(weights / f"{stem}.report.json", **change)
    assert message in refused(weights)


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'"\\ud800"', b"1e999"])
def test_a_manifest_that_is_no_json_is_refused_where_it_stands_for_weights(
    data: bytes, weights: Path, tmp_path: Path, refused: Any
) -> None:
    stem = samples.add(weights, "xception65", 1)
    (weights / f"{stem}.json").write_bytes(data)
    assert f"{stem}.json: corrupt: no JSON" in refused(weights)
    (weights / f"{stem}.pth").unlink()
    samples.add(weights, "xception65", 2)
    built = build(weights, tmp_path / "site")  # beside no weights, it is somebody else's
    assert built.notes == (f"{stem}.json is no manifest: left out",)


def test_weights_without_a_manifest_are_left_out_aloud(weights: Path, tmp_path: Path) -> None:
    samples.add(weights, "xception65")
    (weights / "other.pth").write_bytes(b"x")
    built = build(weights, tmp_path / "site")
    assert built.notes == ("other.pth is in no manifest: left out",)
    assert built.weights == 1


def test_an_empty_folder_a_missing_one_and_two_faults_at_once(weights: Path, tmp_path: Path, refused: Any) -> None:
    assert "no manifest of ported weights" in refused(weights)
    assert "no such folder" in refused(tmp_path / "none")
    stems = [samples.add(weights, "xception65", seed, licence=None) for seed in (1, 2)]
    assert all(f"{stem}.json: licence: expected text, found null" in refused(weights) for stem in stems)


@pytest.mark.parametrize("url", ["ftp://x/", "https://x/$(id)", 'https://x/"', "https://x/ y", "https://", "x.org"])
def test_an_address_that_would_do_more_in_a_shell_is_refused(url: str, weights: Path, refused: Any) -> None:
    samples.add(weights, "xception65")
    assert "no plain http(s) address" in refused(weights, base_url=url)


def test_somebody_elses_folder_is_left_as_it_is(weights: Path, tmp_path: Path) -> None:
    samples.add(weights, "xception65")
    out = tmp_path / "site"
    out.mkdir()
    # Checksums of their own do not make their files ours.
    (out / "film.mkv").write_bytes(b"holiday")
    (out / "SHA256SUMS").write_text(f"{hashlib.sha256(b'holiday').hexdigest()}  film.mkv\n")
    before = tree(out)
    with pytest.raises(PortingError, match="SHA256SUMS: a file that no build wrote") as caught:
        build(weights, out)
    assert caught.value.kind is ErrorKind.OUTPUT
    assert tree(out) == before
    assert index.written(out) == frozenset()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(PortingError, match="not a folder"):
        build(weights, file)
