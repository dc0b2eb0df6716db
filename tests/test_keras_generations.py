"""Keras files without a graph: which variable is which, by the generation that wrote them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from porting.errors import PortingError
from porting.keras_names import KerasContents, keras_contents
from tests.golden_files import variable_shapes
from tests.keras_configurations import layer, nested_xception, xception
from tests.keras_stores import COUNTED, LEAVES, LEGACY, NORMS, POOL, TOP, Stored, Tensors, named, plan_is_total, stored


def bare(file: Stored, container: str, order: Iterable[str] = ()) -> KerasContents:
    shapes = {own: file.shapes[own] for own in order} or file.shapes
    return keras_contents(Tensors(container, shapes))


@pytest.mark.parametrize("container", [LEGACY, COUNTED])
@pytest.mark.parametrize("shift", [0, 1, 9])
@pytest.mark.parametrize("top", [False, True])
def test_weights_alone(container: str, shift: int, top: bool) -> None:
    file = stored(xception(after=[POOL, TOP] if top else [], shift=shift), container, shift)
    found = bare(file, container)
    assert named(found) == file.expected
    assert (found.model, found.store, found.nested) == (None, "", False)
    assert plan_is_total(found, backbone_only=not top)


@pytest.mark.parametrize("container", [LEGACY, COUNTED])
@pytest.mark.parametrize("shift", [0, 9])
def test_weights_alone_of_a_nested_network(container: str, shift: int) -> None:
    config = nested_xception(after=[POOL, layer("Dense", "top")], shift=shift)
    file = stored(config, container, shift, top="top")
    found = bare(file, container)
    assert named(found) == file.expected
    assert found.nested
    assert found.store == ("" if container == LEGACY else "layers/functional/")
    assert plan_is_total(found)


def test_weights_alone_with_another_head() -> None:
    file = stored(xception(after=[POOL, layer("Dense", "hidden"), TOP]), COUNTED)
    found = bare(file, COUNTED)
    assert found.contents.head_problems == ("not one dense layer",)
    assert found.contents.head_layers == ("layers/dense ([7, 7], [7, 7])", "layers/dense_1 ([2048, 1000], [1000])")
    assert plan_is_total(found, backbone_only=True)


def test_two_networks_in_one_weights_file_name_nothing() -> None:
    file = stored(nested_xception(), COUNTED)
    twice = file.shapes | {own.replace("functional/", "functional_1/"): shape for own, shape in file.shapes.items()}
    assert named(keras_contents(Tensors(COUNTED, twice))) == {}


def keras1() -> Stored:
    """The official file's 236 arrays: each class numbered from 1 in creation order, running_std the variance."""
    blocks = [f"block1_conv{n}" for n in (1, 2)]
    for block in range(2, 15):
        if block in (2, 3, 4, 13):
            index = (2, 3, 4, 13).index(block)
            blocks.append(f"conv2d_{index}" if index else "conv2d")
        blocks += [f"block{block}_sepconv{n}" for n in range(1, 3 if block in (2, 3, 4, 13, 14) else 4)]
    result, counts = Stored(), Counter[str]()
    leaves = {"moving_mean": "running_mean", "moving_variance": "running_std", "kernel": "W"}

    def place(kind: str, layer_name: str, names: Iterable[str]) -> None:
        counts[kind] += 1
        own = f"{kind}_{counts[kind]}"
        for leaf in names:
            result.expected[f"{layer_name}/{leaf}"] = f"{own}/{own}_{leaves.get(leaf, leaf)}"

    for name in blocks:
        separable = "sepconv" in name
        kind = "separableconvolution2d" if separable else "convolution2d"
        place(kind, name, LEAVES["SeparableConv2D"] if separable else ("kernel",))
        norm = name.replace("conv2d", "batch_normalization") if name.startswith("conv2d") else f"{name}_bn"
        place("batchnormalization", norm, NORMS)
    result.expected |= {"predictions/kernel": "dense_2/dense_2_W", "predictions/bias": "dense_2/dense_2_b"}
    shapes = variable_shapes("xception")
    result.shapes = {own: shapes[name] for name, own in result.expected.items()}
    return result


def test_keras_1() -> None:
    file = keras1()
    found = bare(file, LEGACY)
    assert len(file.expected) == 236
    assert named(found) == file.expected
    assert not found.nested
    assert plan_is_total(found)


def test_keras_1_does_not_depend_on_the_files_order() -> None:
    file = keras1()
    assert named(bare(file, LEGACY, sorted(file.shapes))) == file.expected


def test_keras_1_numbers_in_layer_order_would_not_fit() -> None:
    """Negative control: were the shortcut's batch norm counted after its block's own, shapes alone would not tell."""
    file = keras1()
    own = named(bare(file, LEGACY))
    assert own["batch_normalization/gamma"] == "batchnormalization_3/batchnormalization_3_gamma"
    assert own["block2_sepconv1_bn/gamma"] == "batchnormalization_4/batchnormalization_4_gamma"
    assert file.shapes[own["batch_normalization/gamma"]] == file.shapes[own["block2_sepconv1_bn/gamma"]]


@pytest.mark.parametrize("container", [LEGACY, COUNTED])
def test_an_incomplete_file_is_refused_with_its_own_names(container: str) -> None:
    file = stored(xception(after=[POOL, TOP]), container)
    gone = file.expected["block9_sepconv2_bn/beta"]
    del file.shapes[gone]
    with pytest.raises(PortingError) as raised:
        plan_is_total(bare(file, container))
    assert len(raised.value.defects) == 1
    assert "block9_sepconv2_bn/beta" in str(raised.value)
