"""`porting.verify`: right files pass, and every kind of wrong one is caught at the right parameter, with its cause."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import porting
from models import create_model
from porting import PortingError, terminal
from porting.reference import Reference, ReferenceSource, shared
from porting.report import schema
from porting.tracing import trace
from porting.verification import verify
from porting.verify import main
from tests.weight_faults import FAULTS, NORM, POINTWISE, State

pytestmark = pytest.mark.usefixtures("one_reference")

SMALL = [(75, 86)]


@pytest.fixture(scope="module")
def ported(
    synthetic_source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """(source, emitted file) of a network, unverified."""
    out = tmp_path_factory.mktemp("ported")

    @lru_cache(None)
    def files(arch: str) -> tuple[Path, Path]:
        source = synthetic_source(arch)
        return source, porting.port(source, arch, out=out / arch, verify=False).path

    return files


@pytest.fixture(scope="module")
def aligned(ported: Callable[[str], tuple[Path, Path]]) -> tuple[Path, State]:
    source, path = ported("xception41")
    return source, torch.load(path, weights_only=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_weight_is_named_with_its_cause(aligned: tuple[Path, State], tmp_path: Path, fault: str) -> None:
    source, right = aligned
    state = dict(right)
    breaks, causes = FAULTS[fault]
    breaks(state)
    torch.save(state, tmp_path / "wrong.pth")
    found = verify(tmp_path / "wrong.pth", source, weights_only=True)
    assert found.verdict == "failed"
    assert {item.parameter: item.cause for item in found.faults} == causes


def test_right_weights_pass_bit_for_bit(ported: Callable[[str], tuple[Path, Path]]) -> None:
    for arch, count in (("xception41", 422), ("xception", 236)):
        source, path = ported(arch)
        found = verify(path, source, weights_only=True)
        assert (found.verdict, found.arch, found.parameters, found.faults) == ("verified", arch, count, ())


def test_a_full_verification_upgrades_the_manifest(ported: Callable[[str], tuple[Path, Path]]) -> None:
    source, path = ported("xception41")
    manifest = path.with_suffix(".json")
    assert json.loads(manifest.read_text())["parity"] == {"verdict": "unverified"}
    assert verify(path, source, weights_only=True).verdict == "verified"
    assert json.loads(manifest.read_text())["parity"] == {"verdict": "unverified"}  # the weights alone are no proof
    found = verify(path, source, sizes=SMALL)
    assert found.verdict == "verified"
    proof = json.loads(manifest.read_text())["parity"]
    assert (proof["verdict"], proof["runs"][0]["size"]) == ("verified", list(SMALL[0]))
    schema.check(found.report)
    layers = found.report["layers"]
    assert len(layers) == 2 * 226  # the image, and probes
    assert all(layer["passed"] and layer["error"] < 1e-12 for layer in layers)


def test_a_wrong_file_fails_in_its_layers_too(aligned: tuple[Path, State], tmp_path: Path) -> None:
    source, right = aligned
    state = dict(right)
    FAULTS["mean and variance swapped"][0](state)
    torch.save(state, tmp_path / "wrong.pth")
    found = verify(tmp_path / "wrong.pth", source, sizes=SMALL)
    assert found.verdict == "failed"
    schema.check(found.report)
    scope = "xception_41/middle_flow/block1/unit_3/xception_module/separable_conv1_pointwise/BatchNorm"
    assert {(item["layer"], item["module"], item["variable"]) for item in found.report["faulty"]} == {
        (scope, NORM, f"{scope}/moving_mean"),
        (scope, NORM, f"{scope}/moving_variance"),
    }
    assert found.proof is not None
    assert {layer.module for trace in found.proof.traces for layer in trace.faulty} == {NORM}


def broken() -> nn.Module:
    """Somebody's factory that fails in its own way."""
    raise ZeroDivisionError("division by zero")


class Wrong(nn.Module):
    """A network of somebody's with the same keys: one epsilon, one missing ReLU, and the usual symmetric pools."""

    def __new__(cls) -> Any:
        network: Any = create_model("xception")
        network.bn3.eps = 1e-5
        network.act2 = nn.Identity()
        for block in (network.block1, network.block12):
            block.rep[-1] = nn.MaxPool2d(3, 2, padding=1)
        return network


def test_a_network_of_the_users_own_is_found_wrong_where_it_is(ported: Callable[[str], tuple[Path, Path]]) -> None:
    source, path = ported("xception")
    found = verify(path, source, sizes=[(66, 66)], network=f"{__name__}:Wrong")
    assert (found.verdict, found.faults) == ("failed", ())
    pool = "padding: 1 on every side, where TensorFlow's SAME pads an even side only after it"
    assert {(item["module"], item["cause"]) for item in found.report["faulty"]} == {
        ("bn3", "epsilon 1e-05 instead of 0.001"),
        ("act2", "the activation is missing"),
        ("block1.rep.5", pool),
        ("block12.rep.6", pool),
    }


