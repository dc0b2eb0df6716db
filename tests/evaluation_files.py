"""Images of seven classes, some of them damaged, and weights with a manifest to evaluate on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import create_model
from porting import artifact

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
READABLE = 13


def write_images(folder: Path) -> None:
    """Two of each class, one of them cut short, and one more that is none."""
    random = np.random.default_rng(0)
    for name in LABELS:
        (folder / name).mkdir(parents=True)
        for number in range(2):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "cat" / "1.png").write_bytes((folder / "cat" / "0.png").read_bytes()[:500])
    (folder / "fox" / "2.JPEG").write_bytes(b"\xff\xd8 not a picture")


def write_weights(root: Path) -> None:
    """A network that gives different answers, at an input size that costs little."""
    torch.manual_seed(1)
    network: Any = create_model("xception", num_classes=len(LABELS))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of the one batch that follows
    with torch.no_grad():
        network(torch.rand(8, 3, 39, 39) * 2 - 1)
        network.fc.weight *= 30  # answers that differ
    with artifact.temporary_file(root) as file:
        artifact.write_state(file, network.state_dict())
        digest = artifact.file_digest(Path(file.name))
        path, _ = artifact.final_path(root, "xception", digest)
        artifact.publish({path: file})
    preprocessing = {
        "input_size": [3, 39, 39], "interpolation": "bilinear", "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    manifest = {
        "schema_version": 1,
        "arch": "xception",
        "num_classes": len(LABELS),
        "variant": {"folded": False, "dtype": "float32", "bn_eps": 1e-3},
        "head": {"kind": "dense", "activation": "softmax"},
        "labels": LABELS,
        "source": {"synthetic": False},
        "parity": {"verdict": "unverified"},
        "content_digest": "0" * 64,
        "files": [{"name": path.name, "format": "pth", "bytes": path.stat().st_size, "sha256": digest}],
        "preprocessing": preprocessing,
        "licence": "unknown",
        "upstream": "unknown",
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
