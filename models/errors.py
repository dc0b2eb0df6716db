"""The one error of this package."""

from __future__ import annotations


class ModelError(ValueError):
    """A wrong argument, input or weight file; the message says what was expected, what was found and what to do."""
