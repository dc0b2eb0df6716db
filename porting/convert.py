"""`python -m porting.convert`: port sources, prove them, emit them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from porting import rules, terminal
from porting.errors import PortingError
from porting.origins import AUTO, OFFICIAL, is_path
from porting.request import DTYPES, contradiction
from porting.sources import require

if TYPE_CHECKING:
    from porting.pipeline import PortResult
    from porting.reference import SharedReference


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m porting.convert",
        description="Port TensorFlow Xception weights to PyTorch, prove every layer against TensorFlow, emit a .pth.",
        epilog="The emitted file's path is the last line on stdout; of several sources, each has its line. Exit codes: "
        "0 done, 1 a check failed or the input is bad, of any source, 2 usage.",
    )
    add = result.add_argument
    add(
        "--src",
        action="extend",
        nargs="+",
        help="checkpoint (prefix, .index or folder), SavedModel, frozen graph, Keras file, archive of one, URL, "
        "official (the network's published file, the default) or synthetic[:SEED]; several of them, or a pattern such "
        "as 'models/*.h5', are ported one after the other",
    )
    add("--arch", required=True, choices=(*rules.ARCHS, AUTO), help="the network that the source holds; auto finds out")
    add("--out", default="checkpoints", metavar="DIR", help="where to emit (default: %(default)s)")
    add("--keep-background", action="store_true", help="keep class 0 (background) of a 1001-class classifier")
    add("--ema", action="store_true", help="take ExponentialMovingAverage shadows instead of the plain variables")
    add("--backbone-only", action="store_true", help="leave the classifier out")
    add("--fold-bn", action="store_true", help="fold every batch norm into the convolution before it")
    epsilon = rules.BATCH_NORM_EPSILON
    add(
        "--bn-eps",
        type=float,
        default=epsilon,
        metavar="E",
        help="emit for batch norms of this epsilon (default: 1e-3)",
    )
    add("--dtype", default=DTYPES[0], choices=DTYPES, help="type that weights are stored in (default: %(default)s)")
    add("--format", default="pth", metavar="LIST", help="any of pth, safetensors and hf (a folder that timm loads)")
    add("--labels", metavar="FILE", help="class names for the manifest: one a line, or JSON")
    add("--licence", default="unknown", metavar="ID", help="licence of the weights, for the manifest")
    add("--upstream", default="unknown", metavar="URL", help="where the weights come from, for the manifest")
    add("--reference-python", metavar="PATH", help="the Python that has TensorFlow (default: this one)")
    add("--report", metavar="DIR", help="write the parity report there too, as JSON and as a web page")
    add("--fast", action="store_true", help="prove at one size only: 299x299, or the source's own")
    add("--no-verify", action="store_true", help="emit without proof; the manifest says unverified")
    add("--json", action="store_true", help="print the manifest and the path as one JSON object")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Port as the arguments say; returns the exit code."""
    options = parser()
    arguments = options.parse_args(argv)
    arguments.format = tuple(dict.fromkeys(arguments.format.split(",")))
    if arguments.fast and arguments.no_verify:
        options.error("argument --fast: proves less, and --no-verify not at all: choose one")
    asked = (arguments.arch, arguments.fold_bn, arguments.bn_eps, arguments.dtype, arguments.format)
    if problem := contradiction(*asked):
        options.error(f"argument {problem}")
    return terminal.run(lambda: _convert(arguments))


def sources(asked: Sequence[str]) -> list[str]:
    """What `--src` names, patterns expanded in order; what matches nothing stays as it is, and will be missing."""
    found: list[str] = []
    for one in asked:
        matching = sorted(glob(one)) if has_magic(one) and not Path(one).exists() else []  # noqa: PTH207 - any pattern
        found += matching or [one]
    return list(dict.fromkeys(found))