def test_a_network_of_the_users_own_that_is_right_passes_and_upgrades_nothing(
    ported: Callable[[str], tuple[Path, Path]],
) -> None:
    source, path = ported("xception")
    before = path.with_suffix(".json").read_bytes()
    found = verify(path, source, sizes=[(66, 66)], network="models.xception:Xception")
    assert found.verdict == "verified"
    assert path.with_suffix(".json").read_bytes() == before


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("no_such_module:make", "cannot be imported"),
        ("models.xception:NoSuchNetwork", "cannot be imported"),
        ("models.xception", "no MODULE:FACTORY"),
        ("models.xception:BLOCKS", "not something to call"),
        ("builtins:dict", "gives a dict"),
        ("models.xception_aligned:AlignedConfig", "cannot be called"),
        ("torch.nn:Identity", "the keys and shapes of the file"),
        (f"{__name__}:broken", "raises ZeroDivisionError: division by zero"),
    ],
)
def test_a_network_that_cannot_be_used_is_one_error(
    ported: Callable[[str], tuple[Path, Path]], network: str, message: str
) -> None:
    source, path = ported("xception")
    with pytest.raises(PortingError, match=re.escape(message)):
        verify(path, source, network=network)


def test_a_trace_file_stands_in_for_tensorflow(
    aligned: tuple[Path, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, right = aligned
    path = trace(source, "xception41", tmp_path / "one.trace", sizes=[(40, 45)])
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(right, good)
    torch.save({**right, POINTWISE: -right[POINTWISE]}, bad)
    monkeypatch.setattr(shared, "Reference", None)  # it must not even be started
    found = verify(good, source, trace=path)
    assert (found.verdict, [str(t.run) for t in found.proof.traces]) == ("verified", ["40x45", "49x48, probes"])
    failed = verify(bad, source, trace=path)
    assert failed.verdict == "failed"
    assert failed.proof is not None
    assert {layer.module for t in failed.proof.traces for layer in t.faulty} == {POINTWISE.removesuffix(".weight")}


def test_tensorflow_may_live_under_another_python(tmp_path: Path) -> None:
    """A stand-in that notes its use and becomes this one."""
    python, used = tmp_path / "python", tmp_path / "used"
    python.write_text(f'#!/bin/sh\ntouch "{used}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with Reference("x", str(python)) as reference:
        assert reference.open(ReferenceSource("checkpoint", "x", "xception41", 0)) == ""  # it answers
    assert used.exists()


@pytest.mark.parametrize("python", ["/no/such/python", "/"])
def test_a_python_that_cannot_be_run_is_one_error(python: str) -> None:
    with pytest.raises(PortingError, match="cannot be run") as caught:
        Reference("x", python)
    assert caught.value.kind is porting.ErrorKind.MISSING


@pytest.mark.slow
def test_cadene_names_and_files_without_counters(ported: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source, path = ported("xception")
    state = torch.load(path, weights_only=True)
    old = {name.replace("fc.", "last_linear."): value for name, value in state.items() if "num_batches" not in name}
    torch.save(old, tmp_path / "cadene.pth")
    assert verify(tmp_path / "cadene.pth", source, sizes=SMALL).verdict == "verified"


def test_a_kept_background_is_recognised(aligned: tuple[Path, State], tmp_path: Path) -> None:
    source, _ = aligned
    kept = porting.port(source, "xception41", out=tmp_path, verify=False, keep_background=True)
    assert verify(kept.path, source, weights_only=True).verdict == "verified"
    backbone = porting.port(source, "xception41", out=tmp_path, verify=False, backbone_only=True)
    assert verify(backbone.path, source, weights_only=True).verdict == "verified"


def test_another_number_of_classes_is_refused(aligned: tuple[Path, State], tmp_path: Path) -> None:
    source, right = aligned
    state = {**right, "head.fc.weight": right["head.fc.weight"][:7], "head.fc.bias": right["head.fc.bias"][:7]}
    torch.save(state, tmp_path / "few.pth")
    with pytest.raises(PortingError, match="expected 1000 classes, as the source holds, found 7 classes"):
        verify(tmp_path / "few.pth", source, weights_only=True)


def test_a_file_changed_after_its_manifest_is_refused(aligned: tuple[Path, State], tmp_path: Path) -> None:
    source, _ = aligned
    path = porting.port(source, "xception41", out=tmp_path, verify=False).path
    torch.save({**torch.load(path, weights_only=True), "more": torch.ones(1)}, path)
    with pytest.raises(PortingError, match="sha256") as caught:
        verify(path, source, weights_only=True)
    assert caught.value.kind is porting.ErrorKind.CORRUPT


def test_the_command(aligned: tuple[Path, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, right = aligned
    good, bad, pickled = tmp_path / "good.pth", tmp_path / "bad.pth", tmp_path / "pickled.pth"
    torch.save(right, good)
    torch.save({**right, POINTWISE: -right[POINTWISE]}, bad)
    torch.save({"weight": Path("code")}, pickled)
    common = ["--src", str(source), "--weights-only"]
    assert main(["--weights", str(good), *common]) == terminal.DONE
    assert capsys.readouterr().out.startswith("verified: xception41\n  weights  422 compared bit for bit, 0 differ")
    assert main(["--weights", str(bad), *common, "--json"]) == terminal.FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "failed"
    assert [(item["parameter"], item["cause"]) for item in found["faulty"]] == [(POINTWISE, "negated")]
    assert found["faulty"][0]["variable"].endswith("unit_2/xception_module/separable_conv1_pointwise/weights")
    assert main(["--weights", str(pickled), *common]) == terminal.FAILED
    assert "not a state dict that loads with weights_only=True" in capsys.readouterr().err
    assert main(["--weights", str(tmp_path / "none.pth"), *common]) == terminal.FAILED
    assert "none.pth: missing: no such file" in capsys.readouterr().err
    for size in ("12", "0x40"):
        with pytest.raises(SystemExit) as exit_:
            main(["--weights", str(good), "--src", str(source), "--size", size])
        assert exit_.value.code == terminal.USAGE
