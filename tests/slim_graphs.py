"""Aligned Xceptions as TensorFlow 1 code builds and saves them, run beside the project's own graph.

For programs that run in a process of their own, because TensorFlow does not belong in the process that runs the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from porting.reference.aligned import AlignedXception
from porting.reference.executed_graph import GraphNetwork
from porting.reference.graph_loading import GraphUnusable
from porting.reference.tensorflow_import import tf

v1 = tf.compat.v1
ROOT = "xception_41"
CLASSES = 5
EPSILON = 1e-3
SHADOW = "ExponentialMovingAverage"
UNIT = f"{ROOT}/middle_flow/block1/unit_3/xception_module"


@dataclass(frozen=True)
class Slim:
    """deeplab/core/xception.py on plain operations, with what users' graphs differ in.

    Attributes:
        output_stride: 32, 16 or 8.
        size: height and width of the placeholder, None where any fit.
        fused: one operation a batch norm, or the six that it stands for.
        variables: what holds the weights: "constant" (a frozen graph), "reference" or "resource".
        given: the variables' values; default a function of their names, with few channels.
    """

    output_stride: int = 16
    size: tuple[int | None, int | None] = (None, None)
    fused: bool = True
    variables: str = "constant"
    given: Mapping[str, Any] | None = None

    def build(self) -> Any:
        """The probabilities, of an image whose scaling belongs to no network."""
        image = v1.placeholder(tf.uint8, (None, *self.size, 3), name="image")
        net = tf.subtract(tf.cast(image, tf.float32) * (2 / 255), 1.0, name="scaled")
        with v1.variable_scope(ROOT, use_resource=self.variables == "resource"):
            for scope, inputs, outputs, stride in (("conv1_1", 3, 4, 2), ("conv1_2", 4, 6, 1)):
                net = self._conv(net, f"entry_flow/{scope}", (3, 3, inputs, outputs), stride)
                net = tf.nn.relu(net, name=f"{scope}/Relu")
            target, current, rate = self.output_stride // 2, 1, 1
            for scope, widths, stride, skip in _units():
                if current == target:
                    net = self._module(net, scope, widths, 1, rate, skip)
                    rate *= stride
                else:
                    net = self._module(net, scope, widths, stride, 1, skip)
                    current *= stride
            net = tf.reduce_mean(net, [1, 2], keepdims=True, name="global_pool")
            with v1.variable_scope("logits"):
                kernel = self._variable("weights", (1, 1, int(net.shape[3]), CLASSES))
                net = tf.nn.bias_add(tf.nn.conv2d(net, kernel, 1, "SAME"), self._variable("biases", (CLASSES,)))
            return tf.nn.softmax(tf.squeeze(net, [1, 2]), name="probabilities")

    def _module(self, inputs: Any, scope: str, widths: tuple[int, ...], stride: int, rate: int, skip: str) -> Any:
        net = inputs
        for index, width in enumerate(widths, 1):
            at = f"{scope}/xception_module/separable_conv{index}"
            if skip != "none":
                net = tf.nn.relu(net, name=f"{scope}/xception_module/Relu")
            channels = int(net.shape[3])
            with v1.variable_scope(f"{at}_depthwise"):
                kernel, step, padding = self._variable("depthwise_weights", (3, 3, channels, 1)), 1, "SAME"
                if index == 3 and stride != 1:
                    net, step, padding = _fixed_padding(net, rate), stride, "VALID"
                net = v1.nn.depthwise_conv2d(net, kernel, [1, step, step, 1], padding, rate=[rate, rate])
                net = self._norm(net)
            if skip == "none":
                net = tf.nn.relu(net)
            net = self._conv(net, f"{at}_pointwise", (1, 1, channels, width), 1)
            if skip == "none":
                net = tf.nn.relu(net)
        if skip == "none":
            return net
        if skip == "conv":
            shape = (1, 1, int(inputs.shape[3]), widths[-1])
            inputs = self._conv(inputs, f"{scope}/xception_module/shortcut", shape, stride)
        return tf.add(net, inputs)

    def _conv(self, net: Any, scope: str, shape: tuple[int, ...], stride: int) -> Any:
        with v1.variable_scope(scope):
            padding = "SAME"
            if stride != 1 and shape[0] > 1:
                net, padding = _fixed_padding(net, 1), "VALID"
            return self._norm(v1.nn.conv2d(net, self._variable("weights", shape), [1, stride, stride, 1], padding))

    def _norm(self, net: Any) -> Any:
        with v1.variable_scope("BatchNorm"):
            shape = (int(net.shape[3]),)
            gamma, beta, mean, variance = (
                self._variable(name, shape) for name in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            if not self.fused:
                return tf.nn.batch_normalization(net, mean, variance, beta, gamma, EPSILON)
            return v1.nn.fused_batch_norm(net, gamma, beta, mean, variance, EPSILON, is_training=False)[0]

    def _variable(self, leaf: str, shape: tuple[int, ...]) -> Any:
        name = f"{v1.get_variable_scope().name}/{leaf}"
        value = _values(name, shape) if self.given is None else self.given[name]
        if self.variables == "constant":
            return tf.constant(value, name=leaf)
        return v1.get_variable(leaf, initializer=tf.constant(value))


def _units() -> list[tuple[str, tuple[int, ...], int, str]]:
    units = [(f"entry_flow/block{i}/unit_1", (8, 8, 8), 2, "conv") for i in (1, 2, 3)]
    units += [(f"middle_flow/block1/unit_{i}", (8, 8, 8), 1, "sum") for i in range(1, 9)]
    units.append(("exit_flow/block1/unit_1", (8, 10, 10), 2, "conv"))
    return [*units, ("exit_flow/block2/unit_1", (12, 12, 14), 1, "none")]


def _fixed_padding(net: Any, rate: int) -> Any:
    return tf.pad(net, [[0, 0], [rate, rate], [rate, rate], [0, 0]])


def _values(name: str, shape: tuple[int, ...]) -> Any:
    random = np.random.default_rng([*name.encode()])
    low, high = {"gamma": (0.5, 1.5), "moving_variance": (0.5, 2.0)}.get(name.rpartition("/")[2], (-0.3, 0.3))
    if len(shape) == 4:
        high = (3 / (9 if "depthwise_weights" in name else np.prod(shape[:-1]))) ** 0.5
        low = -high
    return random.uniform(low, high, shape).astype(np.float32)


# --- saving -----------------------------------------------------------------------------------------------------------


def freeze(slim: Slim) -> Any:
    """The GraphDef of a network whose weights are constants."""
    with tf.Graph().as_default() as graph:
        slim.build()
        return graph.as_graph_def()


def write(graph: Any, path: Path, change: Callable[[Any], Any] = lambda graph: None) -> dict[str, Any]:
    """Save a copy of a GraphDef, edited."""
    edited = type(graph)()
    edited.CopyFrom(graph)
    change(edited)
    path.write_bytes(edited.SerializeToString())
    return described("graph", path)


def save(slim: Slim, folder: Path, averages: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint with .meta, and a SavedModel of TensorFlow 1, of a network with variables.

    Args:
        averages: the checkpoint holds each variable under its average's name.
    """
    folder.mkdir()
    with tf.Graph().as_default() as graph, v1.Session() as session:
        output = slim.build()
        names = {one.op.name: f"{one.op.name}/{SHADOW}" if averages else one.op.name for one in v1.global_variables()}
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver({names[one.op.name]: one for one in v1.global_variables()})
        saver.save(session, str(folder / "model.ckpt"), write_state=False)
        if not averages:
            given = {"image": graph.get_tensor_by_name("image:0")}
            v1.saved_model.simple_save(session, str(folder / "saved"), given, {"probabilities": output})
    return described("meta", folder / "model.ckpt", names), described("saved-model", folder / "saved")


