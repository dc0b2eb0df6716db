"""`python -m tests.mutations [--count N | --all] [--seed S] [--arch ARCH ...]`: try mutants, print one table."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from porting.forms import Form
from porting.reference import Reference
from porting.rules import ARCHS
from tests.mutations.case import Case, make_case
from tests.mutations.examine import Outcome, examine
from tests.mutations.folds import fold_mutants
from tests.mutations.networks import NetworkMutant, network_mutants
from tests.mutations.weights import WeightMutant, weight_mutants


def sample(case: Case, count: int | None, seed: int) -> list[WeightMutant | NetworkMutant]:
    """A seeded sample of a network's mutants, half of them of each sort where there are enough; all for None."""
    weights, networks = list(weight_mutants(case)), list(network_mutants(case))
    if count is None:
        return [*weights, *networks]
    random = np.random.Generator(np.random.PCG64([seed, len(weights)]))
    few = min(len(networks), count // 4)
    picked: list[WeightMutant | NetworkMutant] = [networks[i] for i in random.permutation(len(networks))[:few]]
    return picked + [weights[i] for i in random.permutation(len(weights))[: count - few]]


def folds(case: Case, count: int | None, seed: int) -> list[WeightMutant]:
    """A seeded sample of a folded network's mutants; all for None."""
    mutants = list(fold_mutants(case))
    random = np.random.Generator(np.random.PCG64([seed, len(mutants)]))
    return mutants if count is None else [mutants[i] for i in random.permutation(len(mutants))[:count]]


def run(arch: str, count: int | None, seed: int) -> list[Outcome]:
    few = None if count is None else count // 5
    with tempfile.TemporaryDirectory() as folder, Reference(arch) as reference:
        source = reference.synthesize(arch, seed, Path(folder))
        plain = make_case(arch, source, reference)
        folded = make_case(arch, source, reference, Form(folded=True))
    mutants: list[tuple[Case, WeightMutant | NetworkMutant]] = [
        *((plain, mutant) for mutant in sample(plain, None if count is None else count - (few or 0), seed)),
        *((folded, mutant) for mutant in folds(folded, few, seed)),
    ]
    outcomes = []
    for done, (case, mutant) in enumerate(mutants, 1):
        outcomes.append(examine(case, mutant))
        if sys.stderr.isatty() and done % 20 == 0:
            print(f"\r{arch}: {done} of {len(mutants)}", end="", file=sys.stderr)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [f"{'fault':58} {'tried':>6} {'caught':>6} {'named':>6} {'layers':>6} {'equiv.':>6}"]
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        kind = "exchanged with a partner of its shape" if " exchanged with " in outcome.kind else outcome.kind
        for label in (kind, "all"):
            count = counts.setdefault(label, Counter())
            count["tried"] += 1
            count["caught"] += outcome.caught
            count["named"] += outcome.named
            count["layers"] += outcome.by_layers == outcome.expected or bool(outcome.equivalent)
            count["equivalent"] += bool(outcome.equivalent)
    for kind, count in sorted(counts.items(), key=lambda item: item[0] == "all"):
        columns = ("tried", "caught", "named", "layers", "equivalent")
        lines.append(f"{kind[:58]:58} " + " ".join(f"{count[column]:6}" for column in columns))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="over all networks (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=ARCHS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # the parts are small: a second thread only waits
    began, outcomes = time.monotonic(), []
    for arch in arguments.arch:
        count = None if arguments.all else arguments.count // len(arguments.arch)
        outcomes += run(arch, count, arguments.seed)
    print(table(outcomes))
    wrong = [outcome for outcome in outcomes if not (outcome.caught and outcome.named)]
    for outcome in wrong[:50]:
        print(f"NOT {'named right' if outcome.caught else 'caught'}: {outcome.mutant}")
        print(f"  expected {sorted(outcome.expected)}")
        print(f"  weights named {sorted(outcome.by_weights)}, layers {sorted(outcome.by_layers)} {outcome.causes}")
    print(f"{len(outcomes)} mutants, {len(wrong)} not caught and named right, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
