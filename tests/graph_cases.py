"""Runs saved graphs beside the project's own: `python -m tests.graph_cases FOLDER` prints what came of each as JSON.

A program of its own, because TensorFlow does not belong in the process that runs the tests.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from porting.reference.executed_graph import GraphNetwork
from porting.reference.worker import Worker
from tests.slim_graphs import UNIT, Slim, as_is, freeze, image_of, kept, outcome, probe, save, write

Change = Callable[[Any], None]
SIZE, OTHER = (49, 66), (64, 33)  # odd by even and the reverse
FIXED = (65, 97)
NORM = f"{UNIT}/separable_conv2_pointwise/BatchNorm/FusedBatchNormV3"
RELU = f"{UNIT}/Relu_2"
KERNEL = f"{UNIT}/separable_conv2_pointwise/weights"


def node(graph: Any, name: str) -> Any:
    return next(one for one in graph.node if one.name == name)


def taken_by(graph: Any, old: str, new: str) -> None:
    """Whatever takes a node takes another."""
    for one in graph.node:
        for i, name in enumerate(one.input):
            if name == old:
                one.input[i] = new


def attribute(at: str, name: str, field: str, value: Any) -> Change:
    return lambda graph: setattr(node(graph, at).attr[name], field, value)


def inserted(op: str) -> Change:
    """An operation after the batch norm, on the way to everything that follows."""

    def change(graph: Any) -> None:
        taken_by(graph, NORM, "inserted")
        graph.node.add(name="inserted", op=op, input=[NORM])

    return change


def prefixed(graph: Any) -> None:
    for one in graph.node:
        one.name = f"tower/{one.name}"
        for i, name in enumerate(one.input):
            one.input[i] = f"^tower/{name[1:]}" if name.startswith("^") else f"tower/{name}"


def twice(graph: Any) -> None:
    """A second convolution takes a kernel."""
    graph.node.add().CopyFrom(node(graph, f"{UNIT}/separable_conv2_pointwise/Conv2D"))
    graph.node[-1].name = "again"


def circle_beside(graph: Any) -> None:
    """The batch norm's mean takes, besides its variable, what the unit gives."""
    mean = graph.node.add(name="circle", op="AddN", input=[node(graph, NORM).input[3], RELU])
    node(graph, NORM).input[3] = mean.name


def without_relu(graph: Any) -> None:
    taken_by(graph, RELU, NORM)


def all_cases(folder: Path) -> dict[str, Any]:
    graph = freeze(Slim())

    def changed(change: Change) -> dict[str, Any]:
        return write(graph, folder / "changed.pb", change)

    frozen = write(graph, folder / "frozen.pb")
    fixed = write(freeze(Slim(size=FIXED)), folder / "fixed.pb")
    meta, saved_model = save(Slim(variables="reference"), folder / "16")
    averages, _ = save(Slim(32, variables="resource"), folder / "32", averages=True)
    prefix = {one.name: f"tower/{one.name}" for one in graph.node}
    made_for_one = GraphNetwork(fixed, "float64")
    any_size = GraphNetwork(frozen, "float64")
    beside = any_size.with_dtype("float32")
    changes: dict[str, Change] = {
        "another epsilon": attribute(NORM, "epsilon", "f", 1e-5),
        "default epsilon": lambda graph: node(graph, NORM).attr.pop("epsilon"),
    }
    refusals: dict[str, Change] = {
        "training": attribute(NORM, "is_training", "b", True),
        "default training": lambda graph: node(graph, NORM).attr.pop("is_training"),
        "PyFunc": inserted("PyFunc"),
        "ReadFile": inserted("ReadFile"),
        "fed": inserted("Placeholder"),
        "no ReLU": without_relu,
        "twice": twice,
        "circle": circle_beside,
        "no such node": lambda graph: taken_by(graph, RELU, "nowhere"),
        "channels first": attribute(NORM, "data_format", "s", b"NCHW"),
    }
    return {
        "frozen": outcome(frozen, SIZE),
        "frozen, stride 8, six operations a batch norm": outcome(
            write(freeze(Slim(8, fused=False)), folder / "8.pb"), OTHER
        ),
        "frozen, for one size": outcome(fixed, FIXED),
        "prefix": outcome({**changed(prefixed), "variables": prefix}, SIZE),
        "meta": outcome(meta, SIZE),
        "meta of averages, stride 32, resource variables": outcome(averages, SIZE),
        "SavedModel": outcome(saved_model, SIZE),
        "probed": outcome(frozen, SIZE, passed_on=probe),
        "float32": outcome(frozen, SIZE, dtype="float32"),
        "backbone": outcome({**frozen, "classes": 0}, SIZE),
        "changed": {name: outcome(changed(change), SIZE) for name, change in changes.items()},
        "refused": {name: outcome(changed(change)).get("refused") for name, change in refusals.items()},
        "no graph": outcome({**frozen, "kind": "saved-model"})["refused"],
        "torn": outcome({**frozen, "path": str(_torn(Path(frozen["path"])))})["refused"],
        "runs": {
            "its own stride": [any_size.runs(*size, 16) for size in (SIZE, OTHER)],
            "other strides": [any_size.runs(*SIZE, stride) for stride in (8, 32)],
            "sizes like its own": [made_for_one.runs(*size, 16) for size in (FIXED, (66, 97))],
            "other sizes": [made_for_one.runs(*size, 16) for size in ((81, 97),)],
        },
        "opened": {
            name: _opened(source) for name, source in (("frozen", frozen), ("constants", _constants(graph, folder)))
        },
        "float32 beside": _noise(any_size, beside),
    }


def _noise(network: GraphNetwork, beside: GraphNetwork) -> float:
    """The largest difference of the two types, relative to each activation's largest value."""
    image = image_of(*SIZE)
    wide, narrow = kept(network, image, as_is), kept(beside, image, as_is)
    return max(float(np.abs(narrow[name] - one).max() / np.abs(one).max()) for name, one in wide.items())


def _opened(source: dict[str, Any]) -> Any:
    """What the worker says that it runs, and what it does run at strides 16 and 32."""
    worker = Worker(io.BytesIO())
    said = worker.open({"source": {**source, "otherwise": "the project's graph"}}, b"")["reference"]
    return [said, *(type(worker._network("float32", stride, SIZE)).__name__ for stride in (16, 32))]


def _constants(graph: Any, folder: Path) -> dict[str, Any]:
    def change(edited: Any) -> None:
        for one in list(edited.node):
            if one.op != "Const":
                edited.node.remove(one)

    return write(graph, folder / "constants.pb", change)


def _torn(path: Path) -> Path:
    torn = path.with_name("torn.pb")
    torn.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return torn


if __name__ == "__main__":
    json.dump(all_cases(Path(sys.argv[1])), sys.stdout)
