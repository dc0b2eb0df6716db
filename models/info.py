"""What is known about each network without building it. Imports nothing but the standard library."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from models.errors import ModelError


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input; part of what a set of weights is.

    `input_size` is (channels, height, width); `mean` and `std` are a channel's, on a scale where white is 1.
    """

    input_size: tuple[int, int, int] = (3, 299, 299)
    interpolation: str = "bicubic"
    crop_pct: float = 0.903
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ModelInfo:
    """One network: its published weights, how they are evaluated, and what it costs.

    `top1` and `top5` are the published weights' ImageNet validation accuracy in percent, `params` and `gmacs` those of
    1000 classes at 299x299. `licence` and `upstream` are the published weights'.
    """

    name: str
    preprocessing: Preprocessing
    params: int
    gmacs: float
    top1: float
    top5: float
    paper: str
    licence: str
    upstream: str
    first_conv: str
    classifier: str
    num_classes: int = 1000
    pool_size: tuple[int, int] = (10, 10)

    @property
    def input_size(self) -> tuple[int, int, int]:
        return self.preprocessing.input_size

    @property
    def crop_pct(self) -> float:
        return self.preprocessing.crop_pct

    @property
    def interpolation(self) -> str:
        return self.preprocessing.interpolation

    @property
    def mean(self) -> tuple[float, ...]:
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.preprocessing.std

    def default_cfg(self, preprocessing: Preprocessing | None = None) -> dict[str, object]:
        """The entries that timm keeps in a model's `default_cfg`."""
        return {
            "architecture": self.name,
            **asdict(preprocessing or self.preprocessing),
            "pool_size": self.pool_size,
            "num_classes": self.num_classes,
            "first_conv": self.first_conv,
            "classifier": self.classifier,
            "license": self.licence,
            "origin_url": self.upstream,
            "paper_ids": self.paper,
        }


def _aligned(name: str, params: int, gmacs: float, top1: float, top5: float) -> ModelInfo:
    return ModelInfo(
        name, Preprocessing(), params, gmacs, top1, top5,
        paper="arXiv:1802.02611",
        licence="Apache-2.0",
        upstream="https://github.com/tensorflow/models/tree/master/research/deeplab",
        first_conv="stem.0.conv",
        classifier="head.fc",
    )  # fmt: skip


MODELS: Mapping[str, ModelInfo] = {
    "xception": ModelInfo(
        "xception", replace(Preprocessing(), crop_pct=0.8975), 22_855_952, 8.40, 79.058, 94.396,
        paper="arXiv:1610.02357",
        licence="MIT",
        upstream="https://github.com/fchollet/deep-learning-models",
        first_conv="conv1",
        classifier="fc",
    ),
    "xception41": _aligned("xception41", 26_969_560, 9.28, 78.550, 94.282),
    "xception65": _aligned("xception65", 39_916_312, 13.96, 79.558, 94.656),
    "xception71": _aligned("xception71", 42_338_736, 18.09, 79.920, 94.908),
}  # fmt: skip

ALIASES: Mapping[str, str] = {
    "legacy_xception": "xception",
    "legacy_xception.tf_in1k": "xception",
    "xception.tf_in1k": "xception",
    "xception41.tf_in1k": "xception41",
    "xception65.tf_in1k": "xception65",
    "xception71.tf_in1k": "xception71",
    "tf_xception_41": "xception41",
    "tf_xception_65": "xception65",
    "tf_xception_71": "xception71",
    "tf_xception41": "xception41",
    "tf_xception65": "xception65",
    "tf_xception71": "xception71",
    "xception_41": "xception41",
    "xception_65": "xception65",
    "xception_71": "xception71",
}

_OTHER_TRAINING = (
    "those weights come from a training in PyTorch (timm's ra3 recipe), not from TensorFlow, and are evaluated at crop "
    "0.94; 'xception65' here is the TensorFlow network. timm.create_model('xception65.ra3_in1k') loads them"
)
_OTHER_NETWORK = "the pre-activation networks are timm's own and were never TensorFlow's; timm has them under that name"

REFUSED: Mapping[str, str] = {
    "xception65.ra3_in1k": _OTHER_TRAINING,
    "xception41p": _OTHER_NETWORK,
    "xception41p.ra3_in1k": _OTHER_NETWORK,
    "xception65p": _OTHER_NETWORK,
    "xception65p.ra3_in1k": _OTHER_NETWORK,
}


def list_models() -> list[str]:
    """Names that `create_model` takes, without their aliases."""
    return sorted(MODELS)


def resolve_name(name: str) -> str:
    """The network that `name`, or the alias `name`, stands for.

    Raises:
        ModelError: no such network, or one that is refused for a reason.
    """
    key = name.lower()
    if key in REFUSED:
        raise ModelError(f"{name}: {REFUSED[key]}")
    key = ALIASES.get(key, key)
    if key not in MODELS:
        near = difflib.get_close_matches(key, [*MODELS, *ALIASES], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ModelError(f"{name}: no such network{hint}; there are {', '.join(list_models())}")
    return key


def get_info(name: str) -> ModelInfo:
    """What is known about the network `name`.

    Raises:
        ModelError: no such network.
    """
    return MODELS[resolve_name(name)]
