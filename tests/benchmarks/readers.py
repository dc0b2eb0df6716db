"""Read all tensors of a checkpoint of Xception-71's size, checksums checked: ours, TensorFlow's reader, and the floor.

    python tests/benchmarks/readers.py [--runs 5]

The checkpoint has the variables of tests/golden/xception71.npz, a Momentum slot for every trained one, and
global_step. Every case runs in processes of its own, in turn, with the file in the page cache. "whole process" is
the time from start to exit; "in process" is one pass over the tensors, without imports, the median of several.
The floor reads the data file once and sums it once, in pieces that fit in the cache, and does nothing else.
"CPU" is the processor time of the same pass, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "xception71.npz"
PIECE = 1 << 18  # bytes; what one core's second-level cache holds
PASSES = 7  # over the tensors in each process; the first also warms up


def write(prefix: Path) -> None:
    """Have TensorFlow write the checkpoint."""
    import numpy as np
    import tensorflow as tf

    golden = np.load(GOLDEN)
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {"global_step": np.int64(500_000)}
    for name, padded in zip(golden["variable_names"], golden["variable_shapes"], strict=True):
        shape = [int(size) for size in padded if size]
        tensors[str(name)] = random.normal(size=shape).astype(np.float32)
        if not name.endswith(("moving_mean", "moving_variance")):
            tensors[f"{name}/Momentum"] = random.normal(size=shape).astype(np.float32)
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=[tensors[n] for n in names]
    )
    Path(f"{prefix}.data-00000-of-00001").read_bytes()  # into the page cache


def _timed(run: Callable[[], int]) -> dict[str, Any]:
    times, busy = [], []
    for _ in range(PASSES):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        count = run()
        times.append(time.perf_counter() - begin)
        busy.append(time.process_time() - begin_cpu)
    return {
        "first": times[0],
        "median": statistics.median(times[1:]),
        "cpu": statistics.median(busy[1:]),
        "bytes": count,
        "passes": sum(times),
    }


def ours(prefix: str) -> dict[str, Any]:
    from porting.sources import open_source

    def run() -> int:
        with open_source(prefix) as source:
            return sum(source.read(name).nbytes for name in source.specs)

    return _timed(run)


def tensorflow(prefix: str) -> dict[str, Any]:
    import tensorflow as tf

    def run() -> int:
        reader = tf.train.load_checkpoint(prefix)
        return sum(reader.get_tensor(name).nbytes for name in reader.get_variable_to_shape_map())

    return _timed(run)


def floor(prefix: str) -> dict[str, Any]:
    from crc32c import crc32c

    def run() -> int:
        buffer = memoryview(bytearray(PIECE))
        crc = total = 0
        fd = os.open(f"{prefix}.data-00000-of-00001", os.O_RDONLY)
        while count := os.preadv(fd, [buffer], total):
            crc = crc32c(buffer[:count], crc)
            total += count
        os.close(fd)
        return total

    return _timed(run)


def listing(prefix: str) -> dict[str, Any]:
    import numpy  # noqa: F401 - what the listing is measured beyond

    begin = time.perf_counter()
    from porting.sources import open_source

    with open_source(prefix) as source:
        count = len(source.specs)
    return {"first": time.perf_counter() - begin, "bytes": count}


def memory(prefix: str) -> dict[str, Any]:
    """Growth of the process's peak while all tensors are read, and the size of the largest."""
    from porting.sources import open_source

    with open_source(prefix) as source:
        largest = max(spec.nbytes for spec in source.specs.values())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name in source.specs:
            source.read(name)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"first": 0.0, "bytes": largest, "grown": grown * 1024}


CASES = {case.__name__: case for case in (floor, ours, tensorflow, listing, memory)}


def _process(case: str, prefix: Path, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    # As an installed package is, so that compiling is not measured.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, __file__, "--case", case, "--prefix", str(prefix)]
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    took = time.perf_counter() - begin
    result: dict[str, Any] = json.loads(done.stdout)
    # With one pass: the others are only there to be timed.
    result["process"] = took - result.get("passes", 0.0) + result["first"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="processes for each case")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--prefix", type=Path, help="a checkpoint of your own")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(CASES[options.case](str(options.prefix))))
        return
    with tempfile.TemporaryDirectory(prefix="readers-") as folder:
        prefix = options.prefix or Path(folder) / "model.ckpt"
        if not options.prefix:
            subprocess.run([sys.executable, "-c", _WRITE, str(prefix)], check=True, stderr=subprocess.DEVNULL)
        cache = str(Path(folder) / "bytecode")
        for case in CASES:
            _process(case, prefix, cache)  # compiles, and warms the page cache
        runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
        for _ in range(options.runs):
            for case in CASES:
                runs[case].append(_process(case, prefix, cache))
    _report(runs)


_WRITE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; " + (
    "from tests.benchmarks.readers import write; write(Path(sys.argv[1]))"
)


def _report(runs: dict[str, list[dict[str, Any]]]) -> None:
    def median(case: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[case])

    least, least_cpu = median("floor", "median"), median("floor", "cpu")
    size = runs["floor"][0]["bytes"]
    print(f"{size / 1e6:.0f} MB, {runs['listing'][0]['bytes']} tensors; medians of {len(runs['ours'])} processes")
    print(f"{'':12}{'in process':>13}{'of floor':>10}{'CPU':>11}{'of floor':>10}{'first':>11}{'whole process':>15}")
    for case in ("floor", "ours", "tensorflow"):
        each, cpu = median(case, "median"), median(case, "cpu")
        print(
            f"{case:12}{each * 1e3:10.1f} ms{each / least:9.2f}x{cpu * 1e3:8.1f} ms{cpu / least_cpu:9.2f}x"
            f"{median(case, 'first') * 1e3:8.1f} ms{median(case, 'process') * 1e3:12.0f} ms"
        )
    ratios = {key: median("tensorflow", key) / median("ours", key) for key in ("median", "cpu", "first", "process")}
    print(
        f"TensorFlow's reader takes {ratios['median']:.1f}x ours in process (CPU {ratios['cpu']:.1f}x), "
        f"{ratios['first']:.1f}x on the first pass, {ratios['process']:.1f}x as a whole process"
    )
    print(f"listing, beyond `import numpy`: {median('listing', 'first') * 1e3:.1f} ms")
    largest = runs["memory"][0]["bytes"]
    print(
        f"peak memory grows by {median('memory', 'grown') / 1e6:.1f} MB; the largest tensor has {largest / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
