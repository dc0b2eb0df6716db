"""Keras sources that exist only in memory, their variables named as each generation of Keras names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from porting.keras_names import KerasContents, keras_contents
from porting.plan import Options, build_plan
from porting.sources.base import TensorSource, TensorSpec
from tests.golden_files import variable_shapes
from tests.keras_configurations import Config, layer

Shape = tuple[int, ...]
LEGACY, COUNTED, ZIPPED = "keras-h5", "keras-weights-h5", "keras-zip"
POOL = layer("GlobalAveragePooling2D", "avg_pool")
TOP = layer("Dense", "predictions", units=1000, activation="softmax")
NORMS = ("gamma", "beta", "moving_mean", "moving_variance")
LEAVES = {
    "Conv2D": ("kernel",),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel"),
    "BatchNormalization": NORMS,
    "Dense": ("kernel", "bias"),
    "Normalization": ("mean", "variance", "count"),
}
STORES = {  # as Keras spells these classes in its files
    "Conv2D": "conv2d",
    "SeparableConv2D": "separable_conv2d",
    "BatchNormalization": "batch_normalization",
    "Dense": "dense",
    "Functional": "functional",
    "Normalization": "normalization",
}


class Tensors(TensorSource):
    """A container in memory."""

    def __init__(
        self,
        container: str,
        shapes: Mapping[str, Shape],
        config: Config | None = None,
        values: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        self.path = Path("model")
        self.container = container
        self.specs = {name: TensorSpec(name, "float32", shape) for name, shape in shapes.items()}
        self.model_config = config
        self.values = values or {}

    def read(self, name: str) -> npt.NDArray[Any]:
        return self.values[name]

    def files(self) -> list[Path]:
        return [self.path]


@dataclass
class Stored:
    """The variables of a configuration as Keras stores them: own names with shapes, and which is what."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)  # vocabulary name to own name


def stored(config: Config, container: str, shift: int = 0, top: str = "predictions") -> Stored:
    """Own names by Keras's rules: `layers/<class>_<n>/vars/<i>`, or the layer's name twice in legacy files."""
    result = Stored()
    _store(result, config, container, "", "", shift, top)
    return result


def _store(result: Stored, model: Config, container: str, prefix: str, group: str, shift: int, top: str) -> None:
    counts: Counter[str] = Counter()
    for item in model["config"]["layers"]:
        kind, name = item["class_name"], item["name"]
        place = STORES.get(kind, "")
        if place:
            counts[place] += 1
            place += f"_{counts[place] - 1}" if counts[place] > 1 else ""
        if kind == "Functional":
            _store(result, item, container, f"{prefix}layers/{place}/", f"{name}/", shift, top)
        for index, leaf in enumerate(LEAVES.get(kind, ())):
            legacy = f"{group}{name}/{leaf}" if group else f"{name}/{name}/{leaf}"
            own = legacy if container == LEGACY else f"{prefix}layers/{place}/vars/{index}"
            vocabulary = f"{_unshifted(name, shift, top)}/{leaf}"
            shapes = variable_shapes("xception")
            if vocabulary in shapes:
                result.expected[vocabulary] = own
            result.shapes[own] = shapes.get(vocabulary, (3,) if kind == "Normalization" else (7, 7))


def _unshifted(name: str, shift: int, top: str) -> str:
    if name == top:
        return "predictions"
    stem, _, number = name.rpartition("_")
    if number.isdigit() and stem in ("conv2d", "batch_normalization"):
        return f"{stem}_{int(number) - shift}" if int(number) > shift else stem
    return name


def contents(file: Stored, container: str, config: Config | None = None, **more: Shape) -> KerasContents:
    return keras_contents(Tensors(container, file.shapes | more, config))


def named(found: KerasContents) -> dict[str, str]:
    return dict(found.contents.own_names)


def plan_is_total(found: KerasContents, backbone_only: bool = False) -> bool:
    plan = build_plan(found.contents, "xception", Options(backbone_only=backbone_only))
    return len(plan.table.rules) == (234 if backbone_only else 236)
