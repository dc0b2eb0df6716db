"""The whole job beside what people write today: time, processor time and peak memory of every process that takes part.

    python -m tests.benchmarks.whole_job [--arch xception65] [--rounds 5] [--only NAME ...]

The source is a checkpoint of random weights that TensorFlow writes, in the page cache. Every round runs every case in
turn, each in processes of its own; a figure is the median of the rounds, a ratio the median of the rounds' ratios to
the case that the line names, and to that case's floor. The baselines stand below as they are commonly written: (a)
converts and checks nothing, (b) compares the logits once, in float32. The floors are what no port can do without.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.process_tree import Cost, measure

ROOT = Path(__file__).resolve().parents[2]
SIZE = 299


def unverified(prefix: str, out: str) -> None:
    """Baseline (a): list the variables, load each, turn its axes, save, and take the digest."""
    import numpy as np
    import tensorflow as tf
    import torch

    state = {}
    for name, _ in tf.train.list_variables(prefix):
        value = tf.train.load_variable(prefix, name)
        if name.endswith("depthwise_weights"):
            value = np.transpose(value, (2, 3, 0, 1))
        elif getattr(value, "ndim", 0) == 4:
            value = np.transpose(value, (3, 2, 0, 1))
        state[name] = torch.from_numpy(np.ascontiguousarray(value))
    torch.save(state, out)
    print(hashlib.sha256(Path(out).read_bytes()).hexdigest())


def compared_once(prefix: str, out: str, arch: str) -> None:
    """Baseline (b): one process runs TensorFlow's graph, converts, runs PyTorch, and compares the logits."""
    import numpy as np
    import tensorflow as tf
    import torch

    from models import create_model
    from porting import rules
    from porting.reference.aligned import AlignedXception
    from porting.runs import image
    from porting.tables import Head

    pixels = image(SIZE, SIZE)
    logits: dict[str, Any] = {}

    def keep(name: str, tensor: Any) -> Any:
        logits["last"] = tensor
        return tensor

    AlignedXception(arch, lambda name: tf.train.load_variable(prefix, name), "float32", 32)(pixels, keep)
    table = rules.table(arch, Head(1000, skip=1))
    state = {
        rule.parameter: torch.from_numpy(
            np.ascontiguousarray(rule.convert(tf.train.load_variable(prefix, rule.variable)))
        )
        for rule in table.rules
    }
    network = create_model(arch).eval()
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        ours = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    theirs = logits["last"].numpy().reshape(1, -1)[:, 1:]
    assert np.allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    torch.save(network.state_dict(), out)
    print(hashlib.sha256(Path(out).read_bytes()).hexdigest())


def write_floor(out: str, size: str) -> None:
    """The floor of (a): PyTorch's import, and a file of that size written and summed."""
    import torch

    assert torch.__version__
    with Path(out).open("wb") as file:
        file.write(bytes(int(size)))
        file.flush()
        os.fsync(file.fileno())
    total = hashlib.sha256()
    with Path(out).open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    print(total.hexdigest())


def reference_floor(prefix: str, arch: str, fast: str = "") -> None:
    """The floor of (b): TensorFlow's import, and its own forward passes of a proof, with nothing beside them."""
    import tensorflow as tf

    from porting.reference.aligned import AlignedXception
    from porting.runs import ALIGNED_SIZES, OUTPUT_STRIDES, image

    reader = tf.train.load_checkpoint(prefix)
    runs = [(SIZE, SIZE, 32, "float64"), (SIZE, SIZE, 32, "float32")]
    if not fast:
        runs += [(*size, stride, "float64") for stride in OUTPUT_STRIDES for size in ALIGNED_SIZES]
    for height, width, stride, dtype in runs:
        AlignedXception(arch, reader.get_tensor, dtype, stride)(image(height, width), lambda _name, tensor: tensor)


@dataclass(frozen=True)
class Case:
    """A command; `against` is the case that its ratio is to, `floor` the one that no port can be below."""

    name: str
    command: Callable[[str], Sequence[str]]
    against: str
    floor: str = ""


