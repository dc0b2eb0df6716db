"""`python -m porting.verify`: hold an existing `.pth` to its source."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from porting import rules, terminal

if TYPE_CHECKING:
    from porting.verification import Verification


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, found {text!r}")
    return int(match[1]), int(match[2])


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
    add("--size", type=_size, nargs="+", default=[], metavar="HxW", help="input sizes to run at")
    add("--ema", action="store_true", help="the file holds ExponentialMovingAverage shadows")
    add("--weights-only", action="store_true", help="compare the weights alone: seconds, and no TensorFlow")
    add("--json", action="store_true", help="print one JSON object")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Verify as the arguments say; returns the exit code."""
    arguments = parser().parse_args(argv)
    return terminal.run(lambda: _verify(arguments))


def _verify(arguments: argparse.Namespace) -> int:
    from porting.manifest import VERIFIED
    from porting.verification import verify

    bars = terminal.Bars()
    try:
        found = verify(
            arguments.weights,
            arguments.src,
            arguments.arch,
            sizes=arguments.size,
            weights_only=arguments.weights_only,
            ema=arguments.ema,
            progress=bars,
        )
    finally:
        bars.close()
    if arguments.json:
        print(json.dumps(found.as_json()))
    else:
        _report(found)
    return terminal.DONE if found.verdict == VERIFIED else terminal.FAILED


def _report(found: Verification) -> None:
    print(f"{found.verdict}: {found.arch}")
    print(f"  weights  {found.parameters} compared bit for bit, {len(found.faults)} differ")
    for fault in found.faults:
        where = f" at {list(fault.index)}" if fault.index else ""
        variable = f" ({fault.variable})" if fault.variable else ""
        print(f"    {fault.parameter}{variable}: expected {fault.expected}, found {fault.found}{where}: {fault.cause}")
    if found.proof is None:
        return
    for trace in found.proof.traces:
        height, width = trace.size
        wrong = sum(not layer.passed for layer in trace.layers)
        print(f"  {height}x{width}  {len(trace.layers)} layers against {found.proof.reference}, {wrong} differ")
        if layer := trace.first_wrong:
            print(
                f"    first: {layer.layer} (PyTorch {layer.module}) at {list(layer.index)}: expected "
                f"{layer.reference!r}, found {layer.ported!r}; error {layer.error:.3g}, bound {layer.bound:g}"
            )
    if not found.proof.float32.passed:
        print(f"  float32  error {found.proof.float32.error:.3g}, bound {found.proof.float32.bound:g}")


if __name__ == "__main__":
    sys.exit(main())
