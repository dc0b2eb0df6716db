"""Model cards: what a set of weights is, where it comes from, what was proved, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.info import get_info
from porting.release import fields, shown
from porting.release.description import Description
from porting.release.index import CARDS, WEIGHTS, page_beside, published
from porting.release.shown import TIMES
from porting.release.snippets import fill, snippets
from porting.rules import KERAS_ARCH

# What a card shows of long lists; the manifest has everything.
LABELS_MAX = 1001


def card(described: Description, parameters: int, report: str | None, base: str | None) -> dict[str, Any]:
    """What the card's templates show.

    Args:
        parameters: learned numbers in the file.
        report: the report's path in the site, or None.
        base: the site's address, or None.
    """
    manifest = described.manifest
    files = shown.files(described, base)
    for file in files:
        ways = snippets(file["kind"])
        file["ways"] = [{"snippet": way, "text": fill(way.template, file["values"], base).rstrip("\n")} for way in ways]
    labels = [shown.plain(label) for label in manifest.get("labels") or []]
    return {
        "stem": described.stem,
        "arch": described.arch,
        "claim": _claim(described),
        "proof": _proof(described),
        "report": page_beside(report) if report else "",
        "report_data": report or "",
        "manifest": f"{WEIGHTS}/{described.stem}.json",
        "markdown": f"{CARDS}/{described.stem}.md",
        "warnings": list(_warnings(described)),
        "tiles": [{"good": False, **tile} for tile in _tiles(described, parameters)],
        "files": files,
        "notes": [shown.plain(note) for note in manifest.get("notes") or []],
        "facts": list(_facts(described)),
        "labels": labels[:LABELS_MAX],
    }


def _claim(described: Description) -> str:
    manifest = described.manifest
    family = "The original Xception" if described.arch == KERAS_ARCH else f"Xception-{described.arch[8:]}, aligned"
    classes = manifest["num_classes"]
    head = f"with {shown.count(classes, 'class', 'es')}" if classes else "without a classifier"
    variant = "".join(f", {flag['text']}" for flag in shown.flags(described, "") if not flag["warn"])
    return f"{family}, {head}{variant}, ported from {shown.plain(manifest['source']['name'])}."


def _proof(described: Description) -> str:
    proof = described.manifest["parity"]
    if not described.verified:
        return "These weights were not compared with TensorFlow."
    worst = proof.get("worst")
    if not (
        isinstance(worst, Mapping) and fields.is_number(worst.get("error")) and fields.is_number(proof.get("bound"))
    ):
        return "The weights are the source's, bit for bit."
    where = shown.plain(str(worst.get("layer", "")))[:200]
    reference = shown.plain(str(proof.get("reference", "")))[:300]
    text = (
        f"Every layer was compared with TensorFlow ({reference}) in float64. The largest difference, in {where}, is "
        f"{worst['error']:.1e} of the layer's largest value; the bound is {proof['bound']:.0e}."
    )
    stored = fields.Fields(proof).take("stored.worst.error", "", fields.is_number)
    if stored is not None:
        text += f" That is before rounding to {described.manifest['variant']['dtype']}; as stored it is {stored:.1e}."
    return text


def _warnings(described: Description) -> Iterator[str]:
    if described.synthetic:
        yield "Synthetic: random weights, for trying things out. They classify nothing."
    if not described.verified:
        yield "Unverified: nobody compared these weights with TensorFlow."


def _tiles(described: Description, parameters: int) -> Iterator[dict[str, Any]]:
    info = get_info(described.arch)
    yield {
        "label": "Parity",
        "value": "verified" if described.verified else "unverified",
        "remark": "against TensorFlow",
        "good": described.verified,
    }
    yield {"label": "Parameters", "value": shown.millions(parameters), "remark": f"{parameters:,} learned numbers"}
    yield {"label": "GMACs", "value": f"{info.gmacs:.2f}", "remark": f"for one image of 299{TIMES}299"}
    measured, upstream = described.evaluation, published(described)
    if measured:
        remark = f"measured; published {upstream['top1']:.2f} / {upstream['top5']:.2f}" if upstream else "measured"
        yield {"label": "Top-1 / top-5", "value": f"{measured['top1']:.2f} / {measured['top5']:.2f}", "remark": remark}
    elif upstream:
        value = f"{upstream['top1']:.2f} / {upstream['top5']:.2f}"
        yield {"label": "Top-1 / top-5", "value": value, "remark": "as upstream publishes; not measured here"}


def _facts(described: Description) -> Iterator[dict[str, Any]]:
    manifest, source = described.manifest, described.manifest["source"]

    def fact(label: str, value: object, code: bool = False, href: str = "", text: str = "") -> dict[str, Any]:
        return {"label": label, "value": shown.plain(str(value)), "code": code, "href": href, "text": text}

    upstream = shown.upstream(manifest["upstream"])
    yield fact("Licence", manifest["licence"])
    if upstream["href"]:
        yield fact("Upstream", "", href=upstream["href"], text=upstream["text"])
    else:
        yield fact("Upstream", upstream["text"])
    yield fact("Source", f"{source['name']} ({source['kind']})")
    if source.get("digest"):
        yield fact("SHA-256 of the source", source["digest"], code=True)
    if manifest.get("content_digest"):
        yield fact("Digest of the content", manifest["content_digest"], code=True)
    unread = manifest.get("unread")
    if fields.is_count(manifest.get("mapped")) and isinstance(unread, list):
        yield fact(
            "Variables",
            f"{manifest['mapped']:,} read, {len(unread):,} left unread, each with its reason in the manifest",
        )
    if described.evaluation:
        yield fact("Measured", shown.percent(described.evaluation))
    upstream_says = published(described)
    if upstream_says:
        yield fact("Published", f"{upstream_says['top1']:.3f} / {upstream_says['top5']:.3f} percent, by upstream")
    head = manifest.get("head")
    if isinstance(head, Mapping) and fields.is_text(head.get("activation")):
        yield fact("After the logits", f"{head['activation']}, which the network itself leaves out")
    yield from (fact(label, value) for label, value in _input(manifest.get("preprocessing")))
    versions = manifest.get("versions")
    if isinstance(versions, Mapping) and len(versions) <= 20:
        yield fact(
            "Made with", ", ".join(f"{str(name)[:60]} {str(version)[:60]}" for name, version in versions.items())
        )


def _input(preprocessing: object) -> Iterator[tuple[str, str]]:
    """How an image becomes an input, as far as the manifest says so."""
    found = fields.Fields(preprocessing)
    size = found.take("input_size", "", lambda value: _numbers(value, 3))
    crop = found.take("crop_pct", "", fields.is_number)
    interpolation = found.take("interpolation", "", fields.is_text)
    if size and crop and interpolation:
        yield "Input", f"{size[1]}{TIMES}{size[2]}, {interpolation}, centre crop {crop:g}"
    mean, std = (
        found.take(name, "", lambda value: _numbers(value, size[0] if size else 3)) for name in ("mean", "std")
    )
    if mean and std:
        joined = [", ".join(f"{value:g}" for value in values) for values in (mean, std)]
        yield "Mean and deviation", f"{joined[0]} and {joined[1]}, for pixels from 0 to 1"


def _numbers(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(fields.is_number, value))
