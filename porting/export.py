"""`python -m porting.export`: a PyTorch file's weights back into TensorFlow's or Keras's own container."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from porting import rules, terminal


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m porting.export",
        description="Write the weights of a .pth or .safetensors as a TensorFlow checkpoint with TF-Slim's names, or, "
        "of the original xception, as a Keras .weights.h5. Every bit is read back before the result gets its name.",
        epilog="What to give to TensorFlow is the last line on stdout. Exit codes: 0 done, 1 a check failed or the "
        "input is bad, 2 usage.",
    )
    add = result.add_argument
    add("--weights", required=True, metavar="FILE", help="the file: this project's, timm's or Cadene's layout")
    add("--out", required=True, metavar="PREFIX", help="the checkpoint's prefix, or the Keras file's name")
    add("--arch", choices=rules.ARCHS, help="the network (default: as the manifest says, else as the keys show)")
    add("--backbone-only", action="store_true", help="leave the classifier out (Keras: include_top=False)")
    add("--force", action="store_true", help="replace other files that are there already")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the arguments say; returns the exit code."""
    arguments = parser().parse_args(argv)
    return terminal.run(lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> int:
    from porting.reverse import export

    bars = terminal.Bars()
    try:
        done = export(
            arguments.weights,
            arguments.out,
            arguments.arch,
            backbone_only=arguments.backbone_only,
            force=arguments.force,
            progress=bars,
        )
    finally:
        bars.close()
    terminal.note(f"{done.arch}, {done.classes} classes: {done.variables} variables, read back bit for bit")
    if done.there:
        terminal.note("  the same bytes were there already")
    for text in done.notes:
        terminal.note(f"  note       {text}")
    terminal.note(f"  time       {done.seconds:.1f} s")
    print(done.path)
    return terminal.DONE


if __name__ == "__main__":
    sys.exit(main())