def _convert(arguments: argparse.Namespace) -> int:
    """Port every source; one that fails does not keep the others from being ported."""
    wanted = sources(arguments.src or [OFFICIAL])
    if len(wanted) == 1 and is_path(wanted[0]):
        require(wanted[0])  # a mistyped path is told at once, before numpy and PyTorch are loaded
    from porting.reference import SharedReference

    with SharedReference(arguments.reference_python) as tensorflow:
        if not arguments.no_verify:
            tensorflow.begin()
        if len(wanted) == 1:
            return _port(wanted[0], arguments, tensorflow)
        failed, code = 0, terminal.DONE
        for src in wanted:
            try:
                code = max(code, _port(src, arguments, tensorflow))
            except PortingError as error:
                failed += 1
                terminal.note(f"error: {error}")
    if failed:
        terminal.note(f"{failed} of {len(wanted)} sources failed")
    return terminal.FAILED if failed else code


def _port(src: str, arguments: argparse.Namespace, tensorflow: SharedReference) -> int:
    from porting.pipeline import port

    bars = terminal.Bars()
    try:
        result = port(
            src,
            arguments.arch,
            out=arguments.out,
            keep_background=arguments.keep_background,
            ema=arguments.ema,
            backbone_only=arguments.backbone_only,
            fold_bn=arguments.fold_bn,
            bn_eps=arguments.bn_eps,
            dtype=arguments.dtype,
            formats=arguments.format,
            labels=arguments.labels,
            licence=arguments.licence,
            upstream=arguments.upstream,
            verify=not arguments.no_verify,
            fast=arguments.fast,
            tensorflow=tensorflow,
            progress=bars,
        )
    finally:
        bars.close()
    _summarise(result)
    if arguments.report:
        from porting.report.files import write

        for path in write(result.report, Path(arguments.report), result.path.stem):
            terminal.note(f"  report     {path}")
    return terminal.answer(
        json.dumps({**result.manifest, "path": str(result.path)}) if arguments.json else str(result.path)
    )


def _summarise(result: PortResult) -> None:
    manifest = result.manifest
    reasons: dict[str, int] = {}
    for item in manifest["unread"]:
        reasons[item["reason"]] = reasons.get(item["reason"], 0) + 1
    unread = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    terminal.note(f"{manifest['arch']}, {manifest['num_classes']} classes, from {manifest['source']['name']}")
    terminal.note(f"  variables  {manifest['mapped'] + len(manifest['unread'])} found, {manifest['mapped']} mapped")
    terminal.note(f"  unread     {len(manifest['unread'])}" + (f" ({unread})" if unread else ""))
    proof = manifest["parity"]
    if result.traces:
        worst = proof["worst"]
        first, *others = (trace.run for trace in result.traces)
        layers = len(result.traces[0].layers)
        terminal.note(f"  weights    {manifest['mapped']} read back bit for bit")
        smaller = f"and {len(others)} smaller runs" if others else "alone, as --fast asked"
        terminal.note(f"  verified   {layers} layers at {first} {smaller}")
        terminal.note(f"             against {proof['reference']}")
        terminal.note(
            f"  worst      {worst['layer']}: {worst['error']:.2g} of its largest value (bound {proof['bound']:.0e})"
        )
        if "float32" in proof:  # run at large sizes alone
            lighter = proof["float32"]["worst"]
            times = lighter["error"] / lighter["noise"] if lighter["noise"] else 0.0
            terminal.note(f"  float32    {lighter['layer']}: {times:.2g} times TensorFlow's own error")
    elif proof["verdict"] == "verified":
        terminal.note("  verified   not in this run, but an earlier one proved this very file")
    else:
        terminal.note("  UNVERIFIED as --no-verify asked")
    if manifest["source"]["synthetic"]:
        terminal.note("  SYNTHETIC  random weights, for trying things out: they classify nothing")
    for text in result.notes:
        terminal.note(f"  note       {text}")
    terminal.note(f"  time       {result.seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
