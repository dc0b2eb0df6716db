"""The files that one port emits: a `.pth`, a `.safetensors`, and a folder that timm loads as a local model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from models.info import get_info
from porting import artifact
from porting.errors import Defect, ErrorKind, PortingError
from porting.forms import short
from porting.manifest import Manifest
from porting.plan import Plan
from porting.request import FORMATS, HF, PTH, SAFETENSORS
from porting.rules import BATCH_NORM_EPSILON, KERAS_ARCH

HF_WEIGHTS = "model.safetensors"  # timm and huggingface_hub look for these three names
HF_CONFIG, HF_CARD = "config.json", "README.md"

TIMM_NAMES = {KERAS_ARCH: "legacy_xception"}  # what timm calls a network, where it has another name there


@dataclass(frozen=True)
class Emitted:
    """A file with weights that is written and not yet named.

    Attributes:
        format: "pth", "safetensors" or "hf".
        path: what it will be called; of "hf", inside its folder.
        file: where it is now.
        digest: its sha256.
        size: bytes.
        there: whether that very file has its name already.
    """

    format: str
    path: Path
    file: IO[bytes]
    digest: str
    size: int
    there: bool

    @property
    def shown(self) -> Path:
        """What a user opens: the file, or timm's folder."""
        return self.path.parent if self.format == HF else self.path


def check_possible(formats: Sequence[str], plan: Plan, file: object) -> None:
    """Refuse, before any work, what cannot be written.

    Raises:
        PortingError: missing (the safetensors package); unsupported (a classifier that timm's network does not have).
    """
    if SAFETENSORS in formats or HF in formats:
        try:
            import safetensors.torch  # noqa: F401
        except ImportError:
            raise PortingError(
                ErrorKind.MISSING, "safetensors", ["the package is not installed"], "pip install safetensors"
            ) from None
    if HF in formats and plan.chain:
        raise PortingError(
            ErrorKind.UNSUPPORTED,
            file,
            [Defect("head", "a classifier of several layers", "one dense layer, as timm's network has")],
            "Leave hf out of --format, or port the network without its classifier with --backbone-only.",
        )


def write(
    formats: Sequence[str], state: Mapping[str, Tensor], folder: Path, prefix: str, stack: ExitStack
) -> list[Emitted]:
    """Write a state dict in every format, unnamed, in the order of `FORMATS`; the stack removes what gets no name.

    Raises:
        PortingError: output.
    """
    emitted = []
    for one in (one for one in FORMATS if one in formats):
        file = stack.enter_context(artifact.temporary_file(folder))
        if one == PTH:
            artifact.write_state(file, state)
        else:
            artifact.write_safetensors(file, state)
        digest = artifact.file_digest(Path(file.name))
        ending = {PTH: ".pth", SAFETENSORS: ".safetensors", HF: f"/{HF_WEIGHTS}"}[one]
        path, there = artifact.final_path(folder, prefix, digest, ending)
        emitted.append(Emitted(one, path, file, digest, Path(file.name).stat().st_size, there))
    return emitted


def entries(emitted: Sequence[Emitted], folder: Path, extras: Mapping[Path, IO[bytes]]) -> list[dict[str, Any]]:
    """The manifest's `files`: names relative to the output folder.

    Args:
        extras: what else lies in timm's folder.
    """
    found = [(one.path, one.format, one.size, one.digest) for one in emitted]
    for path, file in extras.items():
        here = Path(file.name)
        found.append((path, HF, here.stat().st_size, artifact.file_digest(here)))
    return [
        {"name": path.relative_to(folder).as_posix(), "format": kind, "bytes": size, "sha256": digest}
        for path, kind, size, digest in found
    ]


def with_older(new: list[dict[str, Any]], before: Manifest | None, folder: Path) -> list[dict[str, Any]]:
    """The manifest's `files` with those of an earlier port of the same weights that are still there."""
    names = {entry["name"] for entry in new}
    old = before["files"] if before and isinstance(before.get("files"), list) else []
    return [*new, *(entry for entry in old if entry["name"] not in names and (folder / entry["name"]).is_file())]


def write_hf(folder: Path, manifest: Manifest, stack: ExitStack, place: Path) -> dict[Path, IO[bytes]]:
    """The configuration and the model card of timm's folder, written and not yet named.

    Args:
        folder: timm's.
        place: where temporary files go.

    Raises:
        PortingError: output.
    """
    files = {folder / name: stack.enter_context(artifact.temporary_file(place)) for name in (HF_CONFIG, HF_CARD)}
    artifact.write_json(files[folder / HF_CONFIG], config(manifest))
    artifact.write_text(files[folder / HF_CARD], card(manifest))
    return files


