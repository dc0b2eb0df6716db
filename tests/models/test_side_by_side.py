"""Images that threads compute side by side: the same result, and never where somebody could tell."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_networks import SMALL, randomise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import create_model, optimize_for_inference, side_by_side
from models.fused import FusedConv2d

MAIN = threading.main_thread().name


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    side_by_side._pool.cache_clear()


class Watched(nn.Module):
    """A small network, and which thread computed how many images at once, of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self.seen: list[tuple[str, int]] = []
        self.inside: Callable[[], object] = lambda: None
        self.eval()

    def run(self, x: Tensor) -> Tensor:
        self.seen.append((threading.current_thread().name, len(x)))
        self.inside()
        out: Tensor = self.conv(x).mean((2, 3))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return side_by_side.side_by_side(self.run, x, self, 4 * x.shape[-2] * x.shape[-1])

    def sizes(self) -> list[int]:
        """How many images at once, of the calls since this was last asked; none of them in the main thread."""
        threads, sizes = zip(*self.seen, strict=True)
        assert MAIN not in threads
        self.seen.clear()
        return list(sizes)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 33, 40, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", [SMALL[0], pytest.param(SMALL[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("maps", [False, True])
def test_the_same_on_threads_as_on_one(name: str, maps: bool) -> None:
    options: dict[str, Any] = {"features_only": True} if maps else {"num_classes": 4}
    network: Any = optimize_for_inference(randomise(create_model(name, **options)).double())
    x = images(3).double()
    with torch.inference_mode():
        found = network(x)
        assert side_by_side._pool.cache_info().currsize == 1
        torch.set_num_threads(1)
        expected = network(x)
    for one, other in zip(found, expected, strict=True) if maps else [(found, expected)]:
        assert one.shape == other.shape and one.stride() == other.stride()
        assert one.is_inference() and not one.requires_grad
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * other.abs().max().item())


def test_images_in_the_wrong_order_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above, by images of noise, whose means are close."""
    network, x = Watched(), images(4)
    expected = network.run(x)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-6)
    split: Callable[..., tuple[Tensor, ...]] = torch.tensor_split
    monkeypatch.setattr(torch, "tensor_split", lambda *given: split(*given)[::-1])
    assert (network(x) - expected).abs().max() > 1e-3


def test_a_large_batch_goes_to_whoever_is_free_and_the_rest_to_all() -> None:
    network, x = Watched(), images(19)
    torch.testing.assert_close(network(x), network.conv(x).mean((2, 3)), rtol=0, atol=1e-6)
    assert [count for _, count in network.seen] == [3, 3, 3, 3, 3, 3, 1]
    assert [thread == MAIN for thread, _ in network.seen] == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("threads", "batch", "workers"),
    [(1, 8, 1), (2, 1, 1), (2, 3, 2), (6, 4, 3), (7, 6, 1), (7, 7, 7), (16, 9, 8), (16, 100, 16), (4, 0, 1)],
)
def test_threads_are_shared_out_equally(threads: int, batch: int, workers: int) -> None:
    assert side_by_side._shares(batch, threads) == workers


def _global_hook(_: Watched) -> Any:
    return nn.modules.module.register_module_forward_hook(lambda *_: None)


WATCHERS: dict[str, Callable[[Watched], Any]] = {
    "hook": lambda network: network.conv.register_forward_hook(lambda *_: None),
    "global hook": _global_hook,
    "autocast": lambda _: torch.autocast("cpu", dtype=torch.bfloat16),
    "dispatch mode": lambda _: FlopCounterMode(display=False),
    "function mode": lambda _: torch.device("cpu"),
    "profiler": lambda _: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_who_looks_on_sees_all_in_one_thread(watcher: str) -> None:
    """The control is the call after: with nobody there, other threads compute."""
    network, x = Watched(), images(2)
    with WATCHERS[watcher](network):
        network(x)
    assert network.seen.pop() == (MAIN, 2) and not network.seen
    network(x)
    assert network.sizes() == [1, 1]


def test_gradients_and_training_are_one_threads() -> None:
    network, x = Watched(), images(2)
    network(x)
    assert network.sizes() == [1, 1], "nothing wants a gradient, whatever the mode"
    wanted = images(2).requires_grad_()
    network(wanted).sum().backward()
    assert wanted.grad is not None and network.seen.pop() == (MAIN, 2)
    network.conv.weight.requires_grad_(True)
    assert network(x).requires_grad and network.seen.pop() == (MAIN, 2)
    with torch.no_grad():
        assert not network(x).requires_grad and network.sizes() == [1, 1]
        network.train()(x)
        assert network.seen == [(MAIN, 2)]


def test_a_transform_takes_one_thread_and_the_plain_convolution() -> None:
    network = Watched()
    conv = network.conv = FusedConv2d(network.conv, relu=True)
    x = torch.stack([images(2, seed) for seed in (1, 2)])
    with torch.no_grad():
        found = torch.func.vmap(network)(x)
        assert network.seen.pop() == (MAIN, 2) and conv._packed is None
        expected = torch.stack([network(one) for one in x])
        assert network.sizes() == [1] * 4 and conv._packed is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    one = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    one.start()
    one.join()
    return found[0]


def test_nobody_elses_number_of_threads_changes() -> None:
    network, counts = Watched(), list[int]()
    network.inside = lambda: counts.append(torch.get_num_threads())
    network(images(2))
    assert network.sizes() == [1, 1] and counts == [1, 1]
    assert torch.get_num_threads() == 2 and threads_of_a_new_thread() == 2
    torch.set_num_threads(4)  # from now on
    network(images(2))
    assert network.sizes() == [1, 1] and counts[2:] == [2, 2]
    assert torch.get_num_threads() == 4 and threads_of_a_new_thread() == 4


def test_an_error_in_a_thread_is_the_callers() -> None:
    network = Watched()

    def fail() -> None:
        raise ValueError("no room")

    network.inside = fail
    with pytest.raises(ValueError, match="no room"):
        network(images(4))
    network.inside = lambda: None
    assert network(images(4)).shape == (4, 4)


def test_many_callers_at_once() -> None:
    network, found = Watched(), dict[int, Tensor]()
    given = [images(4, seed) for seed in range(6)]

    def call(index: int) -> None:
        for _ in range(20):
            found[index] = network(given[index])

    callers = [threading.Thread(target=call, args=(index,)) for index in range(len(given))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert network.sizes() == [2] * (6 * 20 * 2)
    torch.testing.assert_close([found[index] for index in range(6)], list(map(network.run, given)), rtol=0, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """It would wait for ever for its parent's, which it has not."""
    network = nn.Identity().eval()
    x = torch.arange(4.0).reshape(4, 1, 1, 1)

    def both() -> Tensor:
        return side_by_side.side_by_side(lambda part: part + len(part), x, network, 2)

    assert torch.equal(both(), x + 2) and side_by_side._pool.cache_info().currsize == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if side_by_side._pool.cache_info().currsize == 0 and torch.equal(both(), x + 2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
