"""What both families of networks do alike, from images to maps, features and logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.errors import ModelError
from models.features import FeatureInfo, check_images
from models.info import ModelInfo, Preprocessing
from models.layers import GlobalPool, Pooling, classifier, pooling_named
from models.side_by_side import in_slices, side_by_side


class ImageNetwork(nn.Module):
    """A network of images (N, in_chans, H, W) in [-1, 1]; its subclasses build the layers and say how they follow.

    Args:
        info: which network it is.
        num_classes: 0 where it gives pooled features.
        in_chans: channels of the input.
        folded: biased convolutions and no batch norm.
    """

    smallest_input: int  # shorter side of an image
    num_features: int
    head_hidden_size: int
    feature_info: FeatureInfo
    features_only: bool  # it has no head, and returns maps

    def __init__(self, info: ModelInfo, num_classes: int, in_chans: int, folded: bool) -> None:
        super().__init__()
        self.info = info
        self.preprocessing: Preprocessing = info.preprocessing
        self.labels: tuple[str, ...] | None = None  # class names, where the weights bring their own
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.folded = folded
        self.grad_checkpointing = False
        self.pixels_at_once: tuple[int, int] | None = None  # see models.side_by_side; set by optimize_for_inference

    def _entry(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Everything before the equal blocks of the middle flow; adds the maps on its way to `maps`."""
        raise NotImplementedError

    def _middle_and_exit(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """The rest, up to the last map."""
        raise NotImplementedError

    def _head(self) -> Any:
        """The module that holds `global_pool`, `drop` and `fc`."""
        return self

    def _block(self, block: nn.Module, x: Tensor, maps: list[Tensor] | None) -> Tensor:
        """One block, whose activations are recomputed in the backward pass where that was asked for."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, maps, use_reentrant=False)
        else:
            out = block(x, maps)
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (N, 2048, H/output_stride, W/output_stride), after the last ReLU."""
        check_images(x, self.in_chans, self.smallest_input)
        return side_by_side(self._features, x, self, self.pixels_at_once and max(self.pixels_at_once))

    def _features(self, x: Tensor) -> Tensor:
        return in_slices((self._entry, self._middle_and_exit), x, self.pixels_at_once)

    def forward_maps(self, x: Tensor) -> list[Tensor]:
        """The maps that `feature_info` selects, shallowest first."""
        check_images(x, self.in_chans, self.smallest_input)
        # The fewest: maps of every stage are in memory together
        return side_by_side(self._maps, x, self, self.pixels_at_once and min(self.pixels_at_once))

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        maps.append(self._middle_and_exit(self._entry(x, maps), maps))
        return [maps[index] for index in self.feature_info.out_indices]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a last map; with `pre_logits`, the pooled features that the classifier takes."""
        head = self._head()
        pooled: Tensor = head.drop(head.global_pool(x))
        return pooled if pre_logits else head.fc(pooled)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.forward_maps(x) if self.features_only else self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The dense layer, the layers of a head that is a chain, or an identity where there is none."""
        module: nn.Module = self._head().fc
        return module

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new, untrained one of `num_classes` (0 for none).

        Raises:
            ModelError: no such pooling, or no pooling before a classifier.
        """
        head = self._head()
        pooling = head.global_pool.pooling if global_pool is None else pooling_named(global_pool)
        if pooling is Pooling.NONE and num_classes > 0:
            raise ModelError("global_pool: '' leaves the map unpooled, which a classifier cannot take")
        like = next(self.parameters())
        head.global_pool = GlobalPool(pooling)
        head.fc = classifier(self.num_features, num_classes).to(like.device, like.dtype).train(self.training)
        self.num_classes = num_classes
        self.labels = None

    @property
    def default_cfg(self) -> dict[str, object]:
        """What timm keeps under this name: input size, crop, mean, and so on."""
        return self.info.default_cfg(self.preprocessing)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
