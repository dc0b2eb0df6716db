"""From PyTorch back to TensorFlow: every variable of the four networks to the bit, and what is refused or said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from porting import ErrorKind, PortingError, artifact, rules
from porting.export import main, parser
from porting.origins import Quiet
from porting.plan import Options, build_plan
from porting.recognition import recognise
from porting.reverse import export
from porting.rules import Head, Layout
from porting.sources import open_source
from porting.state_dict import read_weights
from tests.checkpoint_writer import golden_variables
from tests.commands import ROOT
from tests.golden_files import stored_classes, variable_shapes
from tests.reversible_weights import hollow, read, saved

SMALL = "xception41"
README = (ROOT / "README.md").read_text(encoding="utf-8")
Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here, and it takes seconds


def ported(arch: str, variables: Mapping[str, Array], skip: int = 0) -> dict[str, Tensor]:
    """The state dict of TensorFlow's variables, with the counters that PyTorch adds."""
    state: dict[str, Tensor] = {}
    for rule in rules.table(arch, Head(stored_classes(arch), skip)).rules:
        state[rule.parameter] = torch.from_numpy(rule.float32(variables[rule.variable]))
        if rule.parameter.endswith("running_var"):
            state[rule.parameter.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def different(path: Path, expected: Mapping[str, Array]) -> set[str]:
    """Variables that a source does not hold to the bit, that are missing, or that are there beside them."""
    with open_source(path) as source:
        contents = recognise(source).contents
        names = set(contents.specs) ^ set(expected)
        for name in set(contents.specs) & set(expected):
            found = source.read(contents.own(name))
            right = expected[name]
            same = (found.dtype, found.shape) == (right.dtype, right.shape)
            if not same or not np.array_equal(found.view(np.uint32), right.view(np.uint32)):
                names.add(name)
        return names


def ported_again(path: Path, arch: str) -> str:
    """The content digest of what a port of the export holds."""
    with open_source(path) as source:
        contents = recognise(source).contents
        plan = build_plan(contents, arch, Options(keep_background=True))
        return artifact.content_digest(read_weights(plan, source, contents, Quiet()))


def refusal(weights: Path, out: Path, kind: ErrorKind, *found: str, **options: Any) -> None:
    """The export fails so, and leaves nothing."""
    with pytest.raises(PortingError) as raised:
        export(weights, out, **options)
    assert raised.value.kind is kind and raised.value.remedy
    for text in found:
        assert text in str(raised.value), str(raised.value)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def flip_a_bit(path: Path, after: bytes) -> None:
    """Change one bit of what begins so."""
    with path.open("r+b") as file:
        at = file.read().index(after) + 5
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    ["xception", "xception41", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("xception65", "xception71"))],
)
def test_every_variable_comes_back_to_the_bit(tmp_path: Path, arch: str) -> None:
    variables = golden_variables(arch)
    state = ported(arch, variables)
    done = export(saved(tmp_path, state), tmp_path / "new" / "folder" / "model")
    assert (done.arch, done.classes, done.variables) == (arch, stored_classes(arch), len(variables))
    assert different(done.path, variables) == set()
    assert ported_again(done.path, arch) == artifact.content_digest(state)
    name = next(name for name in variables if "epthwise" in name and variables[name].ndim == 4)
    changed = variables | {name: variables[name].swapaxes(0, 1)}  # the control: one kernel transposed
    assert different(done.path, changed) == {name}
    endings = [".weights.h5"] if arch == rules.KERAS_ARCH else [".data-00000-of-00001", ".index"]
    assert sorted(path.name for path in done.path.parent.iterdir()) == [f"model{ending}" for ending in endings]
    kernel = max(variables, key=lambda name: variables[name].nbytes)
    flip_a_bit(done.path.with_name(f"model{endings[0]}"), variables[kernel].tobytes()[:64])
    if arch == rules.KERAS_ARCH:  # HDF5 has no checksums here
        assert different(done.path, variables) == {kernel}
    else:
        with pytest.raises(PortingError, match=f"{kernel}: expected crc32c"):
            different(done.path, variables)


