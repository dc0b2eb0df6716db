"""Sources as plans see them, built from the golden files' names and shapes; damage is up to each test."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from porting.errors import ErrorKind, PortingError
from porting.plan import Contents, Options, Plan, build_plan
from porting.rules import Shape
from porting.sources.base import TensorSpec
from tests.golden_files import ARCHS, variable_shapes

ALIGNED = ARCHS[1:]
FILE = "model.ckpt"
SHADOW = "/ExponentialMovingAverage"
LAST_NORM = "xception_41/exit_flow/block2/unit_1/xception_module/separable_conv3_pointwise/BatchNorm"


def of(shapes: Mapping[str, Shape], dtypes: Mapping[str, str] | None = None) -> Contents:
    dtypes = dtypes or {}
    return Contents(
        FILE, {name: TensorSpec(name, dtypes.get(name, "float32"), shape) for name, shape in shapes.items()}
    )


def head_of(arch: str) -> tuple[str, str]:
    """The last two variables of the original implementation: weights and biases of the classifier."""
    weights, biases = list(variable_shapes(arch))[-2:]
    return weights, biases


def with_classes(arch: str, classes: int) -> dict[str, Shape]:
    shapes = variable_shapes(arch)
    weights, biases = head_of(arch)
    return {**shapes, weights: (*shapes[weights][:-1], classes), biases: (classes,)}


def headless(arch: str) -> dict[str, Shape]:
    return dict(list(variable_shapes(arch).items())[:-2])


def trained(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The variables that an optimizer updates, and TensorFlow averages."""
    return {name: shape for name, shape in shapes.items() if "/moving_" not in name}


def refusal(contents: Contents, arch: str, options: Options = Options()) -> PortingError:  # noqa: B008 - frozen
    with pytest.raises(PortingError) as raised:
        build_plan(contents, arch, options)
    assert raised.value.kind is ErrorKind.MISMATCH
    assert raised.value.file == FILE
    assert raised.value.defects
    assert raised.value.remedy
    return raised.value


def reasons(plan: Plan) -> dict[str, str]:
    return {item.name: item.reason for item in plan.unread}


def averaged(arch: str) -> dict[str, Shape]:
    """As tf.train.ExponentialMovingAverage leaves a checkpoint: shadows of what is trained, statistics plain."""
    shapes = variable_shapes(arch)
    return shapes | {name + SHADOW: shape for name, shape in trained(shapes).items()}
