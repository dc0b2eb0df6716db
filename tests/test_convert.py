"""The command, end to end: what it emits, what it prints, and what it says about itself."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from models import create_model
from porting import PortResult, port
from porting.report import schema
from porting.sources import open_source
from tests.checkpoint_writer import golden_variables
from tests.commands import convert
from tests.golden import recipe
from tests.golden_files import DEEPER_ARE_SLOW, golden

PREFIX = {
    "xception": "xception",
    "xception41": "tf_xception_41",
    "xception65": "tf_xception_65",
    "xception71": "tf_xception_71",
}
BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
Source = Callable[[str], Path]


@dataclass(frozen=True)
class Ported:
    """One run of the command."""

    done: subprocess.CompletedProcess[str]
    source: Path
    out: Path
    options: tuple[str, ...]

    @property
    def path(self) -> Path:
        last = self.done.stdout.splitlines()[-1]
        return Path(json.loads(last)["path"] if "--json" in self.options else last)

    @property
    def manifest(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.path.with_suffix(".json").read_text())
        return value


@pytest.fixture(scope="session")
def ported(synthetic_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ported]:
    """The verified port of each network's synthetic source, run once; every other one with --json.

    xception41 is given as `synthetic`, the others as the files that TensorFlow writes for that.
    """

    @lru_cache(None)
    def run(arch: str) -> Ported:
        out = tmp_path_factory.mktemp("ported") / "made" / "by the command"
        options = ("--json",) if arch in ("xception41", "xception") else ()
        source = synthetic_source(arch)
        given = "synthetic:0" if arch == "xception41" else source
        return Ported(convert("--src", given, "--arch", arch, "--out", out, *options), source, out, options)

    return run


def state_of(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True, mmap=True)
    return state


def quick(src: object, arch: str, out: Path, **options: Any) -> PortResult:
    return port(str(src), arch, out=out, verify=False, **options)


# --- four networks, proved ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", DEEPER_ARE_SLOW)
def test_all_four_are_proved_and_named_by_their_content(ported: Callable[[str], Ported], arch: str) -> None:
    run = ported(arch)
    assert run.done.returncode == 0, run.done.stderr
    digest = hashlib.sha256(run.path.read_bytes()).hexdigest()
    assert run.path == run.out / f"{PREFIX[arch]}-{digest[:8]}.pth"
    stem = run.path.stem
    assert {p.name for p in run.out.iterdir()} == {f"{stem}.pth", f"{stem}.json", f"{stem}.report.json"}
    report = schema.read(run.out / f"{stem}.report.json")
    assert (report["verdict"], report["weights"]["sha256"], report["faulty"]) == ("verified", digest, [])
    assert report["runs"] == [
        {**entry, "worst": shown["worst"], "differing": 0}
        for entry, shown in zip(run.manifest["parity"]["runs"], report["runs"], strict=True)
    ]
    manifest = run.manifest
    assert manifest["files"] == [
        {"name": run.path.name, "format": "pth", "bytes": run.path.stat().st_size, "sha256": digest}
    ]
    proof = manifest["parity"]
    assert proof["verdict"] == "verified"
    assert proof["precision"] == "float64" and proof["bound"] == 1e-10
    assert proof["runs"][0] == {"size": [299, 299], "output_stride": 32, "input": "image"}
    assert len(proof["runs"]) == (3 if arch == "xception" else 7) and proof["runs"][-1]["input"] == "probe"
    assert 0 < proof["worst"]["error"] < 1e-12
    lighter = proof["float32"]["worst"]
    assert 0 < lighter["error"] < 3e-6 and lighter["error"] < 4 * lighter["noise"]
    assert manifest["num_classes"] == 1000 and manifest["arch"] == arch
    assert manifest["head"]["background_dropped"] is (arch != "xception")
    assert manifest["licence"] == manifest["upstream"] == "unknown"


@pytest.mark.parametrize("arch", DEEPER_ARE_SLOW)
def test_stdout_is_the_result_and_stderr_the_summary(ported: Callable[[str], Ported], arch: str) -> None:
    run = ported(arch)
    manifest = run.manifest
    if "--json" in run.options:
        assert json.loads(run.done.stdout) == {**manifest, "path": str(run.path)}
    else:
        assert run.done.stdout == f"{run.path}\n"
    assert run.path.is_absolute()
    text = run.done.stderr
    found = manifest["mapped"] + len(manifest["unread"])
    assert re.search(rf"variables\s+{found} found, {manifest['mapped']} mapped", text)
    assert re.search(rf"unread\s+{len(manifest['unread'])} \(", text)
    assert manifest["parity"]["worst"]["layer"] in text
    assert re.search(r"time\s+\d+\.\d s", text)
    assert "\r" not in text and "it/s" not in text and "Traceback" not in text  # no bar where nobody watches


@pytest.mark.parametrize("arch", DEEPER_ARE_SLOW[1:])
def test_slots_and_step_are_unread_for_a_reason(ported: Callable[[str], Ported], arch: str) -> None:
    run = ported(arch)
    unread = {item["name"]: item["reason"] for item in run.manifest["unread"]}
    assert unread.pop("global_step") == "training step counter"
    assert unread and all(name.endswith("/Momentum") for name in unread)
    assert set(unread.values()) == {"optimizer slot (Momentum)"}
    with open_source(run.source) as source:
        assert run.manifest["mapped"] + len(unread) + 1 == len(source.specs)
        assert run.manifest["source"]["digest"] == source.digest()


def test_a_synthetic_source_says_so(ported: Callable[[str], Ported], synthetic_source: Source, tmp_path: Path) -> None:
    run = ported("xception41")
    assert run.manifest["source"]["synthetic"] is True and run.manifest["source"]["name"] == "synthetic:0"
    assert "SYNTHETIC" in run.done.stderr
    assert "SYNTHETIC" not in ported("xception").done.stderr
    # The same weights from a file, which does not tell where they come from, cannot wash the mark off.
    for file in (run.path, run.path.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name)
    again = quick(synthetic_source("xception41"), "xception41", tmp_path)
    assert again.path == tmp_path / run.path.name
    assert again.manifest["source"]["synthetic"] is True
    other = quick(synthetic_source("xception41"), "xception41", tmp_path / "elsewhere")
    assert other.manifest["source"]["synthetic"] is False
    assert other.manifest["content_digest"] == run.manifest["content_digest"]


# --- every bit in its place -----------------------------------------------------------------------------------------


def aligned_keys(names: list[str]) -> dict[str, str]:
    """TF-Slim's name to the state dict's key, by taking the names apart."""
    flows = ["entry_flow", "middle_flow", "exit_flow"]
    found = {m[0]: m for n in names if (m := re.match(r"\w+/(\w+_flow)/block(\d+)/unit_(\d+)/xception_module", n))}
    units = sorted(found, key=lambda u: (flows.index(found[u][1]), int(found[u][2]), int(found[u][3])))
    keys = {}
    for name in names:
        key = re.sub(r"^\w+/(?=entry_flow/conv1)|^\w+/(?=logits)", "", name)
        for index, unit in enumerate(units):
            key = key.replace(f"{unit}/", f"blocks.{index}.")
        key = re.sub(r"entry_flow/conv1_(\d)/", lambda m: f"stem.{int(m[1]) - 1}.", key)
        key = re.sub(r"separable_conv(\d)_(depthwise|pointwise)/", lambda m: f"stack.conv{m[1]}.{m[2][0]}!", key)
        key = key.replace("shortcut/", "shortcut.")
        for short, long in (("d!", "_dw"), ("p!", "_pw")):
            key = re.sub(rf"{short}BatchNorm/", f"bn{long}.", key)
            key = re.sub(rf"{short}(depthwise_)?weights", f"conv{long}.weight", key)
        key = key.replace("BatchNorm/", "bn.").replace("logits/weights", "head.fc.weight")
        key = re.sub(r"\.weights$", ".conv.weight", key).replace("logits/biases", "head.fc.bias")
        leaf = key.rsplit(".", 1)[-1]
        keys[name] = key.removesuffix(leaf) + BATCH_NORM.get(leaf, leaf)
    return keys


def keras_keys(file: Path) -> dict[str, str]:
    """Dataset of a `.keras` file's weights to the state dict's key, by the configuration's own layer order."""
    with zipfile.ZipFile(file) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    snake = {"Conv2D": "conv2d", "SeparableConv2D": "separable_conv2d", "BatchNormalization": "batch_normalization"}
    counts: Counter[str] = Counter()
    shortcuts = {"conv2d": iter((1, 2, 3, 12)), "batch_normalization": iter((1, 2, 3, 12))}
    keys = {"layers/dense/vars/0": "fc.weight", "layers/dense/vars/1": "fc.bias"}
    for layer in layers:
        kind, name = snake.get(layer["class_name"]), layer["config"]["name"]
        if kind is None:
            continue
        place = f"layers/{kind}_{counts[kind]}/vars/" if counts[kind] else f"layers/{kind}/vars/"
        counts[kind] += 1
        if match := re.fullmatch(r"block(\d+)_(?:sep)?conv(\d)(_bn)?", name):
            block, conv = int(match[1]), int(match[2])
            if block in (1, 14):
                number = conv if block == 1 else conv + 2
                module = f"bn{number}" if match[3] else f"conv{number}"
            else:
                position = 3 * (conv - 1) + (block > 2) + bool(match[3])
                module = f"block{block - 1}.rep.{position}"
        else:
            module = f"block{next(shortcuts[kind])}." + ("skip" if kind == "conv2d" else "skipbn")
        leaves = {
            "conv2d": ["weight"],
            "separable_conv2d": ["conv1.weight", "pointwise.weight"],
            "batch_normalization": list(BATCH_NORM.values()),
        }
        keys |= {f"{place}{index}": f"{module}.{leaf}" for index, leaf in enumerate(leaves[kind])}
    return keys


