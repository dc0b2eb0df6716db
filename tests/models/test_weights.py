"""Weight files: found, checked, read, adapted, or refused."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_networks import randomise
from torch import Tensor

import models.download
from models import ModelError, create_model, read_weights
from models.connection import Retry
from models.inference import optimize_for_inference
from models.registry import adapt_first_conv

CLASSES = 6
X = torch.linspace(-1, 1, 3 * 33 * 40).reshape(1, 3, 33, 40)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(3)
    return randomise(create_model("xception", num_classes=CLASSES))


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's weights under their digest, and their manifest."""
    folder = tmp_path_factory.mktemp("weights")
    write(folder, network)
    return folder


def write(folder: Path, network: Any, **changes: Any) -> Path:
    temporary = folder / "new.pth"
    torch.save(network.state_dict(), temporary)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    path = temporary.rename(folder / f"xception-{digest[:8]}.pth")
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "arch": "xception",
        "num_classes": network.num_classes,
        "variant": {"folded": network.folded, "dtype": "float32", "bn_eps": 1e-3},
        "head": network.num_classes > 0,
        "labels": [f"kind {number}" for number in range(network.num_classes)],
        "source": {"synthetic": False},
        "files": [{"name": path.name, "format": "pth", "bytes": path.stat().st_size, "sha256": digest}],
        "preprocessing": {
            "input_size": [3, 71, 71],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.3, 0.4],
        },
    }
    path.with_suffix(".json").write_text(json.dumps(manifest | changes))
    return path


def weights_in(folder: Path) -> Path:
    return next(iter(folder.glob("*.pth")))


def output(network: Any, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        result: Tensor = network.eval()(x)
    return result


def test_a_path_gives_the_same_network(network: Any, folder: Path) -> None:
    loaded = create_model("xception", pretrained=weights_in(folder))
    assert torch.equal(output(loaded), output(network))
    assert loaded.num_classes == CLASSES and loaded.labels == tuple(f"kind {n}" for n in range(CLASSES))
    assert loaded.preprocessing.input_size == (3, 71, 71) and loaded.default_cfg["crop_pct"] == 1.0
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    assert loaded.state_dict()["bn1.num_batches_tracked"] == 0


def test_without_a_manifest_the_weights_say_enough(network: Any, tmp_path: Path) -> None:
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save({"state_dict": state}, tmp_path / "plain.pth")  # as training scripts, and PyTorch before 0.4.1, write it
    read = read_weights(tmp_path / "plain.pth")
    assert (read.arch, read.num_classes, read.folded, read.manifest) == ("xception", CLASSES, False, None)
    loaded = create_model("legacy_xception", pretrained=str(tmp_path / "plain.pth"))
    assert torch.equal(output(loaded), output(network))


def test_half_weights_give_a_float32_network(network: Any, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in network.state_dict().items()}, tmp_path / "half.pth")
    loaded = create_model("xception", pretrained=tmp_path / "half.pth")
    assert loaded.conv1.weight.dtype == torch.float32


def test_other_class_counts_load_all_but_the_classifier(
    network: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = create_model("xception", pretrained=weights_in(folder), num_classes=2)
    assert "classifier of 6 classes not loaded" in caplog.text
    assert loaded.labels is None and output(loaded).shape == (1, 2)
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(X), network.forward_features(X))
    caplog.clear()
    assert output(create_model("xception", pretrained=weights_in(folder), num_classes=0)).shape == (1, 2048)
    assert not caplog.records


def test_feature_maps_load_without_the_head(network: Any, folder: Path) -> None:
    maps = create_model("xception", pretrained=weights_in(folder), features_only=True, out_indices=(4,))
    with torch.no_grad():
        assert torch.equal(maps.eval()(X)[0], network.forward_features(X))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_first_convolution_adapts(network: Any, folder: Path, channels: int) -> None:
    """As timm: for an image of equal channels the sum over the kernel is what it was."""
    adapted = adapt_first_conv(network.conv1.weight, channels)
    assert adapted.shape == (32, channels, 3, 3)
    if channels in (1, 3):
        torch.testing.assert_close(adapted.sum(1), network.conv1.weight.sum(1))
    else:
        scale = 3 / channels
        for channel in range(channels):
            torch.testing.assert_close(adapted[:, channel], network.conv1.weight[:, channel % 3] * scale)
    loaded = create_model("xception", pretrained=weights_in(folder), in_chans=channels)
    assert torch.equal(loaded.conv1.weight, adapted)
    assert output(loaded, X[:, :1].expand(-1, channels, -1, -1)).shape == (1, CLASSES)


def test_folded_weights(network: Any, tmp_path: Path) -> None:
    fast = optimize_for_inference(network)
    path = write(tmp_path, fast)
    loaded = create_model("xception", pretrained=path, folded=True)
    assert all(p.is_contiguous() for p in loaded.parameters())
    torch.testing.assert_close(output(loaded), output(network), rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match="pass folded=True"):
        create_model("xception", pretrained=path)


