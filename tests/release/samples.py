"""Folders of ported weights as a port leaves them, but tiny: a few tensors stand for a network."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from models.info import get_info
from porting import artifact
from porting.report import schema
from porting.report.files import as_text

UPSTREAM = {
    "xception": "https://github.com/fchollet/deep-learning-models/releases/tag/v0.4",
    "xception65": "https://github.com/tensorflow/models/blob/master/research/deeplab/g3doc/model_zoo.md",
}
EVALUATION = {"top1": 79.56, "top5": 94.66, "loss": 0.98, "images": 50000, "unreadable": 0, "data": "ILSVRC2012 val"}


def state(seed: int) -> dict[str, torch.Tensor]:
    """Ten learned numbers and a running mean."""
    chance = torch.Generator().manual_seed(seed)
    return {
        "conv1.weight": torch.randn(2, 1, 2, 2, generator=chance),
        "bn1.running_mean": torch.randn(2, generator=chance),
        "fc.bias": torch.randn(2, generator=chance),
    }


def add(
    folder: Path,
    arch: str = "xception65",
    seed: int = 0,
    formats: Sequence[str] = ("pth",),
    report: bool = False,
    **changes: Any,
) -> str:
    """Put weights into a folder, with their manifest; returns its stem.

    Args:
        report: whether a parity report lies beside it.
        changes: fields of the manifest, `a__b` for `a.b`.
    """
    tensors = state(seed)
    files: list[dict[str, Any]] = []
    stem = ""
    for kind in formats:
        data = _packed(kind, tensors)
        digest = hashlib.sha256(data).hexdigest()
        base = f"{'tf_xception_' if arch[8:] else 'xception'}{arch[8:]}-{digest[:8]}"
        stem = stem or (f"{base}.hf" if kind == "hf" else base)
        contents = {f"{base}.{kind}": data}
        if kind == "hf":
            contents = {f"{base}/model.safetensors": data, f"{base}/config.json": b"{}\n"}
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            files.append({"name": name, "format": kind, "bytes": len(content), "sha256": digest})
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "arch": arch,
        "num_classes": 1000,
        "variant": {"folded": False, "dtype": "float32", "bn_eps": 0.001},
        "head": {"kind": "dense", "activation": None, "background_dropped": True, "layers": []},
        "labels": None,
        "source": {"kind": "tf-checkpoint-v2", "name": "model.ckpt", "digest": "ab" * 32, "synthetic": False},
        "mapped": 3,
        "unread": [{"name": "global_step", "reason": "global step"}],
        "parity": {
            "verdict": "verified",
            "reference": "the graph beside the checkpoint, executed",
            "bound": 1e-10,
            "worst": {"layer": f"{arch}/block3/conv", "error": 3.1e-14},
        },
        "notes": ["The file's first BatchNorm has an epsilon of its own."],
        "files": files,
        "content_digest": artifact.content_digest(tensors),
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "preprocessing": {
            "input_size": [3, 299, 299],
            "interpolation": "bicubic",
            "crop_pct": 0.903,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "source": "published",
        },
        "licence": get_info(arch).licence,
        "upstream": UPSTREAM.get(arch, get_info(arch).upstream),
    }
    change(manifest, changes)
    write_json(folder / f"{stem}.json", manifest)
    if report:
        (folder / f"{stem}.report.json").write_text(as_text(report_of(manifest)), encoding="utf-8")
    return stem


def _packed(kind: str, tensors: dict[str, torch.Tensor]) -> bytes:
    if kind == "pth":
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        return buffer.getvalue()
    return save(tensors, metadata={"format": "pt"})


def change(manifest: dict[str, Any], changes: dict[str, Any]) -> None:
    """Replace fields of a manifest, named `a__b` for `a.b`."""
    for name, value in changes.items():
        *path, last = name.split("__")
        place = manifest
        for key in path:
            place = place[key]
        place[last] = value


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def edit(path: Path, **changes: Any) -> None:
    """Replace fields of a manifest or an index on disk."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value, changes)
    write_json(path, value)


def report_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """A report of three layers, for a manifest."""
    layers = [
        {
            "layer": f"layer/{number}",
            "module": f"blocks.{number}.conv",
            "run": 0,
            "shape": [1, 10, 10, 8],
            "error": 10.0 ** -(14 + number),
            "bound": 1e-10,
            "passed": True,
            "index": [0, 0, 0, number],
            "found": 1.0,
            "expected": 1.0,
            "float32": None,
        }
        for number in range(3)
    ]
    return schema.check(
        {
            "schema_version": 1,
            "verdict": "verified",
            "arch": manifest["arch"],
            "weights": {
                "file": manifest["files"][0]["name"],
                "sha256": manifest["files"][0]["sha256"],
                "content_digest": manifest["content_digest"],
                "parameters": 3,
                "differing": 0,
                "variant": manifest["variant"],
            },
            "source": {key: manifest["source"][key] for key in ("name", "kind", "digest", "synthetic")},
            "reference": "the graph beside the checkpoint, executed",
            "runs": [
                {
                    "size": [299, 299],
                    "output_stride": 32,
                    "input": "image",
                    "worst": {"layer": "layer/0", "error": 1e-14},
                    "differing": 0,
                }
            ],
            "layers": layers,
            "faulty": [],
            "notes": [],
            "versions": {"torch": "2.13.0"},
        }
    )


def mixed(folder: Path) -> Path:
    """A folder with one of everything: formats, variants, networks, a report, an evaluation, untrusted text."""
    folder.mkdir(parents=True, exist_ok=True)
    add(folder, "xception65", 1, ("pth", "safetensors"), report=True, evaluation=EVALUATION)
    add(folder, "xception65", 2, variant__folded=True)
    add(folder, "xception41", 3, variant__dtype="float16")
    add(folder, "xception41", 4, ("hf",), num_classes=3, upstream="unknown", licence="unknown", labels=["a", "b", "c"])
    add(folder, "xception", 5, variant__bn_eps=1e-5)
    return folder


HOSTILE = '"><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\u202e`rm -rf ~`$(id)\x1b]'


def hostile(folder: Path) -> Path:
    """Weights whose manifest is full of what a page must not run."""
    folder.mkdir(parents=True, exist_ok=True)
    source = {"kind": HOSTILE, "name": HOSTILE, "digest": "ab" * 32, "synthetic": True}
    parity = {"verdict": "unverified", "worst": HOSTILE, "bound": HOSTILE}
    add(
        folder,
        "xception65",
        6,
        source=source,
        parity=parity,
        licence=HOSTILE,
        upstream="javascript:alert(3)//" + HOSTILE,
        notes=[HOSTILE],
        labels=[HOSTILE] * 1000,
        versions={HOSTILE: HOSTILE},
        head={"kind": "dense", "activation": HOSTILE},
        evaluation={**EVALUATION, "data": HOSTILE, "extra": HOSTILE},
        preprocessing={"input_size": [3, 299, 299], "interpolation": HOSTILE, "crop_pct": 0.9},
    )
    add(folder, "xception41", 7, upstream="https://example.org/<script>?a=\"'b", parity={"verdict": "unverified"})
    return folder
