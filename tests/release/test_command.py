"""The command: results on stdout, everything else on stderr, and its exit codes."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from porting.release.__main__ import main, parser
from tests.release import samples

ROOT = Path(__file__).parents[2]


def test_build_and_verify(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples.add(weights, "xception41")
    site = tmp_path / "site"
    assert main(["build", "--checkpoints", str(weights), "--out", str(site)]) == 0
    assert capsys.readouterr().out == f"{site}\n"
    assert main(["build", "--checkpoints", str(weights), "--out", str(site)]) == 0
    assert "nothing has changed" in capsys.readouterr().err
    assert main(["verify", str(site)]) == 0
    assert capsys.readouterr().out == f"verified: {site}\n"
    (site / "index.html").write_text("x")
    next((site / "weights").glob("*.json")).unlink()
    assert main(["verify", str(site)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"failed: {site}: ")
    assert any("index.html: expected" in line for line in out)
    assert any(".json: missing" in line for line in out)
    assert main(["verify", str(tmp_path / "none")]) == 1
    assert main(["build", "--checkpoints", str(tmp_path / "none"), "--out", str(site)]) == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["build"], ["build", "--out", "x", "--base-url", "ftp://x"], ["serve", "x", "--port", "70000"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_serve_shows_the_site_on_loopback_until_it_is_ended(mixed_site: Path) -> None:
    command = [sys.executable, "-m", "porting.release", "serve", str(mixed_site), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as response:
            assert response.read() == (mixed_site / "index.html").read_bytes()
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        for path in ("weights/", "../ported", "%2e%2e/mixed/"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{address}{path}")
            assert caught.value.code == 404
            caught.value.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_serve_needs_a_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path)]) == 1
    assert "index.html: missing" in capsys.readouterr().err


def test_the_readme_names_commands_that_there_are() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Publish a downloads page") : text.index("## The manifest")]
    commands = re.findall(r"^python -m porting\.release (.*)$", section, re.MULTILINE)
    assert [parser().parse_args(shlex.split(command)).command for command in commands] == ["build", "serve", "verify"]
    for option in re.findall(r"--[a-z-]+", section):
        assert option in parser_help(), option


def parser_help() -> str:
    """The help of every command."""
    (commands,) = (action for action in parser()._actions if isinstance(action.choices, dict))
    return "".join(command.format_help() for command in (commands.choices or {}).values())
