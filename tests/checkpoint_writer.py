"""Has TensorFlow write variants of the golden checkpoints: `python -m tests.checkpoint_writer FOLDER`.

A program of its own, because TensorFlow does not belong in the process that runs the tests. Each variant becomes
FOLDER/VARIANT/model.ckpt: the golden weights of an aligned network, xception41 unless its name says else, with one
thing changed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.golden import recipe
from tests.golden_files import golden, variable_shapes

Array = npt.NDArray[Any]
Variables = dict[str, Array]

SMALL = "xception41"
UNIT = "xception_41/middle_flow/block1/unit_3/xception_module"
KERNEL = f"{UNIT}/separable_conv2_pointwise/weights"
VARIANCE = f"{UNIT}/separable_conv2_pointwise/BatchNorm/moving_variance"
SHADOW = "ExponentialMovingAverage"


def golden_variables(arch: str, seed_offset: int = 0) -> Variables:
    """The golden weights under TensorFlow's names; another offset gives other weights of the same scale."""
    return dict(_golden_variables(arch, seed_offset))


@lru_cache(2)
def _golden_variables(arch: str, seed_offset: int) -> Variables:
    seed = int(golden(arch)["seed"]) + seed_offset
    return {name: recipe.variable(seed, name, shape) for name, shape in variable_shapes(arch).items()}


def write_variants(folder: Path) -> None:
    """Run this program; each variant is then at `folder / variant / "model.ckpt"`."""
    command = [sys.executable, "-m", "tests.checkpoint_writer", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _golden(arch: str) -> Callable[[], Variables]:
    return lambda: golden_variables(arch)


def _changed(**changes: Callable[[Variables], None]) -> dict[str, Callable[[], Variables]]:
    def variant(change: Callable[[Variables], None]) -> Variables:
        variables = golden_variables(SMALL)
        change(variables)
        return variables

    return {name: lambda change=change: variant(change) for name, change in changes.items()}


def _ema(variables: Variables) -> None:
    """Shadows of what is trained, as tf.train.ExponentialMovingAverage makes them, of other values."""
    for name, value in golden_variables(SMALL, seed_offset=100).items():
        if not name.endswith(("moving_mean", "moving_variance")):
            variables[f"{name}/{SHADOW}"] = value


def _classes21(variables: Variables) -> None:
    for leaf in ("weights", "biases"):
        variables[f"xception_41/logits/{leaf}"] = variables[f"xception_41/logits/{leaf}"][..., 300:321]


def _headless(variables: Variables) -> None:
    for leaf in ("weights", "biases"):
        del variables[f"xception_41/logits/{leaf}"]


def _set(name: str, value: float, dtype: str = "float32") -> Callable[[Variables], None]:
    def change(variables: Variables) -> None:
        variables[name] = variables[name].astype(dtype)  # a copy: the golden ones are shared
        variables[name].reshape(-1)[7] = value

    return change


def _missing(variables: Variables) -> None:
    del variables[KERNEL], variables[VARIANCE]


def _extra(variables: Variables) -> None:
    variables[f"{UNIT}/separable_conv4_pointwise/weights"] = np.zeros((1, 1, 728, 728), np.float32)


def _shape(variables: Variables) -> None:
    variables[KERNEL] = variables[KERNEL][..., :700]


def _transposed(variables: Variables) -> None:
    name = f"{UNIT}/separable_conv2_depthwise/depthwise_weights"
    variables[name] = np.ascontiguousarray(variables[name].transpose(0, 1, 3, 2))


def _integers(variables: Variables) -> None:
    variables[VARIANCE] = (variables[VARIANCE] * 100).astype(np.int32)


VARIANTS: dict[str, Callable[[], Variables]] = {
    "golden41": _golden("xception41"),
    "golden71": _golden("xception71"),
    "partitioned": _golden(SMALL),
    "sharded": _golden(SMALL),
    **_changed(
        ema=_ema, classes21=_classes21, headless=_headless, missing=_missing, extra=_extra, shape=_shape,
        transposed=_transposed, integers=_integers, nan=_set(KERNEL, np.nan), infinite=_set(VARIANCE, -np.inf),
        overflow=_set(KERNEL, 1e300, "float64"),
    ),
}  # fmt: skip


def _save(tf: Any, prefix: Path, variables: Variables, partitions: int = 1) -> None:
    names, slices, tensors = [], [], []
    for name, value in variables.items():
        if partitions == 1 or value.ndim != 4 or value.shape[3] < partitions:
            parts = [("", value)]
        else:
            whole, at, parts = " ".join(map(str, value.shape)), 0, []
            for part in np.array_split(value, partitions, axis=3):
                height, width, inputs, outputs = part.shape
                parts.append((f"{whole} 0,{height}:0,{width}:0,{inputs}:{at},{outputs}", part))
                at += outputs
        for where, part in parts:
            names.append(name)
            slices.append(where)
            tensors.append(tf.constant(part))
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=slices, tensors=tensors)


def _save_sharded(tf: Any, prefix: Path, variables: Variables, shards: int) -> None:
    parts = [prefix.with_name(f"part{n}") for n in range(shards)]
    names = list(variables)
    for n, part in enumerate(parts):
        _save(tf, part, {name: variables[name] for name in names[n::shards]})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=list(map(str, parts)), destination_prefix=str(prefix), delete_old_dirs=False
    )


def main(folder: Path) -> None:
    import tensorflow as tf

    for name, variables in VARIANTS.items():
        prefix = folder / name / "model.ckpt"
        prefix.parent.mkdir()
        if name == "sharded":
            _save_sharded(tf, prefix, variables(), 3)
        else:
            _save(tf, prefix, variables(), 3 if name == "partitioned" else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
