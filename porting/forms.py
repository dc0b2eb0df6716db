"""The forms that a network's weights are emitted in: plain, folded, for another epsilon, in a smaller type.

A form is data: what it does to a state dict, which parameters it has and what each is made of, which activations its
network still shows, and how far off a right one may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.registry import untrained
from porting import folding
from porting.errors import Defect, ErrorKind, PortingError
from porting.lockstep import load_network
from porting.parity import FLOAT64_BOUND
from porting.plan import Contents, Plan
from porting.rules import BATCH_NORM_EPSILON, Rule, TracePoint

# What a layer of each may be off by in float64, of its largest value, over the whole chain of layers before it.
# TensorFlow uses the source's float32 numbers as they are; these were computed from them and rounded to float32 once
# more, each by up to 6e-8 of itself. Folded, right ports of the four networks measure up to 2.9e-7 on random weights,
# and 4.5e-7 on trained ones; with other variances, 1.7e-7. The bounds are ten times that. One batch norm with epsilon
# 1e-5 is off by more than 1e-4.
FOLDED_BOUND = 5e-6
EPSILON_BOUND = 2e-6
# The same of weights rounded to a smaller type, of 11 or 8 bits instead of 24. Right ports measure up to 1.8e-3 and
# 1.6e-2 on random weights, 3.6e-3 and 5.1e-2 on trained ones. That is what the type costs; what proves the port is the
# check of the weights before they were rounded, and of the rounding of every bit.
STORED_BOUNDS = {"float16": 3e-2, "bfloat16": 3e-1}

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORT = {"float16": "_fp16", "bfloat16": "_bf16"}


@dataclass(frozen=True)
class Form:
    """How weights are emitted; which forms there are, `porting.request` says.

    Attributes:
        folded: every batch norm folded into the convolution before it.
        dtype: "float32", or "float16" or "bfloat16", which every weight is rounded to last.
        bn_eps: the epsilon of the batch norms of the network that the weights are for.
    """

    folded: bool = False
    dtype: str = "float32"
    bn_eps: float = BATCH_NORM_EPSILON

    @property
    def suffix(self) -> str:
        """What the file's name says of it, before the digest."""
        eps = "" if self.bn_eps == BATCH_NORM_EPSILON else f"_eps{short(self.bn_eps)}"
        return ("_folded" if self.folded else "") + eps + _SHORT.get(self.dtype, "")

    @property
    def variant(self) -> dict[str, Any]:
        """In a manifest's words."""
        return {"folded": self.folded, "dtype": self.dtype, "bn_eps": self.bn_eps}

    @property
    def exact(self) -> Form:
        """The same before its weights are rounded to a smaller type."""
        return replace(self, dtype="float32")

    @property
    def bound(self) -> float:
        """What each layer's float64 error may be before weights are rounded to a smaller type."""
        if self.folded:
            return FOLDED_BOUND
        return FLOAT64_BOUND if self.bn_eps == BATCH_NORM_EPSILON else EPSILON_BOUND

    @property
    def stored_bound(self) -> float | None:
        """The same with the weights as stored; None where they are stored as they are."""
        return STORED_BOUNDS.get(self.dtype)

    def notes(self) -> tuple[str, ...]:
        """What a reader of the proof must know of its bounds."""
        notes = []
        if self.folded:
            notes.append(
                "Batch norms are folded into the convolutions, and the results rounded to float32 once more: layers "
                f"are held to {FOLDED_BOUND:g} of their largest value, the bits of the file to a fold made again."
            )
        elif self.bn_eps != BATCH_NORM_EPSILON:
            notes.append(
                f"Running variances are those for batch norms of epsilon {short(self.bn_eps)} (the source's plus "
                f"{BATCH_NORM_EPSILON:g} minus {short(self.bn_eps)}, rounded to float32): layers are held to "
                f"{EPSILON_BOUND:g} of their largest value, in a network with that epsilon."
            )
        if self.stored_bound is not None:
            notes.append(
                f"Weights are rounded to {self.dtype}. The proof is of the weights before that, and of every bit's "
                f"rounding; as stored, layers are held to {self.stored_bound:g} of their largest value."
            )
        return tuple(notes)

    def apply(self, arch: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict in this form, for the plain one, or for the part of it that `sources` names."""
        result = dict(state)
        if self.folded:
            result = folding.fold(arch, result, BATCH_NORM_EPSILON)
        elif self.bn_eps != BATCH_NORM_EPSILON:
            result = folding.with_epsilon(arch, result, BATCH_NORM_EPSILON, self.bn_eps)
        dtype = DTYPES[self.dtype]
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in result.items()}

    def check(self, plan: Plan, contents: Contents, state: Mapping[str, Tensor]) -> None:
        """Refuse a state dict in this form that some value does not fit into.

        Raises:
            PortingError: unsupported, with every such parameter.
        """
        variances = {f"{norm}.running_var" for norm in folding.norms(plan.arch).values()}
        moved = variances if self.bn_eps != BATCH_NORM_EPSILON else set()
        origin = {rule.parameter: contents.own(rule.variable) for rule in self.plan(plan).table.rules}
        defects = []
        for name, value in state.items():
            where = f"{origin.get(name, name)} (PyTorch {name})"
            if not torch.isfinite(value).all():
                count = int((~torch.isfinite(value)).sum())
                limit = f"values up to {torch.finfo(value.dtype).max:g}, the largest of {self.dtype}"
                defects.append(Defect(where, f"{count} beyond it", limit))
            elif name in moved and not (value > 0).all():
                least = float(value.min())
                defects.append(Defect(where, f"{least:.3g} with epsilon {short(self.bn_eps)}", "a positive variance"))
        if defects:
            remedy = (
                "Choose a wider type for --dtype." if not moved else "Choose a smaller --bn-eps, or a wider --dtype."
            )
            raise PortingError(ErrorKind.UNSUPPORTED, contents.file, defects, remedy)

    def plan(self, plan: Plan) -> Plan:
        """The plan with the parameters and activations of the emitted network.

        Folded, a convolution gives what its batch norm gave, and its bias is named after the batch norm's `beta`.
        """
        if not self.folded:
            return plan
        norm_of = folding.norms(plan.arch)
        conv_of = {norm: conv for conv, norm in norm_of.items()}
        rules = []
        for rule in plan.table.rules:
            module, _, leaf = rule.parameter.rpartition(".")
            if module not in conv_of:
                rules.append(rule)
            elif leaf == "bias":
                rules.append(replace(rule, parameter=f"{conv_of[module]}.bias"))
        trace = tuple(
            TracePoint(point.name, conv_of.get(point.module, point.module))
            for point in plan.table.trace
            if point.module not in norm_of
        )
        return replace(plan, table=replace(plan.table, rules=tuple(rules), trace=trace))

    def silent(self, plan: Plan) -> frozenset[str]:
        """Activations of the reference that the emitted network does not show: those before a folded batch norm."""
        shown = {point.name for point in self.plan(plan).table.points}
        return frozenset(point.name for point in plan.table.points if point.name not in shown)

    def sources(self, plan: Plan) -> dict[str, tuple[Rule, ...]]:
        """Each emitted parameter, and the rules of the plain plan that it is made of: what is named first."""
        own = {rule.parameter: rule for rule in plan.table.rules}
        result: dict[str, tuple[Rule, ...]] = {}
        norm_of = folding.norms(plan.arch) if self.folded else {}
        for rule in self.plan(plan).table.rules:
            conv = rule.parameter.rpartition(".")[0]
            names = [rule.parameter]
            if conv in norm_of:
                names = [f"{conv}.weight", *(f"{norm_of[conv]}.{one}" for one in folding.LEAVES)]
            result[rule.parameter] = tuple(own[name] for name in names if name in own)
        return result

    def network(self, plan: Plan, state: Mapping[str, Tensor], output_stride: int = 32) -> nn.Module:
        """This project's network in this form with a state dict's tensors, strictly; stored types become float32."""

        def create() -> nn.Module:
            return untrained(
                plan.arch, plan.classes, plan.chain, output_stride=output_stride, folded=self.folded, bn_eps=self.bn_eps
            )

        return load_network(create, {name: _widened(value) for name, value in state.items()})

    def arrays(self, state: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
        """A state dict as arrays: what has this form's type in float32 (no value changes), the rest as it is."""
        dtype = DTYPES[self.dtype]
        return {name: (value.float() if value.dtype is dtype else value).numpy() for name, value in state.items()}


PLAIN = Form()


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def short(epsilon: float) -> str:
    """An epsilon as people write it: 1e-5."""
    return np.format_float_scientific(epsilon, trim="-", exp_digits=1)


def form_of(state: Mapping[str, Tensor], bn_eps: float, folded: bool) -> Form:
    """The form of a file: its type is the one that all of its weights have, else float32."""
    types = {value.dtype for value in state.values() if value.is_floating_point()}
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtype = names.get(next(iter(types)), "float32") if len(types) == 1 else "float32"
    return Form(folded, dtype, BATCH_NORM_EPSILON if folded else bn_eps)
