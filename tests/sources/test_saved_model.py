"""SavedModel folders, as Keras and TensorFlow write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.sources import open_source
from porting.sources.object_graph import OBJECT_GRAPH_KEY
from tests.sources import wire
from tests.sources.conftest import Written


@pytest.mark.parametrize("name", ["export", "saved", "saved/saved_model.pb"])
def test_every_variable_under_its_layer(name: str, keras_files: Written) -> None:
    with open_source(keras_files.folder / name) as source:
        source.verify_files()
        assert source.container == "tf-saved-model"
        assert [path.name for path in source.files()] == [
            "saved_model.pb", "variables.index", "variables.data-00000-of-00001"
        ]  # fmt: skip
        if name == "export":  # which lists every variable twice, and no optimizer
            assert set(source.specs) == {n for n in keras_files.arrays if not n.startswith(("adam", "optimizer"))}
        for variable, array in keras_files.arrays.items():
            if variable in source.specs:
                ours = source.read(variable)
                assert (ours.dtype, ours.shape) == (array.dtype, array.shape)
                assert ours.tobytes() == array.tobytes(), variable
        assert {n for n in keras_files.arrays if n.startswith(("block", "conv2d", "head"))} <= set(source.specs)


def test_every_tensor_as_tensorflow_reads_it(keras_files: Written, tf: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    folder = keras_files.folder / "export"
    graph = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    names = {node.variable.name for node in graph.meta_graphs[0].object_graph_def.nodes if node.HasField("variable")}
    restored = tf.saved_model.load(str(folder))
    theirs = {variable.name.removesuffix(":0"): variable.numpy() for variable in restored.variables}
    with open_source(folder) as source:
        assert set(source.specs) == names == set(theirs)
        assert all(np.array_equal(source.read(name), array) for name, array in theirs.items())


def _saved(folder: Path, full_names: list[str], objects: list[bytes]) -> Path:
    keys = [f"_all_variables/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i in range(len(full_names))]
    bundle = wire.small_bundle({key: np.full(2, i, np.float32) for i, key in enumerate(keys)})
    nodes = [wire.child(1, "_all_variables"), b"".join(wire.child(i + 2, str(i)) for i in range(len(keys)))]
    nodes += [wire.attribute(name, key) for name, key in zip(full_names, keys, strict=True)]
    bundle.add_string(OBJECT_GRAPH_KEY, wire.object_graph(nodes))
    bundle.write(folder / "variables" / "variables")
    graph = wire.message(2, wire.message(7, wire.object_graph(objects)))
    (folder / "saved_model.pb").write_bytes(wire.integer(1, 1) + graph)
    return folder


def _variable(name: str) -> bytes:
    return wire.message(7, wire.integer(1, 1) + wire.message(6, name))


def test_names_that_only_saved_model_pb_has(tmp_path: Path) -> None:
    # Its graph numbers the objects otherwise, and goes in a circle: children are followed by name.
    objects = [wire.child(3, "_all_variables"), _variable("b/bias:0"), _variable("a/kernel")]
    objects += [wire.child(2, "0") + wire.child(1, "1") + wire.child(0, "parent")]
    with open_source(_saved(tmp_path, ["", ""], objects)) as source:
        assert {name: source.read(name).tolist() for name in source.specs} == {"a/kernel": [0, 0], "b/bias": [1, 1]}


def test_names_that_neither_has(tmp_path: Path) -> None:
    with open_source(_saved(tmp_path, ["", "named"], [b""])) as source:
        assert list(source.specs) == ["_all_variables/0", "named"]
