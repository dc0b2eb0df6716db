"""What to type to use a file: one template a way, filled in by the cards here and on the page by its script.

A template names what differs from file to file as `%URL%`, `%NAME%` and so on. Everything that is filled in was checked
to be a plain name, a digest or an address before: it means the same in a shell and in Python as on the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from porting.release.description import Description, Listed
from porting.release.index import WEIGHTS
from porting.request import HF, PTH, TIMM_EPSILONS
from porting.rules import BATCH_NORM_EPSILON, KERAS_ARCH

# Where a site does not know its own address, its pages fill in theirs, and elsewhere this stands.
NO_ADDRESS = "URL-OF-THIS-SITE/"
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~%+=,@/-]*)?")


@dataclass(frozen=True)
class Snippet:
    """One way to use a file: what it is called, its language, the template, and a remark or ""."""

    title: str
    language: str
    template: str
    remark: str = ""


def is_address(text: str) -> bool:
    """Whether it is an http(s) address that can stand between quotes anywhere."""
    return bool(_ADDRESS.fullmatch(text)) and len(text) < 1000


def kind_of(described: Description, listed: Listed) -> str:
    """Files of one kind are used alike."""
    manifest = described.manifest
    head = manifest.get("head")
    chain = isinstance(head, Mapping) and head.get("kind") == "chain"
    epsilon = manifest["variant"]["bn_eps"]
    original = described.arch == KERAS_ARCH
    bare = chain or epsilon != BATCH_NORM_EPSILON  # create_model alone knows how to build a network around these
    in_timm = not manifest["variant"]["folded"] and not chain
    in_timm = in_timm and epsilon in (BATCH_NORM_EPSILON, TIMM_EPSILONS.get(described.arch, BATCH_NORM_EPSILON))
    parts = [listed.format, "original" if original else "aligned"]
    return "-".join([*parts, *(["bare"] if bare else []), *([] if in_timm else ["alone"])])


def snippets(kind: str) -> list[Snippet]:
    """Every way to use files of a kind."""
    format_, network, *more = kind.split("-")
    bare, in_timm = "bare" in more, "alone" not in more
    differs = _OTHERWISE if network == "original" else ""
    found = []
    if format_ == HF:
        found.append(Snippet("Download and check", "bash", _HF_DOWNLOAD))
        found.append(Snippet("timm", "python", _HF_TIMM, differs))
        return found
    found.append(
        Snippet("create_model", "python", _OURS, "Checks the digest, and brings preprocessing and class names.")
    )
    if format_ == PTH:
        found.append(Snippet("torch.hub", "python", _HUB_BARE if bare else _HUB))
    if in_timm:
        load = _LOAD_PTH if format_ == PTH else _LOAD_SAFETENSORS
        found.append(Snippet("timm", "python", f"{load}{_TIMM}", differs or "The downloaded file, strictly loaded."))
    found.append(Snippet("Download and check", "bash", _DOWNLOAD))
    return found


_OTHERWISE = (
    "timm's legacy_xception takes these keys but computes something else: its max-pools pad otherwise, and its epsilon "
    "is 1e-5, which only weights for that epsilon account for. create_model is exact."
)
_OURS = """\
from models import create_model

model = create_model("%ARCH%", pretrained="%URL%"%FOLDED%).eval()
"""
_HUB_BARE = """\
import torch

state = torch.hub.load_state_dict_from_url("%URL%", check_hash=True, weights_only=True)
"""
_HUB = """\
import torch
from models import create_model

state = torch.hub.load_state_dict_from_url("%URL%", check_hash=True, weights_only=True)
model = create_model("%ARCH%", num_classes=%CLASSES%%FOLDED%)
model.load_state_dict(state)
"""
_LOAD_PTH = """\
import timm
import torch

state = torch.load("%NAME%", weights_only=True)
"""
_LOAD_SAFETENSORS = """\
import timm
from safetensors.torch import load_file

state = load_file("%NAME%")
"""
_TIMM = """\
model = timm.create_model("%TIMM%", pretrained=False, num_classes=%CLASSES%)
model.load_state_dict(state)
"""
_DOWNLOAD = """\
curl -fLO "%URL%"
echo "%SHA256%  %NAME%" | sha256sum -c
"""
_HF_DOWNLOAD = """\
curl -fL --create-dirs --output-dir %FOLDER% --remote-name-all "%BASE%weights/%FOLDER%/{%FILES%}"
echo "%SHA256%  %NAME%" | sha256sum -c
"""
_HF_TIMM = """\
import timm

model = timm.create_model("local-dir:%FOLDER%", pretrained=True).eval()
"""


def filling(described: Description, listed: Listed) -> dict[str, str]:
    """What stands for each name in the templates of a file, but for BASE and URL, which need the site's address."""
    name = PurePosixPath(listed.name)
    beside = [one.name for one in described.files if PurePosixPath(one.name).parent == name.parent]
    manifest: Mapping[str, Any] = described.manifest
    return {
        "ARCH": described.arch,
        "TIMM": "legacy_xception" if described.arch == KERAS_ARCH else f"{described.arch}.tf_in1k",
        "CLASSES": str(manifest["num_classes"]),
        "FOLDED": ", folded=True" if manifest["variant"]["folded"] else "",
        "NAME": listed.name,
        "FOLDER": name.parent.as_posix(),
        "FILES": ",".join(sorted(PurePosixPath(one).name for one in beside)),
        "SHA256": listed.sha256,
        "PATH": f"{WEIGHTS}/{listed.name}",
    }


def fill(template: str, values: Mapping[str, str], base: str | None) -> str:
    """A template with a file's values in it.

    Args:
        base: the site's address, with a slash at its end, or None.
    """
    root = base or NO_ADDRESS
    whole = {**values, "BASE": root, "URL": f"{root}{values['PATH']}"}
    return re.sub("%([A-Z0-9]+)%", lambda found: whole[found[1]], template)
