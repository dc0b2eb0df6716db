"""Fields out of JSON that nobody has checked: manifests and indexes come from elsewhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from porting.errors import Defect

MAX_TEXT = 4000  # characters of one licence, note or label
_MISSING = object()
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Names that mean one thing in every shell, URL and file system, and are never an option or a hidden file.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


def decode(data: bytes) -> Any:
    """JSON as every reader takes it: UTF-8, finite numbers, whole characters.

    Raises:
        ValueError: it is not that.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair, or a number like 1e999
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def encode(value: Mapping[str, Any]) -> bytes:
    """An object as JSON: the same object, the same bytes."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def is_flag(value: object) -> bool:
    return isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float's range
        return False


def is_percent(value: object) -> bool:
    return is_number(value) and isinstance(value, int | float) and 0 <= value <= 100


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def is_name(value: object) -> bool:
    """Whether it is a plain file name."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def is_path(value: object) -> bool:
    """Whether it is a plain name, or several of them joined by slashes: it leads nowhere but down."""
    return isinstance(value, str) and len(value) < 1000 and all(is_name(part) for part in value.split("/"))


@dataclass(frozen=True)
class Fields:
    """Decoded JSON, and everything that is found to be wrong with it.

    Attributes:
        value: what was decoded.
        where: its place in the whole, for messages, such as "files[2]".
        defects: shared with the parts that `part` and `parts` give.
    """

    value: object
    where: str = ""
    defects: list[Defect] = field(default_factory=list)

    def take(self, path: str, expected: str, holds: Callable[[object], bool], absent: Any = _MISSING) -> Any:
        """A field, by its keys joined by dots; None, and a defect more, where it is not what it should be.

        Args:
            absent: what a missing field counts as; without it, a missing field is a defect.
        """
        value = self._at(path)
        if value is _MISSING and absent is not _MISSING:
            return absent
        if value is not _MISSING and holds(value):
            return value
        self.defects.append(Defect(self._named(path), _shown(value), expected))
        return None

    def part(self, path: str) -> Fields:
        """An object within, whose fields are taken one by one."""
        return Fields(self._at(path), self._named(path), self.defects)

    def parts(self, path: str, expected: str) -> list[Fields]:
        """A list within, which must not be empty."""
        value = self.take(path, expected, lambda found: isinstance(found, list) and bool(found))
        return [Fields(item, f"{self._named(path)}[{number}]", self.defects) for number, item in enumerate(value or [])]

    def _at(self, path: str) -> object:
        value = self.value
        for key in path.split("."):
            value = value.get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
        return value

    def _named(self, path: str) -> str:
        return f"{self.where}.{path}" if self.where else path


def _shown(value: object) -> str:
    if value is _MISSING:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