def test_unfolded_weights_are_not_a_folded_network(folder: Path) -> None:
    with pytest.raises(ModelError, match="optimize_for_inference"):
        create_model("xception", pretrained=weights_in(folder), folded=True)


def test_found_through_its_manifest(
    network: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PORTING_WEIGHTS", str(folder))
    assert torch.equal(output(create_model("xception", pretrained=True)), output(network))
    with pytest.raises(ModelError, match="no weights for xception41"):
        create_model("xception41", pretrained=True)
    with pytest.raises(ModelError, match="no folded weights for xception"):
        create_model("xception", pretrained=True, folded=True)
    monkeypatch.setenv("PORTING_WEIGHTS", str(tmp_path))
    write(tmp_path, network, source={"synthetic": True})
    with pytest.raises(ModelError, match="1 synthetic passed over"):
        create_model("xception", pretrained=True)


def test_several_candidates_need_a_choice(
    network: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = create_model("xception", num_classes=4)
    paths = [write(tmp_path, network), write(tmp_path, other)]
    monkeypatch.setenv("PORTING_WEIGHTS", str(tmp_path))
    with pytest.raises(ModelError, match=r"several weights for xception") as caught:
        create_model("xception", pretrained=True)
    assert all(path.name in str(caught.value) for path in paths)
    assert create_model("xception", pretrained=True, num_classes=4).labels is not None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_changed_file_is_refused_by_its_name_and_by_its_manifest(network: Any, tmp_path: Path) -> None:
    path = write(tmp_path, network)
    flip(path)
    with pytest.raises(ModelError, match=r"sha256: expected [0-9a-f]{8} \(from its name\)"):
        read_weights(path)
    renamed = path.rename(tmp_path / "renamed.pth")
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["files"][0]["name"] = "renamed.pth"
    (tmp_path / "renamed.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"sha256: expected [0-9a-f]{64} \(from renamed.json\)"):
        read_weights(renamed)
    (tmp_path / "renamed.json").unlink()
    assert read_weights(renamed).arch == "xception"  # the control: nothing states a digest any more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "xception41"}, "arch: expected xception41"),
        ({"num_classes": 5, "labels": None}, "num_classes: expected 5"),
        ({"labels": ["one"]}, "labels: expected 6, found 1"),
        ({"schema_version": 99}, "schema_version: expected 1, found 99"),
        ({"files": None}, "not a manifest"),
        ({"variant": {"folded": False, "bn_eps": -1e-5}}, "bn_eps: expected a positive number, found -1e-05"),
        ({"preprocessing": {"input_size": [3, 0, 4]}}, "not a manifest"),
    ],
)
def test_a_manifest_that_does_not_fit(network: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, network, **changes)
    with pytest.raises(ModelError, match=message):
        read_weights(path)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["missing", "folder", "empty", "text", "truncated", "list", "code"])
def test_not_weights(content: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth"
    if content == "folder":
        path.mkdir()
    elif content == "truncated":
        path.write_bytes(weights_in(folder).read_bytes()[:10_000])
    elif content in ("list", "code"):
        torch.save([1, 2] if content == "list" else {"x": Trap()}, path)
    elif content != "missing":
        path.write_text("" if content == "empty" else "hello")
    with pytest.raises(ModelError, match=r"x\.pth: "):
        read_weights(path)
    assert "executed" not in capsys.readouterr().out


def test_another_networks_weights(folder: Path, network: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected weights of xception41, found xception"):
        create_model("xception41", pretrained=weights_in(folder))
    state = dict(network.state_dict())
    state["bn1.weight"] = state["bn1.weight"][:5]
    state["extra"] = state.pop("bn2.bias")
    torch.save(state, tmp_path / "bent.pth")
    with pytest.raises(ModelError) as caught:
        create_model("xception", pretrained=tmp_path / "bent.pth")
    message = str(caught.value)
    assert "3 tensors do not fit" in message and "bn2.bias: missing" in message and "extra: not in the" in message
    assert "bn1.weight: expected shape (32,), found (5,)" in message


@pytest.fixture()
def server(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


def test_a_url_is_fetched_once_with_its_manifest(
    network: Any, folder: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = f"{server}/{weights_in(folder).name}"
    loaded = create_model("xception", pretrained=url)
    assert torch.equal(output(loaded), output(network)) and loaded.labels is not None
    monkeypatch.setattr(models.download, "transfer_checked", lambda *_: pytest.fail("fetched again"))
    create_model("xception", pretrained=url)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_a_url_that_does_not_work(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(models.download, "_SHORT_RETRY", Retry(attempts=1))
    with pytest.raises(ModelError, match="cannot be fetched"):
        create_model("xception", pretrained=f"{server}/absent.pth")
    with pytest.raises(ModelError, match="cannot be fetched"):
        create_model("xception", pretrained="http://127.0.0.1:9/x.pth")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
