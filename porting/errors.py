"""The errors that users see.

Every error names the file, what is wrong, and one thing to do about it. Several defects of one kind are
reported together. Nothing in the project raises a bare exception for bad input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class ErrorKind(Enum):
    """What sort of failure it is; scripts may branch on it."""

    MISSING = "missing"  # a file, or a package, is not there
    CORRUPT = "corrupt"  # the bytes contradict themselves or their format
    UNSUPPORTED = "unsupported"  # valid, but not something this project reads
    MISMATCH = "mismatch"  # readable, but not the network that was asked for
    PARITY = "parity"  # the ported network does not compute what TensorFlow computes
    REFERENCE = "reference"  # TensorFlow could not run the source, so nothing is proved
    OUTPUT = "output"  # the result could not be written


def shown(name: str) -> str:
    """A file's name as a line of text: what is not printable in it, and bytes that are not UTF-8, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong: `subject: expected X, found Y`, or `subject: problem` where nothing was expected."""

    subject: str
    found: str
    expected: str = ""

    def __str__(self) -> str:
        if self.expected:
            return f"{self.subject}: expected {self.expected}, found {self.found}"
        return f"{self.subject}: {self.found}"


class PortingError(Exception):
    """Bad input, a failed check, or a result that could not be written.

    Args:
        kind: what sort of failure it is.
        file: the file or folder at fault, as the user named it.
        defects: everything that is wrong with it, at least one.
        remedy: one line that says what to do.
    """

    def __init__(self, kind: ErrorKind, file: object, defects: Sequence[Defect | str], remedy: str = "") -> None:
        self.kind = kind
        self.file = str(file)
        self.defects = tuple(d if isinstance(d, Defect) else Defect("", d) for d in defects)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        texts = [str(d).removeprefix(": ") for d in self.defects]
        file = shown(self.file)
        if len(texts) == 1:
            lines = [f"{file}: {self.kind.value}: {texts[0]}"]
        else:
            lines = [f"{file}: {self.kind.value}: {len(texts)} defects"]
            lines += [f"  {text}" for text in texts]
        if self.remedy:
            lines.append(self.remedy)
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type[PortingError], tuple[object, ...]]:
        # Crosses process boundaries whole (the h5 reader and the reference run in processes of their own).
        return (type(self), (self.kind, self.file, self.defects, self.remedy))


def corrupt(file: object, subject: str, found: str, expected: str = "", remedy: str = "") -> PortingError:
    """A `CORRUPT` error with one defect."""
    return PortingError(
        ErrorKind.CORRUPT, file, [Defect(subject, found, expected)], remedy or "Fetch or copy the file again."
    )


def unsupported(file: object, subject: str, found: str, remedy: str = "") -> PortingError:
    """An `UNSUPPORTED` error with one defect."""
    return PortingError(ErrorKind.UNSUPPORTED, file, [Defect(subject, found)], remedy)
