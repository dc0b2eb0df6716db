"""Settings in a Keras graph that compute something else than keras.applications' Xception: refused before any data."""

from __future__ import annotations

import pytest

from porting.errors import ErrorKind, PortingError
from porting.keras_graph import Layer, read_graph
from porting.keras_model import KerasModel, find_xception
from tests.keras_configurations import Config, xception


def found(config: Config) -> KerasModel:
    def statistics(asked: Layer) -> None:
        return None

    model = find_xception("model.keras", read_graph("model.keras", config), statistics)
    assert model is not None
    return model


def test_another_epsilon_is_a_mismatch() -> None:
    with pytest.raises(PortingError) as raised:
        found(xception(norm={"epsilon": 1e-5}))
    assert raised.value.kind is ErrorKind.MISMATCH
    assert len(raised.value.defects) == 40
    assert "block1_conv1_bn: expected epsilon 0.001, found epsilon 1e-05" in str(raised.value)


def test_one_other_epsilon_is_named() -> None:
    config = xception()
    norm = next(item for item in config["config"]["layers"] if item["name"] == "batch_normalization_2")
    norm["config"]["epsilon"] = 1.1e-3
    with pytest.raises(PortingError) as raised:
        found(config)
    assert [defect.subject for defect in raised.value.defects] == ["batch_normalization_2"]


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("block1_conv1", "strides", [1, 1]),
        ("block1_conv2", "strides", 2),
        ("block1_conv1", "padding", "same"),
        ("block5_sepconv2", "padding", "valid"),
        ("block5_sepconv2", "dilation_rate", [2, 2]),
        ("block5_sepconv2", "activation", "relu"),
        ("block3_pool", "pool_size", [2, 2]),
        ("block3_pool", "padding", "valid"),
        ("block6_sepconv1_act", "activation", {"class_name": "function", "config": "relu6"}),
        ("conv2d_1", "strides", [1, 1]),
        ("conv2d_1", "use_bias", True),
    ],
)
def test_a_setting_that_computes_something_else_is_a_mismatch(path: str, name: str, value: object) -> None:
    config = xception()
    changed = next(item for item in config["config"]["layers"] if item["name"] == path)
    changed["config"][name] = value
    with pytest.raises(PortingError, match=f"{path}: expected {name} "):
        found(config)


def test_settings_as_keras_writes_them_pass() -> None:
    config = xception()
    for item in config["config"]["layers"]:
        if item["class_name"] == "MaxPooling2D":
            item["config"] |= {
                "pool_size": [3, 3],
                "strides": [2, 2],
                "padding": "same",
                "data_format": "channels_last",
            }
        if item["class_name"] == "Activation":
            item["config"]["activation"] = {"class_name": "function", "config": "relu"}
    assert found(config) is not None


def test_channels_first_is_a_mismatch() -> None:
    config = xception()
    config["config"]["layers"][1]["config"]["data_format"] = "channels_first"
    with pytest.raises(
        PortingError, match="block1_conv1: expected data_format channels_last, found data_format channels_first"
    ):
        found(config)
