"""`python -m porting.trace`: run a source in TensorFlow and keep every activation in a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from porting import rules, terminal


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m porting.trace",
        description="Run a source in TensorFlow and write every activation to one file, so that porting.verify "
        "--trace FILE can hold a port to it where there is no TensorFlow.",
        epilog="The file's path is the last line on stdout. Exit codes: 0 done, 1 the input is bad, 2 usage.",
    )
    add = result.add_argument
    add("--src", required=True, help="the source, as porting.convert takes it")
    add("--arch", required=True, choices=rules.ARCHS, help="the network that the source holds")
    add("--out", required=True, metavar="FILE", help="the file to write; about 1 GB for 299x299")
    add("--size", type=terminal.size, nargs="+", default=[], metavar="HxW", help="input sizes (default: a proof's)")
    add("--ema", action="store_true", help="take ExponentialMovingAverage shadows instead of the plain variables")
    add("--backbone-only", action="store_true", help="leave the classifier out")
    add("--reference-python", metavar="PATH", help="the Python that has TensorFlow (default: this one)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Trace as the arguments say; returns the exit code."""
    arguments = parser().parse_args(argv)
    return terminal.run(lambda: _trace(arguments))


def _trace(arguments: argparse.Namespace) -> int:
    from porting.plan import Options
    from porting.tracing import trace

    bars = terminal.Bars()
    options = Options(keep_background=True, ema=arguments.ema, backbone_only=arguments.backbone_only)
    try:
        path = trace(
            arguments.src,
            arguments.arch,
            arguments.out,
            sizes=arguments.size,
            options=options,
            reference_python=arguments.reference_python,
            progress=bars,
        )
    finally:
        bars.close()
    print(path)
    return terminal.DONE


if __name__ == "__main__":
    sys.exit(main())
