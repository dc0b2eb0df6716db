"""Classifiers rebuilt from a manifest's plain settings: what is taken, what is refused, what predict makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_weights import write
from torch import nn

from models import ModelError, create_model
from models.heads import apply_activation, attach, build_chain, named_probabilities, read_chain
from models.predict import main

LINEAR = {"kind": "linear", "inputs": 2048, "outputs": 8, "bias": True}
NORM = {"kind": "batch_norm", "channels": 8, "eps": 1e-2, "scale": True, "center": True}
ONE = {"kind": "linear", "inputs": 8, "outputs": 1, "bias": False}


def entry(*modules: Any, pooling: Any = "avg") -> dict[str, Any]:
    return {"kind": "chain", "pooling": pooling, "modules": list(modules)}


def test_what_a_chain_builds() -> None:
    chain = read_chain(entry(LINEAR, {"kind": "relu"}, NORM, {"kind": "dropout", "rate": 0.5}, ONE))
    built = build_chain(chain)
    assert (chain.num_classes, [type(module) for module in built]) == (
        1,
        [nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear],
    )
    assert built[4].bias is None and built[2].eps == 1e-2


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_a_batch_norm_without_scale_or_centre(scale: bool, center: bool) -> None:
    norm: Any = build_chain(read_chain(entry(LINEAR, {**NORM, "scale": scale, "center": center})))[1].double()
    with torch.no_grad():
        for tensor in (norm.running_mean, *(one for one in (norm.weight, norm.bias) if one is not None)):
            tensor.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    assert (norm.weight is not None, norm.bias is not None) == (scale, center)
    x = torch.randn(4, 8, dtype=torch.float64)
    expected = (x - norm.running_mean) / (norm.running_var + 1e-2).sqrt()
    expected = expected * (norm.weight if scale else 1) + (norm.bias if center else 0)
    torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (entry(LINEAR, pooling="avgmax"), "pooling: expected 'avg' or 'max'"),
        (entry(LINEAR, pooling=["avg"]), "pooling"),
        ({"pooling": "avg", "modules": "linear"}, "modules: expected a list"),
        (entry("linear"), "modules: expected a list"),
        (entry(), "a linear one"),
        (entry({"kind": "relu"}), "a linear one"),
        (entry(LINEAR, {"kind": "exec"}), "module 1: kind: expected one of"),
        (entry(LINEAR, {"kind": ["relu"]}), "module 1: kind"),
        (entry(LINEAR, {"kind": "relu", "inplace": True}), "settings: expected none, found inplace"),
        (entry({"kind": "linear", "inputs": 2048, "outputs": 8}), "settings: expected inputs, outputs, bias"),
        (entry({**LINEAR, "outputs": 0}), "outputs: 0 is impossible"),
        (entry({**LINEAR, "outputs": True}), "outputs: True is impossible"),
        (entry({**LINEAR, "bias": 1}), "bias: 1 is impossible"),
        (entry({**LINEAR, "inputs": 1024}), "expected 2048 inputs, found 1024"),
        (entry(LINEAR, {**NORM, "channels": 9}), "module 1 (batch_norm): expected 8 inputs, found 9"),
        (entry(LINEAR, {**NORM, "eps": 0.0}), "eps: 0.0 is impossible"),
        (entry(LINEAR, {**NORM, "eps": float("nan")}), "eps: nan is impossible"),
        (entry(LINEAR, {"kind": "dropout", "rate": 1.5}), "rate: 1.5 is impossible"),
        (entry(LINEAR, {"kind": "leaky_relu", "slope": "0.1"}), "slope: '0.1' is impossible"),
    ],
)
def test_an_impossible_chain_is_refused(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_chain(head)
    assert message in str(caught.value)


def test_an_aligned_network_has_no_chain() -> None:
    with pytest.raises(ModelError, match="original xception alone"):
        attach(create_model("xception41", num_classes=0), read_chain(entry(LINEAR)))


def test_what_the_activation_makes_of_logits() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0]])
    exact = logits.double()
    assert torch.equal(apply_activation(logits, None), exact.softmax(1))
    assert torch.equal(apply_activation(logits, "softmax"), exact.softmax(1))
    assert torch.equal(apply_activation(logits, "sigmoid"), exact.sigmoid())
    assert torch.equal(apply_activation(logits, "tanh"), exact.tanh())
    with pytest.raises(ModelError, match="mine is not known"):
        apply_activation(logits, "mine")
    one = apply_activation(logits[:, :1], None)
    assert torch.equal(one, exact[:, :1].sigmoid())
    assert torch.equal(named_probabilities(one, None, 2), torch.cat([1 - one, one], 1))
    assert torch.equal(named_probabilities(one, None, 1), one)
    assert torch.equal(named_probabilities(exact, "sigmoid", 3), exact)


def binary(folder: Path, **changes: Any) -> Path:
    """Weights of one output behind a chain, with their manifest."""
    head = {**entry(LINEAR, {"kind": "relu"}, NORM, ONE, pooling="max"), "activation": "sigmoid"}
    network = create_model("xception", num_classes=0)
    attach(network, read_chain(head))
    return write(folder, network, **{"head": head, "labels": ["cat", "dog"], **changes})


def test_a_binary_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
    path = binary(tmp_path)
    network: Any = create_model("xception", pretrained=path).eval()
    assert (network.num_classes, network.labels, network.global_pool.pooling.value) == (1, ("cat", "dog"), "max")
    pooled: Any = create_model("xception", pretrained=path, global_pool="avg")
    assert pooled.global_pool.pooling.value == "avg"
    picture = tmp_path / "a.png"
    image_module.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(picture)
    assert main([str(picture), "--weights", str(path), "--json"]) == 0
    guesses = json.loads(capsys.readouterr().out)[0]["predictions"]
    assert {guess["label"]: guess["index"] for guess in guesses} == {"cat": 0, "dog": 1}
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1)
    assert guesses[0]["probability"] >= guesses[1]["probability"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "b", "c"]}, "labels: expected 1, found 3"),
        ({"num_classes": 2}, "head: expected 2 classes, found 1"),
        ({"arch": "xception41"}, "a chain is expected of xception alone"),
        ({"head": {"kind": "dense", "activation": None}}, "several layers, which the manifest beside it describes"),
        ({"head": entry(LINEAR, {"kind": "relu"}, ONE)}, "fc.3.weight: not in the network"),
    ],
)
def test_a_manifest_that_contradicts_its_weights(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        create_model("xception", pretrained=binary(tmp_path, **changes))
    assert message in str(caught.value)
