"""The proof: every activation of the PyTorch network against TensorFlow's, layer by layer, as both run.

Both frameworks run the same image in float64, where a right port agrees to about 1e-14 and float32's noise cannot hide
a fault. Activations stream through the comparison in lockstep: each PyTorch module's forward hook takes the reference's
activation of the same name, compares, and drops it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from porting.reference import Activation
from porting.rules import Table, TracePoint

# Relative to each layer's largest magnitude. A right port measures about 1e-14; the gentlest fault that matters
# (one float16-rounded weight) measures above 1e-8.
FLOAT64_BOUND = 1e-10
# Logits in float32 against the float64 truth, relative to the largest. float32's own noise measures 3e-7 to 6e-7.
FLOAT32_BOUND = 2e-5


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
    """

    layer: str
    module: str
    shape: tuple[int, ...]
    error: float
    index: tuple[int, ...]
    ported: float
    reference: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # False for NaN


@dataclass(frozen=True)
class Trace:
    """All comparisons of one run at one input size.

    Attributes:
        size: height and width.
        layers: in the order in which PyTorch computed them.
        output: the reference's last activation (logits, or pooled features), as the port should give it.
    """

    size: tuple[int, int]
    layers: tuple[LayerResult, ...]
    output: Activation

    @property
    def first_wrong(self) -> LayerResult | None:
        return next((layer for layer in self.layers if not layer.passed), None)

    @property
    def worst(self) -> LayerResult:
        return max(self.layers, key=lambda layer: math.inf if math.isnan(layer.error) else layer.error)


def compare(point: TracePoint, ported: Activation, reference: Activation, bound: float = FLOAT64_BOUND) -> LayerResult:
    """Two activations of equal meaning in the same layout; a different shape or a non-finite value is a failure."""

    def result(error: float, index: tuple[int, ...], at: float, want: float) -> LayerResult:
        return LayerResult(point.name, point.module, reference.shape, error, index, at, want, bound)

    if ported.shape != reference.shape:
        return result(math.inf, ported.shape, math.nan, math.nan)
    if ported.size == 0:
        return result(math.inf, (), math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.abs(ported - reference)
    # argmax returns the first NaN where there is one; inf - inf is NaN too.
    index = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
    largest = float(difference[index])
    scale = float(max(reference.max(), -reference.min()))
    if not (math.isfinite(largest) and math.isfinite(scale)):
        error = math.nan
    else:
        error = largest / scale if scale else (0.0 if largest == 0.0 else math.inf)
    return result(error, index, float(ported[index]), float(reference[index]))


def probe_image(height: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """A deterministic NHWC image in [-1, 1]: smooth structure as in a photograph, with noise on every pixel."""
    random = np.random.Generator(np.random.PCG64([seed, height, width]))
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image = random.uniform(-0.4, 0.4, (height, width, 3))
    for frequency in (1.3, 3.7, 11.0):
        for channel in range(3):
            angle, phase = random.uniform(0, 2 * math.pi, 2)
            wave = np.sin(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)) + phase)
            image[:, :, channel] += 0.25 * wave
    return np.clip(image, -1, 1).astype(np.float32)[None]


def chained(
    model: nn.Module,
    table: Table,
    image: npt.NDArray[np.float32],
    reference: Iterator[tuple[str, Activation]],
    skip: int = 0,
    bound: float = FLOAT64_BOUND,
    step: Callable[[], None] = lambda: None,
) -> Trace:
    """Run the model in float64 on the image and compare every trace point with the reference's activation.

    Args:
        model: the network, in float32; each layer's weights are cast to float64 for the time of its own forward.
        table: pairs activations with modules.
        image: float32 NHWC.
        reference: (name, activation) in the reference's own order; other names than the table's are passed over.
        skip: leading logits of the reference that the port leaves out.
        bound: see FLOAT64_BOUND.
        step: called after each comparison.
    """
    points = table.points
    incoming = _Incoming(reference)
    results: list[LayerResult] = []
    output: list[Activation] = []

    def compared(point: TracePoint, ported: Tensor) -> None:
        step()
        expected = incoming.take(point.name)
        if expected is None:
            missing = LayerResult(point.name, point.module, (), math.inf, (), math.nan, math.nan, bound)
            results.append(missing)
            return
        if point is table.logits:
            expected = expected[..., skip:]
        if point is points[-1]:
            output.append(expected)
        results.append(compare(point, _channels_last(ported), expected, bound))

    with ExitStack() as stack, torch.inference_mode():
        stack.enter_context(_layerwise_float64(model))
        for point in points:
            module = model.get_submodule(point.module)
            handle = module.register_forward_hook(lambda _m, _i, value, point=point: compared(point, value))
            stack.callback(handle.remove)
        model(torch.from_numpy(image).permute(0, 3, 1, 2).double())
    incoming.finish()
    if len(results) != len(points):
        seen = {result.module for result in results}
        results += [
            LayerResult(point.name, point.module, (), math.inf, (), math.nan, math.nan, bound)
            for point in points
            if point.module not in seen
        ]
    _, height, width, _ = image.shape
    return Trace((height, width), tuple(results), output[-1] if output else np.empty(0))


class _Incoming:
    """The reference's activations by name; what comes before it is asked for is kept until it is."""

    def __init__(self, frames: Iterator[tuple[str, Activation]]) -> None:
        self.frames = frames
        self.early: dict[str, Activation] = {}

    def take(self, name: str) -> Activation | None:
        while name not in self.early:
            item = next(self.frames, None)
            if item is None:
                return None
            self.early[item[0]] = item[1]
        return self.early.pop(name)

    def finish(self) -> None:
        """Read what is left: the reference's stream must be at its end before it is asked again, and may fail late."""
        for _ in self.frames:
            pass


def _channels_last(value: Tensor) -> Activation:
    array: Activation = (value.permute(0, 2, 3, 1) if value.dim() == 4 else value).numpy()
    return array


@contextmanager
def _layerwise_float64(model: nn.Module) -> Iterator[None]:
    """Each leaf module's parameters are float64 while it runs and float32 again after, so only one layer's are held.

    float32 to float64 and back changes no bit.
    """
    leaves = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = []
    for module in leaves:
        handles.append(module.register_forward_pre_hook(lambda m, _: _cast(m, torch.float64)))
        handles.append(module.register_forward_hook(lambda m, _i, _o: _cast(m, torch.float32)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    module.to(dtype)


@dataclass(frozen=True)
class Float32Result:
    """The emitted file, reloaded and run in float32, against the float64 truth.

    Attributes:
        error: max |ported - reference| over max |reference|.
        same_class: whether the largest output is the same one.
    """

    error: float
    same_class: bool
    bound: float = FLOAT32_BOUND

    @property
    def passed(self) -> bool:
        return self.error <= self.bound and self.same_class


def float32_output(model: nn.Module, image: npt.NDArray[np.float32], truth: Activation) -> Float32Result:
    """Compare the model's float32 output on the image with the reference's float64 output."""
    with torch.inference_mode():
        value = model(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy().astype(np.float64)
    result = compare(TracePoint("output", ""), value, truth, FLOAT32_BOUND)
    return Float32Result(result.error, bool(np.array_equal(value.argmax(-1), truth.argmax(-1))))


def load_network(create: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """A network built without storage that takes the state dict's tensors as its own.

    Raises:
        RuntimeError: the state dict is not exactly the network's.
    """
    with torch.device("meta"):
        model: nn.Module = create()
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model.eval()
