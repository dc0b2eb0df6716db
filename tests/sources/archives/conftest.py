"""A scratch folder that must be empty again, and files to pack."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import wire
from tests.sources.archives.archive_files import VALUES, Files
from tests.sources.keras_files import weights_h5


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where archives are unpacked in a test; nothing may be left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Files:
    folder = tmp_path / "made"
    wire.small_bundle({"net/weights": VALUES}).write(folder / "model.ckpt")
    files = {f"xception/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    return {**files, "xception/checkpoint": b'model_checkpoint_path: "model.ckpt"\n'}


@pytest.fixture
def h5(tmp_path: Path) -> bytes:
    content = io.BytesIO()
    weights_h5(content)
    return content.getvalue()
