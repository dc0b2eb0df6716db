"""`python -m models.finetune DATA_DIR --weights FILE`: train a network on your own classes.

Launched by `torchrun -m models.finetune ...` it shares each batch among the processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ModelError

if TYPE_CHECKING:
    from models.image_folder import ImageFolder
    from models.processes import Share, Stop
    from models.registry import Network
    from models.training import Recipe, Run
    from models.weights import Weights

INTERRUPTED = 130


def _number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or value == float("inf"):
            upto = f" to {high:g}" if high < float("inf") else ""
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} from {low:g}{upto}, found {text}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.finetune",
        description="Train a network on DATA_DIR/train/<class>/* and evaluate it on DATA_DIR/val/<class>/*. "
        "The last line on stdout is the file of weights, which create_model and models.predict take.",
    )
    add = parser.add_argument
    add("data", metavar="DATA_DIR", type=Path, help="a folder with train/ and val/, each with a folder a class")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--weights", metavar="FILE", help="the .pth file to start from")
    start.add_argument("--arch", metavar="NAME", help="a network to train from scratch")
    add("--classes", metavar="N", type=_number(int, 2), help="how many classes there are to be in DATA_DIR (checked)")
    add("--keep-head", action="store_true", help="go on with the weights' own classifier, instead of a new one")
    add("--out", metavar="DIR", type=Path, default=Path("finetuned"), help="where to write (default: %(default)s)")
    add("--resume", action="store_true", help="go on from DIR/checkpoint.pt, if there is one")
    add("--epochs", type=_number(int, 1), default=10, help="default: %(default)s")
    add(
        "--batch-size",
        type=_number(int, 1),
        default=32,
        help="images a step, over all processes (default: %(default)s)",
    )
    add("--lr", type=_number(float, 0, 1e3), default=3e-4, help="AdamW's largest rate (default: %(default)s)")
    add("--warmup-epochs", type=_number(float, 0), default=0.5, help="default: %(default)s; then half a cosine to 0")
    add("--weight-decay", type=_number(float, 0), default=0.01, help="default: %(default)s")
    add("--label-smoothing", type=_number(float, 0, 0.99), default=0.1, help="default: %(default)s")
    add("--clip-norm", type=_number(float, 0), default=1.0, help="largest gradient; 0: any (default: %(default)s)")
    add("--ema-decay", type=_number(float, 0, 0.999999), default=0.999,
        help="of the weights' average, which is evaluated and written; 0: none (default: %(default)s)")  # fmt: skip
    add("--freeze-epochs", type=_number(int, 0), default=0, help="at first, train the classifier alone (default: 0)")
    add("--freeze-norm", action="store_true", help="keep the batch norms' statistics; for small batches")
    add("--drop-rate", type=_number(float, 0, 0.99), default=0.0, help="before the classifier (default: %(default)s)")
    add("--drop-path-rate", type=_number(float, 0, 0.99), default=0.0, help="stochastic depth (default: %(default)s)")
    add("--size", type=_number(int, 64), help="side of the images in pixels (default: as the weights)")
    add("--min-crop", type=_number(float, 0.01, 1), default=0.25,
        help="least part of an image's area that a training crop keeps (default: %(default)s)")  # fmt: skip
    add("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast (default: on a GPU)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    add("--workers", type=_number(int, 0), default=4, help="processes that read images (default: %(default)s)")
    add("--seed", type=_number(int, 0), default=0, help="default: %(default)s")
    return parser


@dataclass(frozen=True)
class _Setup:
    """What the arguments stand for, checked."""

    recipe: Recipe
    train: ImageFolder
    val: ImageFolder
    network: Network
    source: Weights | None
    head: dict[str, Any]  # as the manifest describes it
    settings: dict[str, Any]  # what a resumed run must repeat


def _recipe(arguments: argparse.Namespace, on_gpu: bool) -> Recipe:
    from models.training import Recipe

    names = Recipe.__dataclass_fields__.keys() - {"amp"}
    amp = on_gpu if arguments.amp is None else arguments.amp
    return Recipe(**{name: getattr(arguments, name) for name in names}, amp=amp)


def _network(arguments: argparse.Namespace, labels: tuple[str, ...]) -> tuple[Network, Weights | None, dict[str, Any]]:
    """The network to train, the weights that it starts from, and its head as the manifest describes it."""
    import torch

    from models.registry import create_model
    from models.weights import read_weights

    torch.manual_seed(arguments.seed)
    rates = {"drop_rate": arguments.drop_rate, "drop_path_rate": arguments.drop_path_rate}
    head: dict[str, Any] = {"kind": "dense", "activation": "softmax"}
    if arguments.weights is None:
        if arguments.keep_head:
            raise ModelError("--keep-head: expected with --weights, which bring a head")
        return create_model(arguments.arch, num_classes=len(labels), **rates), None, head
    source = read_weights(arguments.weights)
    if source.arch is None:
        raise ModelError(f"{arguments.weights}: not the weights of an Xception of this project")
    if source.folded:
        raise ModelError(f"{arguments.weights}: folded weights have no batch norms to train with; take unfolded ones")
    if not arguments.keep_head:
        network = create_model(source.arch, pretrained=arguments.weights, num_classes=0, global_pool="avg", **rates)
        network.reset_classifier(len(labels))
        return network, source, head
    if source.num_classes != len(labels):
        raise ModelError(f"--keep-head: the weights have {source.num_classes} classes, the images {len(labels)}")
    network = create_model(source.arch, pretrained=arguments.weights, **rates)
    if network.labels not in (None, labels):
        raise ModelError(f"--keep-head: the weights' classes are others: {', '.join(network.labels or ())}")
    if source.manifest is not None and source.manifest.chain is not None:
        chain = source.manifest.chain
        head |= {"kind": "chain", "pooling": chain.pooling.value, "modules": [dict(one) for one in chain.modules]}
    return network, source, head


def _set_up(arguments: argparse.Namespace, share: Share) -> _Setup:
    """Check everything that can be wrong before the first step.

    Raises:
        ModelError: images, weights or settings that cannot be used.
    """
    from models.image_folder import read_folder

    recipe = _recipe(arguments, share.device.type == "cuda")
    train = read_folder(arguments.data / "train")
    val = read_folder(arguments.data / "val", train.classes)
    if arguments.classes not in (None, len(train.classes)):
        names = ", ".join(train.classes[:20]) + (", ..." if len(train.classes) > 20 else "")
        raise ModelError(f"{train.root}: expected {arguments.classes} classes, found {len(train.classes)}: {names}")
    smallest = len(train) // -(-len(train) // recipe.batch_size)
    if smallest < share.world:
        raise ModelError(
            f"batches of {smallest} images ({len(train)} in all) are too small for {share.world} processes; "
            "raise --batch-size, or start fewer"
        )
    network, source, head = _network(arguments, train.classes)
    side = arguments.size
    if side is not None:
        network.preprocessing = replace(network.preprocessing, input_size=(3, side, side))
    network.labels = train.classes
    settings = {
        **asdict(recipe),
        "arch": network.info.name,
        "classes": list(train.classes),
        "size": list(network.preprocessing.input_size),
        "images": [train.digest, val.digest],
        **{name: getattr(arguments, name) for name in ("drop_rate", "drop_path_rate", "min_crop", "keep_head")},
    }
    return _Setup(recipe, train, val, network, source, head, settings)


def _progress(setup: _Setup, share: Share) -> tuple[Any, Callable[[Run, float], None]]:
    """A bar over the steps of the whole run, on a terminal, and what moves it."""
    from tqdm import tqdm

    steps = -(-len(setup.train) // setup.recipe.batch_size)
    hidden = share.rank > 0 or not sys.stderr.isatty()
    bar = tqdm(total=setup.recipe.epochs * steps, unit="step", disable=hidden, dynamic_ncols=True)

    def moved(run: Run, rate: float) -> None:
        bar.update()
        if not hidden and (run.step % 10 == 0 or run.step == steps):  # reading a loss waits for the GPU
            loss, correct, count = run.sums.tolist()
            bar.set_postfix(
                epoch=f"{run.epoch + 1}/{setup.recipe.epochs}", loss=f"{loss / count:.3f}",
                accuracy=f"{correct / count:.1%}", lr=f"{rate:.1e}",
            )  # fmt: skip

    return bar, moved


def _tell(bar: Any, epochs: int, epoch: dict[str, float]) -> None:
    bar.write(
        "epoch {epoch:.0f}/{epochs}  train loss {train_loss:.4f}  val loss {val_loss:.4f}  val accuracy "
        "{val_accuracy:.2%}  {images_per_second:.0f} images/s".format(epochs=epochs, **epoch),
        file=sys.stderr,
    )


def _train(setup: _Setup, share: Share, out: Path, resume: bool, min_crop: float, stop: Stop) -> Path | None:
    """Run to the end, and give the file of weights where this process writes it.

    Raises:
        ModelError: an image or a checkpoint cannot be read, a file cannot be written, or the loss is not finite.
        InterruptedRunError: a signal came; the checkpoint is where the run has stopped.
    """
    from models.image_folder import Samples
    from models.preprocess import EvaluationTransform, TrainingTransform
    from models.training import InterruptedRunError, Watch, end_epoch, new_run, train_epoch
    from models.training_files import CHECKPOINT, read_checkpoint, write_checkpoint, write_metrics, write_weights

    recipe, preprocessing = setup.recipe, setup.network.preprocessing
    train = Samples(setup.train, TrainingTransform(preprocessing, scale=(min_crop, 1.0)), recipe.seed)
    val = Samples(setup.val, EvaluationTransform(preprocessing), recipe.seed)
    run = new_run(setup.network, recipe, share.device)
    if (out / CHECKPOINT).exists():
        if not resume:
            raise ModelError(f"{out / CHECKPOINT}: a run is there already; pass --resume, or choose another --out")
        read_checkpoint(out / CHECKPOINT, run, setup.settings, share)
    if share.rank == 0:
        write_metrics(out, run)
    bar, moved = _progress(setup, share)
    bar.update(run.epoch * -(-len(setup.train) // recipe.batch_size) + run.step)
    with bar:
        while run.epoch < recipe.epochs:
            began = time.perf_counter()
            try:
                train_epoch(run, recipe, train, share, Watch(moved, lambda: stop.asked))
            except InterruptedRunError:
                if share.rank == 0:
                    write_checkpoint(out, run, setup.settings)
                raise
            end_epoch(run, recipe, val, share, began)
            if share.rank == 0:
                write_checkpoint(out, run, setup.settings)
                write_metrics(out, run)
                _tell(bar, recipe.epochs, run.history[-1])
    return write_weights(out, run, setup.source, recipe, setup.head) if share.rank == 0 else None


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from models.processes import Stop, is_first, join
    from models.training import DivergedError, InterruptedRunError

    stop = Stop()

    share: Share | None = None
    try:
        try:
            share = join(arguments.device, arguments.workers)
            setup = _set_up(arguments, share)
        except ModelError:
            if not is_first():  # every process finds the same
                return 1
            raise
        path = _train(setup, share, arguments.out, arguments.resume, arguments.min_crop, stop)
    except DivergedError as error:
        if is_first():
            print(error, file=sys.stderr)
        return 1
    except InterruptedRunError:
        if is_first():
            print(f"interrupted: pass --resume to go on from {arguments.out}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if share is not None and share.world > 1:
            torch.distributed.destroy_process_group()
    if path is not None:
        print(path)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 an error, 2 usage, 130 interrupted. The weights' path is the one line on stdout."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
