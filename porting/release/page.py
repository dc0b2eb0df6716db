"""The site's pages: `index.html` with one row a file, and a card for each set of weights, in HTML and in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from porting import pages
from porting.errors import ErrorKind, PortingError
from porting.release import cards, shown
from porting.release.description import Description
from porting.release.index import PAGE, SIGNATURE, SUMS, Weights, page_beside
from porting.release.shown import TIMES
from porting.release.snippets import NO_ADDRESS, Snippet, snippets

if TYPE_CHECKING:
    from jinja2 import Environment

_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~!&$])")


@dataclass(frozen=True)
class Site:
    """What the pages say of the whole.

    Attributes:
        base: the site's address, with a slash at its end, or None.
        public_key: of the key that SHA256SUMS is signed with, or "".
    """

    title: str
    base: str | None
    public_key: str


class Pages:
    """The templates, loaded once.

    Raises:
        PortingError: missing, where Jinja is not installed.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        try:
            self.templates: Environment = pages.environment("porting.release")
        except ImportError as error:
            raise PortingError(
                ErrorKind.MISSING,
                error.name or "jinja2",
                ["not installed, and the page needs it"],
                'pip install "jinja2>=3.1", or pip install -e ".[release]"',
            ) from None
        self.templates.filters |= {"md": markdown, "breakable": pages.breakable}
        style, script = (
            pages.inlined(self.templates, "base.css", "release.css"),
            pages.inlined(self.templates, "release.js"),
        )
        self.templates.globals.update(
            style=style,
            script=script,
            style_digest=pages.policy_digest(style),
            script_digest=pages.policy_digest(script),
            title=shown.plain(site.title),
        )

    def card(self, described: Description, parameters: int, report: str | None) -> tuple[bytes, bytes]:
        """The card of one set of weights, as Markdown and as a page.

        Args:
            report: the report's path in the site, or None.
        """
        card = cards.card(described, parameters, report, self.site.base)
        text = self.templates.get_template("card.md").render(card=card)
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        return text.encode(), self.templates.get_template("card.html").render(card=card).encode()

    def index(self, weights: Sequence[Weights]) -> bytes:
        """The downloads page."""
        rows = {
            arch: [row for one in group for row in _rows(one, self.site.base)]
            for arch, group in groupby(weights, key=lambda one: one.described.arch)
        }
        every = [row for group in rows.values() for row in group]
        base = self.site.base or NO_ADDRESS
        kinds = sorted({row["kind"] for row in every})
        text = self.templates.get_template(PAGE).render(
            **_headline(weights, every),
            tiles=_tiles(weights, every, self.site.public_key),
            groups=[{"arch": arch, "rows": group, "summary": shown.network(arch)} for arch, group in rows.items()],
            kinds=[(kind, snippets(kind)) for kind in kinds],
            count=len(every),
            by_name=_code(_BY_NAME, base, _example(weights)),
            check_all=_code(_CHECK_ALL, base, ""),
            signed=_code(_SIGNED, base, self.site.public_key) if self.site.public_key else None,
        )
        return text.encode()


_BY_NAME = Snippet(
    "By name",
    "python",
    """\
import os

os.environ["PORTING_WEIGHTS"] = "%BASE%"
from models import create_model

model = create_model("%REST%", pretrained=True).eval()
""",
    "Finds the file in this page's index, checks its digest before it opens it, and keeps it in PyTorch's cache.",
)
_CHECK_ALL = Snippet(
    "Check the whole site",
    "bash",
    "python -m porting.release verify %BASE%\n",
    f"Every file against {SUMS}, index.json against both, every link. In a copy on your disk: sha256sum -c {SUMS}.",
)
_SIGNED = Snippet(
    "Check the signature",
    "bash",
    f"""\
curl -fLO %BASE%{SUMS} -O %BASE%{SIGNATURE}
minisign -Vm {SUMS} -P %REST%
""",
    "Take the public key from somewhere you trust: whoever can change this page can change the key on it.",
)


