"""Which TensorFlow operations a source's own graph may hold, and what each node computes in the wanted type."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import numpy as np

from porting.reference.graph_loading import BATCH_NORMS, VARIABLES, GraphUnusable, Node, trains
from porting.reference.tensorflow_import import tf

Tensor = Any

# Operations that compute one tensor from others and do nothing else. `values` and `inputs` are lists.
_PURE = frozenset(
    [
        "Add", "AddN", "AddV2", "AvgPool", "BatchToSpaceND", "BiasAdd", "Cast", "ClipByValue", "ConcatV2", "Conv2D",
        "DepthwiseConv2dNative", "Div", "Elu", "Exp", "ExpandDims", "FloorDiv", "FloorMod", "Identity", "LogSoftmax",
        "MatMul", "Max", "MaxPool", "Maximum", "Mean", "Min", "Minimum", "Mul", "Neg", "Pack", "Pad", "PadV2", "Pow",
        "Prod", "RealDiv", "Relu", "Relu6", "Reshape", "Rsqrt", "Shape", "Sigmoid", "Slice", "Softmax",
        "SpaceToBatchND", "Sqrt", "Square", "Squeeze", "StopGradient", "StridedSlice", "Sub", "Sum", "Tanh",
        "Transpose",
    ]
)  # fmt: skip
_RUN = _PURE | BATCH_NORMS | VARIABLES | {"Const", "ReadVariableOp"}
_RENAMED = {("Squeeze", "squeeze_dims"): "axis"}  # attributes that Python's operations call otherwise
_LISTS = {"AddN": "inputs", "ConcatV2": "values", "Pack": "values"}
_NORM_EPSILON = 1e-4  # FusedBatchNorm*'s default, left out of a node that has it (tensorflow/core/ops/nn_ops.cc)
_LARGEST = 1 << 28  # elements of any tensor: against graphs made to exhaust memory; xception71 at 299 has 2^21


def check(node: Node) -> None:
    """Refuses what is not computed here."""
    if node.op.startswith("Placeholder"):
        raise GraphUnusable(f"it needs what is fed to {node.name}")
    if node.op not in _RUN:
        raise GraphUnusable(f"operation {node.op} ({node.name}) is not among those that are run")
    if trains(node):
        raise GraphUnusable(f"its batch norms are in training mode ({node.name})")
    order = node.attribute("data_format")
    if order is not None and order.s not in (b"NHWC", b""):
        raise GraphUnusable(f"{node.name} has data format {order.s.decode(errors='replace')}")
    if node.op == "Const" and node.attribute("value") is None:
        raise GraphUnusable(f"its constant {node.name} has no value")


def compute(node: Node, inputs: list[Tensor], dtype: str) -> Tensor:
    if node.op == "ReadVariableOp":
        return inputs[0]
    if node.op in BATCH_NORMS:
        # No kernel computes it in float64.
        own = node.attribute("epsilon")
        epsilon = _NORM_EPSILON if own is None else decimal(own.f)
        net, gamma, beta, mean, variance = inputs
        return tf.nn.batch_normalization(net, mean, variance, beta, gamma, epsilon)
    attributes = {
        _RENAMED.get((node.op, name), name): _attribute(value, dtype)
        for name, value in node.attr.items()
        if not name.startswith("_")
    }
    if node.op == "DepthwiseConv2dNative" and max(attributes.get("dilations", [1])) > 1:
        # The CPU has no kernel for it.
        strides, padding, dilations = (attributes[name] for name in ("strides", "padding", "dilations"))
        return tf.nn.depthwise_conv2d(*inputs, strides, padding, dilations=dilations[1:3])
    arguments, accepted = _signature(node.op)
    names = [name for name in arguments if name not in attributes]
    if node.op in _LISTS:
        at = names.index(_LISTS[node.op])
        count = len(inputs) - len(names) + 1
        inputs = [*inputs[:at], inputs[at : at + count], *inputs[at + count :]]
    given = {name: value for name, value in attributes.items() if name in accepted}
    return getattr(tf.raw_ops, node.op)(**dict(zip(names, inputs, strict=True)), **given)


@lru_cache(None)
def _signature(op: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """An operation's arguments without a default (its inputs, and attributes that every node has), and all of them."""
    parameters = inspect.signature(getattr(tf.raw_ops, op)).parameters
    required = tuple(name for name, one in parameters.items() if one.default is inspect.Parameter.empty)
    return required, frozenset(parameters) - {"name"}


def _attribute(value: Any, dtype: str) -> Any:
    """An AttrValue in Python, floating types replaced by the wanted one."""
    kind = value.WhichOneof("value")
    if kind == "list":
        return list(value.list.i) or [one.decode() for one in value.list.s]
    if kind == "s":
        return value.s.decode()
    if kind == "type":
        found = tf.as_dtype(value.type)
        return tf.as_dtype(dtype) if found.is_floating else found
    return getattr(value, kind) if kind in ("i", "f", "b") else None


def decimal(value: Any) -> float:
    """The shortest decimal that a float32 stands for: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(value)))


def constant(node: Node) -> Any:
    tensor = node.attr["value"].tensor
    if int(np.prod([side.size for side in tensor.tensor_shape.dim], dtype=object)) > _LARGEST:
        raise GraphUnusable(f"its constant {node.name} has more than {_LARGEST} elements")
    return tf.make_ndarray(tensor)
