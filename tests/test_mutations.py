"""The verifier cannot be fooled: a few mutants here, 2,000 in CI, all of them by `python -m tests.mutations --all`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from porting.bitwise import Fault
from porting.reference import Reference
from tests.mutations import __main__ as command
from tests.mutations import examine as examining
from tests.mutations.case import Case, make_case
from tests.mutations.examine import examine
from tests.mutations.networks import NetworkMutant, network_mutants
from tests.mutations.weights import WeightMutant, weight_mutants

COUNT = 25  # a network; `.ci/run` tries 2,000 in all


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def case(synthetic_source: Callable[[str], Path], _kept_reference: Reference) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def of(arch: str) -> Case:
        if arch not in made:
            made[arch] = make_case(arch, synthetic_source(arch), _kept_reference)
        return made[arch]

    return of


@pytest.mark.parametrize("arch", [pytest.param("xception", marks=pytest.mark.slow), "xception41"])
def test_mutants_are_caught_and_named_at_the_right_layer(case: Callable[[str], Case], arch: str) -> None:
    outcomes = [examine(case(arch), mutant) for mutant in command.sample(case(arch), COUNT, seed=1)]
    assert [outcome for outcome in outcomes if not outcome.caught] == []
    assert [outcome for outcome in outcomes if not outcome.named] == []
    assert sum(bool(outcome.equivalent) for outcome in outcomes) < COUNT / 4


def test_the_catalogue_has_every_kind_of_fault(case: Callable[[str], Case]) -> None:
    kinds = set()
    for arch in ("xception", "xception41"):
        mutants: list[WeightMutant | NetworkMutant] = [*weight_mutants(case(arch)), *network_mutants(case(arch))]
        assert len(mutants) > 3000
        assert len({str(mutant) for mutant in mutants}) == len(mutants)
        kinds |= {mutant.kind for mutant in mutants}
    for words in (
        "zeroed", "negated", "scaled", "one element", "float16", "flipped", "transposed", "role-swapped",
        "exchanged with", "shifted by one output", "epsilon", "padding before", "pool padded symmetrically", "stride",
        "dilation", "ReLU missing", "ReLU too many", "ReLU moved", "shortcut after the ReLU", "background kept",
    ):  # fmt: skip
        assert any(words in kind for kind in kinds), words


def test_a_mutant_leaves_no_trace(case: Callable[[str], Case]) -> None:
    """Parts are shared: what one mutant leaves behind would be blamed on the next."""
    for run in case("xception41").runs:
        for part in case("xception41").parts[run.output_stride]:
            assert case("xception41").trace(part, run).passed
    hooks = [module for module in case("xception41").networks[32].modules() if module._forward_hooks]
    assert hooks == []


def test_a_verifier_that_sees_nothing_is_seen(case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the comparison of layers, network faults escape; without the bits, so would dead weights."""
    monkeypatch.setattr(Case, "trace", lambda self, part, run, wrong_weights=(): _blind(self, part, run))
    epsilon = next(m for m in network_mutants(case("xception41")) if m.kind == "epsilon 1e-5")
    assert not examine(case("xception41"), epsilon).caught

    def nothing(*_: object) -> list[Fault]:
        return []

    monkeypatch.setattr(examining, "compare_weights", nothing)
    zeroed = next(m for m in weight_mutants(case("xception41")) if m.kind == "zeroed")
    assert not examine(case("xception41"), zeroed).caught


_trace = Case.trace


def _blind(case: Case, part: object, run: object) -> object:
    found = _trace(case, part, run)  # type: ignore[arg-type]
    assert isinstance(part.module, nn.Module)  # type: ignore[attr-defined]
    return type(found)(found.run, ())
