"""What a training run leaves in its folder: the checkpoint that resumes it, its metrics, and the weights at its end."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from models.errors import ModelError
from models.processes import Share
from models.scratch import give_name, scratch_file
from models.settings import check_same_settings
from models.training import Recipe, Run, restore, snapshot
from models.weights import Weights

CHECKPOINT, METRICS = "checkpoint.pt", "metrics.jsonl"


@contextmanager
def _output(folder: Path) -> Iterator[IO[bytes]]:
    """A file in `folder` that is gone afterwards, unless it was renamed.

    Raises:
        ModelError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_file(folder) as file:
            yield file
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _put(file: IO[bytes], path: Path) -> None:
    """Let a finished temporary file appear as `path`, whole."""
    file.flush()
    os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(file.fileno(), 0o666 & ~mask)
    give_name(file, path)


def _save(value: Any, file: IO[bytes]) -> None:
    try:
        torch.save(value, file)
    except RuntimeError as error:  # so torch reports a write that failed, or met Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise OSError(str(error).splitlines()[0]) from error


def write_checkpoint(out: Path, run: Run, settings: dict[str, Any]) -> None:
    with _output(out) as file:
        _save({"settings": settings, **snapshot(run)}, file)
        _put(file, out / CHECKPOINT)


def read_checkpoint(path: Path, run: Run, settings: dict[str, Any], share: Share) -> None:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        then = dict(saved["settings"])
        if then == settings:
            restore(run, saved, share)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a checkpoint of such a run; move it away, or choose another --out") from error
    check_same_settings(path, then, settings, "a run with other settings; repeat those, or choose another --out")


def write_metrics(out: Path, run: Run) -> None:
    """Write every epoch's line again: after a resume, those after the checkpoint are not the run's."""
    with _output(out) as file:
        file.write("".join(json.dumps(epoch) + "\n" for epoch in run.history).encode())
        _put(file, out / METRICS)


def write_weights(out: Path, run: Run, source: Weights | None, recipe: Recipe, head: dict[str, Any]) -> Path:
    """The trained weights under their digest, and the manifest that says how to use them."""
    network = run.trained
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    licence = upstream = "unknown"
    if source is not None and source.manifest is not None:
        entry = json.loads(source.manifest.path.read_text(encoding="utf-8"))
        licence, upstream = (entry.get(name) or "unknown" for name in ("licence", "upstream"))
    with _output(out) as file:
        _save(state, file)
        file.flush()
        digest = hashlib.sha256(Path(file.name).read_bytes()).hexdigest()
        path = out / f"{network.info.name}-{digest[:8]}.pth"
        size = Path(file.name).stat().st_size
        _put(file, path)
    manifest = {
        "schema_version": 1,
        "arch": network.info.name,
        "num_classes": network.num_classes,
        "variant": {"folded": False, "dtype": "float32", "bn_eps": 1e-3},
        "head": head,
        "labels": network.labels,
        "source": {"kind": "training", "name": source.path.name if source else "scratch", "synthetic": False},
        "training": {"recipe": asdict(recipe), "last_epoch": run.history[-1]},
        "parity": {"verdict": "unverified"},
        "files": [{"name": path.name, "format": "pth", "bytes": size, "sha256": digest}],
        "preprocessing": {**asdict(network.preprocessing), "source": "training"},
        "licence": licence,
        "upstream": upstream,
    }
    with _output(out) as file:
        file.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
        _put(file, path.with_suffix(".json"))
    return path
