"""HTML pages that stand alone: templates that escape, one look for all, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(package: str) -> Environment:
    """Jinja with the templates of `package` and those that all pages share; whatever is filled in is escaped.

    Raises:
        ImportError: Jinja is not installed.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("porting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def inlined(templates: Environment, *names: str) -> Any:
    """Style sheets or scripts as they stand, joined, for an element of the page."""
    from markupsafe import Markup

    if templates.loader is None:
        raise ValueError("an environment without templates")
    return Markup("".join(templates.loader.get_source(templates, name)[0] for name in names))


def policy_digest(text: str) -> str:
    """What a Content-Security-Policy calls an inline element with exactly this text (CSP level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def breakable(name: str) -> Any:
    """A name that may break after its slashes, where a line ends."""
    from markupsafe import Markup

    return Markup("/<wbr>").join(name.split("/"))
