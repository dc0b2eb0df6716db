"""The training loop: recipe, schedule, average of the weights, epochs, evaluation, and the state that resumes them.

Random numbers are drawn from seeds derived from the step, so that a resumed run needs no generator's state to repeat
what an uninterrupted one does: on the CPU, bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.image_folder import Samples, derived_seed, evaluation_batches, load, training_batches
from models.processes import Share
from models.registry import Network

# The average follows the weights closely at first: after t steps its decay is at most (1 + t) / (10 + t)
# (tf.train.ExponentialMovingAverage, `num_updates`).
_AVERAGE_START = 10


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `batch_size` is the images a step, over all processes; lengths are in epochs."""

    epochs: int
    batch_size: int
    lr: float
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 1.0  # largest norm of the gradient; 0 for none
    ema_decay: float = 0.999  # of the average of the weights; 0 for none
    freeze_epochs: int = 0  # at first, the classifier alone learns
    freeze_norm: bool = False  # batch norms keep the statistics that they came with
    amp: bool = False  # bfloat16 where autocast takes it
    seed: int = 0


class DivergedError(ModelError):
    """The loss is not a number any more; every process sees that in the same step."""


class InterruptedRunError(Exception):
    """The run was asked to stop, and has stopped between two steps."""


@dataclass
class Run:
    """A training run between two steps. `sums` are this epoch's loss, correct answers and images so far."""

    network: Network
    optimizer: torch.optim.Optimizer
    average: Network | None
    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def trained(self) -> Network:
        """The network that is evaluated and written: the average, where one is kept."""
        return self.network if self.average is None else self.average


def new_run(network: Network, recipe: Recipe, device: torch.device) -> Run:
    """A run at its first step; the network moves to `device`, channels last in memory."""
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False).eval() if recipe.ema_decay > 0 else None
    # Scales, centres and biases are not decayed (He et al. 2018, "Bag of Tricks", section 3.1).
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    run = Run(network, torch.optim.AdamW(groups, lr=recipe.lr), average)
    run.sums = run.sums.to(device)
    return run


def snapshot(run: Run) -> dict[str, Any]:
    """Everything that `restore` needs, as tensors and plain values."""
    return {
        "network": run.network.state_dict(),
        "average": None if run.average is None else run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "epoch": run.epoch,
        "step": run.step,
        "sums": run.sums.tolist(),
        "history": run.history,
    }


