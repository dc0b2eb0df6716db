"""Folders of images, one folder a class, and the batches that training and evaluation take from them.

What is drawn, and how it is cropped, depends on the seed, the epoch and the image alone: never on how many processes
and workers share the work, nor on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from models.errors import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}

# What Pillow raises for files that are damaged, depending on their format and on where.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, LookupError, OverflowError, struct.error, zlib.error)

Key = tuple[int, int]  # (epoch, position of the image); evaluation is epoch 0
Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), classes (N,)


@dataclass(frozen=True)
class ImageFolder:
    """Images and their classes: `paths[i]` is of class `classes[targets[i]]`."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """Of the images' names, in order: two folders of the same digest give the same batches."""
        names = "\0".join(path.relative_to(self.root).as_posix() for path in self.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read_folder(root: Path, classes: Sequence[str] | None = None) -> ImageFolder:
    """The images under `root/<class>/`, at any depth, in the order of their names.

    Args:
        classes: the classes to expect; without them, the folders' names in order.

    Raises:
        ModelError: no such folder, no images, a class without images, fewer than two classes, or other classes than
            were expected.
    """
    if not root.is_dir():
        raise ModelError(f"{root}: no such folder; expected one with a folder of images for each class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = tuple(path.name for path in folders)
    if classes is not None and names != tuple(classes):
        missing = sorted(set(classes) - set(names))
        extra = sorted(set(names) - set(classes))
        found = "; ".join(
            f"{what} {', '.join(some)}" for what, some in (("missing", missing), ("unexpected", extra)) if some
        )
        raise ModelError(f"{root}: classes: expected those of the training images, found {found}")
    found_paths: list[Path] = []
    targets: list[int] = []
    empty: list[str] = []
    for target, folder in enumerate(folders):
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        found_paths += images
        targets += [target] * len(images)
        if not images:
            empty.append(folder.name)
    if not found_paths:
        raise ModelError(f"{root}: no images; expected {root.name}/<class>/*.jpg (or {', '.join(sorted(SUFFIXES))})")
    if empty:
        raise ModelError(f"{root}: no images of {', '.join(empty)}; remove an empty folder, or fill it")
    if len(folders) < 2:
        raise ModelError(f"{root}: expected at least 2 classes, found 1: {names[0]}")
    return ImageFolder(root, names, tuple(found_paths), tuple(targets))


def derived_seed(*numbers: int) -> int:
    """A seed for one purpose, unrelated to those of other numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Samples:
    """What a loader indexes by (epoch, position): one transformed image and its class, or why it cannot be read.

    An error is a value here, because a loader's worker process would wrap it into a traceback.
    """

    folder: ImageFolder
    transform: Callable[[Image], Tensor]
    seed: int

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | ModelError:
        from PIL import Image, ImageOps

        epoch, position = key
        path = self.folder.paths[position]
        try:
            with Image.open(path) as image, torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(self.seed, epoch, position))
                return self.transform(ImageOps.exif_transpose(image)), self.folder.targets[position]
        except (*_UNREADABLE, Image.DecompressionBombError) as error:
            return ModelError(f"{path}: not an image that can be read: {error}")


def collate(samples: Sequence[tuple[Tensor, int] | ModelError]) -> Batch | ModelError:
    """One batch of samples, or the first error among them."""
    images: list[Tensor] = []
    targets: list[int] = []
    for sample in samples:
        if isinstance(sample, ModelError):
            return sample
        images.append(sample[0])
        targets.append(sample[1])
    return torch.stack(images), torch.tensor(targets)


def training_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[Key]]:
    """Every image once, in this epoch's order, in batches that differ in size by one at most.

    A last batch of a few images would count as much as a full one, and batch norm could not use it.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    order = torch.randperm(count, generator=generator)
    steps = -(-count // batch_size)
    return [[(epoch, position) for position in batch.tolist()] for batch in order.tensor_split(steps)]


def evaluation_batches(count: int, batch_size: int) -> list[list[Key]]:
    """Every image once, in order."""
    return [
        [(0, position) for position in range(start, min(start + batch_size, count))]
        for start in range(0, count, batch_size)
    ]


class Gathered(NamedTuple):
    """One batch of the samples that could be read, and what is wrong with the others: position in the batch, reason."""

    images: Tensor | None  # (N, C, H, W)
    targets: Tensor  # (N,)
    unreadable: list[tuple[int, str]]


def gather(samples: Sequence[tuple[Tensor, int] | ModelError]) -> Gathered:
    """One batch of the samples that could be read."""
    read = [sample for sample in samples if not isinstance(sample, ModelError)]
    unreadable = [(number, str(sample)) for number, sample in enumerate(samples) if isinstance(sample, ModelError)]
    images = torch.stack([image for image, _ in read]) if read else None
    return Gathered(images, torch.tensor([target for _, target in read], dtype=torch.int64), unreadable)


def loader(
    samples: Samples, batches: Sequence[list[Key]], workers: int, pinned: bool, combine: Callable[..., Any]
) -> Iterable[Any]:
    """What `combine` makes of each batch in turn, read by `workers` processes, or by this one."""
    found: Iterable[Any] = torch.utils.data.DataLoader(
        samples,  # type: ignore[arg-type]  # a loader needs no more than an index and a length
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=combine,
        pin_memory=pinned,
        generator=torch.Generator(),  # otherwise every loader would draw from the global one
    )
    return found


def load(samples: Samples, batches: Sequence[list[Key]], workers: int, pinned: bool) -> Iterator[Batch]:
    """The batches in turn, read by `workers` processes, or by this one.

    Raises:
        ModelError: an image that cannot be read.
    """
    for batch in loader(samples, batches, workers, pinned, collate):
        if isinstance(batch, ModelError):
            raise batch
        yield batch
