"""Broken and odd files of TensorFlow's containers, each built by a function that returns what to open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.sources import wire

Build = Callable[[Path], Path]
FILES: dict[str, Build] = {}

ONES = np.ones((2, 3), np.float32)
MORE = np.arange(4, dtype=np.float32)


def broken(build: Build) -> Build:
    FILES[build.__name__.strip("_").replace("_", " ")] = build
    return build


def two() -> wire.Bundle:
    return wire.small_bundle({"a/weights": ONES, "b/biases": MORE})


def shard(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".data-00000-of-00001")


def index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


# What is named is not a checkpoint.


@broken
def _missing_file(folder: Path) -> Path:
    return folder / "model.ckpt"


@broken
def _empty_folder(folder: Path) -> Path:
    (folder / "model.ckpt.meta").write_bytes(b"")
    return folder


@broken
def _folder_of_two_checkpoints(folder: Path) -> Path:
    two().write(folder / "model.ckpt-1")
    two().write(folder / "model.ckpt-2")
    return folder


@broken
def _checkpoint_file_names_nothing(folder: Path) -> Path:
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    return folder


@broken
def _checkpoint_file_without_a_path(folder: Path) -> Path:
    two().write(folder / "model.ckpt")
    (folder / "checkpoint").write_text("nothing here\n")
    return folder


@broken
def _checkpoint_file_with_two_paths(folder: Path) -> Path:
    (folder / "checkpoint").write_text('model_checkpoint_path: "a"\nmodel_checkpoint_path: "b"\n')
    return folder


@broken
def _checkpoint_file_with_a_null_byte(folder: Path) -> Path:
    (folder / "checkpoint").write_text('model_checkpoint_path: "a\\000b"\n')
    return folder


@broken
def _checkpoint_file_of_2_mib(folder: Path) -> Path:
    (folder / "checkpoint").write_bytes(b"#" * (2 << 20))
    return folder


@broken
def _data_file_for_the_prefix(folder: Path) -> Path:
    return shard(two().write(folder / "model.ckpt"))


@broken
def _missing_data_file(folder: Path) -> Path:
    return folder / "model.ckpt.data-00000-of-00001"


@broken
def _graph_for_the_prefix(folder: Path) -> Path:
    path = folder / "model.ckpt.meta"
    path.write_bytes(b"\x0a\x00")
    return path


@broken
def _index_under_another_name(folder: Path) -> Path:
    return index(two().write(folder / "model.ckpt")).rename(folder / "model.idx")


@broken
def _empty_file(folder: Path) -> Path:
    path = folder / "weights"
    path.write_bytes(b"")
    return path


@broken
def _text_file(folder: Path) -> Path:
    path = folder / "weights"
    path.write_bytes(b"node {\n}\n")
    return path


@broken
def _named_pipe(folder: Path) -> Path:
    import os

    path = folder / "weights"
    os.mkfifo(path)
    return path