def restore(run: Run, saved: Mapping[str, Any], share: Share) -> None:
    """Put a new run where the one was that `saved` is the snapshot of.

    Raises:
        KeyError, ValueError, RuntimeError, TypeError: not the snapshot of such a run.
    """
    run.network.load_state_dict(saved["network"])
    if run.average is not None:
        run.average.load_state_dict(saved["average"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.epoch, run.step = int(saved["epoch"]), int(saved["step"])
    # They are sums over all processes, so one process goes on from them.
    run.sums = run.sums.new_tensor(saved["sums"] if share.rank == 0 else [0.0, 0.0, 0.0])
    run.history = [dict(epoch) for epoch in saved["history"]]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted over the whole run: linear to `lr`, then half a cosine to 0.

    (Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.)
    """
    total, warmup = recipe.epochs * steps_per_epoch, round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _set_mode(run: Run, recipe: Recipe) -> None:
    """What learns in this epoch."""
    head_only = run.epoch < recipe.freeze_epochs
    run.network.requires_grad_(not head_only)
    run.network.get_classifier().requires_grad_(True)
    run.network.train()
    for module in run.network.modules():
        if isinstance(module, nn.BatchNorm2d) and (recipe.freeze_norm or head_only):
            module.eval()


def _add_up(gradients: list[Tensor], share: Share) -> None:
    """Replace each process's gradients by their sum."""
    if share.world > 1:
        flat = share.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def _follow(run: Run, recipe: Recipe, updates: int) -> None:
    """Move the average towards the weights; batch-norm statistics are averaged too."""
    assert run.average is not None
    weight = 1.0 - min(recipe.ema_decay, (1 + updates) / (_AVERAGE_START + updates))
    with torch.no_grad():
        pairs = zip(run.average.state_dict().values(), run.network.state_dict().values(), strict=True)
        for mean, value in pairs:
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)


def _agree_on_statistics(run: Run, share: Share) -> None:
    """Average the batch norms' statistics over the processes, each of which has seen other images."""
    if share.world > 1:
        for network in (run.network, run.average):
            buffers = [] if network is None else [one for one in network.buffers() if one.is_floating_point()]
            for buffer in buffers:
                share.total(buffer.div_(share.world))


def _finish(run: Run, share: Share) -> None:
    """Bring what the processes hold apart together, so that any one of them can write the run down."""
    _agree_on_statistics(run, share)
    total = share.total(run.sums)
    _check_finite(run, float(total[0]))


def _check_finite(run: Run, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"epoch {run.epoch + 1}: the loss is not a number any more; lower --lr, or lengthen --warmup-epochs"
        )


@dataclass(frozen=True)
class Watch:
    """What a run tells while it goes on, and asks: is it to stop?"""

    step: Callable[[Run, float], None]  # after each step, with its learning rate
    stop: Callable[[], bool]


def train_epoch(run: Run, recipe: Recipe, samples: Samples, share: Share, watch: Watch) -> None:
    """Train from the run's step to the end of its epoch.

    Each step's loss is the mean over the images of all processes, whose parts may differ in size.

    Raises:
        ModelError: an image cannot be read, the loss is not finite, or another process has ended.
        InterruptedRunError: `watch.stop` was true in some process; the run is between two steps.
    """
    batches = training_batches(len(samples), recipe.batch_size, recipe.seed, run.epoch)
    own = [batch[share.rank :: share.world] for batch in batches[run.step :]]
    _set_mode(run, recipe)
    parameters = [parameter for parameter in run.network.parameters() if parameter.requires_grad]
    for images, targets in _on_device(load(samples, own, share.workers, share.device.type == "cuda"), share):
        done = run.epoch * len(batches) + run.step
        rate = learning_rate(recipe, done, len(batches))
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derived_seed(recipe.seed, run.epoch, run.step, share.rank))  # for dropout
        with torch.autocast(share.device.type, torch.bfloat16, enabled=recipe.amp):
            logits = run.network(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing, reduction="sum")
        run.optimizer.zero_grad()
        (loss / len(batches[run.step])).backward()  # type: ignore[no-untyped-call]
        _add_up([parameter.grad for parameter in parameters if parameter.grad is not None], share)
        if recipe.clip_norm > 0:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        run.optimizer.step()
        if run.average is not None:
            _follow(run, recipe, done)
        correct = (logits.argmax(1) == targets).sum()
        run.sums += torch.stack([loss.detach().double(), correct.double(), correct.new_tensor(len(targets)).double()])
        run.step += 1
        watch.step(run, rate)
        if share.any(watch.stop()):
            _finish(run, share)
            raise InterruptedRunError
    _finish(run, share)


def _on_device(batches: Iterable[tuple[Tensor, Tensor]], share: Share) -> Iterable[tuple[Tensor, Tensor]]:
    for images, targets in batches:
        yield (
            images.to(share.device, non_blocking=True, memory_format=torch.channels_last),
            targets.to(share.device, non_blocking=True),
        )


def evaluate(
    network: Network, samples: Samples, batch_size: int, share: Share, amp: bool = False
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all images, each counted once; the processes share them.

    Raises:
        ModelError: an image cannot be read, or another process has ended.
    """
    parts = (batch[share.rank :: share.world] for batch in evaluation_batches(len(samples), batch_size))
    own = [part for part in parts if part]
    sums = torch.zeros(3, dtype=torch.float64, device=share.device)
    network.eval()
    with torch.no_grad(), torch.autocast(share.device.type, torch.bfloat16, enabled=amp):
        for images, targets in _on_device(load(samples, own, share.workers, share.device.type == "cuda"), share):
            logits: Any = network(images)
            loss = F.cross_entropy(logits.float(), targets, reduction="sum")
            correct = (logits.argmax(1) == targets).sum()
            sums += torch.stack([loss.double(), correct.double(), correct.new_tensor(len(targets)).double()])
    loss_sum, correct_sum, count = share.total(sums).tolist()
    return loss_sum / count, correct_sum / count


def end_epoch(run: Run, recipe: Recipe, samples: Samples, share: Share, began: float) -> None:
    """Evaluate, write the epoch into the run's history, and stand before the next one.

    Raises:
        ModelError: an image cannot be read, the loss is not finite, or another process has ended.
    """
    loss, correct, count = run.sums.tolist()
    seconds = time.perf_counter() - began
    val_loss, val_accuracy = evaluate(run.trained, samples, recipe.batch_size, share, recipe.amp)
    _check_finite(run, val_loss)
    run.epoch, run.step = run.epoch + 1, 0
    run.sums.zero_()
    run.history.append(
        {
            "epoch": run.epoch,
            "lr": run.optimizer.param_groups[0]["lr"],
            "train_loss": loss / count,
            "train_accuracy": correct / count,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "images_per_second": count / seconds,
        }
    )
