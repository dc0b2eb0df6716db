"""Which PyTorch weights can go back to TensorFlow: the plain network's, whole, in types that float32 holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.errors import ModelError
from models.manifest import Manifest, find_manifest, read_manifest
from models.weights import arch_of, epsilon_of, is_folded
from porting import artifact, rules
from porting.bitwise import COUNTER
from porting.errors import Defect, ErrorKind, PortingError, corrupt
from porting.forms import DTYPES, short
from porting.rules import Head, Table
from porting.weights_file import read_weights_file


@dataclass(frozen=True)
class Reversible:
    """Weights that fill a rule table.

    Attributes:
        table: of the network with the classifier that the weights have.
        state: the table's parameters, in float32.
        notes: what does not come back, and what changed.
    """

    table: Table
    state: Mapping[str, Tensor]
    notes: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Outputs of the classifier, 0 for a backbone."""
        return self.table.classifier.classes if self.table.classifier else 0


def read_reversible(weights: Path, arch: str | None, backbone_only: bool) -> Reversible:
    """Read a weights file for its way back.

    Args:
        arch: the network; default the manifest's, else the one whose keys these are.
        backbone_only: leave the classifier out.

    Raises:
        PortingError: missing; corrupt (also: values that are not finite, another file's manifest); unsupported
            (folded, for another epsilon, a classifier of several layers, a type that float32 does not hold);
            mismatch, with everything that is missing, extra or misshapen.
    """
    state = read_weights_file(weights)
    manifest = _manifest(weights)
    _check_form(weights, manifest, state)
    arch = arch or (manifest.arch if manifest else arch_of(state)) or ""
    if arch not in rules.ARCHS:
        raise PortingError(
            ErrorKind.MISMATCH, weights, ["weights of no network that is known here"],
            "Say which it is with --arch, and every difference is listed.",
        )  # fmt: skip
    table = _fitting(weights, arch, state, backbone_only)
    return Reversible(table, _widened(weights, table, state), tuple(_notes(manifest, table, state)))


def _manifest(weights: Path) -> Manifest | None:
    """The manifest beside the file.

    Raises:
        PortingError: corrupt, where it is damaged or tells of other bytes.
    """
    found = find_manifest(weights)
    try:
        manifest = read_manifest(*found) if found else None
    except ModelError as error:
        remedy = "Remove the manifest to export the file as it is."
        raise PortingError(ErrorKind.CORRUPT, weights, [str(error)], remedy) from None
    if manifest and manifest.sha256 and manifest.sha256 != (digest := artifact.file_digest(weights)):
        raise corrupt(
            weights, "sha256", digest, f"{manifest.sha256}, as {manifest.path.name} says",
            "The file was changed: port it again, or remove the manifest to export the file as it is.",
        )  # fmt: skip
    return manifest


def _check_form(weights: Path, manifest: Manifest | None, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that were changed for PyTorch: TensorFlow's own cannot be had back from them to the bit."""
    found = ""
    eps = epsilon_of(weights, manifest.bn_eps if manifest else None)
    if is_folded(state):
        found = "weights with their batch norms folded in, which cannot be taken apart again"
    elif eps != rules.BATCH_NORM_EPSILON:
        found = (
            f"running variances for batch norms of epsilon {short(eps)}; TensorFlow's is "
            f"{short(rules.BATCH_NORM_EPSILON)}, and changing them back would round them once more"
        )
    if found:
        remedy = "Export the plain weights: port the source without --fold-bn and --bn-eps."
        raise PortingError(ErrorKind.UNSUPPORTED, weights, [found], remedy)


def _fitting(weights: Path, arch: str, state: Mapping[str, Tensor], backbone_only: bool) -> Table:
    """The table whose parameters the weights are, no more and no less."""
    module = rules.table(arch, Head(1)).rules[-1].parameter.rpartition(".")[0]
    classifier = {name for name in state if name.startswith(f"{module}.")}
    chain = sorted(classifier - {f"{module}.weight", f"{module}.bias"})
    if chain and not backbone_only:
        raise PortingError(
            ErrorKind.UNSUPPORTED,
            weights,
            [Defect(module, f"a classifier of several layers ({', '.join(chain)})", "one dense layer, or none")],
            "Nothing in a file of weights alone says what its layers are. Leave it out with --backbone-only.",
        )
    left_out = classifier if backbone_only else set()
    kernel = state.get(f"{module}.weight")
    classes = 0 if kernel is None or backbone_only or not kernel.ndim else kernel.shape[0]
    table = rules.table(arch, Head(classes) if classes else None)
    known = {rule.parameter: rule.target_shape for rule in table.rules}
    defects = []
    for name, shape in known.items():
        if name not in state:
            defects.append(Defect(name, "nothing", f"shape {list(shape)}"))
        elif tuple(state[name].shape) != shape:
            defects.append(Defect(name, f"shape {list(state[name].shape)}", f"shape {list(shape)}"))
    extra = [name for name in state if name not in known and name not in left_out and not _is_counter(name)]
    defects += [
        Defect(name, f"a tensor that {arch} does not have, of shape {list(state[name].shape)}") for name in extra
    ]
    if defects:
        fits = arch_of(state)
        other = (
            f"Its keys are {fits}'s: use --arch {fits}." if fits and fits != arch else "Check that the file is whole."
        )
        raise PortingError(ErrorKind.MISMATCH, weights, defects, other)
    return table


def _widened(weights: Path, table: Table, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The table's parameters in float32, where no value changes."""
    own = {rule.parameter: state[rule.parameter] for rule in table.rules}
    types = {name: _type(value) for name, value in own.items()}
    if wrong := [Defect(name, dtype, " or ".join(DTYPES)) for name, dtype in types.items() if dtype not in DTYPES]:
        raise PortingError(ErrorKind.UNSUPPORTED, weights, wrong, "Convert the weights to float32 first.")
    plain = {name: value.float() for name, value in own.items()}
    bad = {name: int((~torch.isfinite(value)).sum()) for name, value in plain.items()}
    if wrong := [Defect(name, f"{count} values not finite") for name, count in bad.items() if count]:
        raise PortingError(ErrorKind.CORRUPT, weights, wrong, "The training that wrote it diverged, or it is damaged.")
    return plain


def _type(value: Tensor) -> str:
    """The type of a tensor's values, and where they lie if not in memory one after another."""
    name = str(value.dtype).removeprefix("torch.")
    return name if value.layout is torch.strided and value.is_cpu else f"{name}, {value.layout} on {value.device}"


def _is_counter(name: str) -> bool:
    return name.endswith(f".{COUNTER}")


def _notes(manifest: Manifest | None, table: Table, state: Mapping[str, Tensor]) -> Iterator[str]:
    """What does not come back, and what changed."""
    types = {_type(state[rule.parameter]) for rule in table.rules} - {"float32"}
    if types:
        yield f"{' and '.join(sorted(types))} weights are widened to float32, which holds them exactly."
    counted = [name for name, value in state.items() if _is_counter(name) and bool(value.any())]
    if counted:
        yield f"{len(counted)} batch counters ({COUNTER}) are left out: TensorFlow has none."
    if table.arch != rules.KERAS_ARCH and table.classifier and table.classifier.classes == rules.BACKGROUND_CLASSES - 1:
        yield (
            f"{' and '.join(table.head)} have {table.classifier.classes} outputs. TF-Slim's ImageNet classifiers have "
            f"{rules.BACKGROUND_CLASSES}: the first is the background class, which a port drops, and which is back "
            "only in weights that were ported with --keep-background."
        )
    if manifest and manifest.synthetic:
        yield "These weights are synthetic: random numbers that classify nothing."
