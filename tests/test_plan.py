"""Plans: what fits, every variable's fate, and the reasons why some are left unread."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting import rules
from porting.plan import Options, Plan, Unread, build_plan, fitting_archs, nearest_arch
from porting.rules import Shape
from tests.golden_files import ARCHS, variable_shapes
from tests.plan_contents import (
    ALIGNED,
    LAST_NORM,
    SHADOW,
    averaged,
    head_of,
    headless,
    of,
    reasons,
    refusal,
    trained,
    with_classes,
)


def skips(plan: Plan) -> set[int]:
    return {rule.skip for rule in plan.table.rules[-2:]}


# --- what fits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_every_network_fits_itself_and_no_other(arch: str) -> None:
    contents = of(variable_shapes(arch))
    plan = build_plan(contents, arch, Options())
    assert plan.arch == arch
    assert {rule.variable for rule in plan.table.rules} == set(variable_shapes(arch))
    assert plan.unread == ()
    assert plan.notes == ()
    assert fitting_archs(contents, Options()) == (arch,)
    assert nearest_arch(contents, Options()) == (arch, [])


@pytest.mark.parametrize("arch", ALIGNED)
def test_the_background_row_is_dropped(arch: str) -> None:
    plan = build_plan(of(variable_shapes(arch)), arch, Options())
    assert (plan.classes, skips(plan)) == (1000, {1})
    assert {rule.skip for rule in plan.table.rules[:-2]} == {0}


@pytest.mark.parametrize("arch", ALIGNED)
def test_the_background_row_is_kept_when_asked(arch: str) -> None:
    plan = build_plan(of(variable_shapes(arch)), arch, Options(keep_background=True))
    assert (plan.classes, skips(plan)) == (1001, {0})


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [1, 2, 10, 1000, 1002])
def test_other_class_counts_keep_every_class(arch: str, classes: int) -> None:
    plan = build_plan(of(with_classes(arch, classes)), arch, Options())
    assert (plan.classes, skips(plan)) == (classes, {0})


def test_keras_never_had_a_background_class() -> None:
    plan = build_plan(of(with_classes("xception", 1001)), "xception", Options())
    assert (plan.classes, skips(plan)) == (1001, {0})


@pytest.mark.parametrize("arch", ARCHS)
def test_a_backbone_is_ported_with_and_without_a_head_in_the_file(arch: str) -> None:
    options = Options(backbone_only=True)
    plan = build_plan(of(variable_shapes(arch)), arch, options)
    assert plan.classes == 0
    assert plan.table.logits is None
    assert {rule.variable for rule in plan.table.rules} == set(headless(arch))
    assert reasons(plan) == dict.fromkeys(head_of(arch), "classifier, left out by --backbone-only")
    assert build_plan(of(headless(arch)), arch, options).unread == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_types_that_float32_holds_are_not_rounded(dtype: str) -> None:
    shapes = variable_shapes("xception41")
    assert not build_plan(of(shapes, dict.fromkeys(shapes, dtype)), "xception41", Options()).notes


def test_one_float64_variable_is_rounded() -> None:
    name = f"{LAST_NORM}/gamma"
    notes = build_plan(of(variable_shapes("xception41"), {name: "float64"}), "xception41", Options()).notes
    assert notes == ("1 float64 variables are rounded to float32; the proof holds the rounded ones.",)


# --- what is left unread, and why -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ALIGNED)
def test_slots_and_counters_are_unread_with_reasons(arch: str) -> None:
    shapes = variable_shapes(arch)
    slots = {f"{name}/{slot}": shape for name, shape in trained(shapes).items() for slot in ("RMSProp", "Adam_1")}
    counters: dict[str, Shape] = {"global_step": (), "beta1_power": (), "beta2_power": ()}
    contents = of(shapes | slots | counters, {"global_step": "int64"})
    plan = build_plan(contents, arch, Options())
    expected = {name: f"optimizer slot ({name.rpartition('/')[2]})" for name in slots}
    expected |= {"global_step": "training step counter"}
    expected |= dict.fromkeys(("beta1_power", "beta2_power"), "optimizer state (Adam)")
    assert reasons(plan) == expected
    assert [item.name for item in plan.unread] == sorted(expected)


@pytest.mark.parametrize("arch", ALIGNED)
def test_slots_of_the_left_out_classifier_are_explained(arch: str) -> None:
    slot = f"{head_of(arch)[0]}/Momentum"
    plan = build_plan(of({**variable_shapes(arch), slot: (1, 1, 2048, 1001)}), arch, Options(backbone_only=True))
    assert reasons(plan)[slot] == "optimizer slot (Momentum)"


@pytest.mark.parametrize(
    "extra",
    [
        "decoder/conv/weights/Momentum",  # a slot, but of nothing that is ported
        f"{LAST_NORM}/gamma/Momentun",  # no optimizer's slot
        f"{LAST_NORM}/Momentum",  # a slot of a scope
        "decoder/conv/weights",
        "decoder/conv/weights" + SHADOW,
        "model/global_step",
    ],
)
def test_a_variable_that_no_reason_covers_is_a_defect(extra: str) -> None:
    error = refusal(of({**variable_shapes("xception41"), extra: (3,)}), "xception41")
    assert [defect.subject for defect in error.defects] == [extra]
    assert error.defects[0].found == "a variable that xception41 does not have, of shape [3]"


def test_what_the_container_explains_is_passed_on() -> None:
    contents = replace(of(variable_shapes("xception")), unread=(Unread("optimizer/iteration", "optimizer state"),))
    assert reasons(build_plan(contents, "xception", Options())) == {"optimizer/iteration": "optimizer state"}


# --- ExponentialMovingAverage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ALIGNED)
def test_shadows_are_left_and_spoken_of(arch: str) -> None:
    contents = of(averaged(arch))
    plan = build_plan(contents, arch, Options())
    shadows = len(contents.specs) - len(variable_shapes(arch))
    assert not any(rule.variable.endswith(SHADOW) for rule in plan.table.rules)
    assert len(plan.unread) == shadows
    assert set(reasons(plan).values()) == {"ExponentialMovingAverage shadow; the plain variable is ported"}
    assert len(plan.notes) == 1
    assert plan.notes[0].startswith(f"{shadows} ExponentialMovingAverage shadows")
    assert "--ema" in plan.notes[0]


@pytest.mark.parametrize("arch", ALIGNED)
def test_ema_takes_the_shadows_and_plain_statistics(arch: str) -> None:
    plan = build_plan(of(averaged(arch)), arch, Options(ema=True))
    plain = build_plan(of(averaged(arch)), arch, Options())
    for taken, rule in zip(plan.table.rules, plain.table.rules, strict=True):
        statistic = "/moving_" in rule.variable
        assert taken == replace(rule, variable=rule.variable if statistic else rule.variable + SHADOW)
    assert reasons(plan) == dict.fromkeys(
        trained(variable_shapes(arch)), "--ema takes its ExponentialMovingAverage shadow"
    )
    assert plan.notes == ()


def test_ema_takes_shadows_of_statistics_where_they_exist() -> None:
    name = f"{LAST_NORM}/moving_mean"
    plan = build_plan(of({**averaged("xception41"), name + SHADOW: (2048,)}), "xception41", Options(ema=True))
    assert name + SHADOW in {rule.variable for rule in plan.table.rules}
    assert name in reasons(plan)


@pytest.mark.parametrize("leaf", ["gamma", "beta"])
def test_a_missing_shadow_of_a_trained_variable_is_a_defect(leaf: str) -> None:
    missing = f"{LAST_NORM}/{leaf}{SHADOW}"
    shapes = {name: shape for name, shape in averaged("xception41").items() if name != missing}
    build_plan(of(shapes), "xception41", Options())  # the plain variables are whole
    error = refusal(of(shapes), "xception41", Options(ema=True))
    assert missing in [defect.subject for defect in error.defects]
    assert "no such variable" in str(error)


def test_a_missing_shadow_of_the_classifier_is_named() -> None:
    missing = head_of("xception41")[0] + SHADOW
    shapes = {name: shape for name, shape in averaged("xception41").items() if name != missing}
    error = refusal(of(shapes), "xception41", Options(ema=True))
    assert missing in [defect.subject for defect in error.defects]


def test_ema_without_shadows_is_refused() -> None:
    error = refusal(of(variable_shapes("xception41")), "xception41", Options(ema=True))
    assert error.defects[0].subject == "--ema"
    assert "Leave --ema out" in error.remedy


def test_shadows_of_the_left_out_classifier_are_not_said_to_be_ported() -> None:
    weights, biases = head_of("xception41")
    for ema in (False, True):
        plan = build_plan(of(averaged("xception41")), "xception41", Options(ema=ema, backbone_only=True))
        found = reasons(plan)
        for name in (weights, biases, weights + SHADOW, biases + SHADOW):
            assert found[name] == "classifier, left out by --backbone-only"


# --- totality ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_plan_gives_every_variable_one_fate(data: st.DataObject) -> None:
    arch = data.draw(st.sampled_from(ALIGNED))
    shapes = variable_shapes(arch)
    extras = data.draw(st.lists(st.sampled_from(list(trained(shapes))), max_size=40, unique=True))
    suffixes = data.draw(st.sampled_from(["/Momentum", "/Adam", SHADOW]))
    contents = of(shapes | {name + suffixes: shapes[name] for name in extras})
    options = Options(backbone_only=data.draw(st.booleans()), keep_background=data.draw(st.booleans()))
    plan = build_plan(contents, arch, options)
    mapped = [rule.variable for rule in plan.table.rules]
    unread = [item.name for item in plan.unread]
    assert sorted(mapped + unread) == sorted(contents.specs)
    assert all(item.reason for item in plan.unread)
    assert len({rule.parameter for rule in plan.table.rules}) == len(mapped)


def test_the_rules_are_the_only_networks() -> None:
    assert rules.ARCHS == ARCHS
