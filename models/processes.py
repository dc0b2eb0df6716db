"""The processes that share a training run or an evaluation, and the signals that stop it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor

from models.errors import ModelError

if TYPE_CHECKING:
    from types import FrameType


@dataclass(frozen=True)
class Share:
    """This process's part of the work: every `world`-th image from the `rank`-th on, on `device`."""

    rank: int
    world: int
    device: torch.device
    workers: int = 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, which must all call this.

        Raises:
            ModelError: another process has ended.
        """
        if self.world > 1:
            try:
                torch.distributed.all_reduce(tensor)
            except RuntimeError as error:
                raise ModelError(f"process {self.rank}: another process has ended") from error
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)


def is_first() -> bool:
    """Whether this process speaks for all (torchrun numbers them)."""
    return os.environ.get("RANK", "0") == "0"


def join(device: str | None, workers: int, patience: timedelta | None = None) -> Share:
    """This process's share, after meeting those that torchrun has started with it.

    Args:
        device: cpu, cuda or cuda:N; None for a GPU if there is one.
        workers: processes that read images for this one.
        patience: how long the processes may wait for each other; None for PyTorch's own, some minutes.

    Raises:
        ModelError: no such device.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device: {name} cannot be used: {str(error).splitlines()[0]}") from error
    if world > 1:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=patience)
    return Share(rank, world, place, workers)


class Stop:
    """Whether a signal has asked the run to stop, which it does after the step that it is in."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True
        if "WORLD_SIZE" not in os.environ:  # torchrun repeats a signal that the terminal has sent already
            signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever asks twice does not want to wait
