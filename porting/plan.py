"""From a source's names and shapes to a total, one-to-one plan, or to one error that lists every defect.

Nothing here reads tensor data or imports torch: the plan is proved on shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from porting import rules
from porting.errors import Defect, ErrorKind, PortingError
from porting.rules import Head, Role, Table
from porting.sources.base import TensorSpec

# Types that float32 holds exactly, and float64, which is rounded once (a note says so).
READABLE = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class Unread:
    """A variable of the source that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Options:
    """What a user may ask of a port."""

    keep_background: bool = False
    ema: bool = False
    backbone_only: bool = False


@dataclass(frozen=True)
class Contents:
    """A source's variables under the names that the rule tables use.

    Attributes:
        file: the source as the user named it, for messages.
        specs: variables by the vocabulary's names.
        own_names: the vocabulary's name to the source's own, where they differ.
        unread: variables that the container's own structure explains (an optimizer's, a preprocessing layer's).
        outside: variables of layers outside the network, with the layer; part of the head, or of another branch.
        head_layers: layers between the features and the output, described, where the source tells.
        head_problems: why the head cannot be ported, layer by layer; empty where it can, or is unknown.
        head: the head where it is a chain of layers; None where it is one dense layer, or is unknown.
    """

    file: str
    specs: Mapping[str, TensorSpec]
    own_names: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[Unread, ...] = ()
    outside: Mapping[str, str] = field(default_factory=dict)
    head_layers: tuple[str, ...] = ()
    head_problems: tuple[str, ...] = ()
    head: Head | None = None

    def own(self, name: str) -> str:
        """The source's own name of a variable."""
        return self.own_names.get(name, name)


@dataclass(frozen=True)
class Plan:
    """Every variable's fate, proved on shapes.

    Attributes:
        table: the rules and trace points of the network that is ported; its rules name what is really read.
        unread: every variable that is not read, with the reason.
        classes: outputs of the ported classifier, 0 for a backbone.
        notes: what the user should hear of (shadows that were not taken, for example).
    """

    table: Table
    unread: tuple[Unread, ...]
    classes: int
    notes: tuple[str, ...] = ()

    @property
    def arch(self) -> str:
        return self.table.arch

    @property
    def chain(self) -> dict[str, Any] | None:
        """The classifier in a manifest's words where it is a chain of layers, else None."""
        head = self.table.classifier
        return head.entry() if head and head.chain else None

    @property
    def skipped(self) -> int:
        """Leading outputs of the source's classifier that the port leaves out."""
        return self.table.rules[-1].skip if self.table.logits else 0


def build_plan(contents: Contents, arch: str, options: Options) -> Plan:
    """A plan that gives every parameter one variable and every variable one parameter or a reason.

    Raises:
        PortingError: mismatch, with every missing, extra or misshapen variable, and the network that would fit.
    """
    if options.ema and not any(_is_shadow(name) for name in contents.specs):
        raise _mismatch(contents, [Defect("--ema", "no ExponentialMovingAverage variables in it")], "Leave --ema out.")
    table, defects = _fit(contents, arch, options)
    if defects:
        raise _refusal(contents, arch, options, defects)
    mapped = {rule.variable for rule in table.rules}
    unread = (*contents.unread, *_explained(contents, table, options, mapped))
    notes = []
    shadows = sum(_is_shadow(name) for name in contents.specs)
    if shadows and not options.ema:
        notes.append(
            f"{shadows} ExponentialMovingAverage shadows are in it; the plain variables are ported (--ema takes them)."
        )
    rounded = sum(contents.specs[name].dtype == "float64" for name in mapped)
    if rounded:
        notes.append(f"{rounded} float64 variables are rounded to float32; the proof holds the rounded ones.")
    classes = table.rules[-1].target_shape[0] if table.logits else 0
    return Plan(table, tuple(sorted(unread, key=lambda u: u.name)), classes, tuple(notes))


def fitting_archs(contents: Contents, options: Options) -> tuple[str, ...]:
    """The networks whose plan has no defect for this source."""
    return tuple(arch for arch in rules.ARCHS if not _fit(contents, arch, options)[1])


def nearest_arch(contents: Contents, options: Options) -> tuple[str, list[Defect]]:
    """The network with the fewest defects, and the defects."""
    found = ((arch, _fit(contents, arch, options)[1]) for arch in rules.ARCHS)
    return min(found, key=lambda item: len(item[1]))


