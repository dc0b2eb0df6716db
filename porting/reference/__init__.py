"""TensorFlow's own execution of a source, in a process of its own.

This side of the process boundary (`client`) never imports TensorFlow. `worker` is the other side; `tensorflow_import`
is the one file of the project that imports it. `recording` is a trace in a file.
"""

from __future__ import annotations

from porting.reference.client import Reference, tensorflow_available
from porting.reference.frames import Activation
from porting.reference.recording import Recording
from porting.reference.requests import ReferenceSource, TraceRequest
from porting.reference.shared import SharedReference

__all__ = [
    "Activation",
    "Recording",
    "Reference",
    "ReferenceSource",
    "SharedReference",
    "TraceRequest",
    "tensorflow_available",
]
