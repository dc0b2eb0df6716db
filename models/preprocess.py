"""Images to inputs: the transform the published accuracies assume, and one to train with.

Both take a PIL image or a uint8 tensor and give a float32 tensor: the same for both, and bit for bit what
timm's and torchvision's transforms give for the PIL image. Pillow itself is needed only for PIL images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.info import Preprocessing
from models.resample import resize

if TYPE_CHECKING:
    from PIL.Image import Image

# Interpolations by timm's names, as Pillow's `Resampling` numbers them.
_PIL_RESAMPLING: Mapping[str, int] = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def _is_pil(image: object) -> bool:
    # Without importing Pillow: whoever holds one of its images has imported it.
    return hasattr(image, "convert") and hasattr(image, "resize") and hasattr(image, "mode")


def _pil_to_tensor(image: Image) -> Tensor:
    channels = len(image.getbands())
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(image.height, image.width, channels).permute(2, 0, 1)


def _prepared(image: Any, channels: int) -> Any:
    """The image with as many channels as the network takes.

    Raises:
        ModelError: neither a PIL image nor a uint8 tensor, or a channel count that cannot be made to fit.
    """
    if _is_pil(image):
        if channels not in (1, 3):
            raise ModelError(
                f"image: a PIL image has 1 or 3 channels, the network takes {channels}; pass a uint8 tensor"
            )
        return image.convert("L" if channels == 1 else "RGB")
    if not isinstance(image, Tensor):
        raise ModelError(f"image: expected a PIL image or a uint8 tensor, found {type(image).__name__}")
    if image.dtype != torch.uint8 or image.ndim not in (3, 4):
        raise ModelError(
            f"image: expected a uint8 tensor ({channels}, H, W) or (N, {channels}, H, W), "
            f"found {image.dtype} {tuple(image.shape)}"
        )
    if image.shape[-3] == 1 and channels == 3:
        return image.expand(*image.shape[:-3], 3, *image.shape[-2:])
    if image.shape[-3] != channels:
        raise ModelError(f"image: expected {channels} channels, found shape {tuple(image.shape)}")
    return image


def _height_width(image: Any) -> tuple[int, int]:
    return (image.height, image.width) if _is_pil(image) else (int(image.shape[-2]), int(image.shape[-1]))


def _resize(image: Any, size: tuple[int, int], interpolation: str) -> Any:
    if interpolation not in _PIL_RESAMPLING:
        raise ModelError(f"interpolation: expected one of {', '.join(_PIL_RESAMPLING)}, found {interpolation!r}")
    if _is_pil(image):
        return image.resize((size[1], size[0]), _PIL_RESAMPLING[interpolation])
    return resize(image, *size, interpolation)


def _crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
    if _is_pil(image):
        return image.crop((left, top, left + width, top + height))
    return image[..., top : top + height, left : left + width]


def _normalised(image: Any, preprocessing: Preprocessing) -> Tensor:
    pixels = _pil_to_tensor(image) if _is_pil(image) else image
    scaled = pixels.to(torch.float32).div_(255)
    mean, std = (scaled.new_tensor(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return scaled.sub_(mean).div_(std).contiguous()


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize, centre crop, normalise, as published accuracies are measured (timm's `transforms_imagenet_eval`).

    The shorter side becomes floor(size / crop_pct), the other keeps the ratio; then the centre is cropped. Takes a PIL
    image or a uint8 tensor (C, H, W) or (N, C, H, W); gives float32 (C, height, width), with N in front where it was.

    Raises (when called):
        ModelError: something that is not an image.
    """

    preprocessing: Preprocessing

    def __call__(self, image: Image | Tensor) -> Tensor:
        channels, height, width = self.preprocessing.input_size
        ready = _prepared(image, channels)
        resized = _resize(ready, self._resized(*_height_width(ready)), self.preprocessing.interpolation)
        found = _height_width(resized)
        # torchvision's rounding, to even: a remainder of 1 goes below and right
        top, left = round((found[0] - height) / 2.0), round((found[1] - width) / 2.0)
        return _normalised(_crop(resized, top, left, height, width), self.preprocessing)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size before the crop, of an image of this size."""
        _, *crop = self.preprocessing.input_size
        target_height, target_width = (math.floor(side / self.preprocessing.crop_pct) for side in crop)
        if target_height == target_width:
            if height <= width:
                return target_height, max(int(target_height * width / height), target_height)
            return max(int(target_height * height / width), target_height), target_height
        ratio = min(height / target_height, width / target_width)
        return max(round(height / ratio), target_height), max(round(width / ratio), target_width)


@dataclass(frozen=True)
class TrainingTransform:
    """A random part of the image at the network's size, mirrored half the time, normalised.

    The part's share of the area is drawn from `scale`, its aspect ratio from `ratio` (Szegedy et al. 2015, section 6).
    Random numbers come from torch's global generator in torchvision's order, so that a seed gives torchvision's crops.
    Takes and gives what `EvaluationTransform` does; a batch is cropped alike.

    Raises (when called):
        ModelError: something that is not an image.
    """

    preprocessing: Preprocessing
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: float = 0.5

    def __call__(self, image: Image | Tensor) -> Tensor:
        channels, height, width = self.preprocessing.input_size
        ready = _prepared(image, channels)
        part = _crop(ready, *self._part(*_height_width(ready)))
        resized = _resize(part, (height, width), self.preprocessing.interpolation)
        mirrored = bool(torch.rand(1) < self.mirror)
        out = _normalised(resized, self.preprocessing)
        return out.flip(-1) if mirrored else out

    def _part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part; the largest central one if ten draws do not fit."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            aspect = math.exp(torch.empty(1).uniform_(low, high).item())
            part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < part_width <= width and 0 < part_height <= height:
                top = int(torch.randint(0, height - part_height + 1, (1,)))
                left = int(torch.randint(0, width - part_width + 1, (1,)))
                return top, left, part_height, part_width
        part_width, part_height = width, height
        if width / height < self.ratio[0]:
            part_height = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            part_width = round(height * self.ratio[1])
        return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


@lru_cache(1)
def imagenet_labels() -> tuple[str, ...]:
    """ImageNet's 1000 class names, in the order of the logits."""
    index = json.loads(files("models").joinpath("imagenet_class_index.json").read_text(encoding="utf-8"))
    return tuple(index[str(number)][1].replace("_", " ") for number in range(len(index)))


def labels_for(num_classes: int) -> tuple[str, ...]:
    """Names for weights that bring none: ImageNet's for 1000 classes and (after "background") 1001, else numbers."""
    names = {1000: imagenet_labels(), 1001: ("background", *imagenet_labels())}
    return names.get(num_classes) or tuple(f"class {number}" for number in range(num_classes))
