"""Files as Keras writes them, made by Keras itself (slow, once a session) or by h5py, name for name (fast)."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

WRITER = Path(__file__).with_name("keras_writer.py")
CONFIG = {"class_name": "Functional", "config": {"name": "tiny", "layers": []}, "module": "keras"}


def keras_writes(folder: Path) -> None:
    """Every format, with the values that Keras holds beside it; TensorFlow stays out of this process."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, WRITER, folder], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def legacy_h5(
    target: Path | io.BytesIO,
    layers: Mapping[str, Mapping[str, Any]],
    root: str = "",
    edit: Callable[[h5py.File], None] | None = None,
    **storage: Any,
) -> None:
    """Write layers as Keras 1 and 2 do: a group a layer, `layer_names` and `weight_names` as fixed-length bytes."""
    with h5py.File(target, "w") as file:
        group = file.require_group(root) if root else file
        group.attrs["layer_names"] = np.array([name.encode() for name in layers])
        for layer, weights in layers.items():
            inner = group.create_group(layer)
            inner.attrs["weight_names"] = np.array([name.encode() for name in weights])
            for name, value in weights.items():
                inner.create_dataset(name, data=value, **storage)
        if edit:
            edit(file)


def weights_h5(target: Path | io.BytesIO, edit: Callable[[h5py.File], None] | None = None) -> None:
    """Write two layers as Keras 3's `.weights.h5` has them."""
    with h5py.File(target, "w") as file:
        for name, value in {
            "layers/dense/vars/0": (3, 2),
            "layers/dense/vars/1": (2,),
            "layers/conv2d/vars/0": (9,),
        }.items():
            file[name] = np.arange(np.prod(value), dtype="float32").reshape(value) + len(name)
        file["layers/dense/vars"].attrs["name"] = "predictions"
        if edit:
            edit(file)


def keras_zip(path: Path, members: Iterable[tuple[str, bytes]] | None = None, method: int = zipfile.ZIP_STORED) -> None:
    """Write a `.keras` file; `members` replaces the three that Keras writes."""
    if members is None:
        weights = io.BytesIO()
        weights_h5(weights)
        members = [
            ("metadata.json", b"{}"), ("config.json", json.dumps(CONFIG).encode()),
            ("model.weights.h5", weights.getvalue()),
        ]  # fmt: skip
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, method)


def keras1_layers(seed: int = 0) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """The official Keras 1 file's names, all 236 of them, at a few values each.

    The order of the layers is the file's: each block's shortcut comes before what it bypasses, as Keras 1 counted them.
    """
    rng = np.random.default_rng(seed)
    layers: dict[str, dict[str, np.ndarray[Any, Any]]] = {"input_1": {}}
    count = {"convolution2d": 0, "separableconvolution2d": 0, "batchnormalization": 0}

    def add(kind: str, **shapes: tuple[int, ...]) -> None:
        count[kind] += 1
        layer = f"{kind}_{count[kind]}"
        layers[layer] = {f"{layer}_{n}:0": rng.normal(size=s).astype("float32") for n, s in shapes.items()}

    def norm() -> None:
        add("batchnormalization", gamma=(2,), beta=(2,), running_mean=(2,), running_std=(2,))

    def separable() -> None:
        add("separableconvolution2d", depthwise_kernel=(3, 3, 2, 1), pointwise_kernel=(1, 1, 2, 2))
        norm()

    for _ in range(2):
        add("convolution2d", W=(3, 3, 2, 2))
        norm()
    for block in range(2, 15):
        if block in (2, 3, 4, 13):
            add("convolution2d", W=(1, 1, 2, 2))
            norm()
        for _ in range(2 if block in (2, 3, 4, 13, 14) else 3):
            separable()
    layers["dense_2"] = {
        "dense_2_W:0": rng.normal(size=(2, 5)).astype("float32"),
        "dense_2_b:0": np.zeros(5, "float32"),
    }
    return layers
