"""`python -m porting.verify`: hold an existing `.pth` to its source."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting import rules, terminal

if TYPE_CHECKING:
    from porting.verification import Verification


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m porting.verify",
        description="Hold an existing .pth to its source: every bit of the weights, then every layer in TensorFlow.",
        epilog="Exit codes: 0 verified, 1 something differs or the input is bad, 2 usage.",
    )
    add = result.add_argument
    add("--weights", required=True, metavar="FILE", help="the .pth file: this project's, timm's or Cadene's layout")
    add("--src", required=True, help="what it was ported from, as porting.convert takes it")
    add("--arch", choices=rules.ARCHS, help="the network (default: as the manifest says, else as the source fits)")
    add("--size", type=terminal.size, nargs="+", default=[], metavar="HxW", help="input sizes to run at")
    add("--network", metavar="MODULE:FACTORY", help="the network to run (default: this project's)")
    add("--ema", action="store_true", help="the file holds ExponentialMovingAverage shadows")
    add("--weights-only", action="store_true", help="compare the weights alone: seconds, and no TensorFlow")
    add("--trace", metavar="FILE", help="what porting.trace wrote, instead of running TensorFlow here")
    add("--reference-python", metavar="PATH", help="the Python that has TensorFlow (default: this one)")
    add("--report", metavar="DIR", help="write the report there, as JSON and as a web page")
    add("--json", action="store_true", help="print the report as one JSON object")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Verify as the arguments say; returns the exit code."""
    arguments = parser().parse_args(argv)
    return terminal.run(lambda: _verify(arguments))


def _verify(arguments: argparse.Namespace) -> int:
    from porting.reference import SharedReference

    bars = terminal.Bars()
    with ExitStack() as stack:
        stack.callback(bars.close)
        tensorflow = stack.enter_context(SharedReference(arguments.reference_python))
        if not (arguments.weights_only or arguments.trace):
            tensorflow.begin()
        from porting.verification import verify  # PyTorch is imported beside TensorFlow

        found = verify(
            arguments.weights,
            arguments.src,
            arguments.arch,
            sizes=arguments.size,
            network=arguments.network,
            weights_only=arguments.weights_only,
            ema=arguments.ema,
            trace=arguments.trace,
            tensorflow=tensorflow,
            progress=bars,
        )
    if arguments.report:
        from porting.report.files import write

        for path in write(found.report, Path(arguments.report), Path(arguments.weights).stem):
            terminal.note(f"wrote {path}")
    if arguments.json:
        print(json.dumps(found.report))
    else:
        _report(found)
    return terminal.DONE if found.passed else terminal.FAILED


def _report(found: Verification) -> None:
    print(f"{found.verdict}: {found.arch}")
    print(f"  weights  {found.parameters} compared bit for bit, {len(found.faults)} differ")
    if found.proof:
        print(f"  layers   {len(found.proof.traces[0].layers)} against {found.proof.reference}")
        for trace in found.proof.traces:
            error = f"worst {trace.worst.error:.2g} of {trace.worst.layer}"
            print(f"    {trace.run}: {len(trace.faulty)} differ" + (f", {error}" if trace.passed else ""))
            if trace.stopped:
                print(f"      the network stopped: {trace.stopped}")
    causes: dict[str, list[dict[str, Any]]] = {}
    for fault in found.report["faulty"]:
        causes.setdefault(fault["cause"], []).append(fault)
    for cause, faults in causes.items():
        print(f"  {len(faults)} x {cause}" if len(faults) > 1 else f"  {cause}")
        for fault in faults:
            ours, theirs = fault["parameter"] or fault["module"], fault["variable"] or fault["layer"]
            where = f" at {fault['index']}" if fault["index"] else ""
            if found.proof and fault["run"] is not None:
                where += f" of {found.proof.traces[fault['run']].run}"
            size = "" if fault["error"] is None else f", error {fault['error']:.3g}"
            print(f"    {ours} ({theirs}){where}: expected {fault['expected']}, found {fault['found']}{size}")
    for note in found.report["notes"]:
        print(f"  note     {note}")


if __name__ == "__main__":
    sys.exit(main())
