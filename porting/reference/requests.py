"""What the reference's process is asked: which source to open, and what to run it on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ReferenceSource:
    """What the reference must load, described so that it reads the file with TensorFlow's own readers.

    Attributes:
        kind: "keras" (a Keras file), "checkpoint" (weights alone), or what has a graph of its own beside the weights:
            "graph" (a frozen graph), "saved-model", or "meta" (a checkpoint with a .meta file).
        path: the file, the checkpoint's prefix, or the SavedModel's folder.
        arch: name of the network.
        classes: outputs stored in the file; 0 where the classifier is left out.
        variables: names of the vocabulary to what TensorFlow's reader calls them, where they differ.
        container: the source's container (Keras).
        has_graph: whether the file holds the user's model, not weights alone (Keras).
        layers: the vocabulary's layer names to paths in the user's model (Keras).
        dense: path of the classifier in the user's model, or its name in keras.applications' (Keras); "" where it is
            more than one dense layer.
        pooling: how the features are pooled, "avg" or "max" (Keras).
        head: the steps of a classifier of several layers: the trace `point`, the path of the `layer` in the user's
            model, and whether the step is the activation that this layer applies itself (`fused`).
        store: prefix of a nested network's weights in a file without a graph (Keras).
        nested: whether such a file nests the network in another model (Keras).
        otherwise: what runs where the source has no graph of its own that can, in words.
    """

    kind: str
    path: str
    arch: str
    classes: int
    variables: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    has_graph: bool = False
    layers: Mapping[str, str] = field(default_factory=dict)
    dense: str = ""
    pooling: str = "avg"
    head: tuple[Mapping[str, Any], ...] = ()
    store: str = ""
    nested: bool = False
    otherwise: str = ""


@dataclass(frozen=True, eq=False)
class TraceRequest:
    """One pass of the network in TensorFlow.

    Attributes:
        image: NHWC.
        dtype: "float64" or "float32".
        output_stride: 32, or 16 or 8 of an aligned network.
        probe: each layer passes on `porting.reference.frames.probe` in its output's place.
        silent: layers that pass on their own output all the same.
        noise: TensorFlow runs in float32 beside, and each frame holds the largest difference.
    """

    image: npt.NDArray[np.float32]
    dtype: str = "float64"
    output_stride: int = 32
    probe: bool = False
    silent: Iterable[str] = ()
    noise: bool = False

    def as_json(self) -> dict[str, Any]:
        """The request's first line; the image's bytes follow it."""
        return {
            "do": "trace",
            "dtype": self.dtype,
            "output_stride": self.output_stride,
            "probe": self.probe,
            "silent": sorted(self.silent),
            "noise": self.noise,
            "shape": self.image.shape,
            "nbytes": self.image.nbytes,
        }
