"""The only import of TensorFlow and Keras in the project; nothing but the reference's worker imports this file."""

from __future__ import annotations

import os
import sys
from typing import Any

# Set before the import: quiet logs, no accelerator (a reference runs on the CPU, so that it is the same everywhere),
# and Keras on TensorFlow whatever the user's own configuration says.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"
# Keras looks for matplotlib, to draw models, and it takes longer to load than Keras itself: hidden while both load.
_hidden = "matplotlib" not in sys.modules
if _hidden:
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
import tensorflow as tf  # noqa: E402

if _hidden:
    del sys.modules["matplotlib"]

__all__ = ["keras", "tf"]


class _Lazy:
    """Keras, imported when first used: the aligned networks do not need it."""

    def __getattr__(self, name: str) -> Any:
        import keras as module

        return getattr(module, name)


keras = _Lazy()
