"""Which PyTorch weights can go back to TensorFlow, and what is said of the others; nothing is written here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from porting import ErrorKind, PortingError, artifact
from tests.reversible_weights import hollow, read, saved

SMALL = "xception41"


def refusal(weights: Path, kind: ErrorKind, *found: str, arch: str | None = None) -> None:
    with pytest.raises(PortingError) as raised:
        read(weights, arch)
    assert raised.value.kind is kind and raised.value.remedy
    for text in found:
        assert text in str(raised.value), str(raised.value)


def test_other_layouts_containers_and_counters_are_taken(tmp_path: Path) -> None:
    """Cadene's names without counters, in safetensors, against ours with counters that counted."""
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in hollow("xception", 5).items()}
    save_file({name.replace("fc.", "last_linear."): value for name, value in state.items()}, tmp_path / "a.safetensors")
    one = read(tmp_path / "a.safetensors")
    other = read(saved(tmp_path, {"state_dict": state | {"bn1.num_batches_tracked": torch.tensor(9)}}))
    assert one.classes == other.classes == 5
    assert artifact.content_digest(one.state) == artifact.content_digest(other.state) == artifact.content_digest(state)
    assert one.notes == ()
    assert other.notes == ("1 batch counters (num_batches_tracked) are left out: TensorFlow has none.",)


# --- what is refused --------------------------------------------------------------------------------------------------


def _changed(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        state[name] = value(state[name])

    return change


def _fold(state: dict[str, Tensor]) -> None:
    state["stem.0.conv.bias"] = torch.ones(32)


STEM = "stem.0.conv.weight"
REFUSED: list[tuple[str, Callable[[dict[str, Tensor]], object], ErrorKind, str]] = [
    ("folded", _fold, ErrorKind.UNSUPPORTED, "folded in, which cannot be taken apart"),
    ("double", _changed(STEM, Tensor.double), ErrorKind.UNSUPPORTED, f"{STEM}: expected float32 or float16"),
    ("sparse", _changed(STEM, Tensor.to_sparse), ErrorKind.UNSUPPORTED, f"{STEM}: expected float32 or float16"),
    ("infinite", _changed(STEM, lambda x: x / 0), ErrorKind.CORRUPT, f"{STEM}: 864 values not finite"),
    ("missing", lambda state: state.pop(STEM[:-11] + "bn.bias"), ErrorKind.MISMATCH, "stem.0.bn.bias: expected shape"),
    ("extra", lambda state: state.update(more=torch.ones(3)), ErrorKind.MISMATCH, "more: a tensor that"),
    ("grey", _changed(STEM, lambda x: x[:, :1]), ErrorKind.MISMATCH, "shape [32, 3, 3, 3], found shape [32, 1, 3, 3]"),
    ("unbiased", lambda state: state.pop("head.fc.bias"), ErrorKind.MISMATCH, "head.fc.bias: expected shape [1000]"),
    ("scalar", _changed("head.fc.weight", lambda _: torch.tensor(1.0)), ErrorKind.MISMATCH, "of shape []"),
    ("unknown", lambda state: state.pop("stem.0.conv.weight"), ErrorKind.MISMATCH, "no network that is known"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "found"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_go_back_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], kind: ErrorKind, found: str
) -> None:
    state = hollow(SMALL)
    change(state)
    refusal(saved(tmp_path, state), kind, found)


def test_weights_for_another_epsilon_are_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path, hollow("xception"), "xception_eps1e-5.pth")
    assert read(weights).classes == 1000  # a name of the user's own
    weights = weights.rename(tmp_path / "xception_eps1e-5-0123abcd.pth")
    refusal(weights, ErrorKind.UNSUPPORTED, "epsilon 1e-5; TensorFlow's is 1e-3")


def test_a_classifier_of_several_layers_is_refused(tmp_path: Path) -> None:
    chain = {"fc.0.weight": torch.ones(9, 2048), "fc.0.bias": torch.ones(9), "fc.2.weight": torch.ones(4, 9)}
    weights = saved(tmp_path, hollow("xception", 0) | chain)
    refusal(weights, ErrorKind.UNSUPPORTED, "fc.0.bias, fc.0.weight, fc.2.weight", "--backbone-only")
    assert read(weights, backbone_only=True).classes == 0


def test_another_network_is_named(tmp_path: Path) -> None:
    weights = saved(tmp_path, hollow(SMALL))
    refusal(weights, ErrorKind.MISMATCH, f"use --arch {SMALL}", arch="xception65")


def test_a_manifest_of_other_bytes_is_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path, hollow(SMALL))
    head = {"kind": "dense", "activation": None, "background_dropped": True, "layers": []}
    manifest = {
        "schema_version": 1,
        "arch": SMALL,
        "num_classes": 1000,
        "variant": {"folded": False, "dtype": "float32", "bn_eps": 1e-3},
        "head": head,
        "source": {"synthetic": True},
        "files": [{"name": "weights.pth", "sha256": "0" * 64}],
        "preprocessing": {
            "input_size": [3, 299, 299], "interpolation": "bicubic", "crop_pct": 0.9,
            "mean": [0.5] * 3, "std": [0.5] * 3,
        },
    }  # fmt: skip
    weights.with_suffix(".json").write_text(json.dumps(manifest))
    refusal(weights, ErrorKind.CORRUPT, "sha256: expected 00000", "remove the manifest")
    manifest["files"] = [{"name": "weights.pth", "sha256": artifact.file_digest(weights)}]
    weights.with_suffix(".json").write_text(json.dumps(manifest))
    assert "synthetic" in read(weights).notes[-1]
    weights.with_suffix(".json").write_text("{}")
    refusal(weights, ErrorKind.CORRUPT, "not a manifest", "Remove the manifest")
