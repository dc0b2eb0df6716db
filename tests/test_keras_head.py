"""What follows the Xception inside a Keras graph: one dense layer, a chain of layers, or what cannot be ported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from porting.keras_graph import read_graph
from porting.keras_head import HeadChain
from porting.keras_model import find_xception
from tests.keras_configurations import Builder, Config, add_xception, input_layer, layer, nested_xception, xception

POOL = layer("GlobalAveragePooling2D", "avg_pool")


def head_of(config: Config) -> HeadChain:
    model = find_xception("model.keras", read_graph("model.keras", config), lambda _: None)
    assert model is not None
    return model.head


def head(*layers: Config) -> HeadChain:
    return head_of(xception(after=layers))


def dense(name: str = "predictions", **config: Any) -> Config:
    return layer("Dense", name, **{"units": 10, "activation": "linear", "use_bias": True, **config})


@pytest.mark.parametrize(
    ("layers", "activation"),
    [
        ([POOL, dense()], ""),
        ([POOL, dense(activation="softmax")], "softmax"),
        ([POOL, dense(activation="sigmoid")], "sigmoid"),
        ([POOL, dense(activation={"class_name": "function", "config": "mine"})], "mine"),
        ([POOL, dense(), layer("Softmax", "soft")], "softmax"),
        ([POOL, dense(), layer("Activation", "soft", activation="softmax")], "softmax"),
        ([POOL, dense(), layer("Activation", "soft", activation="linear")], ""),
        ([POOL, layer("Dropout", "drop", rate=0.5), dense()], ""),
        ([layer("SpatialDropout2D", "drop"), POOL, layer("GaussianNoise", "noise"), dense()], ""),
        ([POOL, layer("Flatten", "flat"), dense(), layer("Dropout", "late")], ""),
    ],
)
def test_one_dense_layer_on_the_pooled_features(layers: list[Config], activation: str) -> None:
    listed = tuple(f"{item['name']} ({item['class_name']})" for item in layers)
    assert head(*layers) == HeadChain(listed, "predictions", activation)


def test_a_dense_layer_outside_the_model_that_pools() -> None:
    assert head_of(nested_xception(after=[dense("top")], pooling=True)).dense == "top"
    assert head_of(nested_xception(after=[POOL, dense("top")])).dense == "top"


def ops(*layers: Config) -> list[tuple[str, str, dict[str, Any], bool]]:
    """The chain that is found: kind, layer, settings, and whether a dense layer applies it itself."""
    chain = head(*layers)
    assert chain.problems == () and chain.dense == ""
    return [(op.kind, op.layer, dict(op.settings), op.fused) for op in chain.ops]


def test_a_chain_of_layers() -> None:
    layers = [
        POOL,
        dense("hidden", units=64, activation="relu"),
        layer("BatchNormalization", "bn", epsilon=1e-5, scale=False),
        layer("Dropout", "drop", rate=0.5),
        layer("GaussianNoise", "noise"),
        dense("out", use_bias=False),
        layer("Dropout", "late", rate=0.1),
        layer("Softmax", "soft"),
    ]
    assert ops(*layers) == [
        ("linear", "hidden", {"inputs": 2048, "outputs": 64, "bias": True}, False),
        ("relu", "hidden", {}, True),
        ("batch_norm", "bn", {"channels": 64, "eps": 1e-5, "scale": False, "center": True}, False),
        ("dropout", "drop", {"rate": 0.5}, False),
        ("linear", "out", {"inputs": 64, "outputs": 10, "bias": False}, False),
    ]
    assert head(*layers).activation == "softmax"


@pytest.mark.parametrize("layers", [[POOL, dense(use_bias=False)], [layer("GlobalMaxPooling2D", "gmp"), dense()]])
def test_one_dense_layer_of_another_kind_is_a_chain(layers: list[Config]) -> None:
    assert [kind for kind, *_ in ops(*layers)] == ["linear"]
    assert head(*layers).pooling == ("max" if layers[0]["name"] == "gmp" else "avg")


SLOPE = float(np.float32(0.3))  # TensorFlow holds it in float32


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (layer("Activation", "a", activation="swish"), ("silu", {})),
        (layer("Activation", "a", activation="elu"), ("elu", {"alpha": 1.0})),
        (layer("Activation", "a", activation="leaky_relu"), ("leaky_relu", {"slope": float(np.float32(0.2))})),
        (layer("LeakyReLU", "a", alpha=0.3), ("leaky_relu", {"slope": SLOPE})),  # Keras 2
        (layer("LeakyReLU", "a", negative_slope=0.3), ("leaky_relu", {"slope": SLOPE})),
        (layer("LeakyReLU", "a"), ("leaky_relu", {"slope": SLOPE})),
        (layer("ELU", "a", alpha=0.7), ("elu", {"alpha": 0.7})),
        (layer("ReLU", "a", max_value=None, negative_slope=0.0, threshold=0.0), ("relu", {})),
        (layer("ReLU", "a", max_value=6), ("relu6", {})),
        (layer("ReLU", "a", negative_slope=0.3), ("leaky_relu", {"slope": SLOPE})),
        (
            layer("Activation", "a", activation={"class_name": "ELU", "config": {"alpha": 0.5}}),
            ("elu", {"alpha": 0.5}),
        ),
    ],
)
def test_activations_and_their_settings(activation: Config, expected: tuple[str, dict[str, Any]]) -> None:
    kind, _, settings, _ = ops(POOL, activation, dense())[0]
    assert (kind, settings) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        dense("hidden", units="many"),
        dense("hidden", units=0),
        dense("hidden", units=None),
        layer("BatchNormalization", "bn", epsilon=0.0),
        layer("BatchNormalization", "bn", epsilon="small"),
        layer("Dropout", "drop", rate=1.5),
        layer("LeakyReLU", "leaky", negative_slope=float("nan")),
    ],
)
def test_an_impossible_setting_of_a_chain_is_an_error(wrong: Config) -> None:
    with pytest.raises((ValueError, TypeError)):
        head(POOL, wrong, dense("middle", activation="relu"), dense())


def test_every_layer_in_the_way_is_listed() -> None:
    layers = [POOL, layer("PReLU", "p"), dense("hidden"), layer("Lambda", "code"), dense("out")]
    assert [problem.split()[0] for problem in head(*layers).problems] == ["p", "code"]


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ([], "no dense layer"),
        ([POOL], "no dense layer"),
        ([POOL, dense(activation="softmax"), layer("Softmax", "again")], "predictions (Dense) applies softmax inside"),
        ([POOL, dense(activation="mine"), dense("out")], "predictions (Dense) applies mine inside"),
        ([POOL, layer("Activation", "a", activation="hard_sigmoid"), dense()], "a (Activation) applies hard_sigmoid"),
        ([POOL, layer("ReLU", "r", max_value=5.0), dense()], "r (ReLU) is a ReLU with a threshold or a limit"),
        ([POOL, layer("PReLU", "p"), dense()], "p (PReLU) is of a kind that is not ported"),
        ([POOL, layer("BatchNormalization", "bn", renorm=True), dense()], "bn (BatchNormalization) is set to renorm"),
        ([POOL, layer("BatchNormalization", "bn", axis=[0]), dense()], "bn (BatchNormalization) normalises over axis"),
        ([POOL, layer("BatchNormalization", "bn")], "no dense layer"),
        ([layer("GlobalMaxPooling2D", "gmp"), POOL, dense()], "avg_pool (GlobalAveragePooling2D) is of a kind"),
        ([dense()], "predictions (Dense) takes the map"),  # on every pixel
        ([layer("Flatten", "flat"), dense()], "flat (Flatten) takes the map"),
        ([layer("BatchNormalization", "bn"), POOL, dense()], "bn (BatchNormalization) takes the map"),
        ([layer("GlobalAveragePooling2D", "avg_pool", keepdims=True), dense()], "avg_pool (GlobalAverage"),
        ([POOL, layer("Lambda", "code"), dense()], "code (Lambda) is of a kind that is not ported"),
    ],
)
def test_any_other_head_is_a_problem(layers: list[Config], problem: str) -> None:
    chain = head(*layers)
    assert problem in chain.problems[0]
    assert (chain.dense, chain.ops) == ("", ())
    assert chain.layers == tuple(f"{item['name']} ({item['class_name']})" for item in layers)


def test_a_head_with_a_second_input_is_a_problem() -> None:
    to = Builder()
    image, other = to.add(input_layer("image")), to.add(input_layer("age", (1,)))
    pooled = to.add(POOL, add_xception(to, image))
    joined = to.add(layer("Concatenate", "join"), pooled, other)
    chain = head_of(to.model("m", ["image", "age"], [to.add(dense(), joined)]))
    assert chain.problems == ("join (Concatenate) has 2 inputs",)
    assert chain.layers == ("avg_pool (GlobalAveragePooling2D)", "join (Concatenate)", "predictions (Dense)")


def test_a_head_with_two_branches_is_a_problem() -> None:
    to = Builder()
    pooled = to.add(POOL, add_xception(to, to.add(input_layer())))
    outputs = [to.add(dense("left"), pooled), to.add(dense("right"), pooled)]
    chain = head_of(to.model("m", ["input_layer"], outputs))
    assert chain.problems == ("2 layers take the output of avg_pool",)
    assert set(chain.layers) == {"avg_pool (GlobalAveragePooling2D)", "left (Dense)", "right (Dense)"}
