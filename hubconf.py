"""What torch.hub finds here: `torch.hub.load("OWNER/REPOSITORY", "xception65", pretrained=...)`.

`pretrained` is a weight file, its URL, or True: then $PORTING_WEIGHTS names the folder or downloads page that has it.
PyTorch is all that is needed.
"""

from __future__ import annotations

import os
from typing import Any as _Any

from torch import nn as _nn

from models.registry import create_model as _create_model

dependencies = ["torch"]


def xception(pretrained: bool | str | os.PathLike[str] = False, **kwargs: _Any) -> _nn.Module:
    """Xception, as Keras defines it: images (N, 3, 299, 299) to logits (N, 1000).

    Args:
        pretrained: a `.pth` file, its URL, or True for the one in $PORTING_WEIGHTS, a folder or a downloads page.
        kwargs: those of `models.create_model`: `num_classes`, `in_chans`, `features_only`, `folded`, ...

    Raises:
        ModelError: a wrong argument, or weights that are missing, damaged or another network's.
    """
    return _create_model("xception", pretrained=pretrained, **kwargs)


def xception41(pretrained: bool | str | os.PathLike[str] = False, **kwargs: _Any) -> _nn.Module:
    """Xception-41, as DeepLab defines it: images (N, 3, 299, 299) to logits (N, 1000).

    Args:
        pretrained: as of `xception`.
        kwargs: as of `xception`; `output_stride` may be 16 or 8 too.

    Raises:
        ModelError: as `xception`.
    """
    return _create_model("xception41", pretrained=pretrained, **kwargs)


def xception65(pretrained: bool | str | os.PathLike[str] = False, **kwargs: _Any) -> _nn.Module:
    """Xception-65, as DeepLab defines it: images (N, 3, 299, 299) to logits (N, 1000).

    Args:
        pretrained: as of `xception`.
        kwargs: as of `xception`; `output_stride` may be 16 or 8 too.

    Raises:
        ModelError: as `xception`.
    """
    return _create_model("xception65", pretrained=pretrained, **kwargs)


def xception71(pretrained: bool | str | os.PathLike[str] = False, **kwargs: _Any) -> _nn.Module:
    """Xception-71, as DeepLab defines it: images (N, 3, 299, 299) to logits (N, 1000).

    Args:
        pretrained: as of `xception`.
        kwargs: as of `xception`; `output_stride` may be 16 or 8 too.

    Raises:
        ModelError: as `xception`.
    """
    return _create_model("xception71", pretrained=pretrained, **kwargs)
