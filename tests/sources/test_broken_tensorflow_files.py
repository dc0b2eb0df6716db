"""Every broken file must produce exactly the text that `broken_files.txt` has for it (F stands for the folder)."""

from __future__ import annotations

from pathlib import Path

import pytest

from porting.errors import PortingError
from porting.sources import open_source
from tests.sources import broken_bundles, broken_graphs, broken_paths, broken_tables

assert broken_bundles and broken_graphs and broken_tables  # importing them fills the table of files


def _expected() -> dict[str, str]:
    text = Path(__file__).with_name("broken_files.txt").read_text(encoding="utf-8")
    sections = [section.partition("\n") for section in text.removeprefix("## ").split("\n## ")]
    return {name: body.rstrip("\n") for name, _, body in sections}


EXPECTED = _expected()


def test_the_table_is_whole() -> None:
    assert sorted(EXPECTED) == sorted(broken_paths.FILES)
    assert all(EXPECTED.values())


@pytest.mark.parametrize("name", broken_paths.FILES)
def test_broken_file(name: str, tmp_path: Path) -> None:
    path = broken_paths.FILES[name](tmp_path)
    texts = []
    try:
        with open_source(path) as source:
            try:
                source.verify_files()
            except PortingError as error:
                texts.append(f"verify: {error}")
            for tensor in source.specs:
                try:
                    source.read(tensor)
                except PortingError as error:
                    texts.append(str(error))
    except PortingError as error:
        texts.append(str(error))
    assert "\n".join(texts).replace(str(tmp_path), "F") == EXPECTED[name]


def test_the_whole_file_reads(tmp_path: Path) -> None:
    """What every broken bundle was made from is itself in order."""
    with open_source(broken_paths.two().write(tmp_path / "model.ckpt")) as source:
        source.verify_files()
        assert {name: source.read(name).tolist() for name in source.specs} == {
            "a/weights": broken_paths.ONES.tolist(), "b/biases": broken_paths.MORE.tolist()
        }  # fmt: skip
