"""Sources that several test files share, written once a session by TensorFlow in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from porting.reference import Reference

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def synthetic_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`synthetic_source(arch)`: what `--src synthetic` ports, kept for the session (seed 0); written on first use."""
    written: dict[str, Path] = {}

    def source(arch: str) -> Path:
        if arch not in written:
            folder = tmp_path_factory.mktemp(f"synthetic-{arch}")
            with Reference("synthetic") as reference:
                written[arch] = reference.synthesize(arch, 0, folder)
        return written[arch]

    return source