def described(kind: str, path: Path, names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), "arch": "xception41", "classes": CLASSES, "variables": names}


# --- running ----------------------------------------------------------------------------------------------------------


def kept(network: Callable[..., None], image: Any, passed_on: Callable[[str, Any], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def emit(name: str, tensor: Any) -> Any:
        assert name not in found
        found[name] = tensor.numpy()
        return passed_on(name, tensor)

    network(image, emit)
    return found


def probe(name: str, tensor: Any) -> Any:
    random = np.random.default_rng([*name.encode()])
    return tf.constant(random.normal(size=tensor.shape), tensor.dtype)


def image_of(height: int, width: int) -> Any:
    return np.random.default_rng([height, width]).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)


def ours(output_stride: int, dtype: str = "float64", logits: bool = True) -> AlignedXception:
    """The project's own graph with the same values."""
    shapes = _shapes()
    return AlignedXception("xception41", lambda name: _values(name, shapes[name]), dtype, output_stride, logits)


@lru_cache
def _shapes() -> dict[str, tuple[int, ...]]:
    leaves = ("weights", "biases", "gamma", "beta", "moving_mean", "moving_variance")
    constants = {one.name: one.attr["value"].tensor for one in freeze(Slim()).node if one.op == "Const"}
    return {
        name: tuple(side.size for side in tensor.tensor_shape.dim)
        for name, tensor in constants.items()
        if name.endswith(leaves)
    }


@lru_cache(None)
def expected(size: tuple[int, int], stride: int, dtype: str, logits: bool, passed_on: Any) -> dict[str, Any]:
    return kept(ours(stride, dtype, logits), image_of(*size), passed_on)


def as_is(name: str, tensor: Any) -> Any:
    return tensor


def errors(network: GraphNetwork, size: tuple[int, int], passed_on: Any) -> dict[str, Any]:
    """By activation, the largest difference from the project's own graph, relative to its largest value."""
    found = kept(network, image_of(*size), passed_on)
    wanted = expected(size, network.points.output_stride, network.dtype, network.classes > 0, passed_on)
    assert list(found) == list(wanted), set(found) ^ set(wanted)
    assert all(found[name].shape == values.shape for name, values in wanted.items())
    return {name: float(np.abs(found[name] - values).max() / np.abs(values).max()) for name, values in wanted.items()}


def outcome(source: Mapping[str, Any], *sizes: tuple[int, int], passed_on: Any = as_is, dtype: str = "float64") -> Any:
    """The errors at these sizes and the stride that the graph has, or why it was refused."""
    try:
        network = GraphNetwork(source, dtype)
    except GraphUnusable as reason:
        return {"refused": str(reason)}
    stride = network.points.output_stride
    worst: dict[str, float] = {}
    for size in sizes:
        assert network.runs(*size, stride), size
        for name, error in errors(network, size, passed_on).items():
            worst[name] = max(worst.get(name, 0.0), error)
    return {"errors": worst, "stride": stride}