def test_what_changes_and_what_does_not_come_back_is_said(tmp_path: Path) -> None:
    variables = golden_variables(SMALL)
    state = ported(SMALL, variables, skip=1)
    rounded = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    done = export(saved(tmp_path, rounded), tmp_path / "model")
    weights, biases = "xception_41/logits/weights", "xception_41/logits/biases"
    kept = variables | {weights: variables[weights][..., 1:], biases: variables[biases][1:]}
    wide = {name: torch.from_numpy(value).bfloat16().float().numpy() for name, value in kept.items()}
    assert done.classes == 1000 and different(done.path, wide) == set()
    assert different(done.path, wide | {biases: kept[biases]}) == {biases}  # the control
    widened, background = done.notes
    assert widened == "bfloat16 weights are widened to float32, which holds them exactly."
    assert weights in background and biases in background and "--keep-background" in background


def test_a_backbone(tmp_path: Path) -> None:
    done = export(saved(tmp_path, hollow(SMALL, 7)), tmp_path / "model", backbone_only=True)
    with open_source(done.path) as source:
        assert set(source.specs) == set(variable_shapes(SMALL)) - set(rules.table(SMALL, None).head)
    never = read(saved(tmp_path, hollow(SMALL, 0)))
    assert done.classes == never.classes == 0


# --- a wrong export ---------------------------------------------------------------------------------------------------


def test_a_reversed_rule_that_is_wrong_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = saved(tmp_path, ported(SMALL, golden_variables(SMALL)))
    invert = Layout.invert

    def transposed(self: Layout, array: Array, shape: rules.Shape) -> Array:
        result = invert(self, array, shape)
        return result.swapaxes(0, 1) if self is Layout.HWCM_TO_OIHW else result

    monkeypatch.setattr(Layout, "invert", transposed)
    wrong = "separable_conv1_depthwise/depthwise_weights: kernel transposed spatially"
    refusal(weights, tmp_path / "out" / "model", ErrorKind.PARITY, "39 defects", wrong)


# --- what is there already --------------------------------------------------------------------------------------------


def test_what_is_there_is_replaced_only_with_force_and_never_in_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, out = saved(tmp_path, hollow(SMALL, 3)), tmp_path / "out" / "model"
    other = saved(tmp_path, {name: value * 2 for name, value in hollow(SMALL, 3).items()}, "other.pth")

    def digests() -> dict[str, str]:
        return {path.name: artifact.file_digest(path) for path in out.parent.iterdir()}

    first = export(weights, out)
    before = digests()
    again = export(weights, out.with_name("model.index"))
    assert (first.there, again.there, again.path) == (False, True, first.path)
    with pytest.raises(PortingError, match=r"model\.index is there already"):
        export(other, out)
    assert digests() == before

    with monkeypatch.context() as patch:  # no moment has an index of other data
        replace = Path.replace
        patch.setattr(Path, "replace", lambda self, to: full() if to.suffix == ".index" else replace(self, to))
        with pytest.raises(PortingError, match="No space left"):
            export(other, out, force=True)
        assert list(digests()) == ["model.data-00000-of-00001"]
    assert not export(other, out, force=True).there
    assert digests().keys() == before.keys() and not set(digests().values()) & set(before.values())


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("arch", "module"), [(SMALL, "porting.writers.bundle.table"), ("xception", "h5py.File")])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, module: str
) -> None:
    weights = saved(tmp_path, hollow(arch, 3))
    monkeypatch.setattr(module, full)
    refusal(weights, tmp_path / "out" / "model", ErrorKind.OUTPUT, "No space left on device")


def test_a_folder_is_no_name(tmp_path: Path) -> None:
    weights = saved(tmp_path, hollow(SMALL, 3))
    (tmp_path / "out").mkdir()
    with pytest.raises(PortingError, match=r"Give a name: --out .*/out/model\.ckpt"):
        export(weights, tmp_path / "out")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = saved(tmp_path, hollow(SMALL, 3))
    out = tmp_path / "a" / "b" / "model.ckpt"
    assert main(["--weights", str(weights), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"  # the prefix, as TensorFlow takes it
    assert said.err.startswith(f"{SMALL}, 3 classes: 422 variables, read back bit for bit\n")
    (command,) = (line for line in README.splitlines() if line.startswith("python -m porting.export"))
    assert parser().parse_args(command.split()[3:]).out == "back/model.ckpt"
    assert main(["--weights", str(tmp_path / "none.pth"), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none.pth: missing: no such file")
