"""How often a network is right: top-1, top-5 and loss over a set of images, shared among processes, and resumed.

The batches are those of the whole set in order, and each is computed by one process, whole: so its numbers do not
depend on how many processes there are. They come together as integers and as one float64 sum a batch, which are added
in the batches' order: any number of processes gives the same counts, and the same loss to the last bit. (That is with
the same number of threads each; with another, PyTorch adds up in another order, and logits differ by 1e-6 of their
standard deviation.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError
from models.image_folder import Gathered, Key, Samples, gather, loader
from models.processes import Share
from models.registry import Network

TOP = 5


class InterruptedEvaluationError(Exception):
    """The evaluation was asked to stop, and has stopped between two batches."""


@dataclass(frozen=True)
class Outcome:
    """What one batch gave: images that were read, how many were right, and the sum of their losses.

    `unreadable` are the positions, in the whole set, of the images that could not be read and are in no other number.
    """

    batch: int
    images: int
    top1: int
    top5: int
    loss: float
    unreadable: tuple[int, ...]


@dataclass(frozen=True)
class Accuracy:
    """The result over all batches: counts, and the mean cross-entropy of the images that were read."""

    images: int
    top1: int
    top5: int
    loss: float
    unreadable: tuple[int, ...]

    def percent(self, count: int) -> float:
        """A share of the images that were read."""
        return round(100 * count / self.images, 6)


def scores(logits: Tensor) -> Tensor:
    """Logits (N, classes) in float64; those of a single output with two sides become two.

    The sigmoid of one output z is the second one's softmax of (0, z).
    """
    values = logits.double().cpu()
    return torch.cat([torch.zeros_like(values), values], 1) if values.shape[1] == 1 else values


def ranks(values: Tensor, targets: Tensor) -> Tensor:
    """How many classes come before each image's own (N,): those of a larger score (N, classes), or, with the same
    score, of a smaller index."""
    own = values.gather(1, targets[:, None])
    earlier = torch.arange(values.shape[1]) < targets[:, None]
    return ((values > own) | ((values == own) & earlier)).sum(1)


def _outcome(
    batch: int, keys: Sequence[Key], gathered: Gathered, network: Network, paths: Sequence[Path], device: torch.device
) -> Outcome:
    unreadable = tuple(keys[number][1] for number, _ in gathered.unreadable)
    if gathered.images is None:
        return Outcome(batch, 0, 0, 0, 0.0, unreadable)
    images = gathered.images.to(device, non_blocking=True, memory_format=torch.channels_last)
    with torch.inference_mode():
        values = scores(network(images))
    read = [position for _, position in keys if position not in unreadable]
    for position, row in zip(read, values, strict=True):
        if not torch.isfinite(row).all():  # nothing is larger than a NaN, so it would count as right
            raise ModelError(
                f"{paths[position]}: logits: expected finite numbers, found others; the weights are damaged"
            )
    before = ranks(values, gathered.targets)
    loss = F.cross_entropy(values, gathered.targets, reduction="sum")
    return Outcome(
        batch, len(read), int((before < 1).sum()), int((before < TOP).sum()), float(loss), unreadable
    )  # fmt: skip


def exact_arithmetic() -> None:
    """Have a GPU compute in float32 throughout, and always in the same way."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def evaluate(
    network: Network,
    samples: Samples,
    batches: Sequence[list[Key]],
    before: Sequence[Outcome],
    share: Share,
    finished: Callable[[Outcome, Sequence[str]], None],
    stop: Callable[[], bool],
) -> Accuracy:
    """Evaluate all batches, those of `before` excepted, and add everything up; every process calls this alike.

    Args:
        network: on the share's device.
        before: outcomes of an earlier run; those of the first process are used.
        finished: told of each outcome of this process, and why images could not be read.
        stop: asked after each batch.

    Raises:
        ModelError: no image could be read, logits that are not finite, or another process has ended.
        InterruptedEvaluationError: `stop` was true.
    """
    table = _Table(len(batches), len(samples))
    if share.rank == 0:
        for outcome in before:
            table.put(outcome)
    table.share(share)
    own = table.missing()[share.rank :: share.world]
    if share.rank > 0:
        table = _Table(len(batches), len(samples))  # the earlier outcomes are the first process's
    network.eval()
    keys = [batches[number] for number in own]
    gathered_batches = loader(samples, keys, share.workers, share.device.type == "cuda", gather) if own else ()
    for number, gathered in zip(own, gathered_batches, strict=True):
        outcome = _outcome(number, batches[number], gathered, network, samples.folder.paths, share.device)
        table.put(outcome)
        finished(outcome, [reason for _, reason in gathered.unreadable])
        if stop():
            raise InterruptedEvaluationError
    table.share(share)
    return table.accuracy(samples)


class _Table:
    """One row a batch; all that processes tell each other is the sum of their tables."""

    def __init__(self, batches: int, images: int) -> None:
        self.counts = torch.zeros(batches, 4, dtype=torch.int64)  # done, images, top-1, top-5
        self.losses = torch.zeros(batches, dtype=torch.float64)
        self.unreadable = torch.zeros(images, dtype=torch.int64)

    def put(self, outcome: Outcome) -> None:
        row = [1, outcome.images, outcome.top1, outcome.top5]
        self.counts[outcome.batch] = torch.tensor(row)
        self.losses[outcome.batch] = outcome.loss
        self.unreadable[list(outcome.unreadable)] = 1

    def share(self, share: Share) -> None:
        """Replace the table by the sum over all processes; no row is filled by two, so that nothing is rounded."""
        for name in ("counts", "losses", "unreadable"):
            own: Tensor = getattr(self, name)
            setattr(self, name, share.total(own.to(share.device)).cpu())

    def missing(self) -> list[int]:
        rows: Any = (self.counts[:, 0] == 0).nonzero()
        return [int(row) for row in rows]

    def accuracy(self, samples: Samples) -> Accuracy:
        done, images, top1, top5 = (int(total) for total in self.counts.sum(0))
        unreadable = tuple(int(row) for row in self.unreadable.nonzero())
        if done != len(self.counts) or images + len(unreadable) != len(samples) or int(self.counts[:, 0].max()) > 1:
            raise ModelError(f"{samples.folder.root}: some images were counted twice or not at all: run this again")
        if images == 0:
            raise ModelError(f"{samples.folder.root}: none of {len(samples)} images could be read")
        return Accuracy(images, top1, top5, math.fsum(self.losses.tolist()) / images, unreadable)
