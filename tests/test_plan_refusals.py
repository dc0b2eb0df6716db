"""Sources that have no plan: every defect is named, and the error says what else the source is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.plan import Options, build_plan
from tests.golden_files import ARCHS, stored_classes, variable_shapes
from tests.plan_contents import FILE, SHADOW, head_of, headless, of, reasons, refusal


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
        head_problems=("two of them",),
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
