"""`python -m porting.evaluate`: how often a network is right, on images whose classes are known."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ModelError
from porting import terminal

if TYPE_CHECKING:
    from models.evaluation import Accuracy
    from models.processes import Share, Stop
    from porting.measurement import Measurement


def _from_one(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text}")
    return int(text)


def _from_zero(text: str) -> int:
    return 0 if text == "0" else _from_one(text)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m porting.evaluate",
        description="Top-1, top-5 and loss on DIR/<class>/*, with the weights' own preprocessing. ImageNet's classes "
        "are folders named by synset, other weights' classes folders named as in their manifest. Launched by torchrun, "
        "it shares the images among the processes and gives the same counts.",
        epilog="Images that cannot be read are named on stderr and counted apart: they are in no percentage. "
        "Exit codes: 0 done, 1 the input is bad, 2 usage, 130 interrupted.",
    )
    add = result.add_argument
    add("--weights", required=True, metavar="FILE", help="a .pth or .safetensors file, or its URL")
    add("--data", required=True, metavar="DIR", type=Path, help="a folder of images for each class, or with --labels")
    add("--labels", metavar="FILE", type=Path,
        help="classes of the images in DIR: `NAME CLASS` a line, or one class a line in the order of the names; a "
        "class is its name, its synset or the number of the network's output, from 0")  # fmt: skip
    add("--ids", metavar="FILE", type=Path,
        help="ImageNet's map_clsloc.txt, for --labels ILSVRC2012_validation_ground_truth.txt")  # fmt: skip
    add("--batch-size", type=_from_one, default=32, metavar="N", help="images at a time and process (default 32)")
    add("--workers", type=_from_zero, default=4, metavar="N", help="that read images for a process (default 4)")
    add("--limit", type=_from_one, metavar="N", help="N images alone, evenly over the set")
    add("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    add(
        "--resume", metavar="FILE", type=Path, help="keep finished batches in FILE, and go on from those that are there"
    )
    add("--write", action="store_true", help="record the result in the manifest beside the weights")
    add("--json", action="store_true", help="print the result as one JSON object")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the arguments say; returns the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.write and arguments.limit:
        parser().error("--write records the whole set: expected without --limit")
    if arguments.write and arguments.weights.startswith(("http://", "https://")):
        parser().error("--write needs a manifest of yours: expected a file as --weights, found a URL")
    return terminal.run(lambda: _evaluate(arguments))


def _evaluate(arguments: argparse.Namespace) -> int:
    import torch

    from models.evaluation import InterruptedEvaluationError
    from models.processes import Stop, is_first, join
    from porting.errors import PortingError
    from porting.measurement import prepare

    stop = Stop()
    share: Share | None = None
    try:
        try:
            share = join(arguments.device, arguments.workers, timedelta(days=7))
            measurement = prepare(
                arguments.weights, arguments.data, arguments.labels, arguments.ids,
                arguments.batch_size, arguments.limit, arguments.write, share.device,
            )  # fmt: skip
        except (ModelError, PortingError):
            if not is_first():  # every process finds the same
                return terminal.FAILED
            raise
        found, rate = _run(measurement, share, arguments.resume, stop)
        if share.rank > 0:
            return terminal.DONE
        return _report(measurement, found, rate, arguments.write, arguments.json)
    except ModelError as error:
        terminal.note(f"error: {error}")
        return terminal.FAILED
    except InterruptedEvaluationError:
        if is_first():
            kept = f"repeat the command to go on from {arguments.resume}" if arguments.resume else "nothing was kept"
            terminal.note(f"interrupted: {kept}")
        return terminal.INTERRUPTED
    finally:
        if share is not None and share.world > 1:
            torch.distributed.destroy_process_group()


def _run(measurement: Measurement, share: Share, resume: Path | None, stop: Stop) -> tuple[Accuracy, float]:
    """The result, and how many images a second this run took."""
    import time

    from porting.measurement import measure

    before = measurement.earlier(resume) if resume is not None and share.rank == 0 else []
    skipped = sum(outcome.images for outcome in before)
    if share.rank == 0:
        _note_set(measurement, [position for outcome in before for position in outcome.unreadable], resume, len(before))
    bar, moved = _progress(measurement, share, [outcome.batch for outcome in before])
    began = time.perf_counter()
    with bar:
        found = measure(measurement, before, share, resume, moved, lambda: stop.asked)
    return found, (found.images - skipped) / (time.perf_counter() - began)


def _note_set(measurement: Measurement, unreadable: Sequence[int], resume: Path | None, before: int) -> None:
    if measurement.images.passed_over:
        terminal.note(f"passed over {measurement.images.passed_over} files that are no images")
    if before:
        terminal.note(f"going on from {resume}: {before} of {len(measurement.batches)} batches are done")
    for position in unreadable:
        terminal.note(f"{measurement.images.folder.paths[position]}: could not be read before")


def _progress(
    measurement: Measurement, share: Share, before: Sequence[int]
) -> tuple[Any, Callable[[int, Sequence[str]], None]]:
    """A bar over all images, on the first process's terminal, and what moves it: batches, and unreadable images."""
    from tqdm import tqdm

    hidden = share.rank > 0 or not sys.stderr.isatty()
    done = set(before)
    waiting = [len(batch) for number, batch in enumerate(measurement.batches) if number not in done]
    bar = tqdm(
        total=len(measurement.images), initial=len(measurement.images) - sum(waiting), unit="image", disable=hidden,
        dynamic_ncols=True,
    )  # fmt: skip
    rounds = iter(range(0, len(waiting), share.world))

    def moved(_: int, reasons: Sequence[str]) -> None:
        for reason in reasons:
            bar.write(reason, file=sys.stderr)
        start = next(rounds, len(waiting))  # while this process takes one batch, each of the others takes one
        bar.update(sum(waiting[start : start + share.world]))

    return bar, moved


def _report(measurement: Measurement, found: Accuracy, rate: float, write: bool, as_json: bool) -> int:
    from porting.measurement import record

    entry = measurement.entry(found)
    if write:
        terminal.note(f"wrote {record(measurement.path, measurement.digest, entry)}")
    if as_json:
        print(json.dumps({**measurement.about(found), **entry, "images_per_second": round(rate, 3)}))
        return terminal.DONE
    published = measurement.published
    print(f"{measurement.path.name} ({measurement.arch}) on {entry['data']}")
    for name, label in (("top1", "top-1"), ("top5", "top-5")):
        beside = f"   published: {published[name]:.3f} %" if published else ""
        print(f"  {label:<8} {entry[name]:7.3f} %{beside}")
    print(f"  {'loss':<8} {entry['loss']:8.4f}")
    unreadable = f"   and {entry['unreadable']} that could not be read, not counted" if entry["unreadable"] else ""
    print(f"  {'images':<8} {entry['images']:>7}{unreadable}")
    print(f"  {'speed':<8} {rate:7.1f} images/s")
    return terminal.DONE


if __name__ == "__main__":
    sys.exit(main())
