"""Which class an image is taken for: found by names that mean it, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from models import ModelError
from models.evaluation_set import EvaluationSet, classes_of, imagenet_synsets, read_set
from models.preprocess import imagenet_labels

LABELS = ("cat", "dog", "tiger shark")
TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"  # ImageNet's classes 0, 1 and 2


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not looked at")
    return root


def found(images: EvaluationSet) -> dict[str, int]:
    folder = images.folder
    return {
        path.relative_to(folder.root).as_posix(): target
        for path, target in zip(folder.paths, folder.targets, strict=True)
    }


# --- class folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "labels", "expected"),
    [
        (1000, None, {f"{SHARK}/a.JPEG": 2, f"{TENCH}/b.JPEG": 0}),
        (1001, None, {f"{SHARK}/a.JPEG": 3, f"{TENCH}/b.JPEG": 1}),
        (1000, [label.replace(" ", "_") for label in imagenet_labels()], {f"{SHARK}/a.JPEG": 2}),
        (1000, None, {"tench/a.png": 0, "tiger shark/deep/b.png": 3}),
        (3, LABELS, {"tiger shark/a.jpg": 2, "cat/b.jpg": 0}),  # not all of them need have images
        (2, [SHARK, TENCH], {f"{SHARK}/a.jpg": 0, f"{TENCH}/b.jpg": 1}),  # fine-tuned on folders of synsets
        (1, ["no", "yes"], {"no/a.jpg": 0, "yes/b.jpg": 1}),
        (12, None, {"0/a.jpg": 0, "10/b.jpg": 10, "2/c.jpg": 2}),  # numbers are not sorted as text
        (3, LABELS, {"02/a.jpg": 2, "0/b.jpg": 0}),
        (2, None, {"ant/a.jpg": 0, "bee/b.jpg": 1}),
    ],
)
def test_folders(tmp_path: Path, num_classes: int, labels: list[str] | None, expected: Mapping[str, int]) -> None:
    tree(tmp_path, *expected, ".hidden/x.jpg")
    images = read_set(tmp_path, classes_of(num_classes, labels))
    assert found(images) == expected
    assert images.imagenet == (num_classes >= 1000)


def test_imagenet_is_in_the_order_of_the_logits() -> None:
    assert imagenet_synsets()[:3] == (TENCH, GOLDFISH, SHARK) and len(set(imagenet_synsets())) == 1000
    assert list(imagenet_synsets()) == sorted(imagenet_synsets())


def test_other_files_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, "cat/a.jpg", "cat/a.txt", "cat/deep/b.jfif", "cat/.DS_Store", "dog/a.webp")
    images = read_set(tmp_path, classes_of(3, LABELS))
    assert len(images) == 2 and images.passed_over == 2


@pytest.mark.parametrize(
    ("num_classes", "labels", "names", "message"),
    [
        (1000, None, ["cats/a.jpg", f"{TENCH}/a.jpg"], r"expected folders named after the synsets .* found cats$"),
        (1000, None, ["crane/a.jpg"], "found crane$"),  # two classes have that name
        (1000, list(map(str, range(2000, 3000))), [f"{TENCH}/a.jpg"], f"the weights' classes .*found {TENCH}"),
        (3, LABELS, ["Cat/a.jpg", "dog/a.jpg"], r"the weights' classes \(cat, dog, tiger shark\), found Cat$"),
        (3, ["a", "a", "b"], ["a/x.jpg", "b/x.jpg"], "found a$"),
        (3, None, ["a/x.jpg", "b/x.jpg"], "expected 3 folders, .* which have no names, found 2 folders, a, b$"),
        (2, None, ["0/x.jpg", "2/x.jpg"], "found 2 folders, 2$"),
        (2, None, ["1/x.jpg", "01/x.jpg"], "expected one folder for each, found 01, 1 for the same"),
        (2, None, ["0/x.jpg", "one/x.jpg", "two/x.jpg"], "found 3 folders, 0, one, two"),
        (3, LABELS, ["cat/a.jpg", "loose.jpg"], "images beside the class folders: loose.jpg"),
        (3, LABELS, ["a.jpg"], "images without folders that name their classes: a.jpg; .*--labels"),
        (3, LABELS, ["cat/a.jpg", "dog/a.txt"], "no images of dog; remove"),
        (3, LABELS, [], "no images; expected"),
        (30, None, [f"{letter}/x.jpg" for letter in "abcdefghijklmnop"], r"i, j, \.\.\. \(16 in all\)"),
    ],
)
def test_folders_that_mean_nothing(
    tmp_path: Path, num_classes: int, labels: list[str] | None, names: list[str], message: str
) -> None:
    tree(tmp_path, *names)
    with pytest.raises(ModelError, match=message) as caught:
        read_set(tmp_path, classes_of(num_classes, labels))
    assert str(tmp_path) in str(caught.value)


# --- a file of labels -------------------------------------------------------------------------------------------------

FLAT = ("a.jpg", "b 1.jpg", "sub/c.jpg")
IDS = f"{SHARK} 1 tiger_shark\n{TENCH} 2 tench\n{GOLDFISH} 490 goldfish\n"


@pytest.mark.parametrize(
    ("num_classes", "labels", "text", "targets"),
    [
        (3, LABELS, "sub/c.jpg 0\na.jpg 2\nb 1.jpg 1\n", [2, 1, 0]),
        (3, LABELS, "sub/c.jpg,cat\na.jpg,tiger shark\nb 1.jpg,dog", [2, 1, 0]),
        (3, LABELS, "sub/c.jpg\tcat\na.jpg\ttiger shark\nb 1.jpg\tdog", [2, 1, 0]),
        (3, LABELS, "sub/c.jpg cat\r\na.jpg tiger shark\r\n\r\nb 1.jpg dog\r\n", [2, 1, 0]),
        (3, LABELS, "tiger shark\ncat\ndog\n", [2, 0, 1]),
        (5, None, "4\n0\n2\n", [4, 0, 2]),
        (1000, None, f"a.jpg {SHARK}\nb 1.jpg {TENCH}\nsub/c.jpg 999\n", [2, 0, 999]),
        (1001, None, f"{SHARK}\n{TENCH}\n{GOLDFISH}\n", [3, 1, 2]),
        (1, ["no", "yes"], "yes\nno\nyes\n", [1, 0, 1]),
    ],
)
def test_labels(tmp_path: Path, num_classes: int, labels: list[str] | None, text: str, targets: list[int]) -> None:
    tree(tmp_path / "val", *FLAT)
    (tmp_path / "labels.txt").write_bytes(text.encode())
    images = read_set(tmp_path / "val", classes_of(num_classes, labels), tmp_path / "labels.txt")
    assert found(images) == dict(zip(FLAT, targets, strict=True))


def test_the_challenge_numbers_its_classes_in_another_order(tmp_path: Path) -> None:
    tree(tmp_path / "val", *FLAT)
    (tmp_path / "truth.txt").write_text("490\n1\n2\n")
    (tmp_path / "ids.txt").write_text(IDS)
    images = read_set(tmp_path / "val", classes_of(1000, None), tmp_path / "truth.txt", tmp_path / "ids.txt")
    assert list(images.folder.targets) == [1, 2, 0]
    with pytest.raises(ModelError, match=r"count the classes in the challenge's own order; pass its map_clsloc\.txt"):
        read_set(tmp_path / "val", classes_of(1000, None), tmp_path / "truth.txt")
    (tmp_path / "truth.txt").write_text("3\n1\n2\n")
    with pytest.raises(ModelError, match=r"expected the ids that are in .*ids\.txt, found 3"):
        read_set(tmp_path / "val", classes_of(1000, None), tmp_path / "truth.txt", tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text(f"{TENCH}\n")
    with pytest.raises(ModelError, match=r"ids\.txt: line 1: expected SYNSET ID NAME"):
        read_set(tmp_path / "val", classes_of(1000, None), tmp_path / "truth.txt", tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb 1.jpg 1\n", r"not listed: sub/c\.jpg"),
        ("a.jpg 0\nb 1.jpg 1\nsub/c.jpg 2\nd.jpg 1\n", r"no such image: d\.jpg"),
        ("a.jpg 0\nb 1.jpg 3\nsub/c.jpg 2\n", r"line 2: no class: b 1\.jpg 3"),
        ("a.jpg 0\na.jpg 1\nb 1.jpg 1\nsub/c.jpg 2\n", "line 2: another class than before"),
        ("a.jpg 0\n../val/a.jpg 0\nb 1.jpg 1\nsub/c.jpg 2\n", r"no such image: \.\./val/a\.jpg"),
        ("cat\ndog\n", "expected 3 labels, one for each image in .*, found 2"),
        ("cat\ndog\nbird\n", "found line 3: bird"),
        ("", "expected 3 labels, .* found 0"),
        ("\xff", "expected UTF-8 text"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    tree(tmp_path / "val", *FLAT)
    (tmp_path / "labels.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=message):
        read_set(tmp_path / "val", classes_of(3, LABELS), tmp_path / "labels.txt")


@pytest.mark.parametrize("change", [lambda root: (root / "cat" / "a.jpg").rename(root / "cat" / "z.jpg"),
                                    lambda root: (root / "cat" / "a.jpg").write_bytes(b"longer than before"),
                                    lambda root: (root / "cat").rename(root / "tiger shark")])  # fmt: skip
def test_the_digest_tells_sets_apart(tmp_path: Path, change: Callable[[Path], object]) -> None:
    def digest() -> str:
        return read_set(tmp_path, classes_of(3, LABELS)).digest

    tree(tmp_path, "cat/a.jpg", "dog/b.jpg")
    before = digest()
    assert digest() == before
    change(tmp_path)
    assert digest() != before


def test_a_part_is_spread_over_the_whole(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{name}/{number}.jpg" for name in LABELS for number in range(4)))
    images = read_set(tmp_path, classes_of(3, LABELS))
    assert images.spread(3).folder.targets == (0, 1, 2)
    assert images.spread(12) == images.spread(100) == images