def _fit(contents: Contents, arch: str, options: Options) -> tuple[Table, list[Defect]]:
    """The table for this source and everything that speaks against it."""
    defects: list[Defect] = []
    plain = rules.table(arch, None)
    head = None
    if not options.backbone_only:
        head, problems = _head(contents, plain, arch, options)
        defects += problems
    table = rules.table(arch, head)
    if options.ema:
        table = _with_shadows(contents, table)
    for rule in table.rules:
        spec = contents.specs.get(rule.variable)
        if spec is None:
            defects.append(Defect(contents.own(rule.variable), "no such variable", f"shape {list(rule.shape)}"))
        elif spec.shape != rule.shape:
            defects.append(
                Defect(contents.own(rule.variable), f"shape {list(spec.shape)}", f"shape {list(rule.shape)}")
            )
        elif spec.dtype not in READABLE:
            defects.append(Defect(contents.own(rule.variable), spec.dtype, "a floating-point type"))
    mapped = {rule.variable for rule in table.rules}
    explained = {u.name for u in _explained(contents, table, options, mapped)}
    for name in contents.specs:
        in_head = name in contents.outside and contents.head_problems
        if name not in mapped and contents.own(name) not in explained and not in_head:
            found = f"a variable that {arch} does not have, of shape {list(contents.specs[name].shape)}"
            defects.append(Defect(contents.own(name), found))
    return table, defects


def _head(contents: Contents, table: Table, arch: str, options: Options) -> tuple[Head | None, list[Defect]]:
    listed = "; ".join(contents.head_layers)
    if contents.head_problems:
        *first, last = contents.head_problems
        return None, [Defect("head", found) for found in (*first, f"{last} ({listed})" if listed else last)]
    if contents.head and arch == rules.KERAS_ARCH:
        return contents.head, []
    weights = contents.specs.get(table.head[0])
    if weights is None or not weights.shape:
        found = f"none (after the features: {listed or 'nothing'})"
        return None, [Defect("head", found, f"a dense layer on the pooled features, {contents.own(table.head[0])}")]
    classes = weights.shape[-1]
    if classes == 0:
        found = f"{contents.own(table.head[0])} of shape {list(weights.shape)}"
        return None, [Defect("head", found, "a class to tell")]
    drop = arch != rules.KERAS_ARCH and classes == rules.BACKGROUND_CLASSES and not options.keep_background
    return Head(classes, skip=1 if drop else 0), []


def _with_shadows(contents: Contents, table: Table) -> Table:
    """The table, reading shadows. Only statistics may lack one: TensorFlow averages what is trained."""
    taken = []
    for rule in table.rules:
        shadow = f"{rule.variable}/{rules.SHADOW}"
        if shadow in contents.specs or rule.role is Role.WEIGHT:
            rule = replace(rule, variable=shadow)
        taken.append(rule)
    return replace(table, rules=tuple(taken))


def _is_shadow(name: str) -> bool:
    return name.endswith(f"/{rules.SHADOW}")


def _explained(contents: Contents, table: Table, options: Options, mapped: set[str]) -> Iterator[Unread]:
    """Variables that are left out for a reason that their names give."""
    head = set(table.head) | (set(rules.table(rules.KERAS_ARCH, contents.head).head) if contents.head else set())
    known = mapped | head | {name.removesuffix(f"/{rules.SHADOW}") for name in mapped}
    for name in contents.specs:
        if name in mapped:
            continue
        variable, _, leaf = name.rpartition("/")
        if name in rules.COUNTERS:
            yield Unread(name, rules.COUNTERS[name])
        elif leaf in rules.SLOTS and variable in known:
            yield Unread(name, f"optimizer slot ({leaf})")
        elif name.removesuffix(f"/{rules.SHADOW}") in head and options.backbone_only:
            yield Unread(contents.own(name), "classifier, left out by --backbone-only")
        elif _is_shadow(name) and variable in known:
            yield Unread(name, "ExponentialMovingAverage shadow; the plain variable is ported")
        elif name in contents.outside and options.backbone_only:
            yield Unread(
                contents.own(name), f"outside the backbone ({contents.outside[name]}), left out by --backbone-only"
            )
        elif options.ema and f"{name}/{rules.SHADOW}" in mapped:
            yield Unread(name, "--ema takes its ExponentialMovingAverage shadow")


def _mismatch(contents: Contents, defects: Sequence[Defect], remedy: str) -> PortingError:
    return PortingError(ErrorKind.MISMATCH, contents.file, defects, remedy)


def _refusal(contents: Contents, arch: str, options: Options, defects: Sequence[Defect]) -> PortingError:
    """The error for a plan with defects: what else the source is, where that explains them, or all of them."""
    headless = replace(options, backbone_only=True)
    fits = fitting_archs(contents, options)
    without_head = fitting_archs(contents, headless)
    if fits:
        return _mismatch(contents, [Defect("network", fits[0], arch)], f"Use --arch {fits[0]}.")
    if arch in without_head:
        head = [defect for defect in defects if defect.subject == "head"]
        remedy = "Its backbone is complete: port it without the classifier with --backbone-only."
        return _mismatch(contents, head or defects, remedy)
    if without_head:
        remedy = f"Use --arch {without_head[0]} --backbone-only: its classifier cannot be ported."
        return _mismatch(contents, [Defect("network", without_head[0], arch)], remedy)
    nearest, differences = nearest_arch(contents, options)
    if nearest != arch and len(differences) < len(defects):
        remedy = f"No network fits; the nearest is --arch {nearest}, with {len(differences)} defects."
    else:
        remedy = f"No network fits; {arch} is the nearest. Check that the file is complete and is an Xception."
    return _mismatch(contents, defects, remedy)
