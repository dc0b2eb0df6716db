"""From a PyTorch file back to TensorFlow: the same rule tables, read from right to left.

What is written is read again through the tables as they stand, and compared with the weights bit for bit, before it
gets its name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt

from models.scratch import scratch_folder
from porting import artifact, rules
from porting.bitwise import compare_weights
from porting.errors import Defect, ErrorKind, PortingError
from porting.keras_generations import counted_head, counted_names
from porting.origins import Progress, Quiet
from porting.plan import Options, build_plan
from porting.recognition import recognise
from porting.reversible import Reversible, read_reversible
from porting.sources import open_source
from porting.writers.bundle import data_path, index_path, write_bundle
from porting.writers.keras_weights import write_weights_h5

KERAS_ENDING = ".weights.h5"  # load_weights takes no other
_INDEX_ENDING = ".index"


@dataclass(frozen=True)
class Export:
    """What an export made.

    Attributes:
        path: what to give to TensorFlow, absolute: a checkpoint's prefix, or Keras's file.
        arch: the network.
        classes: outputs of the classifier, 0 for a backbone.
        variables: how many were written.
        there: whether the very same files were there already.
        notes: what the user should hear of.
        seconds: wall-clock time.
    """

    path: Path
    arch: str
    classes: int
    variables: int
    there: bool
    notes: tuple[str, ...]
    seconds: float


def export(
    weights: str | Path,
    out: str | Path,
    arch: str | None = None,
    *,
    backbone_only: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write a PyTorch file's weights as a TensorFlow checkpoint, or as Keras's `.weights.h5` for the original network.

    Args:
        weights: a `.pth` or `.safetensors` with the layout of this project, timm or Cadene.
        out: the checkpoint's prefix, or Keras's file with or without its ending; folders are created.
        arch: the network; default the manifest's, else the one whose keys these are.
        backbone_only: leave the classifier out.
        force: replace other files that are there.
        progress: told of each stage and step.

    Raises:
        PortingError: weights that cannot be read, are not the network's, or are of a form that TensorFlow does not
            have; or the result could not be written. Nothing is left behind.
    """
    began = time.monotonic()
    watch = progress or Quiet()
    weights = Path(weights)
    found = read_reversible(weights, arch, backbone_only)
    with artifact.output_errors(Path(out)):
        final = _final(Path(out), found.table.arch)
    artifact.prepare_folder(final.parent)
    with ExitStack() as stack:
        with artifact.output_errors(final.parent):
            written = stack.enter_context(scratch_folder(final.parent)) / final.name
            files = _write(written, found, stack, watch)
        _read_back(weights, written, found)
        stack.enter_context(artifact.one_writer(final.parent))
        there = _publish(final, files, force)
    count = len(found.table.rules)
    return Export(final, found.table.arch, found.classes, count, there, found.notes, time.monotonic() - began)


def _final(out: Path, arch: str) -> Path:
    """What the result is called: users may spell the ending or not."""
    keras = arch == rules.KERAS_ARCH
    name = out.name.removesuffix(KERAS_ENDING if keras else _INDEX_ENDING)
    if not name or out.is_dir():
        example = out / (f"{arch}{KERAS_ENDING}" if keras else "model.ckpt")
        raise PortingError(ErrorKind.OUTPUT, out, ["a folder, not a name in one"], f"Give a name: --out {example}.")
    return out.absolute().with_name(name + (KERAS_ENDING if keras else ""))


def _write(written: Path, found: Reversible, stack: ExitStack, watch: Progress) -> list[IO[bytes]]:
    """Write and flush the file, or a checkpoint's data and index; returns them in the order to publish them in."""
    watch.start("writing", len(found.table.rules))
    if found.table.arch == rules.KERAS_ARCH:
        places = counted_names() | counted_head()
        layers = ((places[name], name.rpartition("/")[0], values) for name, values in _variables(found, watch))
        write_weights_h5(written, layers)
        files: list[IO[bytes]] = [stack.enter_context(written.open("r+b"))]
    else:
        files = [stack.enter_context(path.open("x+b")) for path in (data_path(written), index_path(written))]
        write_bundle(files[0], files[1], _variables(found, watch))
    for file in files:
        artifact.flush(file)
    return files


def _variables(found: Reversible, watch: Progress) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Names and values of TensorFlow's variables, sorted by name."""
    for rule in sorted(found.table.rules, key=lambda rule: rule.variable.encode()):
        yield rule.variable, rule.revert(found.state[rule.parameter].numpy())
        watch.step()


def _read_back(weights: Path, written: Path, found: Reversible) -> None:
    """Port what was written as any source is, and compare it with what was to be written.

    Raises:
        PortingError: parity, with every variable that differs in any bit.
    """
    with open_source(written) as source:
        recognised = recognise(source)
        options = Options(keep_background=True, backbone_only=not found.classes)
        plan = build_plan(recognised.contents, found.table.arch, options)
        source.verify_files()
        arrays = {name: value.numpy() for name, value in found.state.items()}
        faults = compare_weights(plan, source, recognised.contents, arrays)
    if faults:
        raise PortingError(
            ErrorKind.PARITY,
            weights,
            [Defect(fault.variable or fault.parameter, fault.cause) for fault in faults],
            "What was written does not hold these weights, and was not kept: please report it.",
        )


def _publish(final: Path, files: Sequence[IO[bytes]], force: bool) -> bool:
    """Give the files their names; returns whether they were there already, byte for byte.

    A checkpoint's index gets its name last, and an older one loses it first: at no time does an index describe
    another checkpoint's data.
    """
    named = {final.parent / Path(file.name).name: file for file in files}
    with artifact.output_errors(final.parent):
        others = [path for path in named if path.exists()]
        if len(others) == len(named) and all(_same(path, named[path]) for path in others):
            return True
        if others and not force:
            remedy = "Choose another name with --out, or replace what is there with --force."
            raise PortingError(ErrorKind.OUTPUT, final, [f"{path.name} is there already" for path in others], remedy)
        if len(named) > 1:
            index_path(final).unlink(missing_ok=True)
    artifact.publish(named)
    return False


def _same(path: Path, written: IO[bytes]) -> bool:
    return path.is_file() and artifact.file_digest(path) == artifact.file_digest(Path(written.name))
