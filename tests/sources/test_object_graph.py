"""Object-based checkpoints: names from the object graph, values as TensorFlow reads them under its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.sources import open_source
from porting.sources.object_graph import OBJECT_GRAPH_KEY
from tests.sources import wire
from tests.sources.conftest import Written


def _keys(tf: Any, prefix: Path) -> dict[str, str]:
    """Checkpoint keys by full name, by TensorFlow's own classes."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    data = tf.train.load_checkpoint(str(prefix)).get_tensor(OBJECT_GRAPH_KEY)
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(data)
    return {a.full_name: a.checkpoint_key for node in graph.nodes for a in node.attributes}


@pytest.mark.parametrize("prefix", ["objects/ckpt", "inner/ckpt-1"])
def test_every_variable_under_its_layer(prefix: str, keras_files: Written, tf: Any) -> None:
    path = keras_files.folder / prefix
    keys = _keys(tf, path)
    reader = tf.train.load_checkpoint(str(path))
    with open_source(path) as source:
        source.verify_files()
        assert source.container == "tf-object-checkpoint"
        assert set(source.specs) == set(keys)
        for name, spec in source.specs.items():
            theirs = reader.get_tensor(keys[name])
            ours = source.read(name)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) == (np.dtype(spec.dtype), spec.shape)
            assert ours.tobytes() == theirs.tobytes(), name
        model = {name for name in keras_files.arrays if prefix == "objects/ckpt" or not name.startswith("head/")}
        assert model <= set(source.specs)
        for name in model:
            assert np.array_equal(source.read(name), keras_files.arrays[name]), name


@pytest.fixture(scope="session")
def tracked(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Keras 2 laid them out: layers by number, an optimizer with slot variables."""
    folder = tmp_path_factory.mktemp("tracked")

    class Layer(tf.Module):
        def __init__(self, name: str, value: float) -> None:
            super().__init__(name=name)
            with self.name_scope:
                self.kernel = tf.Variable(np.full((2, 2), value, np.float32), name="kernel")

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, name in enumerate(("block1_conv1", "block2_conv1")):
                setattr(self, f"layer_with_weights-{i}", Layer(name, i + 1.0))
            self.parent = [self]  # a circle, as models have them

        def kernels(self) -> list[Any]:
            return [getattr(self, f"layer_with_weights-{i}").kernel for i in (0, 1)]

    model = Model()
    optimizer = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
    gradients = [(tf.ones((2, 2)) * (i + 3), kernel) for i, kernel in enumerate(model.kernels())]
    optimizer.apply_gradients(gradients)
    same = [tf.Variable(5.0, name="same"), tf.Variable(5.0, name="same")]
    tf.train.Checkpoint(model=model, optimizer=optimizer, one=same[0], two=same[1]).save(str(folder / "ckpt"))
    return folder


def test_slots_and_shared_names(tracked: Path) -> None:
    with open_source(tracked) as source:
        # "same" names two variables, so both keep their paths, though their bytes are equal.
        assert set(source.specs) == {
            "block1_conv1/kernel", "block1_conv1/kernel/momentum", "block2_conv1/kernel",
            "block2_conv1/kernel/momentum", "one", "two", "save_counter",
        }  # fmt: skip
        assert source.read("block2_conv1/kernel/momentum").tolist() == [[4, 4], [4, 4]]
        assert np.allclose(source.read("block1_conv1/kernel"), 0.7)
        assert float(source.read("two")) == 5.0


def test_slots_of_variables_that_share_a_name(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32)
    tail = "/.ATTRIBUTES/VARIABLE_VALUE"
    keys = ["m/a", "m/b", "m/a/.OPTIMIZER_SLOT/opt/v", "m/b/.OPTIMIZER_SLOT/opt/v"]
    bundle = wire.small_bundle({key + tail: values[i:] for i, key in enumerate(keys)})
    nodes = [wire.slot(1, "v", 3) + wire.slot(2, "v", 4)]
    nodes += [wire.attribute("w", key + tail) for key in keys[:2]] + [wire.attribute("w/v", k + tail) for k in keys[2:]]
    bundle.add_string(OBJECT_GRAPH_KEY, wire.object_graph(nodes))
    with open_source(bundle.write(tmp_path / "ckpt")) as source:
        read = {name: source.read(name).tolist() for name in source.specs}
    assert read == {"m/a": [*range(8)], "m/b": [*range(1, 8)], "m/a/v": [*range(2, 8)], "m/b/v": [*range(3, 8)]}


def test_tensors_beside_the_graph_keep_their_names(tmp_path: Path) -> None:
    bundle = wire.small_bundle({"plain/weights": np.ones(2, np.float32)})
    bundle.add_string(OBJECT_GRAPH_KEY, wire.object_graph([b""]))
    with open_source(bundle.write(tmp_path / "ckpt")) as source:
        assert list(source.specs) == ["plain/weights"]
