"""One layer's activation against TensorFlow's, and the bounds that a right port keeps.

`porting.lockstep` runs the network and compares layer by layer; this file says what is measured and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from porting.reference import Activation
from porting.reference.frames import PIECE
from porting.rules import TracePoint
from porting.runs import Run

# Relative to each layer's largest magnitude. A right port measures about 1e-14; the gentlest fault that matters
# (one float16-rounded weight) measures above 1e-8.
FLOAT64_BOUND = 1e-10
# How many times TensorFlow's own float32 error a port's may be, per layer. Right ports measure under 2.
FLOAT32_FACTOR = 4.0
# And how many roundings of a sum of K products it may be in any case, in units of 2**-24 * sqrt(K), which is how the
# error of a sum grows that is taken in one order. TensorFlow sums in blocks; oneDNN, PyTorch's library, sums the 1x1
# convolutions of stride 2 in one order and is 3.6 times as far off there on the same data (K = 728, measured), so that
# a right port came to 3.9 times TensorFlow's error. TF32 or half precision is a hundred times this.
FLOAT32_ROUNDINGS = 3.0


@dataclass(frozen=True)
class Float32Result:
    """A layer of the network run in float32, against the float64 truth.

    Attributes:
        error: max |ported - truth| over max |truth|.
        noise: the same of TensorFlow's own float32 run.
        terms: products in the longest sum on the way to this layer.
    """

    error: float
    noise: float
    terms: int = 1

    @property
    def bound(self) -> float:
        if not math.isfinite(self.noise):
            return math.nan
        return max(FLOAT32_FACTOR * self.noise, FLOAT32_ROUNDINGS * 2.0**-24 * math.sqrt(self.terms))

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # False for NaN


@dataclass(frozen=True)
class LayerResult:
    """One activation, compared.

    Attributes:
        layer: the reference's name.
        module: the PyTorch module's path, as in the state dict.
        shape: NHWC, or (N, features).
        error: max |ported - reference| over max |reference|; not finite where either side is not.
        index: where the difference is largest.
        ported, reference: the two values there.
        bound: what `error` may be.
        float32: the same layer in float32, where it was run.
        cause: the likely reason for a difference, in words.
        reached: False where the network stopped before it, which is no fault of its own.
    """

    layer: str
    module: str
    shape: tuple[int, ...]
    error: float
    index: tuple[int, ...]
    ported: float
    reference: float
    bound: float
    float32: Float32Result | None = None
    cause: str = ""
    reached: bool = True

    @property
    def agrees(self) -> bool:
        """Whether the two float64 values agree."""
        return self.error <= self.bound  # False for NaN

    @property
    def passed(self) -> bool:
        return self.agrees and (self.float32 is None or self.float32.passed)


@dataclass(frozen=True)
class Trace:
    """All comparisons of one run.

    Attributes:
        run: what was run.
        layers: in the order in which PyTorch computed them. A layer that differs is followed in isolation: it passes
            on the reference's value, so that no later layer is blamed for it.
        stopped: what the network raised before its end; "" where it ran through.
    """

    run: Run
    layers: tuple[LayerResult, ...]
    stopped: str = ""

    @property
    def faulty(self) -> tuple[LayerResult, ...]:
        return tuple(layer for layer in self.layers if layer.reached and not layer.passed)

    @property
    def passed(self) -> bool:
        return not self.faulty and not self.stopped

    @property
    def worst(self) -> LayerResult:
        return max(self.layers, key=lambda layer: math.inf if math.isnan(layer.error) else layer.error)


def compare(point: TracePoint, ported: Activation, reference: Activation, bound: float = FLOAT64_BOUND) -> LayerResult:
    """Two activations of equal meaning in the same layout; a different shape or a non-finite value is a failure."""

    def result(error: float, index: tuple[int, ...], at: float, want: float) -> LayerResult:
        return LayerResult(point.name, point.module, reference.shape, error, index, at, want, bound)

    if ported.shape != reference.shape or ported.size == 0:
        return result(math.inf, (), math.nan, math.nan)
    found = _difference(ported, reference)
    error = relative(found.largest, found.scale)
    return result(error, found.where, float(ported[found.where]), float(reference[found.where]))


class _Difference(NamedTuple):
    """The largest |ported - reference|, where it is, and the largest |reference|; NaN where a value is not finite."""

    largest: float
    where: tuple[int, ...]
    scale: float


def _difference(ported: Activation, reference: Activation) -> _Difference:
    """Taken in pieces that fit the processor's cache: PyTorch's side is transposed, and large temporaries are slow."""
    axis = min(1, reference.ndim - 1)  # rows of NHWC
    step = max(1, PIECE * reference.shape[axis] // reference.size)
    largest, found, scales = -1.0, (0, 0), []
    for start in range(0, reference.shape[axis], step):
        piece = (slice(None),) * axis + (slice(start, start + step),)
        with np.errstate(invalid="ignore"):  # inf - inf
            difference = np.subtract(ported[piece], reference[piece], dtype=np.float64)
        np.abs(difference, out=difference)
        place = int(difference.argmax())  # of the first NaN where there is one; inf - inf is NaN too
        value = float(difference.flat[place])
        if not (value <= largest or math.isnan(largest)):
            largest, found = value, (start, place)
        scales += [reference[piece].max(), -reference[piece].min()]
    start, place = found
    shape = (*reference.shape[:axis], min(step, reference.shape[axis] - start), *reference.shape[axis + 1 :])
    index = [int(i) for i in np.unravel_index(place, shape)]
    index[axis] += start
    return _Difference(largest, tuple(index), float(np.max(scales)))


def relative(difference: float, scale: float) -> float:
    """A largest difference over a largest magnitude; NaN where either is not finite."""
    if not (math.isfinite(difference) and math.isfinite(scale)):
        return math.nan
    if scale == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / scale


def absent(point: TracePoint, cause: str, bound: float = FLOAT64_BOUND) -> LayerResult:
    """A layer that one of the two sides never computed."""
    return LayerResult(point.name, point.module, (), math.inf, (), math.nan, math.nan, bound, cause=cause)


def with_float32(
    result: LayerResult, ported: Activation, reference: Activation, noise: float, terms: int = 1
) -> LayerResult:
    """The result with the same layer's float32 run, given TensorFlow's largest float32 difference."""
    if ported.shape != reference.shape:
        return replace(result, float32=Float32Result(math.inf, 0.0, terms))
    found = _difference(ported, reference)
    error = relative(found.largest, found.scale)
    return replace(result, float32=Float32Result(error, relative(noise, found.scale), terms))


def as_json(trace: Trace, index: int) -> list[Mapping[str, Any]]:
    """A trace's layers as a report lists them; `index` is the run's place in the report."""
    return [
        {
            "layer": layer.layer,
            "module": layer.module,
            "run": index,
            "shape": list(layer.shape),
            "error": finite(layer.error),
            "bound": layer.bound,
            "passed": layer.agrees,
            "index": list(layer.index),
            "found": finite(layer.ported),
            "expected": finite(layer.reference),
            "float32": layer.float32
            and {
                "error": finite(layer.float32.error),
                "noise": finite(layer.float32.noise),
                "bound": finite(layer.float32.bound),
                "passed": layer.float32.passed,
            },
        }
        for layer in trace.layers
    ]


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
