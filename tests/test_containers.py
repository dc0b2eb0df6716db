"""Every other container through the whole job: the same weights come out, whatever they were wrapped in."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import porting
from porting import PortingError

pytestmark = pytest.mark.usefixtures("one_reference")

ROOT = Path(__file__).parents[1]

DEEPLAB = "DeepLab's aligned Xception on TensorFlow ops, float64"


@pytest.fixture(scope="module")
def containers(synthetic_source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("containers")
    (folder / "object").mkdir()
    sources = [str(synthetic_source("xception41")), str(synthetic_source("xception"))]
    command = [sys.executable, "-m", "tests.container_writer", *sources, str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def digests(synthetic_source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Content digest of each network, and of its backbone, ported from the plain synthetic source."""
    out = tmp_path_factory.mktemp("plain")
    found = {}
    for arch in ("xception41", "xception"):
        for backbone in (False, True):
            result = porting.port(synthetic_source(arch), arch, out=out, verify=False, backbone_only=backbone)
            found[arch + " backbone" * backbone] = result.manifest["content_digest"]
    return found


@pytest.mark.parametrize(
    ("name", "arch", "container", "reference"),
    [
        ("v1.ckpt", "xception41", "tf-checkpoint-v1", DEEPLAB),
        (
            *("frozen.pb", "xception41", "tf-frozen-graph"),
            f"the frozen graph itself, executed in float64, at output stride 32; at others {DEEPLAB}",
        ),
        ("object", "xception", "tf-object-checkpoint", "keras.applications.Xception with the file's weights"),
        ("saved_model", "xception", "tf-saved-model", "the SavedModel's own graph, executed in float64"),
    ],
)
def test_other_tensorflow_containers_port_verified(
    containers: Path, digests: dict[str, str], tmp_path: Path, name: str, arch: str, container: str, reference: str
) -> None:
    result = porting.port(containers / name, arch, out=tmp_path)
    assert result.manifest["parity"]["reference"] == reference
    assert result.manifest["parity"]["verdict"] == "verified"
    assert result.manifest["parity"]["worst"]["error"] < 1e-12
    assert result.manifest["source"]["kind"] == container
    assert result.manifest["content_digest"] == digests[arch]
    assert result.manifest["mapped"] == {"xception": 236, "xception41": 422}[arch]


@pytest.mark.slow
def test_archives_port_verified_from_where_they_were_unpacked(
    containers: Path, digests: dict[str, str], tmp_path: Path
) -> None:
    archive = tmp_path / "checkpoint.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(containers / "object", "xception/object")
    result = porting.port(archive, "xception", out=tmp_path / "out")
    assert result.manifest["parity"]["verdict"] == "verified"
    assert result.manifest["content_digest"] == digests["xception"]
    assert result.manifest["source"]["name"] == "checkpoint.tar.gz"


def test_zip_of_a_keras_file(synthetic_source: Callable[[str], Path], digests: dict[str, str], tmp_path: Path) -> None:
    archive = tmp_path / "weights.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(synthetic_source("xception"), "model/xception.keras")
    result = porting.port(archive, "xception", out=tmp_path / "out", verify=False)
    assert result.manifest["content_digest"] == digests["xception"]


def test_segmentation_checkpoint_ports_its_backbone(containers: Path, digests: dict[str, str], tmp_path: Path) -> None:
    result = porting.port(containers / "segmentation.ckpt", "xception41", out=tmp_path, backbone_only=True)
    assert result.manifest["content_digest"] == digests["xception41 backbone"]
    assert result.manifest["parity"]["verdict"] == "verified"
    assert result.manifest["num_classes"] == 0
    reasons = {item["name"]: item["reason"] for item in result.manifest["unread"]}
    assert reasons["aspp0/weights"] == "outside the backbone (aspp), left out by --backbone-only"
    assert reasons["aspp0/weights/Momentum"] == "outside the backbone (aspp), left out by --backbone-only"
    assert reasons["logits/semantic/biases"] == "outside the backbone (logits), left out by --backbone-only"
    assert reasons["global_step"] == "training step counter"


def test_segmentation_checkpoint_without_the_flag_says_what_it_is(containers: Path, tmp_path: Path) -> None:
    with pytest.raises(PortingError) as caught:
        porting.port(containers / "segmentation.ckpt", "xception41", out=tmp_path / "out")
    text = str(caught.value)
    assert "head: expected a dense layer on the pooled features, xception_41/logits/weights, found none" in text
    assert "aspp; aspp1_depthwise; decoder; image_pooling; logits" in text
    assert "--backbone-only" in text
    assert len(caught.value.defects) == 1
    assert not (tmp_path / "out").exists()


def test_regularized_depthwise_is_refused_by_name(containers: Path, tmp_path: Path) -> None:
    with pytest.raises(PortingError, match="regularize_depthwise=True") as caught:
        porting.port(containers / "regularized.ckpt", "xception41", out=tmp_path / "out")
    assert caught.value.kind is porting.ErrorKind.UNSUPPORTED
    assert not (tmp_path / "out").exists()
