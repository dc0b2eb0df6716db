"""Keras files that hold the model's graph, under the one vocabulary: the graph decides which variable is which."""

from __future__ import annotations

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.keras_names import is_keras, keras_contents
from tests.keras_configurations import Config, layer, nested_xception, xception
from tests.keras_stores import (
    COUNTED,
    LEGACY,
    POOL,
    TOP,
    ZIPPED,
    Tensors,
    contents,
    named,
    plan_is_total,
    stored,
)


def test_which_containers_are_keras() -> None:
    assert all(is_keras(Tensors(container, {})) for container in (LEGACY, COUNTED, ZIPPED))
    assert not is_keras(Tensors("tf-checkpoint-v2", {}))


@pytest.mark.parametrize("container", [LEGACY, ZIPPED])
@pytest.mark.parametrize("keras", [2, 3])
@pytest.mark.parametrize("shift", [0, 1, 17])
def test_a_graph_names_every_variable(container: str, keras: int, shift: int) -> None:
    config = xception(keras, after=[POOL, TOP], shift=shift)
    file = stored(config, container, shift)
    found = contents(file, container, config)
    assert named(found) == file.expected
    assert len(file.expected) == 236
    assert plan_is_total(found)
    assert found.model is not None
    assert found.model.head.activation == "softmax"


@pytest.mark.parametrize("container", [LEGACY, ZIPPED])
@pytest.mark.parametrize("shift", [0, 5])
@pytest.mark.parametrize("pooling", [False, True])
def test_a_graph_names_a_nested_network(container: str, shift: int, pooling: bool) -> None:
    after = [layer("Dense", "top", units=1000)]
    config = nested_xception(after=after if pooling else [POOL, *after], pooling=pooling, shift=shift)
    file = stored(config, container, shift, top="top")
    found = contents(file, container, config)
    assert named(found) == file.expected
    assert plan_is_total(found)
    own = named(found)["block1_conv1/kernel"]
    assert own == ("xception/block1_conv1/kernel" if container == LEGACY else "layers/functional/layers/conv2d/vars/0")


