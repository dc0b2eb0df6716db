"""The pages say what the index says; what manifests hold is text on them; the code on them is right."""

from __future__ import annotations

import ast
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from porting.release import shown, snippets
from porting.release.build import build
from porting.release.description import describe
from porting.release.page import markdown
from tests.release import samples


class Elements(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words += data

    def tags(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag == name]


def test_there_is_a_row_for_every_file(mixed_site: Path) -> None:
    page = Elements(mixed_site / "index.html")
    rows = [attributes for attributes in page.tags("tr") if "data-kind" in attributes]
    assert len(rows) == 6, "a folder for timm is one"
    downloads = [attributes["href"] for attributes in page.tags("a") if attributes["href"].startswith("weights/")]
    assert len(downloads) == 6
    assert all((mixed_site / path).is_file() for path in downloads)
    words = " ".join(page.words.split())
    for text in (
        "79.56",
        "94.66 published",
        "batch norm folded",
        "epsilon 1e-5",
        "float16",
        "timm folder",
        "MIT",
        "unknown",
    ):
        assert text in words


@pytest.mark.parametrize("page", ["index.html", "cards/*65*.html", "cards/*41*.html"])
def test_a_manifest_full_of_markup_is_text(page: str, hostile_site: Path) -> None:
    """Besides the page's own script nothing runs, nothing is fetched, and no element is there that a card lacks."""
    elements = Elements(next(hostile_site.glob(page)))
    assert len(elements.tags("script")) == 1
    assert elements.tags("img") == elements.tags("iframe") == elements.tags("form") == []
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("href", "src"):
            assert re.match(r"https://|data:image/svg|#|\.\./|[a-z]+[/.]|SHA256SUMS", attributes.get(name, "#"))
    policy = next(one["content"] for one in elements.tags("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    for letter in "\u202e\x1b":
        assert letter not in elements.words


def test_the_markup_is_there_to_read(hostile_site: Path) -> None:
    """Negative control of the test above: the text did reach the pages."""
    assert "<script>alert(1)</script>" in Elements(hostile_site / "index.html").words
    card = next((hostile_site / "cards").glob("*65*.html"))
    assert Elements(card).words.count('<img src=x onerror="alert(2)">') > 1000, "labels, notes, source, versions"


def test_only_http_addresses_become_links() -> None:
    assert shown.upstream("https://github.com/a/b/tree/main") == {
        "href": "https://github.com/a/b/tree/main",
        "text": "github.com/a/b",
    }
    for text in ("javascript:alert(1)", "JAVASCRIPT:x//http://", "data:text/html,x", "unknown", "https://", "http://[x",
                 "https://ex\u0430mple.org/"):  # fmt: skip
        assert shown.upstream(text)["href"] == ""


def test_markdown_shows_what_it_is_given() -> None:
    assert markdown("[x](http://y) <b> `z` | #a\n\n---") == r"\[x\](http://y) \<b\> \`z\` \| \#a  ---"


def test_a_card_of_hostile_weights_has_no_markup_in_markdown(hostile_site: Path) -> None:
    text = next((hostile_site / "cards").glob("*65*.md")).read_text(encoding="utf-8")
    assert r"\<script\>alert(1)\</script\>" in text
    assert not re.search(r"(?<!\\)<", text)


# --- the code on the pages --------------------------------------------------------------------------------------------

DESCRIBED = [
    ("xception65", "pth", {}),
    ("xception65", "safetensors", {}),
    ("xception65", "hf", {}),
    ("xception65", "pth", {"variant__folded": True}),
    ("xception65", "pth", {"num_classes": 3}),
    ("xception", "pth", {}),
    ("xception", "pth", {"variant__bn_eps": 1e-5}),
    ("xception", "pth", {"variant__bn_eps": 0.5}),
    ("xception", "pth", {"head__kind": "chain"}),
]


def code(weights: Path, arch: str, kind: str, change: dict[str, Any], base: str | None) -> dict[str, str]:
    """Each way to use a file, as its card shows it."""
    import json

    stem = samples.add(weights, arch, 1, (kind,), **change)
    described = describe(json.loads((weights / f"{stem}.json").read_bytes()), stem, stem)
    (file,) = shown.files(described, base)
    return {one.title: snippets.fill(one.template, file["values"], base) for one in snippets.snippets(file["kind"])}


@pytest.mark.parametrize(("arch", "kind", "change"), DESCRIBED)
def test_the_code_is_code(arch: str, kind: str, change: dict[str, Any], weights: Path) -> None:
    found = code(weights, arch, kind, change, "https://example.org/w/")
    for title, text in found.items():
        assert "%" not in text
        if title == "Download and check":
            for line in text.splitlines():
                words = shlex.split(line)
                assert words[0] in ("curl", "echo")
        else:
            ast.parse(text)
    assert ("create_model" in found) == (kind != "hf")
    assert ("torch.hub" in found) == (kind == "pth"), "torch.hub reads no safetensors"
    bare = change.get("head__kind") == "chain" or "variant__bn_eps" in change
    if kind == "pth":
        assert ("create_model" in found["torch.hub"]) != bare, "create_model alone knows how to build around these"
        assert ("folded=True" in found["create_model"]) == change.get("variant__folded", False)
    in_timm = not ({"variant__folded", "head__kind"} & change.keys()) and change.get("variant__bn_eps") != 0.5
    assert ("timm" in found) == in_timm


def test_a_site_that_does_not_know_its_address_says_so(weights: Path) -> None:
    text = code(weights, "xception65", "pth", {}, None)["create_model"]
    assert f'pretrained="{snippets.NO_ADDRESS}weights/tf_xception_65-' in text


def test_the_address_is_on_the_pages_where_it_is_known(weights: Path, tmp_path: Path) -> None:
    samples.add(weights, "xception65", 1)
    site = build(weights, tmp_path / "site", base_url="https://example.org/w").site
    for page in ("index.html", "cards/*.html", "cards/*.md"):
        text = next(site.glob(page)).read_text(encoding="utf-8")
        assert "https://example.org/w/" in text
        assert "URL-OF-THIS-SITE" not in text.partition("<script>")[0]


def test_sizes_and_numbers_read_well() -> None:
    sizes = [shown.size(number) for number in (0, 999, 1000, 160_536_780, 999_950_000, 2_500_000_000)]
    assert sizes == ["0 B", "999 B", "1.0 kB", "160.5 MB", "1.0 GB", "2.5 GB"]
    assert [shown.millions(number) for number in (0, 9999, 39_916_312)] == ["0", "9,999", "39.92 M"]
