"""The table of published weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from porting.errors import PortingError
from porting.sources import download, official


def test_the_table() -> None:
    table = official.official_sources()
    assert list(table) == ["xception", "xception41", "xception65", "xception71"]
    for arch, source in table.items():
        assert source == download.official(arch) and source.arch == arch
        assert source.url.startswith("https://") and source.upstream.startswith("https://github.com/")
        assert re.fullmatch(r"MIT|Apache-2\.0", source.licence)
    # Published beside the file: github.com/fchollet/deep-learning-models, release v0.4.
    assert (table["xception"].bytes, (table["xception"].sha256 or "")[:8]) == (91_884_032, "c5bf1c05")


def test_the_table_is_one_file() -> None:
    root = Path(__file__).parents[3]
    assert (root / "porting/sources/sources.toml").read_bytes() == (root / "checkpoints/sources.toml").read_bytes()


def test_a_network_without_published_weights() -> None:
    with pytest.raises(PortingError) as caught:
        download.official("resnet50")
    assert str(caught.value) == (
        "resnet50: unsupported: no published weights are known\nKnown: xception, xception41, xception65, xception71."
    )


@pytest.mark.parametrize(
    "text",
    (
        '[a]\nurl = "u"\nlicence = "l"',
        '[a]\nurl = "u"\nlicence = "l"\nupstream = "p"\nmd5 = "1"',
        '[a]\nurl = "u"\nlicence = "l"\nupstream = "p"\nsha256 = "12"',
    ),
)
def test_a_wrong_table(text: str) -> None:
    with pytest.raises(ValueError, match=r"sources\.toml: \[a\]"):
        official.parse_sources(text)


def test_importing_is_light() -> None:
    code = "import sys, porting.sources.download; print([m for m in ('torch', 'h5py', 'requests') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
