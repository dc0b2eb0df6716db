"""The Xception inside a Keras graph: where its layers are, what feeds it, and what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from porting.errors import ErrorKind, PortingError
from porting.keras_graph import Graph, Layer, read_graph
from porting.keras_model import InputChain, KerasModel, find_xception
from tests.golden_files import golden
from tests.keras_configurations import Builder, Config, add_xception, input_layer, layer, nested_xception, xception

FILE = "model.keras"
POOL = layer("GlobalAveragePooling2D", "avg_pool")
Moments = Sequence[Sequence[float]] | None


def found(config: Config, moments: Moments = None) -> KerasModel:
    def statistics(asked: Layer) -> Moments:
        return moments

    model = find_xception(FILE, read_graph(FILE, config), statistics)
    assert model is not None
    return model


# --- where its layers are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keras", [2, 3])
@pytest.mark.parametrize("shift", [0, 1, 40])
@pytest.mark.parametrize("nested", [False, True])
def test_every_layer_has_its_vocabulary_name(keras: int, shift: int, nested: bool) -> None:
    config = nested_xception(keras, shift=shift) if nested else xception(keras, shift=shift)
    layers = found(config).layers
    backbone = {str(name) for name in golden("xception")["endpoint_names"]} - {"avg_pool", "predictions"}
    assert set(layers) == backbone
    holder = "xception/" if nested else ""
    assert layers["block5_sepconv2_bn"] == f"{holder}block5_sepconv2_bn"
    for name in ("conv2d", "batch_normalization", "add"):
        for index in range(4):
            vocabulary = f"{name}_{index}" if index else name
            shifted = f"{name}_{index + shift}" if index + shift else name
            assert layers[vocabulary] == holder + shifted
    assert layers["add_11"] == f"{holder}add_{11 + shift}"


def test_automatic_names_in_another_order_are_told_by_their_place() -> None:
    """A process that built the blocks' shortcuts in another order numbers them in another order."""
    config = xception()
    swapped = {"conv2d": "conv2d_3", "conv2d_3": "conv2d", "add_4": "add_5", "add_5": "add_4"}
    for item in config["config"]["layers"]:
        item["name"] = item["config"]["name"] = swapped.get(item["name"], item["name"])
        for tensor in [t for node in item["inbound_nodes"] for t in _flat(node["args"])]:
            history = tensor["config"]["keras_history"]
            history[0] = swapped.get(history[0], history[0])
    layers = found(config).layers
    assert (layers["conv2d"], layers["conv2d_3"]) == ("conv2d_3", "conv2d")
    assert (layers["add_4"], layers["add_5"]) == ("add_5", "add_4")
    assert layers["conv2d_1"] == "conv2d_1"


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, list):
        return [tensor for item in arguments for tensor in _flat(item)]
    return [arguments]


def test_another_model_is_not_an_xception() -> None:
    to = Builder()
    to.add(layer("Conv2D", "conv1"), to.add(input_layer("in")))
    graph = read_graph(FILE, to.model("m", ["in"], ["conv1"]))
    assert find_xception(FILE, graph, lambda _: None) is None


@pytest.mark.parametrize("gone", ["block14_sepconv2_act", "block7_sepconv2", "block4_pool", "conv2d_1", "add_6"])
def test_an_xception_that_lacks_a_layer_is_not_one(gone: str) -> None:
    graph: Graph = read_graph(FILE, xception())
    graph = {
        path: Layer(path, item.kind, item.config, tuple(i for i in item.inputs if i != gone), item.store)
        for path, item in graph.items()
        if path != gone
    }
    assert find_xception(FILE, graph, lambda _: None) is None


def test_two_xceptions_are_unsupported() -> None:
    to = Builder()
    start = to.add(input_layer())
    for name in ("left", "right"):
        inner = Builder()
        last = add_xception(inner, inner.add(input_layer("inside")))
        to.add(inner.model(name, ["inside"], [last]), start)
    to.add(layer("Concatenate", "both"), "left", "right")
    with pytest.raises(PortingError) as raised:
        found(to.model("m", ["input_layer"], ["both"]))
    assert raised.value.kind is ErrorKind.UNSUPPORTED
    assert "left/block1_conv1, right/block1_conv1" in str(raised.value)


# --- what comes before it ---------------------------------------------------------------------------------------------


def normalization(name: str = "norm", **config: Any) -> Config:
    return layer("Normalization", name, **{"axis": [-1], "mean": None, "variance": None, **config})


def affine(*before: Config, moments: Moments = None) -> InputChain:
    return found(xception(before=before), moments).inputs


def applied(chain: InputChain, pixels: np.ndarray) -> np.ndarray:
    assert chain.affine is not None
    scale, offset = chain.affine
    return np.asarray(pixels * np.asarray(scale) + np.asarray(offset))


