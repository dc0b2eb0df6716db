"""What a user may ask of the command, and what it does when asked twice."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import create_model
from porting import PortingError, PortResult, port
from porting.convert import main, sources
from porting.manifest import read_labels, report_path
from porting.reference import shared
from tests.checkpoint_writer import KERNEL, SHADOW, golden_variables
from tests.commands import ROOT, convert, convert_command

ARCH = "xception41"
STACKED = "blocks.5.stack.conv2"  # entry flow 0..2, so middle flow's unit 3
Source = Callable[[str], Path]


def quick(src: object, out: Path, **options: Any) -> PortResult:
    return port(str(src), ARCH, out=out, verify=False, **options)


def state_of(result: PortResult) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(result.path, weights_only=True)
    return state


# --- what may be asked ----------------------------------------------------------------------------------------------


def test_prefix_index_and_folder_are_one_source(variant: Callable[[str], Path], tmp_path: Path) -> None:
    prefix = variant("golden41")
    # A folder with a `checkpoint` file, which names one of two prefixes, and one without.
    several = tmp_path / "several"
    several.mkdir()
    for stem in ("model.ckpt-7", "model.ckpt-8"):
        for ending in (".index", ".data-00000-of-00001"):
            os.link(f"{prefix}{ending}", several / f"{stem}{ending}")
    (several / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\nall_model_checkpoint_paths: "x"\n')
    out = tmp_path / "out"
    results = [quick(src, out) for src in (prefix, f"{prefix}.index", prefix.parent, several)]
    assert len({result.path for result in results}) == 1
    assert len({result.manifest["source"]["digest"] for result in results}) == 1
    names = [result.manifest["source"]["name"] for result in results]  # as each was given
    assert names == ["model.ckpt", "model.ckpt.index", "golden41", "several"]


@pytest.mark.parametrize("name", ["partitioned", "sharded"])
def test_slices_and_shards_are_put_together(variant: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    whole = quick(variant("golden41"), tmp_path / "whole")
    parts = quick(variant(name), tmp_path / "parts")
    assert parts.manifest["content_digest"] == whole.manifest["content_digest"]
    assert parts.manifest["source"]["digest"] != whole.manifest["source"]["digest"]


@pytest.mark.usefixtures("one_reference")
def test_shadows_are_taken_only_when_asked(variant: Callable[[str], Path], tmp_path: Path) -> None:
    plain, shadowed = golden_variables(ARCH), golden_variables(ARCH, seed_offset=100)
    default = quick(variant("ema"), tmp_path / "default")
    assert default.manifest["content_digest"] == quick(variant("golden41"), tmp_path).manifest["content_digest"]
    assert any("--ema" in note for note in default.notes)
    reasons = {item["name"]: item["reason"] for item in default.manifest["unread"]}
    assert "ExponentialMovingAverage" in reasons[f"{KERNEL}/{SHADOW}"]

    result = quick(variant("ema"), tmp_path, ema=True)
    state = state_of(result)
    np.testing.assert_array_equal(
        state[f"{STACKED}.conv_pw.weight"][:, :, 0, 0].numpy(), shadowed[KERNEL][0, 0].transpose()
    )
    norm = KERNEL.replace("weights", "BatchNorm")
    np.testing.assert_array_equal(state[f"{STACKED}.bn_pw.weight"].numpy(), shadowed[f"{norm}/gamma"])
    # The writer averaged what is trained; statistics have no shadows, so theirs are the plain ones.
    np.testing.assert_array_equal(state[f"{STACKED}.bn_pw.running_var"].numpy(), plain[f"{norm}/moving_variance"])
    reasons = {item["name"]: item["reason"] for item in result.manifest["unread"]}
    assert "--ema" in reasons[KERNEL]

    with pytest.raises(PortingError, match="--ema: no ExponentialMovingAverage variables"):
        quick(variant("golden41"), tmp_path / "none", ema=True)


def test_heads_of_any_class_count(variant: Callable[[str], Path], tmp_path: Path) -> None:
    result = quick(variant("classes21"), tmp_path)
    assert result.manifest["num_classes"] == 21 and not result.manifest["head"]["background_dropped"]
    raw = golden_variables(ARCH)["xception_41/logits/weights"][0, 0, :, 300:321]
    np.testing.assert_array_equal(state_of(result)["head.fc.weight"].numpy(), raw.T)
    model = create_model(ARCH, pretrained=result.path).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 97, 97)).shape == (1, 21)


def test_backbone_only_leaves_the_classifier_out(variant: Callable[[str], Path], tmp_path: Path) -> None:
    result = quick(variant("golden41"), tmp_path, backbone_only=True)
    assert result.manifest["num_classes"] == 0 and result.manifest["head"]["kind"] == "none"
    assert {item["reason"] for item in result.manifest["unread"]} == {"classifier, left out by --backbone-only"}
    create_model(ARCH, num_classes=0).load_state_dict(state_of(result), strict=True)
    # The same backbone from a checkpoint that never had a classifier, which is refused without the option.
    headless = quick(variant("headless"), tmp_path, backbone_only=True)
    assert headless.path == result.path
    with pytest.raises(PortingError, match="--backbone-only"):
        quick(variant("headless"), tmp_path / "none")


LABELS = [f"class {n}, the {n}th" for n in range(21)]


def test_labels_and_origin_go_into_the_manifest(variant: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text("\n".join(LABELS) + "\n")
    result = quick(variant("classes21"), tmp_path, labels=file, licence="CC0-1.0", upstream="https://example.org/w")
    assert result.manifest["labels"] == LABELS
    assert (result.manifest["licence"], result.manifest["upstream"]) == ("CC0-1.0", "https://example.org/w")
    # What was once given stays until something else is.
    again = quick(variant("classes21"), tmp_path, licence="MIT")
    assert again.manifest["labels"] == LABELS
    assert (again.manifest["licence"], again.manifest["upstream"]) == ("MIT", "https://example.org/w")


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(LABELS) + "\n",
        "\r\n".join(LABELS),
        json.dumps(LABELS),
        json.dumps({str(n): label for n, label in enumerate(LABELS)}),
        json.dumps({str(n): [f"n{n:08}", label] for n, label in enumerate(LABELS)}),
    ],
    ids=["lines", "dos lines", "list", "object", "synsets"],
)
def test_labels_in_every_form(tmp_path: Path, text: str) -> None:
    file = tmp_path / "labels"
    file.write_bytes(text.encode())
    assert read_labels(file, len(LABELS)) == LABELS


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--src", "x"],
        ["--src", "x", "--arch", "xception42"],
        ["--src", "x", "--arch", ARCH, "--quietly"],
        ["--src", "x", "--arch", ARCH, "stray"],
        ["--src", "x", "--arch", ARCH, "--fast", "--no-verify"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.startswith("usage: python -m porting.convert")


def test_the_api_refuses_an_unknown_arch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"xception41, xception65, xception71 or auto, found 'xception42'"):
        port("x", "xception42", out=tmp_path)


def test_the_package_lists_its_commands() -> None:
    listing = subprocess.run([sys.executable, "-m", "porting"], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = re.findall(r"python -m (porting\.\w+)  +\S", listing.stdout)
    assert "porting.convert" in commands
    for command in commands:
        done = subprocess.run([sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m {command}")


def test_a_bar_on_a_terminal(variant: Callable[[str], Path], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()  # of no size, as some terminals are
    command = convert_command("--src", variant("golden41"), "--arch", ARCH, "--out", tmp_path, "--no-verify")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # Linux's way to say that the other end is closed
                break
            seen += chunk
        out, _ = process.communicate()
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\rreading: +\d+%\|.*\d+/422 \[", seen)
    assert b"UNVERIFIED" in seen
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/tf_xception_41-[0-9a-f]{{8}}\.pth\n", out)


# --- several at once ------------------------------------------------------------------------------------------------


def test_several_sources_are_ported_and_a_bad_one_does_not_stop_them(
    variant: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"nothing")
    sources = [variant("golden41"), bad, tmp_path / "*.none", variant("classes21"), variant("golden41")]
    options = ["--arch", "auto", "--no-verify", "--out", str(tmp_path / "out"), "--json"]
    assert main(["--src", *map(str, sources[:2]), "--src", *map(str, sources[2:]), *options]) == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(one["arch"], one["num_classes"]) for one in found] == [(ARCH, 1000), (ARCH, 21)]
    assert all(Path(one["path"]).is_file() for one in found)
    assert f"error: {bad}: " in err and f"error: {tmp_path / '*.none'}: missing" in err
    assert "2 of 4 sources failed" in err and "Traceback" not in err


def test_a_pattern_names_sources_in_order(tmp_path: Path) -> None:
    for name in ("b.h5", "a.h5", "[x].h5"):
        (tmp_path / name).touch()
    pattern, literal = f"{tmp_path}/?.h5", str(tmp_path / "[x].h5")
    assert sources([pattern, literal, pattern]) == [f"{tmp_path}/a.h5", f"{tmp_path}/b.h5", literal]
    assert sources(["none*"]) == ["none*"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_reference")
def test_several_sources_are_proved_and_auto_finds_each_network(
    variant: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--src", str(variant("golden41")), str(variant("classes21")), "--arch", "auto", "--fast",
                 "--out", str(tmp_path)]) == 0  # fmt: skip
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    verdicts = [json.loads(path.with_suffix(".json").read_text())["parity"]["verdict"] for path in paths]
    assert verdicts == ["verified", "verified"]


@pytest.mark.parametrize("source", ["official", "synthetic", "synthetic:3"])
def test_auto_needs_a_source_to_look_at(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--src", source, "--arch", "auto", "--out", str(tmp_path)]) == 1
    assert f"error: {source}: missing: there is one for each network" in capsys.readouterr().err


class _Process:
    """What SharedReference asks of TensorFlow's process."""

    def __init__(self, file: object, python: str | None) -> None:
        self.file, self.python, self.is_idle, self.closed = file, python, True, False

    def close(self) -> None:
        self.closed = True


