"""`python -m porting.inspect`: what a source holds, and which network it fits."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from porting import terminal
from porting.errors import ErrorKind, PortingError

if TYPE_CHECKING:
    from porting.sources import TensorSource


@dataclass(frozen=True)
class Inspection:
    """A source, described.

    Attributes:
        container: the format.
        variables: `name`, `shape`, `dtype`, `bytes` and `role` of each, in the file's order.
        fits: names of the networks that it ports into.
        options: what `porting.convert` must be told to port it (`--backbone-only` where there is no classifier).
        nearest: where none fits, `arch`, the network with the fewest differences, and `differences`.
        integrity: "ok" (every tensor was read), "missing" (files are, so only the index could be) or "corrupt".
        problems: what is missing or corrupt.
    """

    container: str
    variables: list[dict[str, Any]]
    fits: list[str]
    options: list[str]
    nearest: dict[str, Any] | None
    integrity: str
    problems: list[str]


def inspect(src: str, arch: str = "") -> Inspection:
    """Describe a source without porting it: list it, read every tensor once, and try every network's plan.

    Args:
        src: as `porting.port` takes it, but for synthetic sources.
        arch: the network whose published file "official" means.

    Raises:
        PortingError: it cannot be opened.
    """
    from porting.origins import Quiet, find
    from porting.reference import SharedReference
    from porting.sources import open_source

    with ExitStack() as stack:
        origin = find(src, arch, stack, Quiet(), stack.enter_context(SharedReference()))
        source = stack.enter_context(open_source(origin.path))
        integrity, problems = _integrity(source)
        fits, options, nearest, roles = _fits(source)
        variables = [
            {
                "name": name,
                "shape": list(spec.shape),
                "dtype": spec.dtype,
                "bytes": spec.nbytes,
                "role": roles.get(name) or _role(name),
            }
            for name, spec in source.specs.items()
        ]
        return Inspection(source.container, variables, fits, options, nearest, integrity, problems)


def _integrity(source: TensorSource) -> tuple[str, list[str]]:
    """The verdict on a source's bytes, and what is wrong with them."""
    try:
        source.verify_files()
    except PortingError as error:
        return error.kind.value, [str(defect) for defect in error.defects]
    from porting.sources.base import ITEM_SIZE

    problems = []
    for name, spec in source.specs.items():
        if spec.dtype in ITEM_SIZE:
            try:
                source.read(name)
            except PortingError as error:
                problems += [str(defect) for defect in error.defects]
    return "corrupt" if problems else "ok", problems


def _fits(source: TensorSource) -> tuple[list[str], list[str], dict[str, Any] | None, dict[str, str]]:
    """Networks that fit and the options they need, the nearest where none does, and roles that a plan knows."""
    from porting.plan import Options, build_plan, fitting_archs, nearest_arch
    from porting.recognition import recognise

    try:
        contents = recognise(source).contents
    except PortingError as error:
        return [], [], {"arch": None, "differences": [str(defect) for defect in error.defects]}, {}
    roles = {own.name: "step" if "counter" in own.reason else "other" for own in contents.unread}
    roles |= {own.name: "slot" for own in contents.unread if own.reason.startswith("optimizer")}
    for options, flags in ((Options(), []), (Options(backbone_only=True), ["--backbone-only"])):
        fits = list(fitting_archs(contents, options))
        for arch in fits:
            plan = build_plan(contents, arch, options)
            roles |= {contents.own(rule.variable): rule.role.value for rule in plan.table.rules}
        if fits:
            return fits, flags, None, roles
    arch, differences = nearest_arch(contents, Options())
    return [], [], {"arch": arch, "differences": [str(defect) for defect in differences]}, roles


def _role(name: str) -> str:
    """What a variable is, by its name alone."""
    from porting import rules

    leaf = name.rpartition("/")[2]
    if name in rules.COUNTERS:
        return "step" if name == "global_step" else "slot"
    if leaf == rules.SHADOW:
        return "EMA"
    if leaf in rules.SLOTS:
        return "slot"
    if leaf in ("moving_mean", "moving_variance"):
        return "BN statistic"
    known = ("weights", "biases", "kernel", "bias", "gamma", "beta", "depthwise_weights", "pointwise_weights")
    return "weight" if leaf in (*known, "depthwise_kernel", "pointwise_kernel") else "other"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m porting.inspect",
        description="Show what a source holds: its container, every variable, the network it fits, and its integrity.",
        epilog="Exit codes: 0 readable, whether a network fits or not; 1 not readable; 2 usage.",
    )
    result.add_argument("src", metavar="SRC", help="any source that porting.convert takes, but synthetic")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect as the arguments say; returns the exit code."""
    arguments = parser().parse_args(argv)
    return terminal.run(lambda: _inspect(arguments))


def _inspect(arguments: argparse.Namespace) -> int:
    found = inspect(arguments.src)
    if arguments.json:
        print(json.dumps(asdict(found)))
    else:
        _print_table(found)
    for problem in found.problems:
        terminal.note(f"{arguments.src}: {found.integrity}: {problem}")
    return terminal.FAILED if found.integrity == ErrorKind.CORRUPT.value else terminal.DONE


def _print_table(found: Inspection) -> None:
    rows = [
        (item["name"], str(item["shape"]), item["dtype"], f"{item['bytes']:,}", item["role"])
        for item in found.variables
    ]
    head = ("variable", "shape", "dtype", "bytes", "role")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(5)]
    for row in (head, *rows):
        cells = [cell.rjust(width) if column == 3 else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        print("  ".join(cells).rstrip())
    total = sum(item["bytes"] for item in found.variables)
    roles = Counter(item["role"] for item in found.variables)
    print(f"\ncontainer  {found.container}")
    print(f"variables  {len(found.variables)} ({', '.join(f'{count} {role}' for role, count in roles.most_common())})")
    print(f"bytes      {total:,}")
    print(f"integrity  {found.integrity}")
    for arch in found.fits:
        print(f"fits       {' '.join(['--arch', arch, *found.options])}")
    if found.nearest:
        differences = found.nearest["differences"]
        print(f"fits       none; nearest is {found.nearest['arch']}, with {len(differences)} differences")
        for difference in differences[:20]:
            print(f"           {difference}")
        if len(differences) > 20:
            print(f"           and {len(differences) - 20} more (--json lists all)")


if __name__ == "__main__":
    sys.exit(main())
