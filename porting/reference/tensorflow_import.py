"""The only import of TensorFlow and Keras in the project; nothing but the reference's worker imports this file."""

from __future__ import annotations

import os
from typing import Any

# Set before the import: quiet logs, no accelerator (a reference runs on the CPU, so that it is the same everywhere),
# and Keras on TensorFlow whatever the user's own configuration says.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"

import tensorflow as tf

__all__ = ["keras", "tf"]


class _Lazy:
    """Keras, imported when first used: the aligned networks do not need it."""

    def __getattr__(self, name: str) -> Any:
        import keras as module

        return getattr(module, name)


keras = _Lazy()