def expected_state(arch: str, source: Path) -> dict[str, np.ndarray[Any, Any]]:
    if arch == "xception":
        with zipfile.ZipFile(source) as archive, archive.open("model.weights.h5") as member, h5py.File(member) as file:
            keys = keras_keys(source)
            raw = {name: np.asarray(file[name]) for name in keys}
    else:
        with open_source(source) as opened:
            names = [n for n in opened.specs if not n.endswith("/Momentum") and n != "global_step"]
            raw = {name: opened.read(name).copy() for name in names}
            keys = aligned_keys(names)
    state = {}
    for name, value in raw.items():
        if value.ndim == 4 and value.shape[3] == 1 and ".skip" not in keys[name]:  # HWC1: depthwise
            value = np.moveaxis(value, 2, 0).transpose(0, 3, 1, 2)
        elif value.ndim == 4:
            value = np.einsum("hwio->oihw", value)
        elif value.ndim == 2:
            value = value.T
        if "head.fc" in keys[name]:
            value = value.reshape(1001, -1)[1:].reshape(1000, *([-1] if value.ndim > 1 else []))
        state[keys[name]] = value
    return state


@pytest.mark.parametrize("arch", DEEPER_ARE_SLOW)
def test_every_tensor_is_the_variable_bit_for_bit(ported: Callable[[str], Ported], arch: str) -> None:
    run = ported(arch)
    emitted = state_of(run.path)
    counters = {key for key in emitted if key.endswith("num_batches_tracked")}
    expected = expected_state(arch, run.source)
    assert set(emitted) - counters == set(expected)
    assert len(expected) == run.manifest["mapped"]
    for key, value in expected.items():
        assert emitted[key].dtype == torch.float32
        assert emitted[key].numpy().tobytes() == np.ascontiguousarray(value).tobytes(), key
    assert counters == {key.replace("running_var", "num_batches_tracked") for key in expected if "running_var" in key}
    assert all(emitted[key].item() == 0 for key in counters)
    create_model(arch, num_classes=1000).load_state_dict(emitted, strict=True)


