"""Aligned Xception (41, 65, 71) as DeepLab computes it.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution", section 3.3 and figure 4;
TensorFlow models repository, research/deeplab/core/xception.py. Module paths and state-dict keys are timm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from models.errors import ModelError
from models.features import FeatureInfo, FeatureMap, select_maps
from models.image_network import ImageNetwork
from models.info import MODELS
from models.layers import ConvNorm, GlobalPool, Pooling, SeparableConvNorm, classifier, drop_path, rectified


@dataclass(frozen=True)
class UnitConfig:
    """One unit: the channels after each of its three separable convolutions, and the stride of the third."""

    channels: tuple[int, int, int]
    stride: int = 1
    last: bool = False  # the last unit: no shortcut, no ReLU before its convolutions, one after every batch norm


@dataclass(frozen=True)
class AlignedConfig:
    """One network: its name, its units in order, and how many of them are the entry flow's."""

    name: str
    units: tuple[UnitConfig, ...]
    entry_units: int


def _config(name: str, entry: Sequence[tuple[int, int]], middle: int) -> AlignedConfig:
    """Entry units as (channels, stride), then `middle` units of 728, then the exit flow, which all three share."""
    units = [UnitConfig((channels, channels, channels), stride) for channels, stride in entry]
    units += [UnitConfig((728, 728, 728))] * middle
    units += [UnitConfig((728, 1024, 1024), 2), UnitConfig((1536, 1536, 2048), 1, last=True)]
    return AlignedConfig(name, tuple(units), len(entry))


XCEPTION41 = _config("xception41", [(128, 2), (256, 2), (728, 2)], middle=8)
XCEPTION65 = _config("xception65", [(128, 2), (256, 2), (728, 2)], middle=16)
XCEPTION71 = _config("xception71", [(128, 2), (256, 1), (256, 2), (728, 1), (728, 2)], middle=16)


class AlignedUnit(nn.Module):
    """Three separable convolutions and a shortcut around them; its output is the sum.

    The shortcut takes the input before the first ReLU. A `tapped` unit also gives, when asked, what enters its third
    convolution: the last map at the resolution before its stride.
    """

    def __init__(self, inputs: int, config: UnitConfig, stride: int, dilation: int, drop: float, folded: bool) -> None:
        super().__init__()
        outputs = config.channels[-1]
        self.shortcut: nn.Module | None = None
        self.is_residual = not config.last
        # By the unit's own stride, not the one it runs at: at output stride 8 the fifth unit of xception71 keeps its
        # shortcut convolution (timm drops it there and cannot take the weights).
        if self.is_residual and (inputs != outputs or config.stride != 1):
            self.shortcut = ConvNorm(inputs, outputs, 1, stride, relu=False, folded=folded)
        self.stack = nn.Sequential()
        for index, channels in enumerate(config.channels, start=1):
            if not config.last:
                self.stack.add_module(f"act{index}", nn.ReLU())
            conv = SeparableConvNorm(inputs, channels, stride if index == 3 else 1, dilation, config.last, folded)
            self.stack.add_module(f"conv{index}", conv)
            inputs = channels
        self.tapped = config.stride > 1
        self.drop_path = drop_path(drop)

    def forward(self, x: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        branch: Tensor = x
        given: tuple[nn.Module, ...] = ()
        for name, layer in self.stack.named_children():
            branch = rectified(layer, branch, *given)
            # Without a ReLU of its own it gives its second batch norm's output.
            given = (layer.bn_pw, layer.act_pw, layer) if isinstance(layer, SeparableConvNorm) else ()
            if taps is not None and self.tapped and name == "act3":
                taps.append(branch)
        if not self.is_residual:
            return branch
        total: Tensor = self.drop_path(branch) + (x if self.shortcut is None else self.shortcut(x))
        return total


class ClassifierHead(nn.Module):
    """Global pool, dropout, dense layer."""

    def __init__(self, features: int, num_classes: int, pooling: Pooling, drop_rate: float) -> None:
        super().__init__()
        self.global_pool = GlobalPool(pooling)
        self.drop = nn.Dropout(drop_rate)
        self.fc = classifier(features, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.global_pool(x))
        if pre_logits:
            return x
        logits: Tensor = self.fc(x)
        return logits


class XceptionAligned(ImageNetwork):
    """Aligned Xception: images (N, in_chans, H, W) in [-1, 1] to logits (N, num_classes).

    Args:
        config: which network.
        num_classes: 0 gives the pooled features (N, 2048).
        in_chans: channels of the input.
        output_stride: 32, 16 or 8. Once it is reached, a strided unit runs at stride 1 and every unit after
            it at twice the dilation.
        global_pool: how the last map is pooled.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last unit; earlier units have linearly less.
        folded: biased convolutions and no batch norm.
        out_indices: if given, the network has no head and returns the list of these of its five maps.
    """

    smallest_input = 1

    def __init__(
        self,
        config: AlignedConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: Pooling = Pooling.AVG,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        folded: bool = False,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__(MODELS[config.name], num_classes, in_chans, folded)
        if output_stride not in (8, 16, 32):
            raise ModelError(f"output_stride: expected 8, 16 or 32, found {output_stride}")
        self.config = config
        self.stem = nn.Sequential(ConvNorm(in_chans, 32, 3, 2, folded=folded), ConvNorm(32, 64, 3, folded=folded))
        self.blocks = nn.Sequential()
        maps: list[FeatureMap] = []
        channels, stride_so_far, dilation = 64, 2, 1
        for index, unit in enumerate(config.units):
            stride, next_dilation = unit.stride, dilation
            if unit.stride > 1:
                maps.append(FeatureMap(unit.channels[1], stride_so_far, f"blocks.{index}.stack.act3"))
                if stride_so_far == output_stride:
                    stride, next_dilation = 1, dilation * unit.stride
            drop = drop_path_rate * index / (len(config.units) - 1)
            self.blocks.append(AlignedUnit(channels, unit, stride, dilation, drop, folded))
            channels, stride_so_far, dilation = unit.channels[-1], stride_so_far * stride, next_dilation
        maps.append(FeatureMap(channels, stride_so_far, f"blocks.{len(config.units) - 1}"))
        self.num_features = self.head_hidden_size = channels
        self.feature_info: FeatureInfo = select_maps(maps, out_indices)
        self.features_only = out_indices is not None
        if not self.features_only:
            self.head = ClassifierHead(channels, num_classes, global_pool, drop_rate)

    def _entry(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        x = self.stem(x)
        for block in list(self.blocks)[: self.config.entry_units]:
            x = self._block(block, x, maps)
        return x

    def _middle_and_exit(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        for block in list(self.blocks)[self.config.entry_units :]:
            x = self._block(block, x, maps)
        return x

    def _head(self) -> Any:
        return self.head

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a last map; with `pre_logits`, the pooled features that the classifier takes."""
        out: Tensor = self.head(x, pre_logits)  # a module: a hook on it sees the logits
        return out
