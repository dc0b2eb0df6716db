"""The index of a downloads page: which weights are chosen, and what no index may say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import offer, tiny, write_index

from models import ModelError
from models.index import File, Offer, choose, read_index, read_sums


def an_offer(name: str, **changes: Any) -> Offer:
    facts: dict[str, Any] = {
        "arch": "xception65", "num_classes": 1000, "folded": False, "dtype": "float32", "bn_eps": 1e-3,
        "synthetic": False, "verified": True, "content_digest": name, "weights": (File(f"{name}.pth"),),
        "manifest": File(f"{name}.json"),
    }  # fmt: skip
    return Offer(**facts | changes)


def chosen(*offers: Offer, classes: int | None = None, folded: bool = False) -> str:
    return choose(offers, "xception65", folded, classes, "page", "remedy").weights[0].path


A = an_offer("a")


@pytest.mark.parametrize(
    ("others", "classes", "folded", "expected"),
    [
        ([an_offer("b", num_classes=1001)], None, False, "a.pth"),
        ([an_offer("b", num_classes=1001)], 1001, False, "b.pth"),
        ([an_offer("b", num_classes=0)], 0, False, "b.pth"),
        ([an_offer("b", num_classes=5)], 7, False, "a.pth"),  # a new classifier on the published network
        ([an_offer("b", folded=True)], None, True, "b.pth"),
        ([an_offer("b", arch="xception71")], None, False, "a.pth"),
        ([an_offer("b", synthetic=True)], None, False, "a.pth"),
        ([an_offer("b", bn_eps=1e-5)], None, False, "a.pth"),
        ([an_offer("b", bn_eps=None, dtype="float16")], None, False, "a.pth"),
        ([an_offer("b", dtype="bfloat16"), an_offer("c", dtype="float16")], None, False, "a.pth"),
        ([an_offer("b", verified=False)], None, False, "a.pth"),
        ([an_offer("b", content_digest="a")], None, False, "a.pth"),  # the same weights twice
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_right_weights(others: list[Offer], classes: int | None, folded: bool, expected: str, turned: bool) -> None:
    offers = [*others, A] if turned else [A, *others]
    assert chosen(*offers, classes=classes, folded=folded) == expected


def test_what_is_left_is_taken() -> None:
    """The control of the preferences: each of them yields where there is nothing better."""
    for only in ({"num_classes": 5}, {"dtype": "bfloat16"}, {"verified": False}, {"bn_eps": None}):
        assert chosen(an_offer("b", **only)) == "b.pth"
    halves = an_offer("b", dtype="float16"), an_offer("c", dtype="bfloat16")
    assert chosen(*halves) == "b.pth"
    assert chosen(an_offer("b", dtype="float16"), an_offer("c", verified=False)) == "b.pth"


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        ([], "page: no weights for xception65; remedy"),
        ([an_offer("b", synthetic=True)], r"page: no weights for xception65 \(1 synthetic passed over\); remedy"),
        ([an_offer("b", bn_eps=1e-5)], "no weights for xception65; "),
        ([A, an_offer("b")], r"several weights for xception65: a\.pth \(1000 classes, float32, verified\), b\.pth"),
        ([an_offer("b", num_classes=5), an_offer("c", num_classes=6)], "several weights"),
        ([an_offer("b", content_digest=None), an_offer("c", content_digest=None)], "several weights"),
    ],
)
def test_no_choice(offers: list[Offer], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        chosen(*offers)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    site = tmp_path_factory.mktemp("index")
    write_index(site, offer(site, tiny()))
    index: dict[str, Any] = json.loads((site / "index.json").read_text())
    return index


def change(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def changed(index: Any) -> None:
        for key in path[:-1]:
            index = index[key]
        index[path[-1]] = to

    return changed


FIRST = ("weights", 0)
FILE = (*FIRST, "files", 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("schema_version", to=2), "schema_version: expected 1, found 2"),
        (change("schema_version", to=True), "schema_version: expected a whole number, found 'True'"),
        (change("weights", to={}), "weights: expected a list"),
        (change("weights", to=[None]), r"weights\[0\]\.variant: expected an object"),
        (change("weights", to=[{}] * 10_001), "weights: expected at most 10000, found 10001"),
        (change(*FIRST, "arch", to=3), r"weights\[0\]\.arch: expected text, found '3'"),
        (change(*FIRST, "num_classes", to=-1), r"num_classes: expected a whole number, found '-1'"),
        (change(*FIRST, "num_classes", to=6.0), "num_classes: expected a whole number"),
        (change(*FIRST, "variant", "folded", to="no"), r"variant\.folded: expected true or false"),
        (change(*FIRST, "variant", "bn_eps", to=float("nan")), r"variant\.bn_eps: expected a positive number"),
        (change(*FIRST, "synthetic", to=None), r"weights\[0\]\.synthetic: expected true or false, found 'None'"),
        (change(*FIRST, "content_digest", to="x" * 64), "content_digest: expected 64 hexadecimal digits"),
        (change(*FIRST, "manifest", to=[]), r"manifest\.path: expected a relative path below the index"),
        (change(*FIRST, "manifest", "path", to="index.json"), r"manifest\.path: expected a \.json file of its own"),
        (change(*FIRST, "manifest", "bytes", to=1 << 40), r"manifest\.bytes: expected 1 to 16777216, found"),
        (change(*FIRST, "files", to=None), r"weights\[0\]\.files: expected a list"),
        (change(*FILE, "sha256", to="AB"), r"files\[0\]\.sha256: expected 64 hexadecimal digits, found 'AB'"),
        (change(*FILE, "bytes", to=0), r"files\[0\]\.bytes: expected 1 to"),
        (change(*FILE, "bytes", to=1 << 60), r"files\[0\]\.bytes: expected 1 to"),
        (change(*FILE, "bytes", to=True), r"files\[0\]\.bytes: expected 1 to"),
        (change(*FILE, "format", to=["pth"]), r"files\[0\]\.format: expected text"),
        (change(*FILE, "path", to="elsewhere/x.pth"), r"files\[0\]\.path: expected a \.pth file beside its manifest"),
        (change(*FILE, "path", to="weights/x.json"), r"files\[0\]\.path: expected a \.pth file beside its manifest"),
    ],
)
def test_an_index_that_is_none(page: dict[str, Any], changed: Callable[[Any], None], message: str) -> None:
    index = json.loads(json.dumps(page))
    assert len(read_index(json.dumps(index).encode(), "index.json")) == 1  # the control
    changed(index)
    with pytest.raises(ModelError, match=rf"^index\.json: not the index of a downloads page.*{message}"):
        read_index(json.dumps(index).encode(), "index.json")


@pytest.mark.parametrize(
    "path",
    ["../x.pth", "weights/../../x.pth", "/etc/x.pth", "weights//x.pth", "weights\\x.pth", "http://h/x.pth", "c:x.pth",
     ".hidden/x.pth", "weights/.x.pth", "weights/x\n.pth", "weights/%2e%2e/x.pth", "weights/x.pth?y",
     "", None, "w/" * 600],
)  # fmt: skip
def test_a_path_that_leads_elsewhere(page: dict[str, Any], path: Any) -> None:
    index = json.loads(json.dumps(page))
    index["weights"][0]["files"][0]["path"] = path
    with pytest.raises(ModelError, match=r"files\[0\]\.path: expected a relative path below the index"):
        read_index(json.dumps(index).encode(), "index.json")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff", b"[]", b"[" * 100_000, b'{"schema_version": 1}'])
def test_not_an_index(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"index\.json: not the index of a downloads page"):
        read_index(content, "index.json")


def test_formats_that_cannot_be_loaded_are_not_offered(page: dict[str, Any]) -> None:
    index = json.loads(json.dumps(page))
    entry = index["weights"][0]
    pth = entry["files"][0]
    folder = {**pth, "path": "weights/x/model.safetensors", "format": "hf"}
    other = {**pth, "path": pth["path"].replace(".pth", ".safetensors"), "format": "safetensors"}
    entry["files"] = [folder, other, pth]
    (found,) = read_index(json.dumps(index).encode(), "index.json")
    assert [Path(file.path).suffix for file in found.weights] == [".pth", ".safetensors"]
    entry["files"] = [folder]
    assert read_index(json.dumps(index).encode(), "index.json") == ()


def test_sums() -> None:
    digest = "0" * 64
    assert read_sums(f"{digest}  a/b.pth\n{digest} *c\n".encode(), "SUMS") == {"a/b.pth": digest, "c": digest}
    for wrong in (f"{digest} a", f"{digest[1:]}  a", "# a", f"{digest}  a\n{digest}  a", ""):
        with pytest.raises(ModelError, match=r"SUMS: line [12]: "):
            read_sums(f"{wrong}\n".encode(), "SUMS")
