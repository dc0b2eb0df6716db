"""What a site consists of, and `index.json`, which programs read.

    index.html, index.json, SHA256SUMS [, SHA256SUMS.minisig]
    weights/   the files by the names in their manifests, and the manifests beside them, `<stem>.json`
    reports/   `<stem>.report.json` and `.html`: what was compared with TensorFlow
    cards/     `<stem>.md` and `.html`: what the weights are and how to use them

`index.json` is {"schema_version": 1, "title", "base_url" (or null), "weights": [ENTRY...]}, sorted by (arch, stem). An
ENTRY has `stem`, `arch`, `num_classes`, `variant` (`folded`, `dtype`, `bn_eps`), `synthetic`, `verdict` ("verified" or
"unverified"), `content_digest`, `licence`, `upstream`, `parameters` (learned numbers in the file), `gmacs` (of the
network at 299x299 with 1000 classes), `published` ({"top1", "top5"} in percent where the weights are the upstream's
own, or null), `evaluation` (the manifest's: `top1`, `top5`, `loss`, `images`, `unreadable`, `data`; or null),
`manifest`, `report` (or null) and `card`, each a FILE, and `files`, each a FILE with its `format`. A FILE is {"path"
(relative to index.json), "bytes", "sha256"}. The page of a report or card lies beside it, as `.html`.

SHA256SUMS lists every file of the site but itself and its signature; that makes it the record of what a build wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from models.info import get_info
from porting.errors import Defect, ErrorKind, PortingError, unsupported
from porting.release import checksums, fields
from porting.release.description import Description, Listed
from porting.release.fields import Fields

SCHEMA_VERSION = 1
INDEX, PAGE, SUMS, SIGNATURE = "index.json", "index.html", "SHA256SUMS", "SHA256SUMS.minisig"
WEIGHTS, REPORTS, CARDS = "weights", "reports", "cards"
MAX_BYTES = 64 << 20  # of index.json, and of every page, card, manifest and report

Entry = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """A file of the site; `path` is relative to index.json, with slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Weights:
    """One entry's weights with all that lies beside them.

    Attributes:
        parameters: learned numbers in the file.
        content_digest: as computed from the file.
        files: the weights, as listed and where they lie.
    """

    described: Description
    parameters: int
    content_digest: str
    files: tuple[tuple[Listed, Stored], ...]
    manifest: Stored
    report: Stored | None
    card: Stored

    def entry(self) -> Entry:
        """What index.json says of them."""
        info = get_info(self.described.arch)
        return {
            **self.described.said(),
            "content_digest": self.content_digest,
            "parameters": self.parameters,
            "gmacs": info.gmacs,
            "published": published(self.described),
            "evaluation": self.described.evaluation,
            "manifest": asdict(self.manifest),
            "report": asdict(self.report) if self.report else None,
            "card": asdict(self.card),
            "files": [{**asdict(stored), "format": listed.format} for listed, stored in self.files],
        }


def published(described: Description) -> dict[str, float] | None:
    """The accuracy that upstream publishes for these very weights, in percent; None where they are others.

    What counts is where the manifest says that they come from: the repository that publishes them, with all of its
    classes.
    """
    info = get_info(described.arch)
    same = _repository(str(described.manifest["upstream"])) == _repository(info.upstream)
    if described.synthetic or not same or described.manifest["num_classes"] != info.num_classes:
        return None
    return {"top1": info.top1, "top5": info.top5}


def _repository(url: str) -> str:
    """Host, owner and name of an address such as https://github.com/OWNER/NAME/tree/master."""
    return "/".join(url.removesuffix("/").split("/")[:5])


def order(entry: Mapping[str, Any]) -> tuple[str, str]:
    """How entries are sorted."""
    return str(entry["arch"]), str(entry["stem"])


def page_beside(path: str) -> str:
    """Where the HTML page of a report or a card lies."""
    return PurePosixPath(path).with_suffix(".html").as_posix()


