"""Images a second of one network, side by side: timm, ours in each form, ONNX Runtime, OpenVINO, and the floor.

    python tests/benchmarks/forward.py [--arch NAME] [--batches 1 8] [--only NAME ...] [--training] ...

At 299x299 in float32 with two threads. Every round runs every case in turn, so that a disturbance strikes all of them;
each runs twice, and its second call, which finds its caches and memory as in a loop, counts; a figure is the median of
the rounds. The floor is the time that the network's multiplications take at the rate of a
large matrix product, measured in the same rounds. What is not installed is left out, and the table says so.
`--training` times forward, backward and AdamW's step instead. `--busy`, for a machine with other work, runs one thread
and counts its processor time, which others disturb less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

import torch  # noqa: E402 - the folders first
from torch import Tensor  # noqa: E402

from models import create_model, get_info, optimize_for_inference  # noqa: E402

SIZE = 299
GEMM = 2048  # side of the matrices whose product stands for the machine's peak
PAUSE = 0.1  # seconds between two cases; some runtimes' threads spin for a while after their last call
TIMM = {"xception": "legacy_xception"}

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One way to run the network; `build` takes a batch of images and gives what is timed.

    Raises (when built):
        ModuleNotFoundError: what it needs is not installed.
    """

    name: str
    build: Callable[[Tensor], Run]


def _prepared(arch: str) -> Any:
    """Our network, its statistics those of a trained one in that nothing under- or overflows."""
    torch.manual_seed(0)
    return create_model(arch).eval()


def _timm(arch: str) -> Any:
    import pytest
    from timm_beside import beside

    try:
        timm = beside("timm")
    except pytest.skip.Exception as error:
        raise ModuleNotFoundError(str(error)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(TIMM.get(arch, arch))


def _frozen(run: Run) -> Run:
    def without_gradients() -> object:
        with torch.inference_mode():
            return run()

    return without_gradients


def _eager(network: Any, x: Tensor) -> Run:
    return _frozen(lambda: network(x))


def _compiled(network: Any, x: Tensor) -> Run:
    from torch._inductor import config

    config.freezing = True  # constants folded, kernels' weights packed
    torch._dynamo.reset()
    compiled = torch.compile(network)

    def run() -> object:
        with torch.no_grad():  # freezing asks for no_grad
            return compiled(x)

    return run


def _onnx(network: Any, x: Tensor, folder: Path) -> Path:
    path = folder / f"{len(x)}.onnx"
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (x,), path, dynamo=True, verbose=False)
    return path


def _onnx_runtime(network: Any, x: Tensor, folder: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_onnx(network, x, folder), options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, fed)


def _openvino(network: Any, x: Tensor, folder: Path) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(_onnx(network, x, folder), "CPU", settings)
    return lambda: compiled([x.numpy()])


def _floor() -> Run:
    """A matrix product; `table` scales its time to the network's multiplications."""
    a, b = torch.randn(GEMM, GEMM), torch.randn(GEMM, GEMM)
    out = torch.empty(GEMM, GEMM)
    return _frozen(lambda: torch.mm(a, b, out=out))


def forward_cases(arch: str, folder: Path) -> list[Case]:
    """Every way to run a forward pass; all but timm's run the same weights."""
    ours = _prepared(arch)
    fast = optimize_for_inference(ours)
    folded = copy.deepcopy(fast).to(memory_format=torch.contiguous_format)
    return [
        Case("timm eager", lambda x: _eager(_timm(arch).eval(), x)),
        Case("ours eager", lambda x: _eager(ours, x)),
        Case("ours folded", lambda x: _eager(folded, x)),
        Case("ours optimize_for_inference", lambda x: _eager(fast, x)),
        Case("  + torch.compile", lambda x: _compiled(fast, x.to(memory_format=torch.channels_last))),
        Case("ONNX Runtime", lambda x: _onnx_runtime(folded, x, folder)),
        Case("OpenVINO", lambda x: _openvino(folded, x, folder)),
        Case("floor", lambda _: _floor()),
    ]


def training_cases(arch: str) -> list[Case]:
    """One step of training: forward, backward, AdamW."""

    def step(network: Any, x: Tensor) -> Run:
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
        targets = torch.zeros(len(x), dtype=torch.long)

        def run() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), targets).backward()
            optimizer.step()

        return run

    last = torch.channels_last
    return [
        Case("timm", lambda x: step(_timm(arch), x)),
        Case("timm channels_last", lambda x: step(_timm(arch).to(memory_format=last), x.to(memory_format=last))),
        Case("ours", lambda x: step(_prepared(arch), x)),
        Case("ours channels_last", lambda x: step(_prepared(arch).to(memory_format=last), x.to(memory_format=last))),
    ]


def measure(cases: Sequence[Case], x: Tensor, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of one call, for every round, of every case that can be built here."""
    runs: dict[str, Run] = {}
    for case in cases:
        try:
            runs[case.name] = case.build(x)
        except ModuleNotFoundError as error:
            print(f"{case.name}: left out: {error}", file=sys.stderr)
            continue
        runs[case.name]()  # packing, compiling, allocating
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(PAUSE)
            run()  # the memory that the case before has left behind is not this one's
            began = clock()
            run()
            seconds[name].append(clock() - began)
    return seconds


def table(seconds: dict[str, list[float]], batch: int, gmacs: float) -> str:
    """Images a second of each case, and how many times the first one's that is: medians of the rounds' ratios."""
    scale = {"floor": batch * gmacs * 1e9 / GEMM**3}
    first, *_ = seconds.values()
    lines = [f"batch {batch:<26} {'images/s':>9} {'ratio':>7} {'lowest':>8} {'highest':>8}"]
    for name, times in seconds.items():
        rates = [batch / (one * scale.get(name, 1.0)) for one in times]
        ratio = statistics.median(rate * base / batch for rate, base in zip(rates, first, strict=True))
        lines.append(f"{name:<32} {statistics.median(rates):9.2f} {ratio:6.2f}x {min(rates):8.2f} {max(rates):8.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="xception65")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose names hold one of these, and the first")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--busy", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.busy else 2)
    clock = time.process_time if arguments.busy else time.perf_counter
    gmacs = get_info(arguments.arch).gmacs
    with tempfile.TemporaryDirectory() as folder:
        for batch in arguments.batches:
            x = torch.rand(batch, 3, SIZE, SIZE) * 2 - 1
            every = (
                training_cases(arguments.arch) if arguments.training else forward_cases(arguments.arch, Path(folder))
            )
            first, *others = every
            cases = [first, *(case for case in others if any(part in case.name for part in arguments.only))]
            print(table(measure(cases, x, arguments.rounds, clock), batch, gmacs), flush=True)


if __name__ == "__main__":
    main()
