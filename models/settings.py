"""The settings of a long run, written beside its state: who goes on with it must mean the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import ModelError


def check_same_settings(path: Path, then: Mapping[str, Any], now: Mapping[str, Any], problem: str) -> None:
    """Compare the settings that a state was written under with those given now.

    Args:
        path: the state's file.
        problem: what it means that they differ, and what to do.

    Raises:
        ModelError: they differ; each that does, with both values.
    """
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if changed:
        found = "\n".join(f"  {name}: expected {then.get(name)}, found {now.get(name)}" for name in changed)
        raise ModelError(f"{path}: {problem}:\n{found}")