def cases(arch: str, prefixes: Sequence[Path], size: int) -> list[Case]:
    """All of them; each command is given a fresh folder. `prefixes`: the source, and other names of it."""
    prefix = prefixes[0]
    own = [sys.executable, "-m", "porting.convert"]

    def convert(*options: str, sources: Sequence[Path] = prefixes[:1]) -> Callable[[str], Sequence[str]]:
        return lambda folder: [*own, "--src", *map(str, sources), "--arch", arch, "--out", folder, *options]

    def script(function: str, *arguments: str) -> Callable[[str], Sequence[str]]:
        return lambda folder: [sys.executable, "-m", "tests.benchmarks.whole_job", "--run", function,
                               *(argument.replace("OUT", f"{folder}/out.pth") for argument in arguments)]  # fmt: skip

    a, b = "(a) script, unverified", "(b) script, logits once"
    interpreter = "interpreter alone"
    write, forwards, fast = "floor: torch, write, sha256", "floor: TensorFlow's forwards", "floor: --fast's forwards"
    return [
        Case(a, script("unverified", str(prefix), "OUT"), a),
        Case(write, script("write_floor", "OUT", str(size)), a),
        Case("convert --no-verify", convert("--no-verify"), a, write),
        Case(b, script("compared_once", str(prefix), "OUT", arch), b),
        Case(forwards, script("reference_floor", str(prefix), arch), b),
        Case("convert", convert(), b, forwards),
        Case(fast, script("reference_floor", str(prefix), arch, "fast"), b),
        Case("convert --fast", convert("--fast"), b, fast),
        Case("convert, three sources", convert(sources=prefixes), "convert"),
        Case(interpreter, lambda _: [sys.executable, "-c", "pass"], interpreter),
        Case("convert --help", lambda _: [*own, "--help"], interpreter),
        Case("convert, usage error", lambda _: [*own, "--src", "x"], interpreter),
        Case("convert, no such file", lambda _: [*own, "--src", "/none", "--arch", arch], interpreter),
    ]


def table(costs: dict[str, list[Cost]], every: Sequence[Case]) -> str:
    lines = [f"{'':32} {'seconds':>8} {'ratio':>7} {'floor':>7} {'CPU s':>7} {'MiB':>6} {'ratio':>6}  of"]
    for case in every:
        found, base = costs[case.name], costs[case.against]
        wall, memory = _ratio(found, base, "wall"), _ratio(found, base, "memory")
        floor = _ratio(found, costs[case.floor], "wall") if case.floor else ""
        seconds, processor = (statistics.median(getattr(x, name) for x in found) for name in ("wall", "processor"))
        peak = statistics.median(one.memory for one in found) / 2**20
        lines.append(
            f"{case.name:32} {seconds:8.2f} {wall:>7} {floor:>7} {processor:7.2f} {peak:6.0f} {memory:>6}"
            f"  {case.against}"
        )
    return "\n".join(lines)


def _ratio(costs: Sequence[Cost], base: Sequence[Cost], what: str) -> str:
    """The median of the rounds' ratios; of a process too short to be seen, none."""
    pairs = [(getattr(one, what), getattr(other, what)) for one, other in zip(costs, base, strict=True)]
    return f"{statistics.median(one / other for one, other in pairs):.2f}x" if all(other for _, other in pairs) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="xception65", choices=("xception41", "xception65", "xception71"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose names hold one of these")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)  # a baseline, in its own process
    arguments = parser.parse_args()
    if arguments.run:
        function, *rest = arguments.run
        {"unverified": unverified, "compared_once": compared_once, "write_floor": write_floor,
         "reference_floor": reference_floor}[function](*rest)  # fmt: skip
        return
    from porting.reference import Reference

    with tempfile.TemporaryDirectory() as scratch:
        with Reference("benchmark") as reference:
            prefix = reference.synthesize(arguments.arch, 0, Path(scratch))
        data = Path(f"{prefix}.data-00000-of-00001")
        data.read_bytes()  # into the page cache
        prefixes = [prefix]
        for name in ("second", "third"):
            folder = Path(scratch, name)
            folder.mkdir()
            for file in prefix.parent.glob(f"{prefix.name}.*"):
                (folder / file.name).hardlink_to(file)
            prefixes.append(folder / prefix.name)
        every = cases(arguments.arch, prefixes, data.stat().st_size)
        wanted = {case.name for case in every if any(part in case.name for part in arguments.only)}
        for case in reversed(every):  # what a ratio is to stands before it
            if case.name in wanted:
                wanted |= {case.against, case.floor}
        every = [case for case in every if case.name in wanted]
        costs: dict[str, list[Cost]] = {case.name: [] for case in every}
        for _ in range(arguments.rounds):
            for case in every:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
                    costs[case.name].append(measure(case.command(folder), **quiet))
        print(table(costs, every))


if __name__ == "__main__":
    main()
