"""`python -m models.predict IMAGE... --weights FILE`: what is in these pictures."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from models.errors import ModelError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class Guess:
    """One class and its probability: what the source's own last activation gives, softmax where it has none."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, likeliest first."""

    image: str
    predictions: tuple[Guess, ...]


def find_images(names: Sequence[str]) -> list[Path]:
    """The images that `names` stand for: files as they are, folders whole (by suffix), patterns expanded; each once.

    Raises:
        ModelError: a name that stands for nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            images = sorted(one for one in path.rglob("*") if one.suffix.lower() in _SUFFIXES and one.is_file())
        elif path.exists() or not glob.has_magic(name):
            images = [path]
        else:
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - the pattern may be absolute
            images = sorted(Path(one) for one in matches if Path(one).is_file())
        if not images:
            raise ModelError(f"{name}: no images there")
        found |= dict.fromkeys(images)
    missing = [str(path) for path in found if not path.exists()]
    if missing:
        raise ModelError("\n".join(f"{path}: no such file" for path in missing))
    return list(found)


def predict(paths: Sequence[Path], weights: str, topk: int, batch_size: int) -> Iterator[Prediction | ModelError]:
    """The predictions for each image in turn, or why there is none for it.

    Raises:
        ModelError: weights that cannot be used.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ModelError("reading images needs Pillow: pip install pillow") from error
    import torch

    from models.heads import apply_activation, named_probabilities
    from models.inference import optimize_for_inference
    from models.preprocess import EvaluationTransform, labels_for
    from models.registry import create_model
    from models.weights import read_weights

    read = read_weights(weights)
    if read.arch is None:
        raise ModelError(f"{weights}: not the weights of an Xception of this project")
    if read.num_classes == 0:
        raise ModelError(f"{weights}: these weights have no classifier: port them without --backbone-only")
    model = optimize_for_inference(create_model(read.arch, pretrained=read, folded=read.folded))
    labels = model.labels or labels_for(read.num_classes)
    activation = read.manifest.activation if read.manifest else None
    transform = EvaluationTransform(model.preprocessing)

    def load(path: Path) -> torch.Tensor | ModelError:
        try:
            with Image.open(path) as image:
                return transform(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            return ModelError(f"{path}: not an image that can be read: {error}")

    remaining = iter(paths)
    while batch := list(islice(remaining, batch_size)):
        inputs = [load(path) for path in batch]
        tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
        if tensors:
            with torch.inference_mode():
                stacked = torch.stack(tensors).contiguous(memory_format=torch.channels_last)
                values = named_probabilities(apply_activation(model(stacked), activation), activation, len(labels))
            top = values.topk(min(topk, len(labels)))
            best, indices = iter(top.values.tolist()), iter(top.indices.tolist())
        for path, one in zip(batch, inputs, strict=True):
            if isinstance(one, ModelError):
                yield one
                continue
            pairs = zip(next(indices), next(best), strict=True)
            yield Prediction(str(path), tuple(Guess(index, labels[index], value) for index, value in pairs))


def _parser() -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        if not text.isdigit() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a number from 1, found {text}")
        return int(text)

    parser = argparse.ArgumentParser(prog="python -m models.predict", description="Name what is in images.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders or patterns")
    parser.add_argument("--weights", metavar="FILE", required=True, help="a .pth file, folded or not")
    parser.add_argument("--topk", type=positive, default=5, help="classes to print for each image (default 5)")
    parser.add_argument("--batch-size", type=positive, default=8, help="images at a time (default 8)")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of text")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    paths = find_images(arguments.images)
    results: list[Prediction] = []
    failed = False
    with tqdm(total=len(paths), unit="image", disable=not sys.stderr.isatty()) as progress:
        for result in predict(paths, arguments.weights, arguments.topk, arguments.batch_size):
            progress.update()
            if isinstance(result, ModelError):
                failed = True
                tqdm.write(str(result), file=sys.stderr)
            elif arguments.json:
                results.append(result)
            else:
                lines = [f"{guess.probability:7.2%}  {guess.label}" for guess in result.predictions]
                tqdm.write("\n".join([result.image, *lines]), file=sys.stdout)
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 if anything failed, or 2 for wrong arguments. Results go to stdout, the rest to stderr."""
    arguments = _parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the results has stopped; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