PIXELS = np.random.default_rng(3).uniform(0, 255, (4, 5, 3))
MEAN, VARIANCE = [194.11, 138.98, 143.80], [1288.3, 1515.5, 1880.3]


def test_pixels_as_they_are() -> None:
    assert affine() == InputChain((299, 299), None, (), ())


@pytest.mark.parametrize(("scale", "offset"), [(1 / 127.5, -1.0), (1 / 255, 0.0), ([2.0, 3.0, 4.0], [1.0, 0.0, -1.0])])
def test_rescaling(scale: Any, offset: Any) -> None:
    chain = affine(layer("Rescaling", "scale", scale=scale, offset=offset))
    np.testing.assert_allclose(applied(chain, PIXELS), PIXELS * np.array(scale) + np.array(offset), rtol=1e-14)
    assert chain.layers == ("scale (Rescaling)",)
    assert chain.unknown == ()


def test_rescaling_without_an_offset() -> None:
    np.testing.assert_allclose(applied(affine(layer("Rescaling", "s", scale=0.5)), PIXELS), PIXELS / 2, rtol=1e-15)


@pytest.mark.parametrize("form", ["configuration", "nested configuration", "variables"])
def test_normalization(form: str) -> None:
    if form == "variables":
        chain = affine(normalization(), moments=(MEAN, VARIANCE))
    else:
        mean: Any = [[[MEAN]]] if form.startswith("nested") else MEAN
        chain = affine(normalization(), moments=(mean, VARIANCE))
    expected = (PIXELS - np.array(MEAN)) / np.sqrt(VARIANCE)
    np.testing.assert_allclose(applied(chain, PIXELS), expected, rtol=0, atol=1e-12)


def test_a_constant_channel_is_divided_by_keras_epsilon() -> None:
    """Keras divides by max(sqrt(variance), epsilon()), epsilon() being 1e-7."""
    chain = affine(normalization(), moments=(MEAN, [0.0, 1.0, 4.0]))
    assert chain.affine is not None
    assert chain.affine[0] == pytest.approx((1e7, 1.0, 0.5))


def test_several_layers_are_composed_in_their_order() -> None:
    layers = [
        layer("Rescaling", "first", scale=1 / 255),
        layer("RandomFlip", "flip"),
        normalization(),
        layer("Rescaling", "last", scale=2.0, offset=-0.25),
    ]
    mean, variance = [0.485, 0.456, 0.406], [0.05, 0.06, 0.07]
    chain = affine(*layers, moments=(mean, variance))
    expected = 2 * (PIXELS / 255 - mean) / np.sqrt(variance) - 0.25
    np.testing.assert_allclose(applied(chain, PIXELS), expected, rtol=0, atol=1e-12)
    assert chain.layers == ("first (Rescaling)", "flip (RandomFlip)", "norm (Normalization)", "last (Rescaling)")
    swapped = affine(layers[2], layers[0], moments=(mean, variance))
    assert not np.allclose(
        applied(swapped, PIXELS), applied(affine(layers[0], layers[2], moments=(mean, variance)), PIXELS)
    )


@pytest.mark.parametrize("before", [normalization(), normalization(invert=True), layer("Lambda", "code")])
def test_what_is_not_understood_is_said(before: Config) -> None:
    moments = (MEAN, VARIANCE) if before["config"].get("invert") else None
    chain = affine(before, moments=moments)
    assert chain.affine is None
    assert chain.unknown == (f"{before['name']} ({before['class_name']})",)


@pytest.mark.parametrize(("values", "fault"), [([1.0, 2.0], ValueError), ("text", ValueError), (None, TypeError)])
def test_an_impossible_scale_is_an_error(values: Any, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        affine(layer("Rescaling", "scale", scale=values))


def test_a_layer_before_a_nested_model_counts() -> None:
    chain = found(nested_xception(before=[layer("Rescaling", "scale", scale=3.0)])).inputs
    assert chain.affine == ((3.0,) * 3, (0.0,) * 3)
    assert chain.size == (299, 299)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((299, 299, 3), (299, 299)), ((254, 300, 3), (254, 300)), ((None, None, 3), None), ((None, 299, 3), None)],
)
def test_the_input_size(size: tuple[int | None, ...], expected: tuple[int, int] | None) -> None:
    assert found(xception(size=size)).inputs.size == expected


def test_the_input_size_as_keras_2_writes_it() -> None:
    config = xception(2)
    first = config["config"]["layers"][0]["config"]
    first["batch_input_shape"] = first.pop("batch_shape")
    assert found(config).inputs.size == (299, 299)


def test_moments_are_per_channel() -> None:
    chain = affine(normalization(), moments=([[5.0]], [[4.0]]))
    assert chain.affine == ((0.5,) * 3, (-2.5,) * 3)
