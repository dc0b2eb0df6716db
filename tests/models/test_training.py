"""The parts of a training run: batches, schedule, average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import ModelError
from models.image_folder import ImageFolder, Samples, collate, evaluation_batches, training_batches
from models.processes import Share
from models.training import Recipe, Run, evaluate, learning_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(9, 5, [5, 4]), (9, 9, [9]), (10, 4, [4, 3, 3]), (3, 8, [3])]
)
def test_an_epoch_has_every_image_once_in_batches_of_one_size(count: int, batch_size: int, sizes: list[int]) -> None:
    batches = training_batches(count, batch_size, seed=1, epoch=2)
    assert [len(batch) for batch in batches] == sizes
    positions = [position for batch in batches for epoch, position in batch if epoch == 2]
    assert sorted(positions) == list(range(count))
    assert training_batches(count, batch_size, seed=1, epoch=2) == batches


def test_every_epoch_and_seed_has_its_own_order() -> None:
    orders = [
        [position for batch in training_batches(50, 8, seed, epoch) for _, position in batch]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(order) for order in orders}) == 3


def test_a_crop_depends_on_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    folder = ImageFolder(tmp_path, ("a", "b"), (tmp_path / "a.png",) * 2, (0, 1))

    def drawn(seed: int, key: tuple[int, int]) -> float:
        samples: Any = Samples(folder, lambda _: torch.rand(1), seed)
        before = torch.random.get_rng_state()
        value = samples[key][0].item()
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(3)
        assert samples[key][0].item() == value
        return float(value)

    assert len({drawn(0, (0, 0)), drawn(0, (0, 1)), drawn(0, (1, 0)), drawn(1, (0, 0))}) == 4


def test_the_first_error_of_a_batch_is_its_result() -> None:
    error = ModelError("a.png: damaged")
    assert collate([(torch.zeros(1), 0), error]) is error


def test_the_rate_rises_to_its_largest_and_falls_to_nothing() -> None:
    recipe = Recipe(epochs=10, batch_size=1, lr=2.0, warmup_epochs=1)
    rates = [learning_rate(recipe, step, 20) for step in range(200)]
    assert rates[0] == 2.0 / 21 and max(rates) == rates[20] == 2.0
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 1e-3 and rates[110] == pytest.approx(1.0)


class Constant(nn.Module):
    """Logits that are the image's own first values."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :3]


def test_evaluation_counts_every_image_once_however_it_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven images in batches of four, over three processes: parts of 2, 1, 1 and 1, 1, 1 images."""
    torch.manual_seed(4)
    logits, targets = torch.randn(7, 3), torch.arange(7) % 3

    class Table:
        def __len__(self) -> int:
            return 7

        def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
            return logits[key[1]].expand(1, 2, 3), int(targets[key[1]])

    table: Any = Table()
    network: Any = Constant()
    whole = evaluate(network, table, 4, Share(0, 1, CPU))
    assert whole[0] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)
    assert whole[1] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    sums = []
    monkeypatch.setattr(Share, "total", lambda _, tensor: sums.append(tensor.clone()) or tensor)
    for rank in range(3):
        evaluate(network, table, 4, Share(rank, 3, CPU))
    loss, correct, count = torch.stack(sums).sum(0).tolist()
    assert count == 7 and (loss / count, correct / count) == pytest.approx(whole)
    assert [sums[0][2], sums[1][2], sums[2][2]] == [3, 2, 2]
    assert [len(batch) for batch in evaluation_batches(7, 4)] == [4, 3]


def test_the_average_follows_weights_and_statistics() -> None:
    from models.training import _follow

    def built(value: float) -> Any:
        norm = nn.BatchNorm2d(2)
        nn.init.constant_(norm.weight, value)
        assert norm.running_mean is not None and norm.num_batches_tracked is not None
        norm.running_mean.fill_(value)
        norm.num_batches_tracked.fill_(int(value))
        return norm

    recipe = Recipe(epochs=1, batch_size=1, lr=1.0, ema_decay=0.9)
    for updates, decay in ((0, 0.1), (8, 0.5), (1000, 0.9)):
        run = Run(built(3.0), torch.optim.SGD([torch.zeros(1)]), built(1.0))
        _follow(run, recipe, updates)
        average: Any = run.average
        expected = torch.full((2,), decay * 1.0 + (1 - decay) * 3.0)
        torch.testing.assert_close(average.weight, expected)
        torch.testing.assert_close(average.running_mean, expected)
        assert average.num_batches_tracked == 3