# --- what the ported network computes -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["xception41", "xception71"])
def test_logits_are_those_of_the_original_implementation(
    variant: Callable[[str], Path], tmp_path: Path, arch: str
) -> None:
    """The golden weights through a checkpoint, the port and the loaded model, against DeepLab's own code."""
    data = golden(arch)
    image = torch.from_numpy(recipe.image(int(data["seed"]), 299, 299)).permute(0, 3, 1, 2)
    source = variant(f"golden{arch.removeprefix('xception')}")
    logits = {}
    for keep in (False, True) if arch == "xception41" else (False,):
        result = quick(source, arch, tmp_path, keep_background=keep)
        model = create_model(arch, pretrained=result.path).eval()
        with torch.inference_mode():
            logits[keep] = model(image)[0].double().numpy()
        expected = data["logits"].reshape(-1)[0 if keep else 1 :].astype(np.float64)
        assert logits[keep].shape == expected.shape
        assert np.abs(logits[keep] - expected).max() <= 1e-5 * np.abs(expected).max()
        # A neighbour's logit would show: the check is not blind to a shift by one class.
        assert np.abs(np.roll(logits[keep], 1) - expected).max() > 1e-2 * np.abs(expected).max()
        if keep:
            assert not result.manifest["head"]["background_dropped"] and result.manifest["num_classes"] == 1001
            np.testing.assert_allclose(logits[True][1:], logits[False], rtol=0, atol=1e-6 * np.abs(expected).max())


def test_background_is_the_row_that_goes(variant: Callable[[str], Path], tmp_path: Path) -> None:
    raw = golden_variables("xception41")
    weights, biases = raw["xception_41/logits/weights"], raw["xception_41/logits/biases"]
    default = state_of(quick(variant("golden41"), "xception41", tmp_path).path)
    kept = state_of(quick(variant("golden41"), "xception41", tmp_path, keep_background=True).path)
    assert default["head.fc.weight"].shape == (1000, 2048) and kept["head.fc.weight"].shape == (1001, 2048)
    for row in (0, 1, 500, 999):
        np.testing.assert_array_equal(default["head.fc.weight"][row].numpy(), weights[0, 0, :, row + 1])
        np.testing.assert_array_equal(kept["head.fc.weight"][row].numpy(), weights[0, 0, :, row])
    np.testing.assert_array_equal(default["head.fc.bias"].numpy(), biases[1:])
    np.testing.assert_array_equal(kept["head.fc.bias"].numpy(), biases)
    rest = [key for key in default if not key.startswith("head.fc")]
    assert all(torch.equal(default[key], kept[key]) for key in rest)
