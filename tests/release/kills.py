"""Builds that are killed: `python -m tests.release.kills --count N` asks what each of them leaves behind.

A build in a process of its own is killed right before its Nth step that touches the disk, for chosen or for all N. The
site must then be whole, the old one or the new one, with every file that no build wrote, and the next build must clear
up.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from porting.errors import PortingError
from porting.release import swap
from porting.release.build import build
from porting.release.check import verify
from tests.kills import run_killed, steps_of
from tests.release import samples

FOREIGN = {"CNAME": b"weights.example.org\n", ".git/config": b"[core]\n", "weights/README": b"mine\n"}


def prepare(folder: Path) -> tuple[list[Path], Path]:
    """Two folders of ported weights that share one file, and where their site will be."""
    sources = []
    for number in (1, 2):
        source = folder / f"ported-{number}"
        source.mkdir()
        samples.add(source, "xception65", 0, licence=f"licence {number}")
        samples.add(source, "xception41", number)
        sources.append(source)
    return sources, folder / "site"


def faults(site: Path, sources: list[Path], may_be_away: bool) -> list[str]:
    """What is wrong with a site after a kill."""
    if may_be_away and not site.exists():
        return [] if swap.aside_of(site).is_dir() else ["neither the site nor the old one is there"]
    try:
        checked = verify(str(site))
    except PortingError as error:
        return [str(error)]
    found = [str(defect) for defect in checked.differences if "weights/README" not in str(defect)]
    stems = {path.stem for path in (site / "weights").glob("*.json")}
    if stems not in [{path.stem for path in source.glob("*.json")} for source in sources]:
        found.append(f"neither the old nor the new weights: {sorted(stems)}")
    for name, data in FOREIGN.items():
        if not (site / name).is_file() or (site / name).read_bytes() != data:
            found.append(f"{name}: lost")
    return found


def naive(stage: Path, site: Path) -> list[str]:
    """A build as it is often written; the negative control of this whole file."""
    (stage / ".unfinished").unlink()
    shutil.rmtree(site, ignore_errors=True)
    stage.rename(site)
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=12, help="0: every step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--two-steps", action="store_true", help="as on a file system that cannot exchange two folders")
    arguments = parser.parse_args()
    if arguments.two_steps:
        swap._exchange = lambda one, other: False
    with tempfile.TemporaryDirectory() as scratch:
        wrong, kills = _try(Path(scratch), arguments.count, arguments.seed, arguments.two_steps)
    for text in wrong:
        print(text)
    swap.commit = naive
    with tempfile.TemporaryDirectory() as scratch:
        found, _ = _try(Path(scratch), 1, arguments.seed, arguments.two_steps)
    print(f"{kills} kills, {len(wrong)} faults; a careless build is {'' if found else 'NOT '}found out")
    return 1 if wrong or not found else 0


def _try(scratch: Path, count: int, seed: int, two_steps: bool) -> tuple[list[str], int]:
    sources, site = prepare(scratch)

    def fresh() -> None:
        """The first site, with what somebody else put into it."""
        for path in scratch.iterdir():
            if path not in sources:
                shutil.rmtree(path)
        build(sources[0], site)
        for name, data in FOREIGN.items():
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_bytes(data)

    def second() -> None:
        build(sources[1], site)

    fresh()
    steps = steps_of(second)
    chance = random.Random(seed)
    chosen = range(steps) if count == 0 else sorted(chance.sample(range(steps), min(count, steps)))
    wrong = []
    for step in chosen:
        fresh()
        if not run_killed(second, step):
            wrong.append(f"step {step}: was not killed")
        after = faults(site, sources, two_steps)
        if not after:
            build(sources[1], site)
            after = faults(site, sources[1:], False)
            left = {path.name for path in scratch.iterdir()} - {site.name, *(source.name for source in sources)}
            after += [f"{name}: left behind" for name in sorted(left)]
        wrong += [f"step {step}: {text}" for text in after]
    return wrong, len(chosen)


if __name__ == "__main__":
    sys.exit(main())
