"""Pillow's resampling on tensors, to the bit.

PyTorch's and torchvision's antialiased resizing of tensors is not Pillow's: up to 10 levels of 255 apart on photos.
Pillow (libImaging's resampling, for 8 bits a channel) goes along rows, then along columns; each pass multiplies by
weights rounded to 22 bits after the point, adds a half and clips to 0..255. The sums are integers below 2^53, so that
float64 holds them exactly and the order of summation does not matter. Pillow 13 takes the columns first where
an image is much taller than wide and shrinks: only there do a few pixels differ by a level or two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

_FRACTION_BITS = 22  # Pillow's PRECISION_BITS: 32 less 8 for the pixel and 2 for overshoot


def _bilinear(x: Tensor) -> Tensor:
    return (1.0 - x.abs()).clamp(min=0.0)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2."""
    a, x = -0.5, x.abs()
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3.0, torch.sinc(x) * torch.sinc(x / 3.0), torch.zeros_like(x))


FILTERS: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {  # and the half width of each
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


@lru_cache(16)
def _weights(source: int, target: int, filter_name: str) -> Tensor:
    """The sparse (target, source) matrix of one pass: integers, in float64."""
    function, half_width = FILTERS[filter_name]
    scale = source / target
    stretch = max(scale, 1.0)  # shrinking widens the filter: that is the antialiasing
    support = half_width * stretch
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    first = (centre - support + 0.5).trunc().clamp(min=0)
    end = (centre + support + 0.5).trunc().clamp(max=source)
    taps = torch.arange(math.ceil(support) * 2 + 1, dtype=torch.float64)
    column = first[:, None] + taps
    inside = column < end[:, None]
    raw = function((column - centre[:, None] + 0.5) * (1.0 / stretch)) * inside
    share = raw / raw.sum(1, keepdim=True) * 2.0**_FRACTION_BITS
    whole = (share.abs() + 0.5).trunc() * share.sign()
    rows = torch.arange(target)[:, None].expand_as(inside)[inside]
    indices = torch.stack([rows, column[inside].long()])
    return torch.sparse_coo_tensor(indices, whole[inside], (target, source), check_invariants=True).coalesce()


def _along_last(image: Tensor, target: int, filter_name: str) -> Tensor:
    source = image.shape[-1]
    if source == target:
        return image
    matrix = _weights(source, target, filter_name).to(image.device)
    columns = image.reshape(-1, source).to(torch.float64).T
    total = torch.sparse.mm(matrix, columns) + 2.0 ** (_FRACTION_BITS - 1)
    pixels: Tensor = (total * 2.0**-_FRACTION_BITS).floor_().clamp_(0, 255).to(torch.uint8)
    return pixels.T.reshape(*image.shape[:-1], target)


def _nearest(image: Tensor, height: int, width: int) -> Tensor:
    rows, columns = (
        # Pillow adds up the steps, and so must this: products round otherwise at the ties
        torch.cumsum(torch.tensor([0.5] + [1.0] * (target - 1), dtype=torch.float64) * (source / target), 0).long()
        for source, target in zip(image.shape[-2:], (height, width), strict=True)
    )
    return image[..., rows[:, None], columns]


def resize(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """What `PIL.Image.resize` gives: uint8 (..., H, W) to uint8 (..., height, width).

    `interpolation` is "nearest" or one of `FILTERS`.
    """
    if interpolation == "nearest":
        return _nearest(image, height, width)
    across = _along_last(image, width, interpolation)
    return _along_last(across.transpose(-1, -2), height, interpolation).transpose(-1, -2).contiguous()
