"""A fuzz harness for the readers: mutated files must open, or end in PortingError, quickly and within bounds.

    python -m tests.sources.fuzzing --count 1000000 --seed 1 [--reader bundle] [--start 0]

Every input follows from (seed, reader, number) alone, so any one can be made again.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from porting.errors import ErrorKind, PortingError
from porting.sources.base import ITEM_SIZE, TensorSource

SECONDS = 1.0  # for each input
BYTES = 200 << 20  # of memory, for each input
MAX_READ = 64  # tensors read of one input

Files = dict[str, bytes]  # a container's files, by their paths within its folder
Mutator = Callable[[Files, Random], Files]


@dataclass(frozen=True)
class Reader:
    """What is fuzzed.

    Attributes:
        name: for the command line and messages.
        build: writes small valid containers, each in a folder of its own below the given one, and returns what to
            open.
        open: the reader.
        mutate: a mutation that keeps the structure, such as right checksums around wrong values; it returns the files
            that it changes.
    """

    name: str
    build: Callable[[Path], Sequence[Path]]
    open: Callable[[Path], TensorSource]
    mutate: Mutator | None = None


# Modules that each define READERS, a list of Reader.
MODULES = ["tests.sources.tensorflow_seeds", "tests.sources.keras_seeds"]


def readers() -> list[Reader]:
    """All registered readers."""
    return [reader for name in MODULES for reader in importlib.import_module(name).READERS]


INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFE, 0x0A, 0x12)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """A few plain mutations: bits, bytes, runs cut, doubled, overwritten or moved."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        size = len(out)
        at = random.randrange(size) if size else 0
        run = random.choice((1, 1, 2, 4, 8, 16, 64))
        kind = random.randrange(9)
        if not size or kind == 0:
            out[at:at] = random.randbytes(run)
        elif kind == 1:
            out[at] ^= 1 << random.randrange(8)
        elif kind == 2:
            out[at] = random.choice(INTERESTING)
        elif kind == 3:
            out[at : at + run] = random.randbytes(run)
        elif kind == 4:
            del out[at : at + run]
        elif kind == 5:
            out[at:at] = out[at : at + run]
        elif kind == 6:
            del out[at:]
        elif kind == 7:
            other = random.randrange(size)
            out[at : at + run] = out[other : other + run]
        else:
            value = random.choice((0, 1, 0x7F, 0xFF, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, 1 << 63))
            width = random.choice((2, 4, 8))
            out[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, random.choice(("little", "big")))
    return bytes(out)


@dataclass
class Tally:
    """What came of the inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.outcomes.values())


@contextmanager
def limited_memory(extra: int = BYTES) -> Iterator[None]:
    """Let the process's address space grow by no more than `extra` bytes, where the system says how large it is."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Seeds:
    """A reader's valid files, in memory and on disk, where one input at a time takes their place."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader = reader
        self.seeds: list[tuple[Path, Path, Files]] = []  # what to open, its folder, the valid files in it
        for path in reader.build(folder):
            root = folder / path.relative_to(folder).parts[0]
            files = {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}
            self.seeds.append((path, root, files))

    @contextmanager
    def input(self, seed: int, number: int) -> Iterator[Path]:
        """Put input `number` on disk while it is in use; gives what to open."""
        random = Random(f"{seed}:{self.reader.name}:{number}")
        path, root, files = random.choice(self.seeds)
        changed: Files = {}
        if self.reader.mutate is not None and random.random() < 0.7:
            changed = self.reader.mutate(files, random)
        if not changed:
            victim = random.choice(sorted(files))
            changed = {victim: mutate_bytes(files[victim], random)}
        for name, content in changed.items():
            (root / name).write_bytes(content)
        try:
            yield path
        finally:
            for name in changed:
                (root / name).write_bytes(files[name])


def consume(source: TensorSource) -> None:
    """List, verify and read a source; raises PortingError where something is refused."""
    with suppress(PortingError):
        source.verify_files()
    source.files()
    refused: PortingError | None = None
    for name in list(source.specs)[:MAX_READ]:
        if source.specs[name].dtype not in ITEM_SIZE:
            continue
        try:
            array = source.read(name)
        except PortingError as error:
            refused = error
            continue
        spec = source.specs[name]
        if array.shape != spec.shape:
            raise AssertionError(f"{name}: listed as {spec.shape}, read as {array.shape}")
    if refused is not None:
        raise refused


def outcome(reader: Reader, path: Path) -> str:
    """What happens to one input: "read", or the kind of the error. Anything but PortingError comes out."""
    try:
        with reader.open(path) as source:
            consume(source)
    except PortingError as error:
        if error.kind not in (ErrorKind.CORRUPT, ErrorKind.UNSUPPORTED, ErrorKind.MISSING):
            raise
        str(error)
        return error.kind.value
    return "read"


def fuzz(reader: Reader, count: int, seed: int, start: int = 0, keep: Path | None = None) -> Tally:
    """Run `count` inputs through one reader; failures are described, and kept where a folder is given."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, limited_memory():
        seeds = Seeds(reader, Path(name))
        for path, _, _ in seeds.seeds:  # a seed that does not open tests nothing
            if (got := outcome(reader, path)) != "read":
                tally.failures.append(f"{reader.name}: the valid {path.name} is {got}")
        for number in range(start, start + count):
            with seeds.input(seed, number) as path:
                took = _run(reader, path, number, seed, tally)
                if took > SECONDS:  # a machine that is busy is no fault of the reader's
                    took = min(_run(reader, path, number, seed, Tally()) for _ in range(3))
                    if took > SECONDS:
                        tally.failures.append(f"{reader.name} {seed}:{number}: took {took:.1f} s")
                tally.slowest = max(tally.slowest, took)
                if tally.failures and keep is not None:
                    shutil.copytree(path.parent, keep / f"{reader.name}-{seed}-{number}", dirs_exist_ok=True)
                    keep = None
    return tally


def _run(reader: Reader, path: Path, number: int, seed: int, tally: Tally) -> float:
    begin = time.perf_counter()
    try:
        tally.outcomes[outcome(reader, path)] += 1
    except Exception:
        tally.outcomes["failed"] += 1
        tally.failures.append(f"{reader.name} {seed}:{number}: {traceback.format_exc(limit=-4)}")
        gc.collect()
    return time.perf_counter() - begin


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sources.fuzzing", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs, over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--reader", action="append", help="only this reader; may be given again")
    parser.add_argument("--keep", type=Path, help="folder for the first input that fails")
    options = parser.parse_args(arguments)
    chosen = [reader for reader in readers() if not options.reader or reader.name in options.reader]
    if not chosen:
        parser.error(f"no reader of that name; there are {', '.join(reader.name for reader in readers())}")
    failures = total = 0
    for reader in chosen:
        begin = time.perf_counter()
        tally = fuzz(reader, options.count // len(chosen), options.seed, options.start, options.keep)
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(tally.outcomes.items()))
        seconds = time.perf_counter() - begin
        print(f"{reader.name}: {tally.count} inputs in {seconds:.0f} s, slowest {tally.slowest:.3f} s: {outcomes}")
        for failure in tally.failures[:5]:
            print(failure)
        sys.stdout.flush()
        failures += len(tally.failures)
        total += tally.count
    print(f"{total} inputs, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
