"""Plans: every variable's fate, and every way in which a source can fail to be the network that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting import rules
from porting.errors import ErrorKind, PortingError
from porting.plan import Contents, Options, Plan, Unread, build_plan, fitting_archs, nearest_arch
from porting.rules import Shape
from porting.sources.base import TensorSpec
from tests.golden_files import ARCHS, stored_classes, variable_shapes

ALIGNED = ARCHS[1:]
FILE = "model.ckpt"
SHADOW = "/ExponentialMovingAverage"
LAST_NORM = "xception_41/exit_flow/block2/unit_1/xception_module/separable_conv3_pointwise/BatchNorm"


def of(shapes: Mapping[str, Shape], dtypes: Mapping[str, str] | None = None) -> Contents:
    dtypes = dtypes or {}
    return Contents(
        FILE, {name: TensorSpec(name, dtypes.get(name, "float32"), shape) for name, shape in shapes.items()}
    )


def head_of(arch: str) -> tuple[str, str]:
    """The last two variables of the original implementation: weights and biases of the classifier."""
    weights, biases = list(variable_shapes(arch))[-2:]
    return weights, biases


def with_classes(arch: str, classes: int) -> dict[str, Shape]:
    shapes = variable_shapes(arch)
    weights, biases = head_of(arch)
    return {**shapes, weights: (*shapes[weights][:-1], classes), biases: (classes,)}


def headless(arch: str) -> dict[str, Shape]:
    return dict(list(variable_shapes(arch).items())[:-2])


def trained(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The variables that an optimizer updates, and TensorFlow averages."""
    return {name: shape for name, shape in shapes.items() if "/moving_" not in name}


def refusal(contents: Contents, arch: str, options: Options = Options()) -> PortingError:  # noqa: B008 - frozen
    with pytest.raises(PortingError) as raised:
        build_plan(contents, arch, options)
    assert raised.value.kind is ErrorKind.MISMATCH
    assert raised.value.file == FILE
    assert raised.value.defects
    assert raised.value.remedy
    return raised.value


def reasons(plan: Plan) -> dict[str, str]:
    return {item.name: item.reason for item in plan.unread}


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
    assert not build_plan(of(shapes, dict.fromkeys(shapes, dtype)), "xception41", Options()).rounded


def test_one_float64_variable_is_rounded() -> None:
    name = f"{LAST_NORM}/gamma"
    assert build_plan(of(variable_shapes("xception41"), {name: "float64"}), "xception41", Options()).rounded


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


def averaged(arch: str) -> dict[str, Shape]:
    """As tf.train.ExponentialMovingAverage leaves a checkpoint: shadows of what is trained, statistics plain."""
    shapes = variable_shapes(arch)
    return shapes | {name + SHADOW: shape for name, shape in trained(shapes).items()}


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


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_every_defect_is_listed_at_once(arch: str) -> None:
    shapes = variable_shapes(arch)
    first, second, third, fourth = list(shapes)[:20:5]
    changed = {name: shape for name, shape in shapes.items() if name != first}
    changed |= {second: (*shapes[second], 7), "someone/elses/variable": (4, 5)}
    error = refusal(of(changed, {third: "int32", fourth: "string"}), arch)
    found = {defect.subject: (defect.expected, defect.found) for defect in error.defects}
    assert found == {
        first: (f"shape {list(shapes[first])}", "no such variable"),
        second: (f"shape {list(shapes[second])}", f"shape {[*shapes[second], 7]}"),
        third: ("a floating-point type", "int32"),
        fourth: ("a floating-point type", "string"),
        "someone/elses/variable": ("", f"a variable that {arch} does not have, of shape [4, 5]"),
    }
    assert str(error).splitlines()[0] == f"{FILE}: mismatch: 5 defects"
    assert all(name in str(error) for name in found)
    assert f"{arch} is the nearest" in error.remedy


def test_a_transposed_kernel_is_a_wrong_shape() -> None:
    name = "xception_41/entry_flow/conv1_1/weights"
    error = refusal(of({**variable_shapes("xception41"), name: (32, 3, 3, 3)}), "xception41")
    assert [defect.subject for defect in error.defects] == [name]


def test_names_in_errors_are_the_sources_own() -> None:
    shapes = variable_shapes("xception")
    contents = replace(of(shapes), own_names={"block2_sepconv1_bn/gamma": "layers/batch_normalization_2/vars/0"})
    contents = replace(contents, specs={n: s for n, s in contents.specs.items() if n != "block2_sepconv1_bn/gamma"})
    assert refusal(contents, "xception").defects[0].subject == "layers/batch_normalization_2/vars/0"


