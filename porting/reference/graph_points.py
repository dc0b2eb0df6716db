"""Finds a network's activations in a source's own graph, by following data from its variables.

Node names do not matter: a layer's output is the convolution that takes its kernel, its batch norm the first node after
that which depends on all four of the batch norm's variables, and so on. The order of the layers is spelled here and in
`aligned` (deeplab/core/xception.py; keras/src/applications/xception.py), not taken from the project's rule tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from porting.reference.aligned import units
from porting.reference.graph_loading import (
    READS,
    VARIABLES,
    GraphUnusable,
    LoadedGraph,
    Node,
    Ref,
    trains,
    variables_named,
)

CONVOLUTIONS = frozenset(["Conv2D", "DepthwiseConv2dNative", "MatMul"])
_KERNEL_PATH = READS | {"Cast", "Reshape", "ExpandDims", "StopGradient"}
_COPIES = frozenset(["Identity", "Cast", "StopGradient"])
_BEFORE_CONVOLUTION = _COPIES | {"Pad", "PadV2", "SpaceToBatchND"}
_RELUS = frozenset(["Relu", "Relu6"])  # a Relu6 is found, so that the comparison shows where it differs
_SUMS = frozenset(["Add", "AddV2", "AddN"])
_MEANS = frozenset(["Mean", "AvgPool"])
_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
_NEAR = 64  # nodes after a convolution in which its batch norm and bias are looked for


@dataclass(frozen=True)
class Points:
    """Where a graph's activations are.

    Attributes:
        names: trace point by node, in the network's order.
        flat: nodes that hold one value a channel; they are emitted as (N, channels).
        image: the tensor that enters the network.
        features: node of the last activation before the pooling.
        values: what the source's reader calls each variable, by node.
        output_stride: input pixels a feature, a side.
    """

    names: Mapping[str, str]
    flat: frozenset[str]
    image: Ref
    features: str
    values: Mapping[str, str]
    output_stride: int


def find_points(graph: LoadedGraph, source: Mapping[str, Any]) -> Points:
    """Pair every trace point of the source's network with a node.

    Raises:
        GraphUnusable: a point is not there, or more than once; batch norms in training mode.
    """
    if source.get("head"):
        raise GraphUnusable("its classifier has several layers")
    finder = _Finder(graph, source["variables"])
    if source["arch"] == "xception":
        finder.original(source["classes"] > 0)
    else:
        finder.aligned(source["arch"], source["classes"] > 0)
    return finder.points()


class _Finder:
    """Walks one graph; `net` is the output of the layer found last."""

    def __init__(self, graph: LoadedGraph, variables: Mapping[str, str]) -> None:
        self.graph, self.variables = graph, variables
        self.consumers: dict[str, list[tuple[Node, int]]] = {}
        for node in graph.nodes.values():
            for position, (name, _) in enumerate(node.inputs):
                self.consumers.setdefault(name, []).append((node, position))
        self.names: dict[str, str] = {}
        self.flat: set[str] = set()
        self.values: dict[str, str] = {}
        self.image: Ref | None = None
        self.features = ""
        self.strides = 1
        self.pads = False  # whether padding before the first convolution is the network's own

    def points(self) -> Points:
        assert self.image is not None  # each walk begins with the first convolution
        return Points(self.names, frozenset(self.flat), self.image, self.features, self.values, self.strides)

    # --- the two walks ------------------------------------------------------------------------------------------------

    def aligned(self, arch: str, head: bool) -> None:
        self.pads = True
        root = f"xception_{arch.removeprefix('xception')}"
        net = ""
        for scope in ("conv1_1", "conv1_2"):
            path = f"{root}/entry_flow/{scope}"
            net = self._relu_after(self._convolution(path), f"{path}/Relu")
        for unit in units(arch):
            scope = f"{root}/{unit.scope}/xception_module"
            for index in range(3):
                depthwise, pointwise = (
                    f"{scope}/separable_conv{index + 1}_{kind}" for kind in ("depthwise", "pointwise")
                )
                if not unit.relu_inside:
                    self._relu_before(
                        f"{depthwise}/depthwise_weights", f"{scope}/Relu" + (f"_{index}" if index else "")
                    )
                net = self._convolution(depthwise, "depthwise_weights", "depthwise")
                if unit.relu_inside:
                    self._relu_after(net, f"{depthwise}/Relu")
                net = self._convolution(pointwise)
                if unit.relu_inside:
                    net = self._relu_after(net, f"{pointwise}/Relu")
            if unit.skip == "conv":
                self._convolution(f"{scope}/shortcut", main=False)
            if unit.skip != "none":
                net = self._after(net, _SUMS, f"{scope}/add")
        self._classifier(net, "global_pool", f"{root}/logits", ("weights", "biases") if head else None)

    def original(self, head: bool) -> None:
        net = ""
        for index in (1, 2):
            layer = f"block1_conv{index}"
            net = self._relu_after(self._layer(layer), f"{layer}_act")
        shortcuts = 0
        for block in range(2, 14):
            for index in range(1, 3 if block in (2, 3, 4, 13) else 4):
                layer = f"block{block}_sepconv{index}"
                if (block, index) != (2, 1):  # block 2 starts after a ReLU already
                    self._relu_before(f"{layer}/depthwise_kernel", f"{layer}_act")
                net = self._separable(layer)
            if block in (2, 3, 4, 13):
                suffix = f"_{shortcuts}" if shortcuts else ""
                shortcuts += 1
                shortcut = self._named(self._output(f"conv2d{suffix}/kernel", main=False), f"conv2d{suffix}")
                net = self._after(net, frozenset(["MaxPool"]), f"block{block}_pool")
                self._stride(self.graph.nodes[net])
                self._norm(shortcut, f"batch_normalization{suffix}", f"batch_normalization{suffix}")
            net = self._after(net, _SUMS, "add" if block == 2 else f"add_{block - 2}")
        for index in (1, 2):
            layer = f"block14_sepconv{index}"
            net = self._relu_after(self._separable(layer), f"{layer}_act")
        self._classifier(net, "avg_pool", "predictions", ("kernel", "bias") if head else None)

    def _layer(self, name: str) -> str:
        return self._norm(self._named(self._output(f"{name}/kernel"), name), f"{name}_bn", f"{name}_bn")

    def _separable(self, name: str) -> str:
        self._output(f"{name}/depthwise_kernel")
        output = self._named(self._output(f"{name}/pointwise_kernel"), name)
        return self._norm(output, f"{name}_bn", f"{name}_bn")

    def _convolution(self, scope: str, kernel: str = "weights", op: str = "Conv2D", main: bool = True) -> str:
        output = self._named(self._output(f"{scope}/{kernel}", main), f"{scope}/{op}")
        return self._norm(output, f"{scope}/BatchNorm", f"{scope}/BatchNorm")

    def _classifier(self, net: str, pooled: str, logits: str, leaves: tuple[str, str] | None) -> None:
        self.features = net
        if leaves is None:
            return  # whatever follows the features is another network's
        self.flat.add(self._after(net, _MEANS, pooled))
        output = self._output(f"{logits}/{leaves[0]}", main=False)
        biased = self._depending(output, [f"{logits}/{leaves[1]}"], logits)
        self.flat.add(self._named(biased, logits))

    # --- what a layer is ----------------------------------------------------------------------------------------------

    def _named(self, node: str, point: str) -> str:
        if node in self.names:
            raise GraphUnusable(f"{self.names[node]} and {point} are one node of it, {node}")
        self.names[node] = point
        return node

    def _nodes_of(self, variable: str) -> list[str]:
        pairs = variables_named(self.graph, variable, self.variables.get(variable, variable))
        self.values.update(pairs)
        return list(pairs)

    def _taking(self, kernel: str) -> Node:
        """The convolution whose kernel is this variable."""
        found: dict[str, Node] = {}
        waiting = self._nodes_of(kernel)
        while waiting:
            for node, position in self.consumers.get(waiting.pop(), ()):
                if node.op in CONVOLUTIONS and position == 1:
                    found[node.name] = node
                elif node.op in _KERNEL_PATH and position == 0:
                    waiting.append(node.name)
        if len(found) != 1:
            raise GraphUnusable(f"{len(found) or 'no'} convolutions take {kernel}")
        return next(iter(found.values()))

    def _output(self, kernel: str, main: bool = True) -> str:
        """A convolution's output, past the end of what TensorFlow 1 wraps around a dilated one."""
        node = self._taking(kernel)
        if self.image is None:
            self.image = self._enters(node)
        if main:
            self._stride(node)
        dilated = [one.name for one, at in self.consumers.get(node.name, ()) if one.op == "BatchToSpaceND" and at == 0]
        return dilated[0] if len(dilated) == 1 else node.name

    def _stride(self, node: Node) -> None:
        strides = node.attribute("strides")  # a dense layer has none
        if strides is not None and len(strides.list.i) == 4:
            self.strides *= strides.list.i[1]

    def _enters(self, node: Node) -> Ref:
        """What enters the network, an aligned one before its own padding; what comes before is preprocessing."""
        ref = node.inputs[0]
        before, padding = self.graph.nodes[ref[0]], node.attribute("padding")
        if self.pads and padding is not None and padding.s == b"VALID" and before.op in ("Pad", "PadV2"):
            ref = before.inputs[0]
        return ref

    def _norm(self, output: str, scope: str, point: str) -> str:
        return self._named(self._depending(output, [f"{scope}/{leaf}" for leaf in _NORM_LEAVES], point), point)

    def _depending(self, start: str, variables: Iterable[str], point: str) -> str:
        """The first node after `start` that depends on all of these variables."""
        wanted = [set(self._nodes_of(variable)) for variable in variables]
        seen, layer = {start}, [start]
        while layer and len(seen) < _NEAR:
            following = []
            for name in layer:
                for node, _ in self.consumers.get(name, ()):
                    if node.name in seen or node.op in CONVOLUTIONS:
                        continue
                    if trains(node):
                        raise GraphUnusable(f"its batch norms are in training mode ({node.name})")
                    seen.add(node.name)
                    following.append(node.name)
                    leaves = self._leaves(node, start)
                    if all(nodes & leaves for nodes in wanted):
                        return node.name
            layer = following
        raise GraphUnusable(
            f"no activation was found for {point}: nothing after its convolution takes all of its variables"
        )

    def _leaves(self, node: Node, stop: str) -> set[str]:
        """The variables and constants that a node depends on, without what came before `stop`."""
        found, seen, waiting = set(), {stop}, [node.name]
        while waiting and len(seen) < _NEAR:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            inner = self.graph.nodes[name]
            if inner.op in VARIABLES or inner.op == "Const":
                found.add(name)
            waiting += [one for one, _ in inner.inputs]
        return found

    def _relu_after(self, net: str, point: str) -> str:
        return self._after(net, _RELUS, point)

    def _relu_before(self, kernel: str, point: str) -> str:
        """The ReLU whose output a convolution takes, before padding and the start of dilation."""
        name = self._taking(kernel).inputs[0][0]
        for _ in range(_NEAR):
            node = self.graph.nodes[name]
            if node.op in _RELUS:
                return self._named(name, point)
            if node.op not in _BEFORE_CONVOLUTION:
                break
            name = node.inputs[0][0]
        raise GraphUnusable(f"no activation was found for {point}: what enters its convolution is a {node.op}, {name}")

    def _after(self, net: str, ops: frozenset[str], point: str) -> str:
        """The one consumer of a node of these kinds."""
        found = {node.name for node in self._following(net) if node.op in ops}
        if len(found) != 1:
            raise GraphUnusable(f"no activation was found for {point}: {len(found) or 'none'} may be it after {net}")
        return self._named(found.pop(), point)

    def _following(self, net: str) -> Iterator[Node]:
        waiting = [net]
        while waiting:
            for node, position in self.consumers.get(waiting.pop(), ()):
                if node.op in _COPIES and position == 0:
                    waiting.append(node.name)
                else:
                    yield node
