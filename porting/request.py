"""Which forms and formats may be asked for together; light, so that a command can refuse before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from porting.rules import BATCH_NORM_EPSILON, KERAS_ARCH

PTH, SAFETENSORS, HF = "pth", "safetensors", "hf"
FORMATS = (PTH, SAFETENSORS, HF)
DTYPES = ("float32", "float16", "bfloat16")

# The epsilon that timm builds a network's batch norms with where it is not TensorFlow's (timm 1.0, models/xception.py).
TIMM_EPSILONS = {KERAS_ARCH: 1e-5}


def contradiction(arch: str, fold_bn: bool, bn_eps: float, dtype: str, formats: Sequence[str]) -> str:
    """What is wrong with what is asked for, in the words of the command's options; "" where nothing is."""
    unknown = [one for one in formats if one not in FORMATS]
    timm_eps = TIMM_EPSILONS.get(arch, BATCH_NORM_EPSILON)
    if unknown or not formats:
        return f"--format: expected some of {', '.join(FORMATS)}, found {', '.join(map(repr, unknown)) or 'none'}"
    if dtype not in DTYPES:
        return f"--dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}"
    if not (math.isfinite(bn_eps) and bn_eps > 0):
        return f"--bn-eps: expected a positive number, found {bn_eps}"
    if fold_bn and bn_eps != BATCH_NORM_EPSILON:
        return "--bn-eps: not allowed with --fold-bn: a folded network has no batch norm and no epsilon"
    if fold_bn and HF in formats:
        return "--format: hf is not allowed with --fold-bn: timm has no folded networks"
    if HF in formats and bn_eps not in (BATCH_NORM_EPSILON, timm_eps):
        return f"--bn-eps: timm builds {arch} with {timm_eps:g}: hf is not allowed with another one"
    return ""