def read(data: bytes, file: object) -> dict[str, Any]:
    """An index, if it is one: its fields, and every path within it.

    Raises:
        PortingError: unsupported, where a newer version of this project wrote it; corrupt.
    """
    remedy = "Build the site again."
    try:
        value = fields.decode(data)
    except ValueError as error:
        raise PortingError(ErrorKind.CORRUPT, file, [f"no JSON ({str(error)[:80]})"], remedy) from None
    found = Fields(value)
    version = found.take("schema_version", "a whole number", fields.is_count)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise unsupported(
            file, "schema_version", f"{version}; this is version {SCHEMA_VERSION}", "Upgrade this project."
        )
    found.take("title", "text", fields.is_text)
    found.take("base_url", "text or null", lambda url: url is None or fields.is_text(url))
    for part in found.parts("weights", "a list of weights"):
        part.take("stem", "a plain name", fields.is_name)
        part.take("arch", "text", fields.is_text)
        for name, folder in (("manifest", WEIGHTS), ("card", CARDS), ("report", REPORTS)):
            if name == "report" and isinstance(part.value, Mapping) and part.value.get(name) is None:
                continue
            _check_file(part.part(name), folder)
        for file_part in part.parts("files", "a list of files"):
            _check_file(file_part, WEIGHTS)
    if found.defects:
        raise PortingError(ErrorKind.CORRUPT, file, found.defects[:20], remedy)
    return dict(value)


def _check_file(part: Fields, folder: str) -> None:
    inside = f"{folder}/"
    part.take("path", f"a path in {inside}", lambda path: fields.is_path(path) and str(path).startswith(inside))
    part.take("bytes", "a whole number", fields.is_count)
    part.take("sha256", "64 hexadecimal digits", fields.is_sha256)


def stored_files(value: Mapping[str, Any]) -> Iterator[Stored]:
    """Every file that an index names."""
    for entry in value["weights"]:
        for found in (entry["manifest"], entry["report"], entry["card"], *entry["files"]):
            if found is not None:
                yield Stored(found["path"], found["bytes"], found["sha256"])


def pages_of(value: Mapping[str, Any]) -> Iterator[str]:
    """Every HTML page of a site."""
    yield PAGE
    for entry in value["weights"]:
        yield from (page_beside(found["path"]) for found in (entry["card"], entry["report"]) if found is not None)


def written(folder: Path) -> frozenset[str]:
    """The files that an earlier build wrote into a folder; none where it is no site of this project.

    Only a folder whose index.json is the one that its SHA256SUMS lists counts as such: somebody's own SHA256SUMS does
    not make their files ours.
    """
    try:
        index_bytes = _read(folder / INDEX)
        listed = checksums.read(_read(folder / SUMS), folder)
        value = read(index_bytes, folder)
    except (OSError, PortingError):
        return frozenset()
    import hashlib

    if listed.get(INDEX) != hashlib.sha256(index_bytes).hexdigest():
        return frozenset()
    ours = {INDEX, *pages_of(value), *(stored.path for stored in stored_files(value))}
    return frozenset({path for path in listed if path in ours} | {SUMS, SIGNATURE})


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def defects_of(entry: Mapping[str, Any], described: Description) -> list[Defect]:
    """Where an entry says something else than the manifest that it names."""
    said: dict[str, Any] = {**described.said(), "evaluation": described.evaluation, "published": published(described)}
    if said["content_digest"] is None:
        del said["content_digest"]
    wanted = [(f"{WEIGHTS}/{one.name}", one.bytes, one.sha256, one.format) for one in described.files]
    found = [(one["path"], one["bytes"], one["sha256"], one.get("format")) for one in entry["files"]]
    defects = [
        Defect(f"{INDEX}: {described.stem}: {name}", repr(entry.get(name)), f"{value!r}, as the manifest says")
        for name, value in said.items()
        if entry.get(name) != value
    ]
    if wanted != found:
        defects.append(Defect(f"{INDEX}: {described.stem}: files", "others", "those that the manifest lists"))
    return defects