@pytest.mark.parametrize(("arch", "asked"), [(a, b) for a in ARCHS for b in ARCHS if a != b])
def test_a_wrong_arch_says_which_fits(arch: str, asked: str) -> None:
    error = refusal(of(variable_shapes(arch)), asked)
    assert str(error) == f"{FILE}: mismatch: network: expected {asked}, found {arch}\nUse --arch {arch}."


@pytest.mark.parametrize("asked", ["xception65", "xception71", "xception"])
def test_a_wrong_arch_without_a_head_says_both(asked: str) -> None:
    error = refusal(of(headless("xception41")), asked)
    assert "network: expected" in str(error)
    assert "--arch xception41 --backbone-only" in error.remedy


def test_a_wrong_arch_of_a_damaged_source_names_the_nearest() -> None:
    shapes = {
        name: shape for name, shape in variable_shapes("xception71").items() if not name.endswith("conv1_1/weights")
    }
    error = refusal(of(shapes), "xception65")
    assert "the nearest is --arch xception71, with 1 defects" in error.remedy


@pytest.mark.parametrize("arch", ARCHS)
def test_a_missing_head_names_the_flag(arch: str) -> None:
    contents = replace(of(headless(arch)), head_layers=("pool (GlobalMaxPooling2D)", "top (Dense)"))
    error = refusal(contents, arch)
    assert [defect.subject for defect in error.defects] == ["head"]
    assert "pool (GlobalMaxPooling2D); top (Dense)" in str(error)
    assert head_of(arch)[0] in str(error)
    assert "--backbone-only" in error.remedy


def test_a_head_that_is_not_one_dense_layer_is_explained_and_named() -> None:
    shapes = headless("xception") | {"hidden/kernel": (2048, 64), "out/kernel": (64, 5)}
    contents = replace(
        of(shapes),
        outside={"hidden/kernel": "hidden", "out/kernel": "out"},
        head_layers=("hidden (Dense)", "out (Dense)"),
        head_problem="two of them",
    )
    error = refusal(contents, "xception")
    assert str(error.defects[0]) == "head: two of them (hidden (Dense); out (Dense))"
    assert "--backbone-only" in error.remedy
    plan = build_plan(contents, "xception", Options(backbone_only=True))
    assert reasons(plan) == {
        "hidden/kernel": "outside the backbone (hidden), left out by --backbone-only",
        "out/kernel": "outside the backbone (out), left out by --backbone-only",
    }


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("fault", ["no biases", "fewer biases", "no classes", "a vector", "integers"])
def test_a_damaged_head_names_what_is_wrong_and_the_flag(arch: str, fault: str) -> None:
    shapes, dtypes = variable_shapes(arch), {}
    weights, biases = head_of(arch)
    if fault == "no biases":
        del shapes[biases]
    elif fault == "fewer biases":
        shapes[biases] = (stored_classes(arch) - 1,)
    elif fault == "no classes":
        shapes |= {weights: (*shapes[weights][:-1], 0), biases: (0,)}
    elif fault == "a vector":
        shapes[weights] = (2048,)
    else:
        dtypes = {weights: "int8"}
    error = refusal(of(shapes, dtypes), arch)
    assert weights in str(error) or biases in str(error)
    assert "--backbone-only" in error.remedy


# --- totality, both ways ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_damaged_source_has_a_plan_and_every_damage_is_named(data: st.DataObject) -> None:
    arch = data.draw(st.sampled_from(ARCHS))
    shapes = variable_shapes(arch)
    backbone = list(headless(arch))
    victims = data.draw(st.lists(st.sampled_from(backbone), min_size=1, max_size=6, unique=True))
    changed, dtypes, named = dict(shapes), {}, set(victims)
    for victim in victims:
        damage = data.draw(st.sampled_from(["drop", "rename", "reshape", "retype"]))
        if damage == "reshape":
            shape = shapes[victim]
            axis = data.draw(st.integers(0, len(shape) - 1))
            sides = {0, 1, shape[axis] + 1, shape[axis] * 2} - {shape[axis]}
            wrong = data.draw(st.sampled_from(sorted(sides)))
            changed[victim] = (*shape[:axis], wrong, *shape[axis + 1 :])
        elif damage == "retype":
            dtypes[victim] = data.draw(st.sampled_from(["int64", "bool", "string", "complex64", "uint8"]))
        else:
            del changed[victim]
            if damage == "rename":
                renamed = victim + data.draw(st.sampled_from(["x", "_1", "/weights", SHADOW + "2"]))
                changed[renamed] = shapes[victim]
                named.add(renamed)
    options = Options(backbone_only=data.draw(st.booleans()), keep_background=data.draw(st.booleans()))
    error = refusal(of(changed, dtypes), arch, options)
    assert {defect.subject for defect in error.defects} == named


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
