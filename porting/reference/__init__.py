"""TensorFlow's own execution of a source, in a process of its own.

This side of the process boundary (`client`) never imports TensorFlow. `worker` is the other side; `tensorflow_import`
is the one file of the project that imports it.
"""

from __future__ import annotations

from porting.reference.client import Activation, Reference, ReferenceSource, tensorflow_available

__all__ = ["Activation", "Reference", "ReferenceSource", "tensorflow_available"]
