"""Images to evaluate on, and which output of the network each of them should raise.

A folder a class, or all images in one place and a file of labels. Nothing is matched by position unless that is all
there is to go by: ImageNet's classes are found by their synsets, other classes by the names in the weights' manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from models.errors import ModelError
from models.image_folder import SUFFIXES, ImageFolder
from models.preprocess import imagenet_labels

_SHOWN = 10  # of a list of names in an error
_LARGEST_LIST = 64 << 20  # bytes; ImageNet's 50,000 lines have less than three megabytes


@dataclass(frozen=True)
class Classes:
    """The network's outputs, and the names that lead to them.

    Attributes:
        count: how many classes there are; two for a single output with two sides.
        names: each one's index; names that several classes share are left out.
        imagenet: whether these are ImageNet's 1000, with or without a background before them.
    """

    count: int
    names: Mapping[str, int]
    imagenet: bool

    def index(self, name: str) -> int | None:
        """The class of this name or synset; None where there is none."""
        return self.names.get(name)


@dataclass(frozen=True)
class EvaluationSet:
    """Images and their classes.

    Attributes:
        folder: `folder.paths[i]` is of class `folder.targets[i]`; `folder.classes` are those that have images.
        matched: how the classes were found, in words.
        passed_over: files there that are no images by their names.
        imagenet: whether the classes are ImageNet's.
    """

    folder: ImageFolder
    matched: str
    passed_over: int
    imagenet: bool

    def __len__(self) -> int:
        return len(self.folder)

    @property
    def digest(self) -> str:
        """Of the images' names, sizes in bytes and classes, in order."""
        total = hashlib.sha256()
        for path, target in zip(self.folder.paths, self.folder.targets, strict=True):
            name = path.relative_to(self.folder.root).as_posix()
            total.update(f"{name}\0{path.stat().st_size}\0{target}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def spread(self, limit: int) -> EvaluationSet:
        """`limit` of the images, evenly over the whole, so that all classes have their share."""
        count = len(self)
        chosen = [number * count // limit for number in range(limit)] if limit < count else range(count)
        paths = tuple(self.folder.paths[position] for position in chosen)
        targets = tuple(self.folder.targets[position] for position in chosen)
        return EvaluationSet(
            ImageFolder(self.folder.root, self.folder.classes, paths, targets),
            self.matched, self.passed_over, self.imagenet,
        )  # fmt: skip


def imagenet_synsets() -> tuple[str, ...]:
    """ImageNet's 1000 synsets ("n01440764" ...), in the order of the logits."""
    index = json.loads(files("models").joinpath("imagenet_class_index.json").read_text(encoding="utf-8"))
    return tuple(index[str(number)][0] for number in range(len(index)))


def classes_of(num_classes: int, labels: Sequence[str] | None) -> Classes:
    """What the outputs of a network are called.

    Args:
        num_classes: outputs.
        labels: the manifest's names for them; without them, 1000 outputs (1001 with a background) are ImageNet's.
    """
    shift = num_classes - 1000
    given = None if labels is None else [label.replace("_", " ") for label in labels]
    imagenet = shift in (0, 1) and given in (None, [*["background"] * shift, *imagenet_labels()])
    shown = list(labels or (["background"] * shift + list(imagenet_labels()) if imagenet else []))
    names = {name: index for index, name in enumerate(shown) if shown.count(name) == 1}
    if imagenet:
        names |= {synset: index + shift for index, synset in enumerate(imagenet_synsets())}
    return Classes(len(labels) if labels is not None else num_classes, names, imagenet)


def _some(names: Sequence[str]) -> str:
    rest = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _images(folder: Path) -> tuple[list[Path], int]:
    """Images at any depth, in the order of their names, and how many other files there are."""
    found = sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
    images = [path for path in found if path.suffix.lower() in SUFFIXES]
    return images, len(found) - len(images)


def read_set(root: Path, classes: Classes, labels: Path | None = None, ids: Path | None = None) -> EvaluationSet:
    """The images under `root` with their classes.

    Args:
        root: with a folder of images for each class, unless there are labels.
        classes: the network's.
        labels: a file of labels: `NAME CLASS` a line, or one class a line in the order of the images' names.
        ids: ImageNet's `map_clsloc.txt`, for a file of labels that holds the ids of the challenge's own numbering.

    Raises:
        ModelError: no images, or some whose class cannot be told; the message lists them.
    """
    if not root.is_dir():
        raise ModelError(f"{root}: no such folder; expected one of images")
    if labels is not None:
        return _listed_set(root, classes, labels, ids)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    beside = sorted(path.name for path in root.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
    if beside:
        what = "beside the class folders" if folders else "without folders that name their classes"
        raise ModelError(f"{root}: images {what}: {_some(beside)}; give their classes in a file with --labels")
    if not folders:
        raise ModelError(f"{root}: no images; expected {root.name}/<class>/*.jpg, or images and --labels FILE")
    indices, matched = _classes_of_folders(root, [path.name for path in folders], classes)
    paths: list[Path] = []
    targets: list[int] = []
    empty: list[str] = []
    others = 0
    for folder, index in zip(folders, indices, strict=True):
        images, passed_over = _images(folder)
        others += passed_over
        paths += images
        targets += [index] * len(images)
        if not images:
            empty.append(folder.name)
    if empty:
        raise ModelError(f"{root}: no images of {_some(empty)}; remove an empty folder, or fill it")
    names = tuple(folder.name for folder in folders)
    return EvaluationSet(ImageFolder(root, names, tuple(paths), tuple(targets)), matched, others, classes.imagenet)


def _classes_of_folders(root: Path, names: Sequence[str], classes: Classes) -> tuple[list[int], str]:
    """Each folder's class, and how it was found."""
    by_name = [classes.index(name) for name in names]
    matched = "folders named after the classes"
    unknown = [name for name, index in zip(names, by_name, strict=True) if index is None]
    if len(unknown) == len(names) and all(name.isdecimal() and name.isascii() for name in names):
        by_name, matched = [int(name) for name in names], "folders numbered as the network's outputs"
        unknown = [name for name in names if int(name) >= classes.count]
    elif len(unknown) == len(names) == classes.count and not classes.names:
        return list(range(len(names))), "folders in the order of their names, as the network's outputs"
    if unknown:
        expected = f"{classes.count} folders, one for each of the network's outputs, which have no names"
        if classes.imagenet:
            expected = "folders named after the synsets of ImageNet's classes (n01440764 ...)"
        elif classes.names:
            expected = f"folders named after the weights' classes ({_some(list(classes.names))})"
        many = f"{len(names)} folders, " if not classes.names else ""
        raise ModelError(f"{root}: classes: expected {expected}, found {many}{_some(unknown)}")
    indices = [index for index in by_name if index is not None]
    twice = sorted(name for name, index in zip(names, indices, strict=True) if indices.count(index) > 1)
    if twice:
        raise ModelError(f"{root}: classes: expected one folder for each, found {_some(twice)} for the same")
    return indices, matched


# --- a file of labels -------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _LARGEST_LIST:
            raise ModelError(f"{path}: expected at most {_LARGEST_LIST} bytes of labels")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ModelError(f"{path}: expected UTF-8 text; save it as that") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _class_of(classes: Classes) -> Callable[[str], int | None]:
    """Reads a class: its name or synset, or the number of the network's output."""

    def read(text: str) -> int | None:
        index = classes.index(text)
        if index is None and text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < classes.count:
            return int(text)
        return index

    return read


def _listed_set(root: Path, classes: Classes, labels: Path, ids: Path | None) -> EvaluationSet:
    images, others = _images(root)
    if not images:
        raise ModelError(f"{root}: no images (of {', '.join(sorted(SUFFIXES))})")
    lines = _lines(labels)
    read = _class_of(classes)
    if all(line.isascii() and line.isdecimal() for line in lines) and classes.imagenet:
        targets, matched = _challenge_ids(labels, lines, classes, ids), "labels in the order of the images' names"
    elif not any(_image_of(root, line) for line in lines[:_SHOWN]):
        unknown = [f"line {number}: {line[:80]}" for number, line in enumerate(lines, 1) if read(line) is None]
        if unknown:
            raise ModelError(
                f"{labels}: expected NAME CLASS on each line, or one class a line, found {_some(unknown)}; a class is "
                "its name, its synset or the number of the network's output"
            )
        targets, matched = [read(line) or 0 for line in lines], "labels in the order of the images' names"
    else:
        targets, matched = _named(root, images, labels, lines, read), "labels by the images' names"
    if len(targets) != len(images):
        raise ModelError(f"{labels}: expected {len(images)} labels, one for each image in {root}, found {len(targets)}")
    names = tuple(str(index) for index in sorted(set(targets)))
    return EvaluationSet(ImageFolder(root, names, tuple(images), tuple(targets)), matched, others, classes.imagenet)


def _image_of(root: Path, line: str) -> tuple[str, str] | None:
    """A line's image and class, where its first part is an image."""
    cuts = [line.rsplit("\t", 1)] if "\t" in line else [line.rsplit(",", 1), line.rsplit(None, 1), line.split(None, 1)]
    for cut in cuts:
        if len(cut) == 2 and Path(cut[0]).suffix.lower() in SUFFIXES:
            return cut[0].strip(), cut[1].strip()
    return None


def _named(
    root: Path, images: Sequence[Path], labels: Path, lines: Sequence[str], read: Callable[[str], int | None]
) -> list[int]:
    """The images' classes by their names, which are relative to the folder."""
    found: dict[str, int] = {}
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        cut = _image_of(root, line)
        index = read(cut[1]) if cut else None
        if cut is None or index is None:
            wrong.append(f"line {number}: no class: {line[:80]}")
        elif found.setdefault(cut[0], index) != index:
            wrong.append(f"line {number}: another class than before: {line[:80]}")
    names = {path.relative_to(root).as_posix() for path in images}
    wrong += [f"no such image: {name}" for name in found if name not in names]
    wrong += [f"not listed: {name}" for name in sorted(names - found.keys())]
    if wrong:
        listed = "\n  ".join([*wrong[:_SHOWN], *([f"... ({len(wrong)} in all)"] if len(wrong) > _SHOWN else [])])
        raise ModelError(f"{labels}: does not fit the images in {root}:\n  {listed}")
    return [found[path.relative_to(root).as_posix()] for path in images]


def _challenge_ids(labels: Path, lines: Sequence[str], classes: Classes, ids: Path | None) -> list[int]:
    """The classes of `ILSVRC2012_validation_ground_truth.txt`, whose numbers, from 1, are not in the logits' order."""
    if ids is None:
        raise ModelError(
            f"{labels}: numbers alone, as in ILSVRC2012_validation_ground_truth.txt, count the classes in the "
            "challenge's own order; pass its map_clsloc.txt (SYNSET ID NAME a line) as --ids, or give NAME CLASS on "
            "each line"
        )
    table: dict[str, int] = {}
    for number, line in enumerate(_lines(ids), 1):
        parts = line.split()
        index = classes.index(parts[0])
        if len(parts) < 2 or index is None or not parts[1].isdecimal() or parts[1] in table:
            raise ModelError(f"{ids}: line {number}: expected SYNSET ID NAME, found {line[:80]}")
        table[parts[1]] = index
    unknown = sorted({line for line in lines if line not in table})
    if unknown:
        raise ModelError(f"{labels}: expected the ids that are in {ids}, found {_some(unknown)}")
    return [table[line] for line in lines]
