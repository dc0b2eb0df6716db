"""Right ports of hard sources must pass: `python -m tests.right_ports [--count N] [--seed S]`.

Each source has its own seed, and every kernel its own factor from 1e-3 to 1e3, which its batch norm's mean and variance
make up for as far as epsilon lets them. Each is ported and then verified at sizes of its own; every fourth also at a
large one, where float32 is held to TensorFlow's own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from porting import port, verification
from porting.reference import Reference
from porting.rules import ARCHS
from porting.verification import Verification, verify

LARGE_EVERY = 4
_KERNELS = ("weights", "depthwise_weights", "kernel", "depthwise_kernel", "pointwise_kernel")


def factor(seed: int, kernel: str) -> float:
    """The factor of one kernel, by its variable's name."""
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(kernel.encode()), 7]))
    return float(10 ** random.uniform(-3, 3))


def kernels_before(norm: str) -> Iterator[str]:
    """The kernels whose output a batch norm takes, by TF-Slim's and Keras's names."""
    if norm.endswith("/BatchNorm"):
        scope = norm.removesuffix("/BatchNorm")
        yield f"{scope}/{'depthwise_weights' if scope.endswith('_depthwise') else 'weights'}"
    elif norm.startswith("batch_normalization"):
        yield f"{norm.replace('batch_normalization', 'conv2d')}/kernel"
    elif "sepconv" in norm:
        yield from (f"{norm.removesuffix('_bn')}/{leaf}" for leaf in ("depthwise_kernel", "pointwise_kernel"))
    else:
        yield f"{norm.removesuffix('_bn')}/kernel"


def serve() -> None:
    """In a process of its own, because TensorFlow does not belong in the verifier's: write what each line asks for."""
    from porting.reference import synthesis
    from porting.rules import Rule

    plain = synthesis.values

    def scaled(rule: Rule, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        scope, _, leaf = rule.variable.rpartition("/")
        scale = 1.0
        if leaf in _KERNELS:
            scale = factor(seed, rule.variable)
        elif leaf in ("moving_mean", "moving_variance"):
            scale = float(np.prod([factor(seed, kernel) for kernel in kernels_before(scope)]))
            scale = scale**2 if leaf == "moving_variance" else scale
        return (plain(rule, seed) * scale).astype(np.float32)

    synthesis.values = scaled  # type: ignore[assignment]
    for line in sys.stdin:
        arch, seed, folder = line.split(" ", 2)
        path = Path(folder.strip())
        written = (
            synthesis.write_keras(int(seed), path)
            if arch == "xception"
            else synthesis.write_checkpoint(arch, int(seed), path)
        )
        print(f"wrote {written}", flush=True)


@contextmanager
def writer() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from tests.right_ports import serve; serve()"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def check(process: subprocess.Popen[str], arch: str, seed: int, large: bool) -> Verification:
    """Have one source written, port it, and verify the port."""
    assert process.stdin is not None and process.stdout is not None
    random = np.random.Generator(np.random.PCG64([seed, 11]))
    sizes = [(int(height), int(width)) for height, width in random.integers(33, 110, (2, 2))]
    if large:
        sizes.append((int(random.integers(230, 330)), int(random.integers(230, 330))))
    with tempfile.TemporaryDirectory() as folder:
        process.stdin.write(f"{arch} {seed} {folder}\n")
        process.stdin.flush()
        line = next((line for line in process.stdout if line.startswith("wrote ")), "")
        source = Path(line.removeprefix("wrote ").strip())
        ported = port(source, arch, out=Path(folder, "out"), verify=False)
        return verify(ported.path, source, sizes=sizes)


@contextmanager
def _shared(reference: Reference) -> Iterator[None]:
    """One TensorFlow for all: its start costs more than a proof at small sizes."""
    shared = SimpleNamespace(take=lambda _file: reference)
    with mock.patch.object(verification, "SharedReference", lambda *_: nullcontext(shared)):
        yield


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.right_ports", description=__doc__)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(2)
    began, wrong = time.monotonic(), 0
    ratios: list[float] = []
    worst = 0.0
    with Reference("right ports") as reference, writer() as process, _shared(reference):
        for number in range(arguments.count):
            arch, seed = ARCHS[number % len(ARCHS)], arguments.seed + number
            found = check(process, arch, seed, number % LARGE_EVERY == number // LARGE_EVERY % LARGE_EVERY)
            layers = [layer for trace in found.proof.traces for layer in trace.layers] if found.proof else []
            worst = max([worst, *(layer.error for layer in layers)])
            ratios += [f.error / f.bound for layer in layers if (f := layer.float32)]
            if found.verdict != verification.VERIFIED:
                wrong += 1
                print(f"FALSE ALARM: {arch}, seed {seed}: {found.report['faulty'][:3]}", flush=True)
    print(
        f"{arguments.count} right ports, {wrong} false alarms; worst layer {worst:.2g} in float64, "
        f"{max(ratios, default=0):.2f} of its bound in float32; {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
