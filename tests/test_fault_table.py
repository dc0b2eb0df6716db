"""The README's table of faults says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from porting.errors import ErrorKind

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Errors\n") : README.index("## Safety\n")]
ROWS = [line.split(" | ") for line in SECTION.splitlines() if line.startswith("| ")][1:]
CODE = "\n".join(path.read_text() for folder in ("porting", "models") for path in (ROOT / folder).rglob("*.py"))
KINDS = {kind.value for kind in ErrorKind}


def unsaid(cell: str) -> list[str]:
    """Parts of a quoted message that no line of the code holds; kinds are put before them by one."""
    (message,) = re.findall(r"`([^`]+)`", cell)
    message = message.removeprefix("stdout: ")
    kind, _, rest = message.partition(": ")
    if kind in KINDS:
        message = rest
    # What stands between two parts is filled in, and so are a message's subject and its two ends.
    parts = [
        part for piece in message.split("…") for part in re.split(r"\b(?:download|sha256|expected|found)\b", piece)
    ]
    return [part for part in (part.strip(" :,") for part in parts) if part and part not in CODE]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| ")[:40])
def test_what_is_said(row: list[str]) -> None:
    _, cell, _ = row
    assert "`" not in cell or unsaid(cell) == []
    assert ("exit" in cell) is (cell != "nothing")
    assert set(map(int, re.findall(r"exit (\d+)", cell))) <= {0, 1, 130}


def test_every_kind_has_a_row_and_a_wrong_one_is_seen() -> None:
    assert {kind for kind in KINDS if any(f"`{kind}: " in row[1] for row in ROWS)} == KINDS
    assert unsaid("`output: cannot be written, ever: …`; exit 1") == ["cannot be written, ever"]
