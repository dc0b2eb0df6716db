"""Running the PyTorch network beside the reference, comparing each layer as both compute it.

Each PyTorch module's forward hook takes the reference's activation of the same name, compares, and drops it, so that
only a few layers are ever held. From a layer that differs on, the network continues in isolation: the hook replaces
the wrong activation by the reference's, through the network's own wiring, so that every faulty layer is found in one
pass and no innocent one is blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from porting import causes
from porting.noise import yardstick
from porting.parity import FLOAT64_BOUND, LayerResult, Trace, absent, compare, with_float32
from porting.reference import Activation
from porting.reference.frames import Frame, Put, ReadAhead, probe
from porting.rules import TracePoint
from porting.runs import Run

FLOAT32_AHEAD_BYTES = 1 << 20  # float32 is faster than float64 and waits for it


def lockstep(
    model: nn.Module,
    points: Sequence[TracePoint],
    image: npt.NDArray[np.float32],
    frames: Iterator[Frame],
    run: Run,
    *,
    float32: nn.Module | None = None,
    skip: int = 0,
    wrong_weights: Container[str] = (),
    bound: float = FLOAT64_BOUND,
    step: Callable[[], None] = lambda: None,
) -> Trace:
    """Run the model in float64 and compare every trace point with the reference's activation.

    Args:
        model: the network, in float32; each layer's weights are cast to float64 for the time of its own forward.
        points: activations paired with modules; the last one is the output.
        image: NHWC.
        frames: the reference's, in its own order; other names than the points' are passed over.
        run: what the reference was asked for. `run.float32` needs frames with noise.
        float32: the same network again, for `run.float32`.
        skip: leading outputs of the reference that the port leaves out.
        wrong_weights: modules whose difference needs no other explanation.
        bound: see FLOAT64_BOUND.
        step: called after each comparison.
    """
    incoming = _Incoming(frames)
    results: dict[str, LayerResult] = {}
    entered: list[TracePoint] = []  # and not yet left: where the network is, innermost last
    differing: list[TracePoint] = []
    noise: list[float] = []  # of the layers so far
    terms = [1]  # products in the longest sum so far
    stopped = ""

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        beside = _Beside(stack, float32, points, image) if run.float32 and float32 is not None else None

        def compared(point: TracePoint, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            step()
            if point in entered:
                entered.remove(point)
            frame = incoming.take(point.name)
            lighter = beside.take(point.name) if beside else None
            if frame is None:
                results[point.module] = absent(point, "the reference did not compute it", bound)
                return None
            expected = frame.values[..., skip:] if point is points[-1] else frame.values
            found = _channels_last(output)
            if found.size == expected.size and found.shape[1:3] == (1, 1):
                found = found.reshape(expected.shape)  # a pool that keeps its two sides of 1
            result = compare(point, found, expected, bound)
            if not result.agrees:
                differing.append(point)
            # Once a layer differs, float32's own chain goes on from the wrong value and says nothing more.
            if not differing and lighter is not None and frame.noise is not None:
                noise.append(yardstick(module, inputs, frame, noise))
                terms.append(max(terms[-1], _terms(module)))
                result = with_float32(result, lighter, expected, noise[-1], terms[-1])
            if not result.agrees and point.module not in wrong_weights:
                result = replace(result, cause=causes.likely(module, inputs, output, _channels_first(expected)))
            results[point.module] = result
            if result.agrees and not run.probe:
                return None
            passed_on = _channels_first(probe(point.name, frame.values) if run.probe else frame.values)
            return passed_on.reshape(output.shape) if passed_on.numel() == output.numel() else passed_on

        stack.enter_context(_layerwise_float64(model))
        for point in points:
            module = model.get_submodule(point.module)
            stack.callback(module.register_forward_pre_hook(lambda _m, _i, p=point: entered.append(p)).remove)
            handle = module.register_forward_hook(
                lambda module, inputs, output, point=point: compared(point, module, inputs, output)
            )
            stack.callback(handle.remove)
        try:
            model(_channels_first(image).double())
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            stopped = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    incoming.finish()
    if stopped and entered:
        results[entered[-1].module] = absent(entered[-1], f"the network stops here: {stopped}", bound)
    missing = [point for point in points if point.module not in results]
    never = "not reached" if stopped else "the network did not compute it"
    layers = [*results.values(), *(replace(absent(p, never, bound), reached=not stopped) for p in missing)]
    return Trace(run, tuple(layers), stopped)


class _Incoming:
    """The reference's activations by name; what comes before it is asked for is kept until it is."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self.frames = frames
        self.early: dict[str, Frame] = {}

    def take(self, name: str) -> Frame | None:
        while name not in self.early:
            item = next(self.frames, None)
            if item is None:
                return None
            self.early[item.name] = item
        return self.early.pop(name)

    def finish(self) -> None:
        """Read what is left: the reference's stream must be at its end before it is asked again, and may fail late."""
        for _ in self.frames:
            pass


