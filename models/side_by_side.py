"""How a batch of images goes through a network on the CPU: a few at a time, and on several threads side by side.

A matrix product of one image's size is too small to be shared well: the threads wait for each other after every layer.
A thread that computes whole images by itself waits once a batch. Measured: tests/benchmarks/forward.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.layers import hooked, is_traced, is_transformed

Maps = TypeVar("Maps", Tensor, list[Tensor])


def in_slices(stages: Sequence[Callable[[Tensor], Tensor]], x: Tensor, pixels: Sequence[int] | None) -> Tensor:
    """The stages of a network one after the other, from images (N, C, H, W).

    On the CPU each takes at most its number of `pixels` of images (and at least one image) at a time, its results put
    together for the next. Maps that fit in the cache, and in memory that was used before, are up to nine times faster
    to fill than those that the system must hand out anew; small maps of later stages gain more from larger products.
    """
    if pixels is None or is_traced() or x.device.type != "cpu" or not len(x):
        for stage in stages:
            x = stage(x)
        return x
    area = x.shape[-2] * x.shape[-1]
    for stage, most in zip(stages, pixels, strict=True):
        images = max(1, most // area)
        x = stage(x) if len(x) <= images else torch.cat([stage(part) for part in torch.split(x, images)])
    return x


def side_by_side(run: Callable[[Tensor], Maps], x: Tensor, network: nn.Module, pixels: int | None) -> Maps:
    """`run(x)`, which is `network`'s or a part's of it, on images (N, C, H, W), parts of which threads compute at once.

    As many threads as PyTorch uses (`torch.get_num_threads()`) are shared out over workers, each of which takes at most
    `pixels` of images at a time; images that do not go round are computed last, by all threads together. Where somebody
    looks on (a hook, a gradient, a mode, a trace), which is a thread's own affair, nothing is shared out.
    """
    if pixels is None or not _may_share(x, network):
        return run(x)
    workers, pool = _workers(len(x))
    if pool is None:
        return run(x)
    each = len(x) // workers
    most = max(1, pixels // (x.shape[-2] * x.shape[-1]))
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def as_here(part: Tensor) -> Maps:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return run(part)

    shared, rest = x[: workers * each], x[workers * each :]
    # More parts than workers go to whoever is free; an interrupt waits for those that have begun
    results = list(pool.map(as_here, torch.tensor_split(shared, workers * -(-each // most))))
    if len(rest):
        results.append(run(rest))
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    return [torch.cat(maps) for maps in zip(*results, strict=True)]


def _may_share(x: Tensor, network: nn.Module) -> bool:
    """Whether nothing can tell, but by the clock, that other threads compute a part."""
    return bool(
        not is_traced()
        and not is_transformed()
        and len(x) > 1  # asked early: one image waits for no look at every module
        and x.device.type == "cpu"
        and type(x) is Tensor
        and not network.training  # dropout draws its numbers in the order of the images
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in network.parameters())))
        and not torch._C._len_torch_function_stack()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._autograd._profiler_enabled()
        and not hooked(*network.modules())
    )


def _shares(images: int, threads: int) -> int:
    """Into how many equal shares the threads go, with an image at least for each."""
    return max(count for count in range(1, threads + 1) if threads % count == 0 and count <= max(1, images))


def _workers(images: int) -> tuple[int, ThreadPoolExecutor | None]:
    """How many workers there are for so many images, and they, or None for one."""
    with _one_at_a_time:  # while a pool begins, PyTorch would tell a new thread the workers' number
        threads = torch.get_num_threads()
        workers = _shares(images, threads)
        return workers, _pool(workers, threads // workers) if workers > 1 else None


@lru_cache(maxsize=4)
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Workers that run PyTorch on `threads` threads each.

    `torch.set_num_threads` says it for the calling thread and, beside that, for every thread that asks later: all
    workers begin here, and then what was true for later threads is true again.
    """
    outside = torch.get_num_threads()
    all_begun = threading.Event()

    def begin() -> None:
        torch.get_num_threads()  # asks; else this thread's first operation would, and forget what is said next
        torch.set_num_threads(threads)

    pool = ThreadPoolExecutor(workers, "images", begin)
    try:
        held = [pool.submit(all_begun.wait) for _ in range(workers)]  # one that waits takes no second task
    finally:
        all_begun.set()
    wait(held)
    torch.set_num_threads(outside)
    return pool


def _after_fork() -> None:
    """A forked process has the pools' books, but not their threads."""
    _pool.cache_clear()
    _one_at_a_time.release()


_one_at_a_time = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_one_at_a_time.acquire, after_in_parent=_one_at_a_time.release, after_in_child=_after_fork
    )
