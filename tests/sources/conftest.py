"""Files that TensorFlow writes, once a run, and the values that went into them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Written:
    """A folder, and the tensors in the files there (bfloat16 as float32)."""

    folder: Path
    arrays: Arrays


@pytest.fixture(scope="session")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorFlow's own imports deprecate
        import tensorflow

    tensorflow.get_logger().setLevel("ERROR")
    return tensorflow


def _numbers() -> Arrays:
    random = np.random.default_rng(7)
    arrays: Arrays = {
        f"net/unit_{i}/weights": random.normal(size=(3, 3, 4, i % 5 + 1)).astype(np.float32) for i in range(150)
    }
    arrays |= {
        "types/double": random.normal(size=5), "types/half": random.normal(size=(2, 3)).astype(np.float16),
        "types/int8": np.int8([-128, 0, 127]), "types/uint8": np.uint8([0, 255]), "types/int16": np.int16([-3, 400]),
        "types/int32": np.int32([[-(2**31), 2**31 - 1]]), "types/int64": np.int64([-(2**63), 2**63 - 1, 0]),
        "types/bool": np.array([True, False, True]), "types/complex": np.complex64([1 + 2j, -3j]),
        "empty": np.zeros((0, 4), np.float32), "global_step": np.int64(1234),
        "special": np.float32([np.nan, np.inf, -0.0, 1e-45]),
    }  # fmt: skip
    return {name: np.asarray(array) for name, array in arrays.items()}


@pytest.fixture(scope="session")
def graph_files(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """One TensorFlow 1 graph saved as v2/, v2-sharded/, v1/, v1-sharded/ (model.ckpt each), and frozen.pb.

    V2 also holds bfloat16, strings and unsigned types, which V1 cannot.
    """
    v1, folder = tf.compat.v1, tmp_path_factory.mktemp("graph")
    numbers = _numbers()
    more = {"types/uint16": np.uint16([0, 65535]), "types/uint32": np.uint32([2**32 - 1])}
    more |= {"types/uint64": np.uint64([2**64 - 1]), "types/complex128": np.complex128([1 - 1j])}
    with warnings.catch_warnings(), tf.Graph().as_default() as graph:
        warnings.simplefilter("ignore")
        both = [v1.get_variable(name, initializer=array) for name, array in numbers.items()]
        for name, shape, count, axis in (("parts/rows", (10, 6), 3, 0), ("parts/columns", (3, 600), 4, 1)):
            random = v1.random_normal_initializer(seed=1)
            partitioner = v1.fixed_size_partitioner(count, axis)
            both += list(v1.get_variable(name, shape=shape, initializer=random, partitioner=partitioner))
        with tf.device("/device:CPU:0"):  # a second device, so a second shard
            both += [v1.get_variable("other_device", initializer=np.float32([1, 2, 3]))]
            only = [v1.get_variable(name, initializer=array) for name, array in more.items()]
        only += [
            v1.get_variable("types/bfloat16", initializer=tf.cast(np.linspace(-3, 3, 21).reshape(7, 3), tf.bfloat16))
        ]
        only += [v1.get_variable("types/string", initializer=tf.constant(["a", "", "bc\0\n"]))]
        reads = [tf.identity(variable, name=f"read_{i}") for i, variable in enumerate(both)]
        splats = [tf.constant(0.25, shape=(5, 2), name="splat"), tf.zeros((3, 4), tf.float16, name="zeros")]
        splats += [tf.constant([3, 7, 7, 7, 7, 7], tf.int64, name="tail")]
        for name in ("v2", "v2-sharded", "v1", "v1-sharded"):
            (folder / name).mkdir()
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for name, variables, options in (
                ("v2", both + only, {}), ("v2-sharded", both + only, {"sharded": True}),
                ("v1", both, {"write_version": 1}), ("v1-sharded", both, {"write_version": 1, "sharded": True}),
            ):  # fmt: skip
                saver = v1.train.Saver(variables, **options)
                saver.save(session, str(folder / name / "model.ckpt"), global_step=5, write_meta_graph=False)
            outputs = [tensor.op.name for tensor in reads + splats]
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), outputs)
            arrays = {**numbers, **more, "other_device": np.float32([1, 2, 3])}
            for name, axis in (("parts/rows", 0), ("parts/columns", 1)):
                pieces = [v for v in both if v.name.startswith(name)]
                arrays[name] = np.concatenate(session.run(pieces), axis)
            arrays["types/bfloat16"] = session.run(only[-2]).astype(np.float32)
    (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
    return Written(folder, arrays)


@pytest.fixture(scope="session")
def keras_files(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A small Keras model nested in another, trained a step, as objects/ckpt, inner/ckpt-1, export/ and saved/."""
    folder = tmp_path_factory.mktemp("keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

        keras.utils.set_random_seed(3)
        image = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, name="block1_conv1")(image)
        x = keras.layers.BatchNormalization(name="block1_conv1_bn")(x)
        x = keras.layers.SeparableConv2D(5, 3, name="block2_sepconv1", use_bias=False)(x)
        inner = keras.Model(image, keras.layers.Conv2D(2, 1)(x), name="xception")
        outside = keras.Input((8, 8, 3))
        flat = keras.layers.Flatten()(inner(outside))
        model = keras.Model(outside, keras.layers.Dense(2, name="head")(flat))
        model.compile("adam", "mse")
        random = np.random.default_rng(0)
        model.fit(random.normal(size=(4, 8, 8, 3)), random.normal(size=(4, 2)), verbose=0)
        tf.train.Checkpoint(model=model).write(str(folder / "objects" / "ckpt"))
        tf.train.Checkpoint(inner).save(str(folder / "inner" / "ckpt"))
        model.export(str(folder / "export"), verbose=False)
        tf.saved_model.save(model, str(folder / "saved"))
    arrays = {"/".join(v.path.split("/")[-2:]): np.asarray(v) for v in model.variables}
    return Written(folder, arrays)