class _Beside:
    """The network in float32, run by a thread that stays a layer ahead."""

    def __init__(
        self, stack: ExitStack, model: nn.Module, points: Sequence[TracePoint], image: npt.NDArray[np.float32]
    ) -> None:
        # What a later layer overwrites must be kept before it does.
        overwrites = any(getattr(module, "inplace", False) for module in model.modules())

        def give(put: Put, point: TracePoint, output: Tensor) -> None:
            values = _channels_last(output)
            put(Frame(point.name, values.copy() if overwrites else values))

        def produce(put: Put) -> None:
            with torch.inference_mode(), ExitStack() as hooks:
                for point in points:
                    handle = model.get_submodule(point.module).register_forward_hook(
                        lambda _module, _inputs, output, point=point: give(put, point, output)
                    )
                    hooks.callback(handle.remove)
                model(_channels_first(image))

        ahead = stack.enter_context(closing(ReadAhead(produce, FLOAT32_AHEAD_BYTES)))
        self.incoming = _Incoming(iter(ahead))

    def take(self, name: str) -> Activation | None:
        frame = self.incoming.take(name)
        return None if frame is None else frame.values


def _terms(module: nn.Module) -> int:
    """Products in each sum that a layer takes."""
    return module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 1


def _channels_last(value: Tensor) -> Activation:
    array: Activation = (value.permute(0, 2, 3, 1) if value.dim() == 4 else value).numpy()
    return array


def _channels_first(array: npt.NDArray[Any]) -> Tensor:
    """A tensor of its own: what follows may work in place."""
    value = torch.from_numpy(array)
    return (value.permute(0, 3, 1, 2) if value.dim() == 4 else value).clone(memory_format=torch.contiguous_format)


@contextmanager
def _layerwise_float64(model: nn.Module) -> Iterator[None]:
    """Each leaf module's parameters are float64 while it runs and themselves again after: one layer is held.

    PyTorch computes a depthwise convolution in float64 channel by channel, and waking other threads for each of 728
    small products costs five times what they take (25 ms against 4, measured): those run in one.
    """
    threads = torch.get_num_threads()
    kept: dict[nn.Module, list[tuple[dict[str, Any], str, Tensor]]] = {}

    def widen(module: nn.Module, _inputs: Any) -> None:
        kept[module] = []
        torch.set_num_threads(1 if getattr(module, "groups", 1) > 1 else threads)
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for holder in holders:
            for name, value in holder.items():
                if value is not None and value.is_floating_point():
                    kept[module].append((holder, name, value))
                    holder[name] = value.detach().double()

    def restore(module: nn.Module, _inputs: Any, _output: Any) -> None:
        for holder, name, value in kept.pop(module, []):
            holder[name] = value

    handles = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()


def load_network(create: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """A network built without storage that takes the state dict's tensors as its own.

    Raises:
        RuntimeError: the state dict is not exactly the network's.
    """
    with torch.device("meta"):
        model: nn.Module = create()
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model.eval()