def config(manifest: Manifest) -> dict[str, Any]:
    """What `timm.create_model("local-dir:...")` reads (timm/models/_hub.py)."""
    arch = str(manifest["arch"])
    info = get_info(arch)
    shown = manifest["preprocessing"]
    height, width = shown["input_size"][1:]
    result: dict[str, Any] = {
        "architecture": TIMM_NAMES.get(arch, arch),
        "num_classes": manifest["num_classes"],
        "num_features": 2048,
        "pretrained_cfg": {
            "tag": "tf_in1k" if manifest["source"]["name"].startswith("official") else "ported",
            "custom_load": False,
            "input_size": shown["input_size"],
            "fixed_input_size": False,
            "interpolation": shown["interpolation"],
            "crop_pct": shown["crop_pct"],
            "crop_mode": "center",
            "mean": shown["mean"],
            "std": shown["std"],
            "num_classes": manifest["num_classes"],
            "pool_size": [-(-height // 32), -(-width // 32)],
            "first_conv": info.first_conv,
            "classifier": info.classifier,
            "license": manifest["licence"],
        },
    }
    if manifest["labels"] and len(manifest["labels"]) == manifest["num_classes"]:
        result["label_names"] = manifest["labels"]
    return result


# What timm's definition of the original network computes otherwise: measured at 299, largest difference of a logit in
# units of the logits' standard deviation, over three synthetic networks and two images (tests/models/
# test_forms_in_timm.py repeats one); on a fine-tuned network, the pooled features' root mean square in units of theirs.
TIMM_DIFFERENCES = {
    BATCH_NORM_EPSILON: "its batch norms have epsilon 1e-5 instead of 1e-3, and its max-pools pad evenly where "
    "TensorFlow's SAME pads the end. At 299x299 that is 2e-2 to 4e-2 of the logits' standard deviation on random "
    "weights, and 0.2 of that of the pooled features on trained ones. Port with --bn-eps 1e-5 to have the epsilon's "
    "part right",
    1e-5: "its max-pools pad evenly where TensorFlow's SAME pads the end. At 299x299 that is 2e-2 to 3.5e-2 of the "
    "logits' standard deviation on random weights, and 0.2 of that of the pooled features on trained ones. The epsilon "
    "is accounted for in these weights",
}


def timm_note(arch: str, form_epsilon: float) -> str:
    """What timm's own network computes otherwise with these weights; "" where it computes the same."""
    if arch != KERAS_ARCH:
        return ""
    otherwise = f"its batch norms have epsilon 1e-5, not {short(form_epsilon)}, and its max-pools pad evenly"
    difference = TIMM_DIFFERENCES.get(form_epsilon, otherwise)
    return f"timm's legacy_xception takes these keys but computes something else: {difference}."


def card(manifest: Manifest) -> str:
    """The model card: what it is, how to load it, and what was proved."""
    arch, source, proof = manifest["arch"], manifest["source"], manifest["parity"]
    licence = manifest["licence"]
    front = ["---", "library_name: timm", "tags:", "- image-classification", "- timm"]
    front += [f"license: {licence.lower()}"] if licence != "unknown" else []
    note = timm_note(arch, manifest["variant"]["bn_eps"])
    if "bound" in proof:
        worst = proof["worst"]
        proved = (
            f"Every layer was compared with TensorFlow ({proof['reference']}) in float64: the worst is "
            f"{worst['layer']}, off by {worst['error']:.1e} of its largest value (bound {proof['bound']:.0e})."
        )
        if "stored" in proof:
            stored = proof["stored"]
            proved += (
                f" That is before the weights were rounded to {manifest['variant']['dtype']}; as stored, the worst is "
                f"{stored['worst']['error']:.1e} (bound {stored['bound']:.0e})."
            )
    else:
        proved = "These weights were NOT compared with TensorFlow."
    lines = [
        *front,
        "---",
        "",
        f"# {get_info(arch).name}, ported from TensorFlow",
        "",
        f"{manifest['num_classes']} classes, from `{source['name']}` (sha256 over its files: `{source['digest']}`).",
        *(["", "**Synthetic: random weights, for trying things out. They classify nothing.**"] * source["synthetic"]),
        "",
        proved,
        *(["", f"**In timm:** {note}"] if note else []),
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:PATH/TO/THIS/FOLDER", pretrained=True).eval()',
        "```",
        "",
        f"Licence: {licence}. Upstream: {manifest['upstream']}.",
    ]
    return "\n".join(lines) + "\n"
