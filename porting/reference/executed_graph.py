"""The source's own TensorFlow graph, executed node by node in the wanted type.

What is compared with a port is then the user's network as it was saved, its own epsilons, paddings and strides, and not
this project's idea of it. Preprocessing before the network is never run, and only a fixed list of pure operations is:
no file can make TensorFlow read another or run code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from porting.reference.graph_loading import BATCH_NORMS, VARIABLES, GraphUnusable, Node, Ref, load_graph
from porting.reference.graph_operations import check, compute, constant, decimal
from porting.reference.graph_points import find_points
from porting.reference.tensorflow_import import tf

Tensor = Any
Emit = Callable[[str, Tensor], Tensor]

# Operations that hold a size of the image where this input is a constant; an average pool holds one in its window.
_SIZED = {"SpaceToBatchND": 2, "BatchToSpaceND": 2, "Reshape": 1, "AvgPool": 0}
_SMALL = 1 << 10  # elements of a constant that is arithmetic and no weight


class GraphNetwork:
    """A network as its own graph computes it, reporting every activation.

    Args:
        source: as `porting.reference.requests.ReferenceSource` describes it; kind "graph" (a frozen graph's file),
            "saved-model" (its folder) or "meta" (a checkpoint's prefix, with PREFIX.meta beside it).
        dtype: "float64" or "float32"; every floating type of the graph becomes this one.

    Raises:
        GraphUnusable: the graph cannot be read, holds an operation that is not run here or batch norms in training mode
            on the way, or one of the network's activations was not found in it.
    """

    def __init__(self, source: Mapping[str, Any], dtype: str) -> None:
        self.dtype = dtype
        self.classes: int = source["classes"]
        self.pooled = "avg_pool" if source["arch"] == "xception" else "global_pool"
        self.graph = load_graph(source["kind"], source["path"])
        self.points = find_points(self.graph, source)
        self.order = self._order()
        self._open_variables()
        self.last_use = {ref: node.name for node in self.order for ref in node.inputs}
        self.fitting: dict[tuple[int, int], bool] = {}

    def with_dtype(self, dtype: str) -> GraphNetwork:
        """The same graph in another type, read once."""
        other = object.__new__(GraphNetwork)
        other.__dict__.update(self.__dict__, dtype=dtype, fitting={})
        other._open_variables()  # two types run side by side, and a reader is not to be shared between threads
        return other

    def runs(self, height: int, width: int, output_stride: int) -> bool:
        """Whether the graph computes this output stride, the only one a graph can, and takes images of this size.

        A graph made for images of one size may hold paddings that fit no other; its shapes are inferred, nothing is
        computed.
        """
        if output_stride != self.points.output_stride:
            return False
        if (height, width) not in self.fitting:
            self.fitting[height, width] = True
            if any(map(self._sized, self.order)):
                try:
                    self.infer(height, width)
                except GraphUnusable:
                    self.fitting[height, width] = False
        return self.fitting[height, width]

    def __call__(self, image: Tensor, emit: Emit) -> None:
        """Run the network on an NHWC image and emit (name, activation) in order; what `emit` returns is passed on."""
        self._run(tf.cast(image, self.dtype), self._value, emit)

    def _open_variables(self) -> None:
        self.reader: Any = tf.train.load_checkpoint(self.graph.checkpoint) if self.graph.checkpoint else None
        self.stored = self.reader.get_variable_to_shape_map() if self.reader else {}
        for node in self.order:
            if node.op in VARIABLES and self._key(node) not in self.stored:
                raise GraphUnusable(f"what its variable {node.name} holds is not known")

    def _key(self, node: Node) -> str:
        return self.points.values.get(node.name) or self.graph.keys.get(node.name, "")

    def _order(self) -> list[Node]:
        """The nodes that the activations need, each after its inputs, constants right before their use."""
        order: list[Node] = []
        done: set[str] = set()
        entered: set[str] = set()
        waiting = [(name, False) for name in reversed(list(self.points.names))]
        while waiting:
            name, expanded = waiting.pop()
            node = self.graph.nodes[name]
            if name in done:
                continue
            if expanded:
                done.add(name)
                order.append(node)
                continue
            if name in entered:
                raise GraphUnusable(f"it goes in a circle at {name}")
            entered.add(name)
            check(node)
            waiting.append((name, True))
            for ref in reversed(node.inputs if node.op not in VARIABLES else ()):
                if ref == self.points.image:
                    continue
                if ref[1] != 0:
                    raise GraphUnusable(
                        f"{name} takes output {ref[1]} of {ref[0]}, and only first outputs are computed"
                    )
                waiting.append((ref[0], False))
        return order

    def _run(self, image: Tensor, value: Callable[[Node], Tensor], emit: Emit, *, shapes_only: bool = False) -> None:
        values: dict[Ref, Tensor] = {self.points.image: image}
        for node in self.order:
            if node.op in VARIABLES or node.op == "Const":
                result = value(node)
            else:
                inputs = [values[ref] for ref in node.inputs]
                # A batch norm changes no shape, and is half of the work of inferring them.
                result = inputs[0] if shapes_only and node.op in BATCH_NORMS else compute(node, inputs, self.dtype)
            point = self.points.names.get(node.name)
            if point and node.name in self.points.flat:
                result = tf.reshape(emit(point, tf.reshape(result, (image.shape[0], -1))), result.shape)
            elif point:
                result = emit(point, result)
            if node.name == self.points.features and not self.classes:
                emit(self.pooled, tf.reduce_mean(result, [1, 2]))
            if (node.name, 0) in self.last_use:
                values[node.name, 0] = result
            for ref in node.inputs:
                if self.last_use[ref] == node.name:
                    values.pop(ref, None)

    def _value(self, node: Node) -> Tensor:
        if node.op in VARIABLES:
            array = self.reader.get_tensor(self._key(node))
        else:
            array = constant(node)
            if array.dtype == np.float32 and array.ndim == 0:
                # An epsilon: what its writer meant is the decimal, and float32's nearest to 0.001 is another number.
                return tf.constant(decimal(array), self.dtype)
        if not tf.as_dtype(array.dtype).is_floating:
            return tf.constant(array)
        # Through float32: what is ported is float32, whatever the file holds.
        return tf.cast(tf.constant(array.astype(np.float32, copy=False)), self.dtype)

    def _sized(self, node: Node) -> bool:
        if node.op not in _SIZED:
            return False
        ref = node.inputs[_SIZED[node.op]]
        return node.op == "AvgPool" or (ref != self.points.image and self.graph.nodes[ref[0]].op == "Const")

    def infer(self, height: int | None = None, width: int | None = None) -> None:
        """Infer every shape for images of a size, or of any; nothing is computed.

        Raises:
            GraphUnusable: the nodes do not fit together, or not at this size.
        """

        def value(node: Node) -> Tensor:
            shape, small = self._shape(node)
            return self._value(node) if small else tf.compat.v1.placeholder(self.dtype, shape)

        try:
            with tf.Graph().as_default():
                image = tf.compat.v1.placeholder(self.dtype, (1, height, width, 3))
                self._run(image, value, lambda _, x: x, shapes_only=True)
        except (ValueError, TypeError, AttributeError, tf.errors.OpError) as error:
            raise GraphUnusable(f"its nodes do not fit together ({error})") from None

    def _shape(self, node: Node) -> tuple[list[int], bool]:
        """A constant's or variable's shape, and whether it is so small that its values may decide other shapes."""
        if node.op == "Const":
            shape = [side.size for side in node.attr["value"].tensor.tensor_shape.dim]
            return shape, int(np.prod(shape)) <= _SMALL and node.name not in self.points.values
        return list(self.stored[self._key(node)]), False
