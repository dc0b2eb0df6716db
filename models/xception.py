"""The original Xception as Keras computes it.

Chollet 2017, "Xception: Deep Learning with Depthwise Separable Convolutions", figure 5; keras.applications.xception.
Module paths and state-dict keys are those of the usual PyTorch port (timm's `legacy_xception`); epsilon and
padding are TensorFlow's, which that port's are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from models.errors import ModelError
from models.features import FeatureInfo, FeatureMap, select_maps
from models.image_network import ImageNetwork
from models.info import MODELS
from models.layers import GlobalPool, MaxPoolSame, Pooling, SeparableConv, batch_norm, classifier, drop_path, rectified


@dataclass(frozen=True)
class BlockConfig:
    """One block: channels after each separable convolution, and whether it halves the map."""

    channels: tuple[int, ...]
    halves: bool = False
    starts_with_relu: bool = True


BLOCKS: tuple[BlockConfig, ...] = (
    BlockConfig((128, 128), halves=True, starts_with_relu=False),
    BlockConfig((256, 256), halves=True),
    BlockConfig((728, 728), halves=True),
    *([BlockConfig((728, 728, 728))] * 8),
    BlockConfig((728, 1024), halves=True),
)

# As timm lists them: the ReLU that opens a block gives the map before the block halves it.
MAPS = (
    FeatureMap(64, 2, "act2"),
    FeatureMap(128, 4, "block2.rep.0"),
    FeatureMap(256, 8, "block3.rep.0"),
    FeatureMap(728, 16, "block12.rep.0"),
    FeatureMap(2048, 32, "act4"),
)


class Block(nn.Module):
    """Separable convolutions in `rep` and a shortcut around them; its output is the sum.

    The shortcut takes the input before the first ReLU. When asked, the block also gives its first ReLU's output.
    """

    def __init__(self, inputs: int, config: BlockConfig, drop: float, folded: bool) -> None:
        super().__init__()
        outputs = config.channels[-1]
        self.skip: nn.Module | None = None
        self.skipbn: nn.Module | None = None
        if config.halves:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=2, bias=folded)
            self.skipbn = batch_norm(outputs, folded)
        layers: list[nn.Module] = []
        for channels in config.channels:
            layers += [nn.ReLU(), SeparableConv(inputs, channels, bias=folded), batch_norm(channels, folded)]
            inputs = channels
        if not config.starts_with_relu:
            del layers[0]
        if config.halves:
            layers.append(MaxPoolSame())
        self.rep = nn.Sequential(*layers)
        self.drop_path = drop_path(drop)

    def forward(self, x: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        branch: Tensor = x
        before: nn.Module | None = None
        for index, layer in enumerate(self.rep):
            branch = rectified(layer, branch, before)
            before = layer
            if taps is not None and index == 0:
                taps.append(branch)
        shortcut = x
        if self.skip is not None and self.skipbn is not None:
            shortcut = self.skipbn(self.skip(x))
        total: Tensor = self.drop_path(branch) + shortcut
        return total


class Xception(ImageNetwork):
    """Original Xception: images (N, in_chans, H, W) in [-1, 1] to logits (N, num_classes).

    Args:
        num_classes: 0 gives the pooled features (N, 2048).
        in_chans: channels of the input.
        output_stride: 32; its max-pools have no dilated form.
        global_pool: how the last map is pooled.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; earlier blocks have linearly less.
        folded: biased convolutions and no batch norm.
        out_indices: if given, the network has no head and returns the list of these of its five maps.
    """

    smallest_input = 7  # two VALID 3x3 convolutions, the first with stride 2

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: Pooling = Pooling.AVG,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        folded: bool = False,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__(MODELS["xception"], num_classes, in_chans, folded)
        if output_stride != 32:
            raise ModelError(
                f"output_stride: expected 32 for xception, found {output_stride}; the aligned networks take 16 and 8"
            )
        self.num_features = self.head_hidden_size = 2048
        self.feature_info: FeatureInfo = select_maps(MAPS, out_indices)
        self.features_only = out_indices is not None

        self.conv1 = nn.Conv2d(in_chans, 32, 3, stride=2, bias=folded)
        self.bn1 = batch_norm(32, folded)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 64, 3, bias=folded)
        self.bn2 = batch_norm(64, folded)
        self.act2 = nn.ReLU()
        channels = 64
        for index, block in enumerate(BLOCKS):
            drop = drop_path_rate * index / (len(BLOCKS) - 1)
            self.add_module(f"block{index + 1}", Block(channels, block, drop, folded))
            channels = block.channels[-1]
        self.conv3 = SeparableConv(1024, 1536, bias=folded)
        self.bn3 = batch_norm(1536, folded)
        self.act3 = nn.ReLU()
        self.conv4 = SeparableConv(1536, 2048, bias=folded)
        self.bn4 = batch_norm(2048, folded)
        self.act4 = nn.ReLU()
        if not self.features_only:
            self.global_pool = GlobalPool(global_pool)
            self.drop = nn.Dropout(drop_rate)
            self.fc = classifier(self.num_features, num_classes)

    def _entry(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        x = rectified(self.act1, self.bn1(self.conv1(x)), self.bn1)
        x = rectified(self.act2, self.bn2(self.conv2(x)), self.bn2)
        if maps is not None:
            maps.append(x)
        return self._through(range(1, 4), x, maps)

    def _middle_and_exit(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        x = self._through(range(4, len(BLOCKS) + 1), x, maps)
        x = rectified(self.act3, self.bn3(self.conv3(x)), self.bn3)
        return rectified(self.act4, self.bn4(self.conv4(x)), self.bn4)

    def _through(self, blocks: range, x: Tensor, maps: list[Tensor] | None) -> Tensor:
        tapped = {one.module.split(".")[0] for one in MAPS}
        for index in blocks:
            name = f"block{index}"
            x = self._block(getattr(self, name), x, maps if name in tapped else None)
        return x
