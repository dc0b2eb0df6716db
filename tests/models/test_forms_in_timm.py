"""Every emitted form that is said to load in timm, in timm itself: strictly, and with the same results."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_networks import NAMES
from test_networks import randomise
from timm_beside import beside
from torch import Tensor, nn

from models import create_model
from porting import artifact, formats
from porting.forms import Form
from porting.manifest import UNVERIFIED

THEIRS = {"xception": "legacy_xception"}
CLASSES = 7
LABELS = [f"kind {number}" for number in range(CLASSES)]


def in_timm(name: str, **arguments: Any) -> Any:
    timm = beside("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, **arguments).eval()


def emit(folder: Path, arch: str, network: nn.Module, form: Form) -> Path:
    """What `porting.convert --format hf` writes, of a network that no source has."""
    state = form.apply(arch, network.state_dict())
    manifest: dict[str, Any] = {
        "arch": arch,
        "num_classes": CLASSES,
        "labels": LABELS,
        "variant": form.variant,
        "source": {"name": "none", "digest": "", "synthetic": True},
        "parity": {"verdict": UNVERIFIED},
        "licence": "MIT",
        "upstream": "unknown",
        "preprocessing": {
            "input_size": [3, 96, 80],
            "interpolation": "bilinear",
            "crop_pct": 0.75,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
        },
    }
    (folder / formats.HF_CONFIG).write_text(json.dumps(formats.config(manifest)))
    (folder / formats.HF_CARD).write_text(formats.card(manifest))
    with (folder / formats.HF_WEIGHTS).open("wb") as file:
        artifact.write_safetensors(file, state)
    return folder


def logits(network: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = network.eval()(x)
    return result


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_loads_as_a_local_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    ours = randomise(create_model(name, num_classes=CLASSES))
    folder = emit(tmp_path, name, ours, Form())
    theirs = in_timm(f"local-dir:{folder}", pretrained=True)
    state = theirs.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())
    shown = theirs.pretrained_cfg
    assert (shown["input_size"], shown["crop_pct"], shown["mean"]) == ([3, 96, 80], 0.75, [0.1, 0.2, 0.3])
    assert shown["label_names"] == LABELS and shown["num_classes"] == theirs.num_classes == CLASSES
    x = torch.rand(1, 3, 75, 107) * 2 - 1
    expected, found = logits(ours, x), logits(theirs, x)
    if name == "xception":  # which computes something else there, as the card says
        assert "legacy_xception takes these keys but computes something else" in (folder / "README.md").read_text()
        assert (found - expected).abs().max() > 1e-3 * expected.abs().max()
    else:
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    other = in_timm(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert logits(other, x).shape == (1, 3)


@pytest.mark.parametrize("form", [Form(dtype="float16"), Form(dtype="bfloat16"), Form(bn_eps=1e-5)], ids=str)
def test_forms_load_strictly(form: Form, tmp_path: Path) -> None:
    name = "xception" if form.bn_eps == 1e-5 else "xception41"
    ours = randomise(create_model(name, num_classes=CLASSES))
    state = form.apply(name, ours.state_dict())
    theirs = in_timm(THEIRS.get(name, name), num_classes=CLASSES)
    theirs.load_state_dict(state, strict=True)
    pytest.importorskip("safetensors")
    local = in_timm(f"local-dir:{emit(tmp_path, name, ours, form)}", pretrained=True)
    for network in (theirs, local):
        assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in network.state_dict().items())


def test_a_folded_file_does_not_claim_to_load(tmp_path: Path) -> None:
    """The control of strictness: timm has no place for it."""
    ours = randomise(create_model("xception41", num_classes=CLASSES))
    state = Form(folded=True).apply("xception41", ours.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        in_timm("xception41", num_classes=CLASSES).load_state_dict(state, strict=True)


def test_what_is_said_of_timms_own_definition() -> None:
    """At 299, in units of the logits' standard deviation; with weights of the scales of synthetic ones."""
    ours: Any = create_model("xception")
    random = np.random.default_rng(0)
    with torch.no_grad():
        for key, value in ours.state_dict().items():
            leaf = key.rpartition(".")[2]
            low, high = {"running_var": (0.5, 2), "running_mean": (-0.3, 0.3), "bias": (-0.3, 0.3)}.get(
                leaf, (0.5, 1.5)
            )
            if value.dim() > 1:
                high = (3 / value[0].numel()) ** 0.5
                low = -high
            if value.is_floating_point():
                value.copy_(torch.from_numpy(random.uniform(low, high, tuple(value.shape))))
    from porting.runs import image

    x = torch.from_numpy(image(299, 299)).permute(0, 3, 1, 2)
    expected = logits(ours, x)
    for form in (Form(), Form(bn_eps=1e-5)):
        theirs = in_timm("legacy_xception")
        theirs.load_state_dict(form.apply("xception", ours.state_dict()), strict=True)
        error = float((logits(theirs, x) - expected).abs().max() / expected.std())
        assert 1e-2 < error < 5e-2, error  # as the model card says