def test_where_keras_counts_the_shortcuts() -> None:
    """Measured with Keras 3.15: a shortcut's batch norm follows its block's own two."""
    config = xception(after=[POOL, TOP])
    own = named(contents(stored(config, ZIPPED), ZIPPED, config))
    assert [own[f"{name}/kernel"] for name in ("block1_conv1", "block1_conv2", "conv2d", "conv2d_1", "conv2d_3")] == [
        f"layers/{place}/vars/0" for place in ("conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "conv2d_5")
    ]
    shortcuts = ("", "_1", "_2", "_3")
    assert [own[f"batch_normalization{n}/moving_variance"] for n in shortcuts] == [
        f"layers/batch_normalization_{place}/vars/3" for place in (4, 7, 10, 37)
    ]


def test_a_batch_norm_without_scale_has_three_variables() -> None:
    config = xception(after=[POOL, TOP], norm={"scale": False})
    file = stored(config, ZIPPED)
    gone = [own for own in file.shapes if "batch_normalization" in own and own.endswith("/vars/3")]
    shapes = {own: shape for own, shape in file.shapes.items() if own not in gone}
    own = named(keras_contents(Tensors(ZIPPED, shapes, config)))
    assert "block2_sepconv1_bn/gamma" not in own
    assert own["block2_sepconv1_bn/beta"].endswith("/vars/0")
    assert own["block2_sepconv1_bn/moving_variance"].endswith("/vars/2")


@pytest.mark.parametrize("container", [LEGACY, ZIPPED])
def test_layers_outside_the_network_are_outside(container: str) -> None:
    after = [POOL, layer("Dense", "hidden"), layer("Lambda", "code"), layer("Dense", "out")]
    config = xception(after=after)
    file = stored(config, container)
    found = contents(file, container, config)
    outside = set(file.shapes) - set(file.expected.values())
    assert set(found.contents.outside) == outside
    assert set(found.contents.outside.values()) == {"hidden", "out"}
    assert found.contents.head_problems == ("code (Lambda) is of a kind that is not ported in a head",)
    assert plan_is_total(found, backbone_only=True)
    with pytest.raises(PortingError, match="--backbone-only"):
        plan_is_total(found)


def test_state_of_the_training_is_explained() -> None:
    config = xception(after=[POOL, layer("Dropout", "drop"), TOP])
    state = {
        "optimizer/vars/0": "optimizer state",
        "optimizer/vars/11": "optimizer state",
        "layers/functional/optimizer/vars/3": "optimizer state",
        "optimizer_weights/SGD/momentum": "optimizer state",
        "layers/dropout/seed_generator/vars/0": "random seed state",
        "metrics/accuracy/vars/0": "metric state",
    }
    found = contents(stored(config, ZIPPED), ZIPPED, config, **dict.fromkeys(state, (2,)))
    assert {item.name: item.reason for item in found.contents.unread} == state
    assert plan_is_total(found)


def test_a_variable_that_nobody_owns_is_a_defect() -> None:
    config = xception(after=[POOL, TOP])
    found = contents(stored(config, ZIPPED), ZIPPED, config, **{"layers/mystery/vars/0": (3,)})
    with pytest.raises(PortingError) as raised:
        plan_is_total(found)
    assert [defect.subject for defect in raised.value.defects] == ["layers/mystery/vars/0"]


@pytest.mark.parametrize("container", [LEGACY, ZIPPED])
def test_normalization_is_read_from_its_variables(container: str) -> None:
    config = xception(before=[layer("Normalization", "norm", mean=None, variance=None)], after=[POOL, TOP])
    file = stored(config, container)
    own = [name for name in file.shapes if name not in file.expected.values()]
    moments = [np.float32([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3), np.float32([4.0, 16.0, 64.0])]
    found = keras_contents(Tensors(container, file.shapes, config, dict(zip(own, moments, strict=False))))
    assert found.model is not None
    assert found.model.inputs.affine == ((0.5, 0.25, 0.125), (-0.5, -0.5, -0.375))
    assert {item.name for item in found.contents.unread} == set(own)
    assert plan_is_total(found)


def test_a_normalization_that_does_not_feed_the_network_is_outside() -> None:
    """A head may normalise a second input of its own; the manifest's preprocessing says nothing of that."""
    config = xception(after=[POOL, layer("Normalization", "late", mean=None, variance=None), TOP])
    found = contents(stored(config, ZIPPED), ZIPPED, config)
    assert set(found.contents.outside.values()) == {"late", "predictions"}
    assert found.contents.unread == ()


@pytest.mark.parametrize(
    "before", [layer("Rescaling", "s", scale=[1.0, 2.0]), layer("Rescaling", "s"), layer("Rescaling", "s", scale="x")]
)
def test_an_impossible_preprocessing_is_corrupt(before: Config) -> None:
    config = xception(before=[before])
    with pytest.raises(PortingError) as raised:
        contents(stored(config, ZIPPED), ZIPPED, config)
    assert raised.value.kind is ErrorKind.CORRUPT


def test_another_epsilon_in_the_graph_is_a_mismatch() -> None:
    config = xception(norm={"epsilon": 1e-5})
    with pytest.raises(PortingError) as raised:
        contents(stored(config, ZIPPED), ZIPPED, config)
    assert raised.value.kind is ErrorKind.MISMATCH


@pytest.mark.parametrize("container", [LEGACY, ZIPPED])
def test_a_graph_without_an_xception_names_nothing(container: str) -> None:
    config = xception()
    for item in config["config"]["layers"]:
        if item["name"] == "block9_sepconv1":
            item["config"]["name"] = item["name"] = "mine"
    config["config"]["layers"] = config["config"]["layers"][:20]
    config["config"]["output_layers"] = [[config["config"]["layers"][-1]["name"], 0, 0]]
    found = contents(stored(config, container), container, config)
    assert named(found) == {}
    with pytest.raises(PortingError, match="no such variable"):
        plan_is_total(found, backbone_only=True)
