"""What is emitted beside a `.pth`, how all of it is named, listed, loaded and held to its source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import ModelError, create_model, read_weights
from porting import PortingError, PortResult, artifact, formats, port, proof, verification
from porting.convert import main
from porting.errors import ErrorKind
from porting.forms import Form
from porting.manifest import UNVERIFIED, VERIFIED
from porting.runs import Run
from porting.verification import verify

ARCH = "xception41"
Source = Callable[[str], Path]
X = torch.linspace(-1, 1, 3 * 33 * 40).reshape(1, 3, 33, 40)

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def ported(synthetic_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PortResult]:
    """Unverified ports of one source into one folder, each form once."""
    out = tmp_path_factory.mktemp("forms")
    made: dict[str, PortResult] = {}

    def result(arch: str = ARCH, **options: Any) -> PortResult:
        key = f"{arch} {sorted(options.items())}"
        if key not in made:
            made[key] = port(synthetic_source(arch), arch, out=out, verify=False, **options)
        return made[key]

    return result


@pytest.fixture
def few_runs(monkeypatch: pytest.MonkeyPatch, one_reference: None) -> None:
    runs = [Run((33, 40), float32=True), Run((34, 31)), Run((31, 33), probe=True)]
    for module in (proof, verification):
        monkeypatch.setattr(module, "proof_runs", lambda *_, **__: runs)


# --- proved -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("few_runs")
def test_a_folded_port_is_proved_and_says_its_bound(
    synthetic_source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = synthetic_source(ARCH)
    options = ["--fold-bn", "--dtype", "float16", "--format", "pth,safetensors", "--json"]
    assert main(["--src", str(source), "--arch", ARCH, "--out", str(tmp_path), *options]) == 0
    manifest = json.loads(capsys.readouterr().out)
    path = Path(manifest["path"])
    assert path.name.startswith("tf_xception_41_folded_fp16-") and manifest["parity"]["verdict"] == VERIFIED
    assert manifest["variant"] == {"folded": True, "dtype": "float16", "bn_eps": 1e-3}
    parity = manifest["parity"]
    assert 1e-9 < parity["worst"]["error"] < parity["bound"] / 10 < 1e-5
    assert 1e-5 < parity["stored"]["worst"]["error"] < parity["stored"]["bound"]
    assert sum("layers are held to" in note for note in manifest["notes"]) == 2
    model = create_model(ARCH, pretrained=path, folded=True).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    # Verified again: with its manifest, and without, when its keys and types say what it is.
    kept = path.with_suffix(".json").read_bytes()
    assert verify(path, source, weights_only=True).verdict == VERIFIED
    path.with_suffix(".json").unlink()
    for ending in (".pth", ".safetensors"):
        (alone,) = tmp_path.glob(f"*{ending}")
        found = verify(alone, source, weights_only=True)
        assert found.verdict == VERIFIED and found.report["weights"]["variant"] == manifest["variant"]
    state = artifact.read_state(path)
    state["stem.0.conv.bias"] = state["stem.0.conv.bias"] * 1.01
    torch.save(state, tmp_path / "wrong.pth")
    found = verify(tmp_path / "wrong.pth", source)
    assert found.verdict == "failed" and [fault.parameter for fault in found.faults] == ["stem.0.conv.bias"]
    assert found.faults[0].variable == "xception_41/entry_flow/conv1_1/BatchNorm/beta"
    assert [one["layer"] for one in found.report["faulty"]] == ["xception_41/entry_flow/conv1_1/BatchNorm"]
    path.with_suffix(".json").write_bytes(kept.replace(b'"folded": true', b'"folded": false'))
    with pytest.raises(PortingError, match="variant: folded: expected False, found True"):
        verify(path, source, weights_only=True)


@pytest.mark.slow
@pytest.mark.usefixtures("few_runs")
def test_another_epsilon_is_proved_and_loaded(
    ported: Callable[..., PortResult], synthetic_source: Source, tmp_path: Path
) -> None:
    unproved = ported("xception", bn_eps=1e-5)
    for path in (unproved.path, unproved.path.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    path = tmp_path / unproved.path.name
    assert path.name.startswith("xception_eps1e-5-") and unproved.manifest["variant"]["bn_eps"] == 1e-5
    assert any("legacy_xception" in note and "max-pools" in note for note in unproved.manifest["notes"])
    assert json.loads(path.with_suffix(".json").read_text())["parity"]["verdict"] == UNVERIFIED
    assert verify(path, synthetic_source("xception")).verdict == VERIFIED
    assert json.loads(path.with_suffix(".json").read_text())["parity"]["verdict"] == VERIFIED

    def outputs(model: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = model.eval()(X)
        return result

    right = outputs(create_model("xception", pretrained=ported("xception").path))
    largest = right.abs().max()
    path.with_suffix(".json").unlink()
    for given in (unproved.path, path):  # by the manifest, and by the name
        model = create_model("xception", pretrained=given)
        assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
        assert (outputs(model) - right).abs().max() < 1e-5 * largest
    renamed = path.rename(tmp_path / "renamed.pth")  # the control: nothing tells that these are for another epsilon
    assert (outputs(create_model("xception", pretrained=renamed)) - right).abs().max() > 1e-4 * largest
    found = verify(renamed, synthetic_source("xception"), weights_only=True)
    assert {fault.cause for fault in found.faults} == {"offset by 0.00099"}


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_format_holds_the_same_and_is_listed(ported: Callable[..., PortResult]) -> None:
    result = ported(formats=("hf", "pth", "safetensors"))
    folder = result.path.parent
    listed = {entry["name"]: entry for entry in result.manifest["files"]}
    assert [entry["format"] for entry in listed.values()] == ["pth", "safetensors", "hf", "hf", "hf"]
    for name, entry in listed.items():
        assert artifact.file_digest(folder / name) == entry["sha256"]
        assert (folder / name).stat().st_size == entry["bytes"]
        place = name.partition("/")[0] if name.endswith("model.safetensors") else name
        assert (entry["format"] == "hf" and "model" not in name) or entry["sha256"][:8] in place
    weights = [folder / name for name in listed if name.endswith((".pth", ".safetensors"))]
    assert len(weights) == 3
    assert weights[1].read_bytes() == weights[2].read_bytes()
    state = torch.load(weights[0], weights_only=True)
    other = safetensors.load_file(weights[1])
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    for path in weights:
        read = read_weights(path)
        assert read.manifest is not None and read.manifest.path == result.path.with_suffix(".json")
        assert read.manifest.sha256 == listed[path.relative_to(folder).as_posix()]["sha256"]
    ours = create_model(ARCH, pretrained=weights[0]).state_dict()
    assert all(
        torch.equal(ours[key], value) for key, value in create_model(ARCH, pretrained=weights[2]).state_dict().items()
    )


def test_safetensors_bytes_are_a_function_of_the_tensors(tmp_path: Path) -> None:
    state = {"b": torch.ones(2, 3), "a": torch.tensor(0), "c": torch.ones(4).half()}
    digests = set()
    for order in (state, dict(reversed(state.items()))):
        with artifact.temporary_file(tmp_path) as file:
            artifact.write_safetensors(file, order)
            digests.add(artifact.file_digest(Path(file.name)))
            assert artifact.content_digest(artifact.read_state(Path(file.name))) == artifact.content_digest(state)
    assert len(digests) == 1


def test_an_earlier_format_stays_listed(synthetic_source: Source, tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path, "verify": False, "dtype": "float16", "backbone_only": True}
    source = synthetic_source(ARCH)
    both = port(source, ARCH, formats=("pth", "safetensors"), **options)
    again = port(source, ARCH, **options)
    assert again.manifest["files"] == both.manifest["files"]
    (tmp_path / both.manifest["files"][1]["name"]).unlink()
    assert port(source, ARCH, **options).manifest["files"] == both.manifest["files"][:1]
    only = port(source, ARCH, out=tmp_path / "only", verify=False, formats=("safetensors",))
    assert only.path.suffix == ".safetensors" and only.path.with_suffix(".json").is_file()


@pytest.mark.parametrize("damage", ["truncated", "text", "length"])
def test_damaged_safetensors(ported: Callable[..., PortResult], tmp_path: Path, damage: str) -> None:
    result = ported(formats=("hf", "pth", "safetensors"))
    whole = next(result.path.parent.glob("tf_xception_41-*.safetensors")).read_bytes()
    content = {"truncated": whole[: 1 << 16], "text": b"hello", "length": b"\xff" * 8 + whole[8:]}[damage]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.safetensors: not a "):
        read_weights(tmp_path / "x.safetensors")
    with pytest.raises(PortingError, match=r"x\.safetensors: corrupt: "):
        verify(tmp_path / "x.safetensors", "nowhere", weights_only=True)


def test_hf_folder(ported: Callable[..., PortResult]) -> None:
    folder = next(one for one in ported(formats=("hf", "pth", "safetensors")).path.parent.iterdir() if one.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == (ARCH, 1000)
    assert config["pretrained_cfg"]["crop_pct"] == 0.903 and config["pretrained_cfg"]["classifier"] == "head.fc"
    text = (folder / "README.md").read_text()
    assert "NOT compared" in text and "legacy_xception" not in text
    assert "3.5e-2" in formats.timm_note("xception", 1e-5) and "epsilon" in formats.timm_note("xception", 1e-3)


# --- what may not be asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--fold-bn --bn-eps 1e-5", "--bn-eps: not allowed with --fold-bn"),
        ("--fold-bn --format pth,hf", "timm has no folded networks"),
        ("--bn-eps 1e-5 --format hf", "timm builds xception41 with 0.001"),
        ("--bn-eps 0", "expected a positive number, found 0"),
        ("--bn-eps nan", "expected a positive number, found nan"),
        ("--format pth,onnx", "found 'onnx'"),
        ("--format ,", "found ''"),
        ("--dtype int8", "invalid choice: 'int8'"),
    ],
)
def test_usage(options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--src", "nowhere", "--arch", ARCH, "--out", str(tmp_path / "out"), *options.split()])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_usage_in_python(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--fold-bn"):
        port("nowhere", ARCH, out=tmp_path, fold_bn=True, bn_eps=1e-5)
    with pytest.raises(ValueError, match="--dtype"):
        port("nowhere", ARCH, out=tmp_path, dtype="int8")


def test_overflow_leaves_nothing(synthetic_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from porting import pipeline

    read = pipeline.read_weights

    def huge(*arguments: Any) -> dict[str, Any]:
        state = read(*arguments)
        state["stem.0.bn.running_var"] = state["stem.0.bn.running_var"] + 1e6
        return state

    monkeypatch.setattr(pipeline, "read_weights", huge)
    with pytest.raises(PortingError, match=r"expected values up to 65504, .*found 32 beyond it") as caught:
        port(synthetic_source(ARCH), ARCH, out=tmp_path, verify=False, dtype="float16")
    assert caught.value.kind is ErrorKind.UNSUPPORTED and "stem.0.bn.running_var" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    port(synthetic_source(ARCH), ARCH, out=tmp_path, verify=False, dtype="bfloat16")  # the control


def test_names_of_forms() -> None:
    forms = [
        Form(),
        Form(True),
        Form(bn_eps=1e-5),
        Form(bn_eps=2.5e-4),
        Form(True, "float16"),
        Form(False, "bfloat16", 0.01),
    ]
    assert [form.suffix for form in forms] == ["", "_folded", "_eps1e-5", "_eps2.5e-4", "_folded_fp16", "_eps1e-2_bf16"]
