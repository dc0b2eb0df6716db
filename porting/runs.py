"""What a proof runs: input sizes, output strides, probes, float32; and the image that every run starts from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from porting import rules
from porting.recognition import DEFAULT_SIZE, Recognised
from porting.reference import TraceRequest

# Small inputs. Padding faults hide at lucky sizes: at these, every pool and strided convolution of the network meets
# an odd side above 2 on one axis and an even one on the other (tests/test_runs.py); turned, the other way round.
ALIGNED_SIZES = ((48, 49), (49, 48))
ORIGINAL_SIZES = ((54, 55), (55, 54))
OUTPUT_STRIDES = (32, 16, 8)
# float32 is compared where the last maps have enough values (7x7 and more) for the largest error of each side to tell
# of its precision: at 40x45, right ports measure up to 4 times TensorFlow's own error by luck, at 299x299 up to 2.
FLOAT32_SIDE = 224


@dataclass(frozen=True)
class Run:
    """One pass of both networks.

    Attributes:
        size: height and width of the input.
        output_stride: 32, or 16 or 8 of an aligned network.
        probe: every layer passes on dense signed random numbers, the same in both frameworks, instead of its output,
            so that no channel that is never positive hides what follows it.
        float32: the network also runs in float32, beside TensorFlow's own float32.
    """

    size: tuple[int, int]
    output_stride: int = 32
    probe: bool = False
    float32: bool = False

    def __str__(self) -> str:
        stride = f", output stride {self.output_stride}" if self.output_stride != 32 else ""
        return f"{self.size[0]}x{self.size[1]}{stride}{', probes' if self.probe else ''}"

    def as_json(self) -> dict[str, Any]:
        """As manifests and reports name it."""
        size, stride = list(self.size), self.output_stride
        return {"size": size, "output_stride": stride, "input": "probe" if self.probe else "image"}


def proof_runs(
    recognised: Recognised, arch: str, sizes: Sequence[tuple[int, int]] = (), fast: bool = False
) -> list[Run]:
    """The source's own size, or the published one; then, at every output stride, a small image and small probes.

    Args:
        sizes: sizes to run at instead; probes follow all the same.
        fast: only the first run.

    float32 runs at the first size, if that is large enough: of those asked for, the first one that is.
    """
    own = recognised.model.inputs.size if recognised.model else None
    large = sorted(sizes or [own or DEFAULT_SIZE, DEFAULT_SIZE], key=lambda size: min(size) < FLOAT32_SIDE)
    first = Run(large[0], float32=min(large[0]) >= FLOAT32_SIDE)
    if fast:
        return [first]
    aligned = arch in rules.ALIGNED_SCOPES
    small, turned = ALIGNED_SIZES if aligned else ORIGINAL_SIZES
    if sizes:
        return [first, *map(Run, large[1:]), Run(turned, probe=True)]
    runs = [first, *([Run(own)] if own and own != first.size else [])]
    for stride in OUTPUT_STRIDES if aligned else OUTPUT_STRIDES[:1]:
        runs += [Run(small, stride), Run(turned, stride, probe=True)]
    return runs


def image(height: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """A deterministic NHWC image in [-1, 1]: smooth structure as in a photograph, with noise on every pixel."""
    random = np.random.Generator(np.random.PCG64([seed, height, width]))
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    pixels = random.uniform(-0.4, 0.4, (height, width, 3))
    for frequency in (1.3, 3.7, 11.0):
        for channel in range(3):
            angle, phase = random.uniform(0, 2 * math.pi, 2)
            wave = np.sin(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)) + phase)
            pixels[:, :, channel] += 0.25 * wave
    return np.clip(pixels, -1, 1).astype(np.float32)[None]


def trace_request(run: Run, silent: Iterable[str] = ()) -> TraceRequest:
    """What TensorFlow is asked for a run, on the project's own image.

    Args:
        silent: layers that pass on no probe, because the network that is compared does not show them.
    """
    pixels = image(*run.size)
    return TraceRequest(pixels, output_stride=run.output_stride, probe=run.probe, silent=silent, noise=run.float32)


def run_of(entry: Mapping[str, Any], float32: bool) -> Run:
    """The run that `Run.as_json` named.

    Raises:
        KeyError, TypeError, ValueError: it is no such entry.
    """
    height, width = entry["size"]
    size = (int(height), int(width))
    return Run(size, int(entry["output_stride"]), {"probe": True, "image": False}[entry["input"]], float32)