def _example(weights: Sequence[Weights]) -> str:
    """A network that can be had by name; random weights never can."""
    trained = [one.described.arch for one in weights if not one.described.synthetic]
    return (trained or [weights[0].described.arch])[0]


def _code(snippet: Snippet, base: str, rest: str) -> dict[str, Any]:
    return {"snippet": snippet, "text": snippet.template.replace("%BASE%", base).replace("%REST%", rest)}


def _rows(weights: Weights, base: str | None) -> list[dict[str, Any]]:
    """The page's rows for one set of weights: one a file, timm's folder being one."""
    described, entry = weights.described, weights.entry()
    measured, published = entry["evaluation"] or {}, entry["published"] or {}
    data = shown.plain(str(measured.get("data", "")))

    def accuracy(name: str) -> dict[str, Any]:
        values = [found[name] for found in (measured, published) if name in found]
        texts = {
            kind: f"{found[name]:.2f}" if name in found else ""
            for kind, found in (("measured", measured), ("published", published))
        }
        return {"value": values[0] if values else "", "data": data, **texts}

    return [
        {
            **file,
            "use": json.dumps(file["values"], sort_keys=True),
            "classes": entry["num_classes"],
            "parameters": weights.parameters,
            "millions": shown.millions(weights.parameters),
            "gmacs": entry["gmacs"],
            "top1": accuracy("top1"),
            "top5": accuracy("top5"),
            "verified": described.verified,
            "report": page_beside(weights.report.path) if weights.report else "",
            "licence": shown.brief(described.manifest["licence"]),
            "upstream": shown.upstream(described.manifest["upstream"]),
            "flags": shown.flags(described, file["format"]),
            "card": page_beside(weights.card.path),
        }
        for file in shown.files(described, base)
    ]


def _headline(weights: Sequence[Weights], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    networks = len({one.described.arch for one in weights})
    verified = sum(one.described.verified for one in weights)
    synthetic = sum(one.described.synthetic for one in weights)
    what = f"Weights of {shown.count(networks, 'Xception network')} in PyTorch's format, ported from TensorFlow"
    every = "each compared with TensorFlow's own execution, layer by layer."
    if verified == len(weights):
        claim = f"{what}, {every}"
    else:
        claim = f"{what}; {verified} of {len(weights)} compared with TensorFlow's own execution, layer by layer."
    warnings = []
    if verified < len(weights):
        warnings.append(f"{_sets(len(weights) - verified)} not compared with TensorFlow: see the column Parity")
    if synthetic:
        warnings.append(f"{_sets(synthetic)} random numbers, for trying things out")
    return {
        "claim": claim,
        "ground": "A file's name ends in the first digits of its SHA-256, which torch.hub checks. Its model card says "
        "where it comes from and how to use it; its report lists every layer's largest difference.",
        "warnings": warnings,
        "caption": f"GMACs: billions of multiply-adds for one image of 299{TIMES}299. Top-1 and top-5: percent right "
        "on ImageNet's validation images, as measured with this very file; “pub.” is what upstream publishes for them.",
    }


def _sets(number: int) -> str:
    return f"{shown.count(number, 'set')} of weights here {'is' if number == 1 else 'are'}"


def _tiles(weights: Sequence[Weights], rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    verified = sum(one.described.verified for one in weights)
    total = sum(row["bytes"] for row in rows)
    signed = {"value": "signed", "remark": "with minisign, over all checksums"}
    unsigned = {"value": "listed", "remark": f"every file's SHA-256, in {SUMS}"}
    tiles: list[dict[str, Any]] = [
        {"label": "Files", "value": str(len(rows)), "remark": f"{shown.size(total)} in all"},
        {
            "label": "Verified",
            "value": f"{verified} of {len(weights)}",
            "remark": "sets of weights, against TensorFlow",
            "good": verified == len(weights),
        },
        {"label": "Checksums", **(signed if key else unsigned)},
    ]
    return [{"good": False, **tile} for tile in tiles]


def markdown(text: str) -> str:
    """Text as Markdown that shows it and does nothing else."""
    return _MARKDOWN.sub(r"\\\1", shown.plain(str(text)))
