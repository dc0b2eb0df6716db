"""Weights, bit for bit: a state dict against its source, through the rule table, without TensorFlow.

Activations alone cannot see a fault behind a channel that is never positive; this check sees every bit. For each wrong
parameter the likely cause is found by trying what goes wrong in ports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from porting import folding
from porting.forms import PLAIN, Form
from porting.plan import Contents, Plan
from porting.rules import BATCH_NORM_EPSILON, Rule
from porting.sources.base import TensorSource

Array = npt.NDArray[Any]
Changes = Iterator[tuple[str, Array]]  # what may have been done to a parameter, and its values then

# What PyTorch adds of its own; a ported network starts counting anew, so any value is right.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Fault:
    """One parameter that is not what the source holds.

    Attributes:
        parameter: key in the state dict.
        variable: the source's own name; "" where it has none.
        expected, found: shapes, or the two values at `index`.
        index: where the difference is largest; empty where the shapes differ.
        error: largest difference, relative to the source's largest magnitude.
        cause: the likely reason, in words.
    """

    parameter: str
    variable: str
    expected: str
    found: str
    index: tuple[int, ...]
    error: float
    cause: str


def compare_weights(
    plan: Plan, source: TensorSource, contents: Contents, state: Mapping[str, Array], form: Form = PLAIN
) -> list[Fault]:
    """Every parameter of a state dict that differs in any bit from what the source gives, missing and extra ones too.

    Args:
        plan: of the plain network.
        state: as `Form.arrays` gives it.
        form: of the state dict; what it does to weights is done again here, from the source.

    Raises:
        PortingError: as the source's `read` says.
    """
    made_of = form.sources(plan)

    def right(rule: Rule) -> Array:
        if form == PLAIN:
            return _converted(rule, source, contents)
        return form.arrays(form.apply(plan.arch, parts(rule)))[rule.parameter]

    def parts(rule: Rule) -> dict[str, torch.Tensor]:
        return {one.parameter: torch.from_numpy(_converted(one, source, contents)) for one in made_of[rule.parameter]}

    def wrong_folds(rule: Rule) -> Changes:
        if form.folded and len(made_of[rule.parameter]) > 1:
            for name, state in folding.wrong_folds(plan.arch, parts(rule), BATCH_NORM_EPSILON):
                if rule.parameter in state:
                    yield name, form.arrays(Form(dtype=form.dtype).apply(plan.arch, state))[rule.parameter]

    faults = []
    wrong: list[tuple[Rule, Array]] = []
    rules = form.plan(plan).table.rules
    for rule in rules:
        expected = right(rule)
        found = state.get(rule.parameter)
        if found is None:
            own = contents.own(rule.variable)
            faults.append(Fault(rule.parameter, own, str(list(expected.shape)), "nothing", (), np.inf, "missing"))
        elif not _same_bits(found, expected):
            wrong.append((rule, found))
    by_digest: dict[str, list[Rule]] = {}
    for rule in rules if wrong else ():
        by_digest.setdefault(_digest(right(rule)), []).append(rule)
    for rule, found in wrong:
        expected = right(rule)  # read again: only what is wrong is held
        holders = by_digest.get(_digest(found), [])
        faults.append(_fault(rule, contents, expected, found, holders, wrong_folds(rule)))
    known = {rule.parameter for rule in rules}
    for name, value in state.items():
        if name not in known and not name.endswith(f".{COUNTER}"):
            faults.append(Fault(name, "", "nothing", str(list(value.shape)), (), np.inf, "not part of the network"))
    return faults


def _converted(rule: Rule, source: TensorSource, contents: Contents) -> Array:
    return rule.float32(source.read(contents.own(rule.variable)))


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _same_bits(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return np.array_equal(np.ascontiguousarray(found).view(np.uint32), expected.view(np.uint32))


def _fault(rule: Rule, contents: Contents, expected: Array, found: Array, holders: list[Rule], folds: Changes) -> Fault:
    own = contents.own(rule.variable)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        shapes = [f"{array.dtype} {list(array.shape)}" for array in (expected, found)]
        return Fault(rule.parameter, own, shapes[0], shapes[1], (), np.inf, _shape_cause(expected, found))
    difference = np.abs(found.astype(np.float64) - expected)
    index = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
    scale = float(np.abs(expected).max())
    error = float(difference[index]) / scale if scale else np.inf
    cause = _holder_cause(rule, contents, holders) or _value_cause(expected, found, difference, folds)
    return Fault(rule.parameter, own, repr(float(expected[index])), repr(float(found[index])), index, error, cause)


def _holder_cause(rule: Rule, contents: Contents, holders: list[Rule]) -> str:
    """The parameter holds another variable's values."""
    if not holders:
        return ""
    scope = rule.variable.rpartition("/")[0]
    other = next((holder for holder in holders if holder.variable.rpartition("/")[0] == scope), holders[0])
    name = contents.own(other.variable)
    same = other.variable.rpartition("/")[0] == scope
    return f"holds {other.variable.rpartition('/')[2]} of the same layer" if same else f"exchanged: holds {name}"


def _shape_cause(expected: Array, found: Array) -> str:
    if found.dtype != expected.dtype and found.shape == expected.shape:
        return f"stored as {found.dtype}"
    if found.shape == expected.shape[::-1] or sorted(found.shape) == sorted(expected.shape):
        return "axes in another order"
    if found.shape[1:] == expected.shape[1:] and abs(found.shape[0] - expected.shape[0]) == 1:
        return "another number of classes: a background class kept or dropped"
    return "another shape"


def _value_cause(expected: Array, found: Array, difference: Array, folds: Changes) -> str:
    """What was done to the right values."""
    if not np.isfinite(found).all():
        return "not finite"
    if not found.any():
        return "all zero"
    for name, changed in chain(folds, _changes(expected)):
        if changed.shape == found.shape and np.array_equal(changed, found):
            return name
    wrong = int(np.count_nonzero(found != expected)) or int(difference.size)
    if np.array_equal(found[1:], expected[:-1]) or np.array_equal(found[:-1], expected[1:]):
        return "shifted by one output (a class offset)"
    nonzero = expected != 0
    ratio = found[nonzero].astype(np.float64) / expected[nonzero]
    if ratio.size > 1 and np.ptp(ratio) <= 1e-6 * abs(float(ratio.mean())):
        return f"scaled by {float(ratio.mean()):.6g}"
    offset = found.astype(np.float64) - expected
    if offset.size > 1 and np.ptp(offset) <= 1e-6 * float(np.abs(expected).max()):
        return f"offset by {float(offset.mean()):.3g}"
    return f"{wrong} of {found.size} values differ"


def _changes(expected: Array) -> list[tuple[str, Array]]:
    changes = [
        ("negated", -expected),
        ("lost precision: rounded to float16", expected.astype(np.float16).astype(np.float32)),
        ("lost precision: rounded to bfloat16", _bfloat16(expected)),
    ]
    if expected.ndim == 4 and expected.shape[2:] != (1, 1):
        changes += [
            ("kernel flipped spatially", expected[:, :, ::-1, ::-1]),
            ("kernel flipped top to bottom", expected[:, :, ::-1]),
            ("kernel flipped left to right", expected[:, :, :, ::-1]),
            ("kernel transposed spatially", expected.swapaxes(2, 3)),
        ]
    if expected.ndim >= 2 and expected.shape[0] == expected.shape[1]:
        changes.append(("inputs and outputs exchanged", expected.swapaxes(0, 1)))
    return changes


def _bfloat16(array: Array) -> Array:
    """Rounded to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(array).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    result: Array = rounded.astype(np.uint32).view(np.float32)
    return result