def test_tensorflow_starts_once_and_anew_where_a_port_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "Reference", _Process)
    with shared.SharedReference("py") as references:
        assert references.process is None
        first: Any = references.take("a")
        assert references.take("b") is first
        assert (first.file, first.python, first.closed) == ("b", "py", False)
        first.is_idle = False
        second: Any = references.take("c")
        assert second is not first and first.closed and not second.closed
    assert second.closed and references.process is None


# --- asked twice ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_reference")
def test_a_verdict_is_raised_and_never_lowered(variant: Callable[[str], Path], tmp_path: Path) -> None:
    def run(**options: Any) -> tuple[PortResult, int, dict[str, Any]]:
        # Shadows, so that the proof shows as well that the reference takes them too.
        result = port(variant("ema"), ARCH, out=tmp_path, ema=True, **options)
        written = json.loads(result.path.with_suffix(".json").read_text())
        assert written == result.manifest
        return result, result.path.stat().st_ino, written["parity"]

    first, inode, parity = run(verify=False)
    assert parity == {"verdict": "unverified"}
    raised, same, parity = run()
    assert (raised.path, same) == (first.path, inode)  # recognised, not written again
    assert parity["verdict"] == "verified" and parity["worst"]["error"] < 1e-12
    assert raised.manifest["versions"]["tensorflow"]
    report = report_path(first.path).read_bytes()
    for less in ({"verify": False}, {"fast": True}):
        last, same, later = run(**less)
        assert (last.path, same) == (first.path, inode)
        assert later == parity and report_path(first.path).read_bytes() == report
    assert len(parity["runs"]) == 2 and len(last.traces) == 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".json", ".pth"]  # and the proof's report

    # A damaged file under the name is replaced by what the name says; its verdict belongs to the content, and stays.
    data = bytearray(first.path.read_bytes())
    data[len(data) // 2] ^= 1
    first.path.write_bytes(data)
    repaired, _, _ = run(verify=False)
    data[len(data) // 2] ^= 1
    assert repaired.path.read_bytes() == data


def test_an_unchanged_result_leaves_the_manifest_alone(variant: Callable[[str], Path], tmp_path: Path) -> None:
    first = quick(variant("golden41"), tmp_path)
    manifest = first.path.with_suffix(".json")
    before = manifest.stat()
    assert quick(variant("golden41"), tmp_path).path == first.path
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_out_defaults_to_checkpoints_below_the_working_folder(variant: Callable[[str], Path], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = convert(
        "--src", variant("classes21"), "--arch", ARCH, "--no-verify", "--json", cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["path"])
    assert path.parent == tmp_path / "checkpoints" and path.is_file()
