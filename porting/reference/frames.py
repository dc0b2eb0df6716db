"""Activations on their way from one network to the comparison: frames, a bounded read-ahead, and the probe.

Both sides of the process boundary use this file; it needs numpy alone.
"""

from __future__ import annotations

import math
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PIECE = 1 << 16  # values, half a MiB in float64: large temporaries are slow
Activation = npt.NDArray[np.floating[Any]]


class Frame(NamedTuple):
    """One activation, NHWC or (N, features), under the reference's name.

    Attributes:
        noise: largest |float32 - float64| of TensorFlow's own two executions, where it was asked for.
    """

    name: str
    values: Activation
    noise: float | None = None


Put = Callable[[Frame], None]


class ReadAhead:
    """Frames made by a thread, never more than a number of bytes ahead of whoever iterates.

    A frame is made before its room is known, so one more than fits is held.

    Args:
        produce: gives every frame to its argument, in order; what it raises is raised to whoever iterates.
        limit: bytes held before the thread waits.
    """

    def __init__(self, produce: Callable[[Put], None], limit: int) -> None:
        self._limit = limit
        self._items: queue.SimpleQueue[Frame | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._ahead = 0
        self._closed = False
        threading.Thread(target=self._run, args=(produce,), daemon=True).start()

    def _run(self, produce: Callable[[Put], None]) -> None:
        try:
            produce(self._put)
            self._items.put(None)
        except BaseException as error:  # delivered to the consumer, which raises it
            self._items.put(error)

    def _put(self, frame: Frame) -> None:
        with self._room:
            self._room.wait_for(lambda: self._ahead < self._limit or self._closed)
            if self._closed:
                raise RuntimeError("nobody takes these frames any more")
            self._ahead += frame.values.nbytes
        self._items.put(frame)

    def close(self) -> None:
        """Let the thread end: its next frame is refused."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def __iter__(self) -> Iterator[Frame]:
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            with self._room:
                self._ahead -= item.values.nbytes
                self._room.notify()
            yield item


def largest_difference(one: Activation, other: Activation) -> float:
    """max |one - other| of two activations that lie alike in memory, NaN where one is; in pieces that fit the cache."""
    flat = one.reshape(-1), other.reshape(-1)
    pieces = (slice(start, start + PIECE) for start in range(0, one.size, PIECE))
    return float(np.max([np.abs(flat[0][piece] - flat[1][piece]).max() for piece in pieces]))


def probe(name: str, like: Activation) -> Activation:
    """Dense random numbers to pass on in an activation's place, the same in both frameworks.

    Normal, of the activation's own scale but of deviation 1 at most (else scales would grow from layer to layer until
    biases no longer mattered), and drawn from its name and shape; non-negative where the activation is, so that what a
    ReLU gave stays what a ReLU can give, and a second ReLU after it stays the identity that it is.
    """
    random = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), *like.shape]))
    values = random.standard_normal(like.shape)
    largest = float(max(like.max(), -like.min())) if like.size else 0.0
    if largest > 0 and math.isfinite(largest):
        values *= 2.0 ** min(round(math.log2(largest)) - 2, 0)  # a normal sample's largest is about four deviations
    return np.abs(values) if like.size and like.min() >= 0 else values
