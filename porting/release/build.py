"""From a folder of ported weights to a site: everything is checked again on its way, and the site appears at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting import artifact
from porting.errors import Defect, ErrorKind, PortingError
from porting.origins import Progress, Quiet
from porting.release import checksums, fields, placing, swap
from porting.release.collect import Candidate, collect, refuse
from porting.release.index import (
    CARDS,
    INDEX,
    PAGE,
    REPORTS,
    SCHEMA_VERSION,
    SIGNATURE,
    SUMS,
    WEIGHTS,
    Stored,
    Weights,
    order,
    page_beside,
    written,
)
from porting.release.page import Pages, Site
from porting.release.signing import Signer, signer
from porting.release.snippets import is_address

DEFAULT_TITLE = "Xception weights"


@dataclass(frozen=True)
class Built:
    """What a build did.

    Attributes:
        site: the folder.
        changed: whether anything in it is new.
        weights: entries of its index.
        files: files that it lists.
        notes: what the user should hear of.
    """

    site: Path
    changed: bool
    weights: int
    files: int
    notes: tuple[str, ...]


def build(
    checkpoints: Path,
    out: Path,
    *,
    base_url: str | None = None,
    title: str = DEFAULT_TITLE,
    allow_unverified: bool = False,
    allow_synthetic: bool = False,
    copy: bool = False,
    sign_key: Path | None = None,
    progress: Progress | None = None,
) -> Built:
    """Write the site of all weights in a folder; the same input gives the same bytes.

    Args:
        checkpoints: the folder with weights, manifests and reports.
        out: the site's folder. A build takes away what an earlier build wrote there and is no longer wanted, and leaves
            everything else as it is.
        base_url: where the site will be, for the code on its pages.
        copy: copy weights, also where a link would do.
        sign_key: a minisign secret key to sign SHA256SUMS with.

    Raises:
        PortingError: as `collect`, `refuse`, `placing.place`, `placing.contents` and `signer` say; output.
    """
    if base_url is not None and not is_address(base_url):
        raise PortingError(ErrorKind.MISMATCH, base_url, ["no plain http(s) address"], "Give one to --base-url.")
    base = base_url if base_url is None or base_url.endswith("/") else f"{base_url}/"
    if not fields.is_text(title) or not title.strip():
        raise PortingError(ErrorKind.MISMATCH, title[:80], ["no title"], "Give a line of text to --title.")
    found = collect(checkpoints)
    refuse(found, checkpoints, allow_unverified, allow_synthetic)
    site = out.resolve()
    with signer(sign_key) as key:
        pages = Pages(Site(title, base, key.public if key else ""))
        _check_out(site)
        with artifact.one_writer(site.parent), artifact.output_errors(site):
            notes = [*found.notes, *swap.recover(site)]
            stage = swap.open_stage(site)
            try:
                maker = _Maker(stage, site, checkpoints, copy, pages, progress or Quiet())
                total = maker.make(found.candidates, key, notes)
                changed = not swap.same(stage, site)
                if changed:
                    notes += swap.commit(stage, site)
            finally:
                swap.close_stage(stage)
    return Built(site, changed, len(found.candidates), total, tuple(notes))


def _check_out(site: Path) -> None:
    """Refuse a folder that is somebody else's, before any work."""
    artifact.prepare_folder(site.parent)
    if site.exists() and not site.is_dir():
        raise PortingError(ErrorKind.OUTPUT, site, ["not a folder"], "Choose another one with --out.")
    if not written(site):
        taken = [Defect(name, "a file that no build wrote") for name in (PAGE, INDEX, SUMS) if (site / name).exists()]
        if taken:
            raise PortingError(ErrorKind.OUTPUT, site, taken, "Move it away, or choose another folder with --out.")


@dataclass(frozen=True)
class _Maker:
    """Where files come from and go to."""

    stage: Path
    site: Path
    checkpoints: Path
    copy: bool
    pages: Pages
    progress: Progress

    def make(self, candidates: tuple[Candidate, ...], key: Signer | None, notes: list[str]) -> int:
        """Fill the stage; returns how many files the site lists."""
        self.progress.start("weights", sum(len(one.described.files) for one in candidates))
        weights = [self._weights(one) for one in candidates]
        entries = sorted((one.entry() for one in weights), key=order)
        site = self.pages.site
        value: Mapping[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "title": site.title,
            "base_url": site.base,
            "weights": entries,
        }
        self._write(PAGE, self.pages.index(weights))
        self._write(INDEX, fields.encode(value))
        digests = {
            path.relative_to(self.stage).as_posix(): artifact.file_digest(path)
            for path in self.stage.rglob("[!.]*")
            if path.is_file()
        }
        sums = checksums.write(digests)
        self._write(SUMS, sums)
        self._sign(sums, key, notes)
        return len(digests)

    def _weights(self, candidate: Candidate) -> Weights:
        described = candidate.described
        stored, digests, parameters = [], set(), 0
        for listed in described.files:
            source = self.checkpoints / listed.name
            stored.append((listed, placing.place(source, self.stage, self.site, listed, self.copy)))
            if listed.name.endswith((".pth", ".safetensors")):
                digest, parameters = placing.contents(self.stage / stored[-1][1].path, described, source)
                digests.add(digest)
            self.progress.step()
        if len(digests) != 1:
            raise PortingError(
                ErrorKind.MISMATCH,
                self.checkpoints / f"{described.stem}.json",
                [Defect("files", f"{len(digests)} different contents", "the same weights in each")],
                "Port the weights again.",
            )
        report = None
        if candidate.report:
            from porting.report.page import render

            data, value = candidate.report
            report = self._write(f"{REPORTS}/{described.stem}.report.json", data)
            self._write(page_beside(report.path), render(dict(value)).encode())
        text, page = self.pages.card(described, parameters, report.path if report else None)
        card = self._write(f"{CARDS}/{described.stem}.md", text)
        self._write(page_beside(card.path), page)
        manifest = self._write(f"{WEIGHTS}/{described.stem}.json", candidate.data)
        return Weights(described, parameters, digests.pop(), tuple(stored), manifest, report, card)

    def _sign(self, sums: bytes, key: Signer | None, notes: list[str]) -> None:
        before = self.site / SIGNATURE
        if key:
            self._write(SIGNATURE, key.sign(sums))
        elif before.is_file() and (self.site / SUMS).read_bytes() == sums:
            self._write(SIGNATURE, before.read_bytes())  # it signs what is still so
        elif before.is_file():
            notes.append(f"the site is no longer signed: {SUMS} has changed, and there was no --sign-key")

    def _write(self, path: str, data: bytes) -> Stored:
        return placing.write(self.stage, path, data, self.site)
