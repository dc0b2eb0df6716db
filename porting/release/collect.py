"""What there is to release: the manifests of a folder, with the reports beside them, all checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting.errors import Defect, ErrorKind, PortingError
from porting.manifest import report_path
from porting.release import fields
from porting.release.description import Description, describe, looks_like_manifest
from porting.release.index import MAX_BYTES
from porting.report import schema

_REPORT_ENDING = ".report.json"
_WEIGHTS_ENDINGS = (".pth", ".safetensors")


@dataclass(frozen=True)
class Candidate:
    """Weights that may be released.

    Attributes:
        data: the manifest's bytes, which are those that are published.
        report: the report's bytes and the report, or None.
    """

    described: Description
    data: bytes
    report: tuple[bytes, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Collected:
    """A folder's candidates, sorted by network and name, and what the user should hear of."""

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]


def collect(folder: Path) -> Collected:
    """Read every manifest in a folder, and its report.

    Raises:
        PortingError: missing, where there is no manifest; corrupt or unsupported, where one is not whole; mismatch,
            where a report is about other weights.
    """
    if not folder.is_dir():
        raise PortingError(
            ErrorKind.MISSING, folder, ["no such folder"], "Name the folder that weights were ported to."
        )
    candidates, notes, errors = [], [], []
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(_REPORT_ENDING):
            continue
        try:
            candidate = _candidate(path)
        except PortingError as error:
            errors.append(error)
            continue
        if candidate:
            candidates.append(candidate)
        else:
            notes.append(f"{path.name} is no manifest: left out")
    if errors:
        raise _joined(folder, errors)
    if not candidates:
        remedy = "Port something first: python -m porting.convert --src SRC --arch ARCH."
        raise PortingError(ErrorKind.MISSING, folder, ["no manifest of ported weights"], remedy)
    listed = {file.name for candidate in candidates for file in candidate.described.files}
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS_ENDINGS and path.name not in listed:
            notes.append(f"{path.name} is in no manifest: left out")
    candidates.sort(key=lambda one: (one.described.arch, one.described.stem))
    return Collected(tuple(candidates), tuple(notes))


def _joined(folder: Path, errors: list[PortingError]) -> PortingError:
    if len(errors) == 1:
        return errors[0]
    defects = [
        Defect(f"{Path(error.file).name}: {defect.subject}".removesuffix(": "), defect.found, defect.expected)
        for error in errors
        for defect in error.defects
    ]
    return PortingError(errors[0].kind, folder, defects, errors[0].remedy)


def _candidate(path: Path) -> Candidate | None:
    """The weights that a manifest describes; None where the file is no manifest and stands for no weights."""
    data = _bytes(path)
    try:
        value = fields.decode(data)
    except ValueError as error:
        if not any(path.with_suffix(ending).exists() for ending in _WEIGHTS_ENDINGS):
            return None
        remedy = "Port the weights again, or move the manifest away."
        raise PortingError(ErrorKind.CORRUPT, path, [f"no JSON ({str(error)[:80]})"], remedy) from None
    if not looks_like_manifest(value):
        return None
    described = describe(value, path.stem, path)
    return Candidate(described, data, _report(report_path(path), described))


def _report(path: Path, described: Description) -> tuple[bytes, Mapping[str, Any]] | None:
    if not path.exists():
        return None
    data = _bytes(path)
    try:
        report = schema.check(fields.decode(data), path)
    except ValueError as error:
        remedy = "Write it again: python -m porting.verify --report."
        raise PortingError(ErrorKind.CORRUPT, path, [f"no JSON ({str(error)[:80]})"], remedy) from None
    wanted: dict[str, Any] = {"verdict": schema.VERIFIED, "arch": described.arch}
    found = {"verdict": report["verdict"], "arch": report["arch"]}
    content = described.manifest.get("content_digest")
    wanted["weights.content_digest"], found["weights.content_digest"] = content, report["weights"]["content_digest"]
    defects = [
        Defect(name, str(found[name]), f"{wanted[name]}, as its manifest says")
        for name in wanted
        if found[name] != wanted[name]
    ]
    if defects:
        remedy = "Verify the weights again with porting.verify, or move the report away."
        raise PortingError(ErrorKind.MISMATCH, path, defects, remedy)
    return data, report


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PortingError(ErrorKind.MISSING, path, [error.strerror or str(error)], "Make it readable.") from None
    if len(data) > MAX_BYTES:
        raise PortingError(
            ErrorKind.CORRUPT, path, [Defect("size", "a larger file", f"at most {MAX_BYTES} bytes")], "Move it away."
        )
    return data


def refuse(collected: Collected, folder: Path, allow_unverified: bool, allow_synthetic: bool) -> None:
    """Stop before weights are published that nobody compared with TensorFlow, or that are random.

    Raises:
        PortingError: mismatch, with every manifest that stands in the way.
    """
    defects, options = [], []
    for one in (candidate.described for candidate in collected.candidates):
        if not one.verified and not allow_unverified:
            defects.append(Defect(f"{one.stem}: parity.verdict", "unverified", "verified"))
            options.append("--allow-unverified")
        if one.synthetic and not allow_synthetic:
            defects.append(Defect(f"{one.stem}: source.synthetic", "true: random weights", "false"))
            options.append("--allow-synthetic")
    if defects:
        asked = " and ".join(sorted(set(options)))
        remedy = (
            f"Verify them with porting.verify, move them away, or publish them all the same, labelled, with {asked}."
        )
        raise PortingError(ErrorKind.MISMATCH, folder, defects, remedy)
