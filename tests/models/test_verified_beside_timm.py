"""timm's own networks in the verifier: the aligned ones pass, the original's two differences are found and named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from timm_beside import beside
from torch import nn

import porting
from porting.verification import Verification, verify

pytestmark = pytest.mark.usefixtures("one_reference")


def build(name: str, num_classes: int) -> Any:
    timm = beside("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, num_classes=num_classes)


def legacy_xception(num_classes: int = 1000) -> Any:
    return build("legacy_xception", num_classes)


def xception41(num_classes: int = 1000) -> Any:
    return build("xception41", num_classes)


def run(arch: str, network: str, source: Path, out: Path) -> Verification:
    beside("timm")
    path = porting.port(source, arch, out=out, verify=False).path
    return verify(path, source, network=f"{__name__}:{network}", sizes=[(60, 60), (65, 65)])


def test_the_epsilon_and_the_pools_are_found(synthetic_source: Callable[[str], Path], tmp_path: Path) -> None:
    found = run("xception", "legacy_xception", synthetic_source("xception"), tmp_path)
    assert (found.verdict, found.faults) == ("failed", ())
    causes: dict[str, set[str]] = {}
    for fault in found.report["faulty"]:
        causes.setdefault(fault["cause"], set()).add(fault["module"])
    modules = dict(legacy_xception().named_modules())
    assert causes == {
        "epsilon 1e-05 instead of 0.001": {name for name, m in modules.items() if isinstance(m, nn.BatchNorm2d)},
        "padding: 1 on every side, where TensorFlow's SAME pads an even side only after it": {
            name for name, m in modules.items() if isinstance(m, nn.MaxPool2d)
        },
    }


def test_an_aligned_network_of_timms_passes(synthetic_source: Callable[[str], Path], tmp_path: Path) -> None:
    """With its ReLUs that work in place, and those inside its batch norms."""
    found = run("xception41", "xception41", synthetic_source("xception41"), tmp_path)
    assert (found.verdict, found.report["faulty"], found.report["notes"]) == ("verified", [], [])
