"""Keras configurations read as data: both generations' forms, nesting, and forms that Keras does not write."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from porting.errors import ErrorKind, PortingError
from porting.keras_graph import MAX_DEPTH, Graph, read_graph, snake_case
from tests.keras_configurations import (
    Builder,
    Config,
    add_xception,
    input_layer,
    layer,
    nested_xception,
    sequential,
    xception,
)

FILE = "model.keras"


def inputs(graph: Graph) -> dict[str, tuple[str, ...]]:
    return {path: found.inputs for path, found in graph.items()}


def two_branches(keras: int) -> Config:
    to = Builder(keras)
    start = to.add(input_layer("in", (8, 8, 3)))
    left, right = to.add(layer("Conv2D", "left"), start), to.add(layer("Conv2D", "right"), start)
    return to.model("m", ["in"], [to.add(layer("Add", "sum"), right, left)])


@pytest.mark.parametrize("keras", [2, 3])
def test_functional_models(keras: int) -> None:
    graph = read_graph(FILE, two_branches(keras))
    assert inputs(graph) == {"in": (), "left": ("in",), "right": ("in",), "sum": ("right", "left")}
    assert [found.kind for found in graph.values()] == ["InputLayer", "Conv2D", "Conv2D", "Add"]
    assert [found.store for found in graph.values()] == [
        "layers/input_layer",
        "layers/conv2d",
        "layers/conv2d_1",
        "layers/add",
    ]


def test_both_generations_give_the_same_xception() -> None:
    two, three = read_graph(FILE, xception(2)), read_graph(FILE, xception(3))
    assert two == three
    assert len(two) == 1 + 131  # keras.applications' Xception without a head has 132 layers


def test_the_configuration_survives_json() -> None:
    config = json.loads(json.dumps(xception()))
    before = copy.deepcopy(config)
    assert read_graph(FILE, config) == read_graph(FILE, xception())
    assert config == before  # nothing is changed by reading it


def test_a_one_input_layer_flattened_by_old_writers() -> None:
    config = two_branches(2)
    config["config"]["layers"][1]["inbound_nodes"] = [["in", 0, 0, {}]]
    assert inputs(read_graph(FILE, config))["left"] == ("in",)


def test_tensors_in_keyword_arguments() -> None:
    config = two_branches(3)
    node = config["config"]["layers"][2]["inbound_nodes"][0]
    node["kwargs"] = {"inputs": node["args"][0], "training": False}
    node["args"] = []
    assert inputs(read_graph(FILE, config))["right"] == ("in",)


@pytest.mark.parametrize("single", [False, True])
def test_an_only_output_may_stand_alone(single: bool) -> None:
    config = two_branches(3)
    config["config"]["output_layers"] = ["sum", 0, 0] if single else [["sum", 0, 0]]
    config["config"]["input_layers"] = ["in", 0, 0] if single else [["in", 0, 0]]
    outer = Builder()
    start = outer.add(input_layer("outside", (8, 8, 3)))
    last = outer.add(layer("Dense", "top"), outer.add(config, start))
    assert inputs(read_graph(FILE, outer.model("o", ["outside"], [last])))["top"] == ("m/sum",)


def test_only_the_first_call_of_a_shared_layer_counts() -> None:
    config = two_branches(2)
    config["config"]["layers"][1]["inbound_nodes"].append([["right", 0, 0, {}]])
    assert inputs(read_graph(FILE, config))["left"] == ("in",)


@pytest.mark.parametrize("keras", [2, 3])
def test_nested_models_are_opened_up(keras: int) -> None:
    graph = read_graph(FILE, nested_xception(keras, before=[layer("Rescaling", "scale", scale=2.0)]))
    assert graph["xception/inner_input"].inputs == ("scale",)
    assert graph["xception/block1_conv1"].inputs == ("xception/inner_input",)
    assert graph["xception/block1_conv1"].name == "block1_conv1"
    assert graph["xception/block1_conv1"].store == "layers/functional/layers/conv2d"
    assert graph["xception/conv2d"].store == "layers/functional/layers/conv2d_2"
    assert "xception" not in graph


@pytest.mark.parametrize("keras", [2, 3])
def test_what_follows_a_nested_model_takes_its_output(keras: int) -> None:
    graph = read_graph(FILE, nested_xception(keras, after=[layer("GlobalAveragePooling2D", "pool")]))
    assert graph["pool"].inputs == ("xception/block14_sepconv2_act",)


def test_sequential_models() -> None:
    graph = read_graph(FILE, sequential("s", input_layer("in"), layer("Dense", "a"), layer("Dense", "b")))
    assert inputs(graph) == {"in": (), "a": ("in",), "b": ("a",)}
    assert graph["b"].store == "layers/dense_1"


def test_sequential_models_whose_configuration_is_a_list() -> None:
    """Keras before 2.2.3 (keras/engine/sequential.py, get_config)."""
    old = {"class_name": "Sequential", "config": [layer("Dense", "a"), layer("Dense", "b")]}
    assert inputs(read_graph(FILE, old)) == {"a": (), "b": ("a",)}


def test_a_sequential_model_around_a_functional_one_and_inside_it() -> None:
    inner = nested_xception()["config"]["layers"][1]
    inner = {key: value for key, value in inner.items() if key != "inbound_nodes"}
    head = sequential("head", layer("GlobalAveragePooling2D", "pool"), layer("Dense", "dense"))
    graph = read_graph(FILE, sequential("s", input_layer("in"), inner, head))
    assert graph["xception/inner_input"].inputs == ("in",)
    assert graph["head/pool"].inputs == ("xception/block14_sepconv2_act",)
    assert graph["head/dense"].inputs == ("head/pool",)
    assert graph["head/dense"].store == "layers/sequential/layers/dense"


def test_a_model_with_two_inputs_and_two_outputs_inside_another() -> None:
    inner = Builder()
    one, two = inner.add(input_layer("one")), inner.add(input_layer("two"))
    left, right = inner.add(layer("Conv2D", "left"), one), inner.add(layer("Conv2D", "right"), two)
    outer = Builder()
    first, second = outer.add(input_layer("first")), outer.add(input_layer("second"))
    pair = outer.add(inner.model("pair", ["one", "two"], ["left", "right"]), first, second)
    outer.add(layer("Dense", "top"), pair)
    config = outer.model("m", ["first", "second"], ["top"])
    assert (left, right) == ("left", "right")
    tensor = config["config"]["layers"][-1]["inbound_nodes"][0]["args"][0]
    tensor["config"]["keras_history"] = ["pair", 0, 1]
    graph = read_graph(FILE, config)
    assert graph["pair/one"].inputs == ("first",)
    assert graph["pair/two"].inputs == ("second",)
    assert graph["top"].inputs == ("pair/right",)


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("Conv2D", "conv2d"),
        ("SeparableConv2D", "separable_conv2d"),
        ("BatchNormalization", "batch_normalization"),
        ("Dense", "dense"),
        ("InputLayer", "input_layer"),
        ("GlobalAveragePooling2D", "global_average_pooling2d"),
        ("LSTM", "lstm"),
        ("Functional", "functional"),
    ],
)
def test_class_names_as_keras_files_spell_them(name: str, snake: str) -> None:
    assert snake_case(name) == snake


# --- what Keras does not write ----------------------------------------------------------------------------------------


def deep(levels: int) -> Config:
    model = sequential("m", layer("Dense", "d"))
    for _ in range(levels):
        model = sequential("m", model)
    return model


def arguments(levels: int) -> Config:
    config = two_branches(3)
    for _ in range(levels):
        config["config"]["layers"][1]["inbound_nodes"][0]["args"] = [
            config["config"]["layers"][1]["inbound_nodes"][0]["args"]
        ]
    return config


def edited(path: list[Any], value: Any) -> Config:
    config: Any = two_branches(3)
    at = config
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return dict(config)


def without(*path: Any) -> Config:
    config: Any = two_branches(3)
    at = config
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return dict(config)


LAYERS = ["config", "layers"]
MALFORMED: dict[str, Callable[[], Config]] = {
    "no configuration": lambda: without("config"),
    "no layers": lambda: without(*LAYERS),
    "layers of text": lambda: edited(LAYERS, "layers"),
    "layers of numbers": lambda: edited(LAYERS, [1, 2]),
    "no layers at all": lambda: edited(LAYERS, None),
    "no outputs": lambda: without("config", "output_layers"),
    "an output that is no layer": lambda: edited(["config", "output_layers"], [["nobody", 0, 0]]),
    "an output that is a number": lambda: edited(["config", "output_layers"], [7]),
    "a layer without a class": lambda: without(*LAYERS, 1, "class_name"),
    "a layer without a configuration": lambda: without(*LAYERS, 1, "config"),
    "a configuration of text": lambda: edited([*LAYERS, 1, "config"], "text"),
    "an input that is no layer": lambda: edited([*LAYERS, 1, "inbound_nodes"], [[["nobody", 0, 0, {}]]]),
    "an input before its layer": lambda: edited([*LAYERS, 1, "inbound_nodes"], [[["sum", 0, 0, {}]]]),
    "nodes of numbers": lambda: edited([*LAYERS, 1, "inbound_nodes"], [5]),
    "nodes that are a number": lambda: edited([*LAYERS, 1, "inbound_nodes"], 5),
    "a node of one word": lambda: edited([*LAYERS, 1, "inbound_nodes"], [["in"]]),
    "an index of text": lambda: edited([*LAYERS, 1, "inbound_nodes"], [[["in", 0, "first", {}]]]),
    "two layers of one name": lambda: edited([*LAYERS, 2], two_branches(3)["config"]["layers"][1]),
    "a history of one word": lambda: edited(
        [*LAYERS, 1, "inbound_nodes", 0, "args", 0, "config", "keras_history"], ["in"]
    ),
    "models nested too deep": lambda: deep(MAX_DEPTH + 1),
    "models nested far too deep": lambda: deep(300),
    "arguments nested too deep": lambda: arguments(MAX_DEPTH + 1),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_configurations_are_corrupt(fault: str) -> None:
    with pytest.raises(PortingError) as raised:
        read_graph(FILE, MALFORMED[fault]())
    assert raised.value.kind is ErrorKind.CORRUPT
    assert "not the structure that Keras writes" in str(raised.value)


def test_the_faults_are_the_only_faults() -> None:
    read_graph(FILE, two_branches(3))
    read_graph(FILE, deep(MAX_DEPTH - 1))
    read_graph(FILE, arguments(MAX_DEPTH - 4))


@pytest.mark.parametrize("kind", ["MyModel", None, ["Functional"], 7])
def test_a_model_whose_graph_is_code_is_unsupported(kind: object) -> None:
    with pytest.raises(PortingError) as raised:
        read_graph(FILE, {"class_name": kind, "config": {"name": "mine"}})
    assert raised.value.kind is ErrorKind.UNSUPPORTED
    assert raised.value.remedy


def test_a_name_with_the_paths_separator_cannot_stand_for_another_layer() -> None:
    """A top-level layer called "m/d" beside a model "m" with a layer "d" would be taken for it."""
    to = Builder()
    start = to.add(input_layer("in"))
    to.add(sequential("m", layer("Dense", "d")), start)
    to.add(layer("Dense", "m/d"), start)
    with pytest.raises(PortingError, match="two layers"):
        read_graph(FILE, to.model("o", ["in"], ["m/d"]))


def test_the_builder_names_what_keras_names() -> None:
    to = Builder()
    last = add_xception(to, to.add(input_layer()), shift=3)
    assert last == "block14_sepconv2_act"
    assert {"conv2d_3", "batch_normalization_6", "add_14"} <= {item["name"] for item in to.layers}
