"""A source's own TensorFlow graph as plain nodes: frozen graphs, SavedModels, and the `.meta` file of a checkpoint.

Nothing of the file is run here: functions are followed where they are called, and which tensor of the checkpoint
belongs to which variable is read off the graph's own restore nodes.

Messages: tensorflow/core/framework/{graph,function,node_def}.proto, tensorflow/core/protobuf/{meta_graph,saver}.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from porting.reference.tensorflow_import import tf
from porting.sources.protobuf import BYTES, REPEATED, parse

Proto = Any
Ref = tuple[str, int]  # a node's name and the number of its output

CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
VARIABLES = frozenset(["Variable", "VariableV2", "VarHandleOp"])
READS = frozenset(["Identity", "ReadVariableOp"])
_ASSIGNS = frozenset(["Assign", "AssignVariableOp"])
_RESTORES = frozenset(["RestoreV2"])
BATCH_NORMS = frozenset(["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])
_SIGNATURES = ("serving_default", "serve")  # TensorFlow's own default name, and Keras's
# Against graphs made to exhaust memory: DeepLab's training graphs have 60,000 nodes, and Keras nests calls three deep.
_MAX_NODES, _MAX_DEPTH = 500_000, 32


class GraphUnusable(Exception):  # noqa: N818 - no error: the project's own graph runs instead
    """A graph that cannot be the reference; the message says why, as a clause."""


@dataclass(frozen=True)
class Node:
    """One node, functions inlined, control inputs left out."""

    name: str
    op: str
    inputs: tuple[Ref, ...]
    attr: Mapping[str, Proto]

    def attribute(self, name: str) -> Proto | None:
        """An attribute, None where it has its default. (Protobuf's own lookup would add what is not there.)"""
        return self.attr.get(name)


@dataclass(frozen=True)
class LoadedGraph:
    """A graph and the values of its variables.

    Attributes:
        nodes: by name.
        keys: what the checkpoint calls each variable, by node, where the graph itself says so; empty for a part of one.
        restored: the variables that each tensor of the checkpoint goes to.
        same: variables that start as copies of each other, by node.
        checkpoint: prefix of the checkpoint; empty for a frozen graph, whose variables are constants.
    """

    nodes: Mapping[str, Node]
    keys: Mapping[str, str] = field(default_factory=dict)
    restored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    same: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checkpoint: str = ""


def load_graph(kind: str, path: str) -> LoadedGraph:
    """Read a frozen graph ("graph", a file), a SavedModel ("saved-model", a folder) or PREFIX.meta ("meta", a prefix).

    Raises:
        GraphUnusable: it cannot be read, or is none that this project follows.
    """
    try:
        if kind == "graph":
            frozen = tf.compat.v1.GraphDef.FromString(Path(path).read_bytes())
            return LoadedGraph(_Flattening(frozen).all_nodes())
        if kind == "meta":
            meta = tf.compat.v1.MetaGraphDef.FromString(Path(f"{path}.meta").read_bytes())
            return _with_variables(meta, path)
        if kind == "saved-model":
            meta = _serving_graph(Path(path, "saved_model.pb").read_bytes())
            return _with_variables(meta, str(Path(path, "variables", "variables")))
    except GraphUnusable:
        raise
    except Exception as error:  # protobuf's, the reader's and Python's own: all say that the file is not as it must be
        raise GraphUnusable(f"it cannot be read ({type(error).__name__}: {error})") from None
    raise GraphUnusable(f"a source of kind {kind} has no graph of its own")


def _serving_graph(data: bytes) -> Proto:
    """The MetaGraphDef that serves, else the first (SavedModel.meta_graphs, field 2)."""
    graphs = [
        tf.compat.v1.MetaGraphDef.FromString(bytes(part))
        for part in parse(memoryview(data), {2: BYTES | REPEATED}).get(2, [])
    ]
    if not graphs:
        raise GraphUnusable("its saved_model.pb holds no graph")
    return next((graph for graph in graphs if "serve" in graph.meta_info_def.tags), graphs[0])


def _with_variables(meta: Proto, checkpoint: str) -> LoadedGraph:
    flattening = _Flattening(meta.graph_def)
    names = sorted(name for name in meta.signature_def if not name.startswith("__"))
    chosen = next((name for name in _SIGNATURES if name in names), names[0] if names else "")
    if chosen:
        # A Keras export holds its network once for every signature; one of them is run.
        outputs = [tensor.name for tensor in meta.signature_def[chosen].outputs.values()]
        nodes = flattening.ancestors(outputs)
    else:
        nodes = flattening.all_nodes()
    keys, same = flattening.restored(meta.saver_def.restore_op_name)
    restored: dict[str, tuple[str, ...]] = {}
    for node, key in keys.items():
        restored[key] = (*restored.get(key, ()), node)
    return LoadedGraph(nodes, keys, restored, same, checkpoint)


@dataclass(frozen=True)
class _Scope:
    """The main graph, or the body of a function at one of its calls."""

    prefix: str
    nodes: Mapping[str, Proto]
    depth: int = 0
    function: Proto = None
    caller: _Scope | None = None
    call: tuple[str, ...] = ()  # the call's data inputs, in the caller's names
    arguments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Output:
    """One output of a node in its scope."""

    scope: _Scope
    node: Proto
    index: int

    @property
    def ref(self) -> Ref:
        return self.scope.prefix + self.node.name, self.index


class _Flattening:
    """Follows references from node to node, through calls and back."""

    def __init__(self, graph: Proto) -> None:
        self.main = _Scope("", _by_name(graph.node))
        self.library = {function.signature.name: function for function in graph.library.function}
        self.scopes: dict[str, _Scope] = {}

    def all_nodes(self) -> dict[str, Node]:
        return self._closed(_Output(self.main, node, 0) for node in self.main.nodes.values() if node.op not in CALLS)

    def ancestors(self, outputs: Iterable[str]) -> dict[str, Node]:
        return self._closed(self.resolve(self.main, name) for name in outputs)

    def restored(self, restore: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        """(checkpoint key by variable, variables that start as copies of each other by variable)."""
        keys: dict[str, str] = {}
        same: dict[str, tuple[str, ...]] = {}
        scopes = [self.main]
        called = self.main.nodes.get(restore.split(":")[0])
        if called is not None and called.op in CALLS:
            scopes.append(self._inside(self.main, called))
        for scope in scopes:
            for node in scope.nodes.values():
                if node.op not in _ASSIGNS:
                    continue
                target, value = (self._read(scope, name) for name in _data(node.input)[:2])
                if target.node.op not in VARIABLES:
                    continue
                variable = target.ref[0]
                if value.node.op in _RESTORES:
                    keys[variable] = self._key(value)
                elif value.node.op in VARIABLES and value.ref[0] != variable:
                    twin = value.ref[0]
                    same[variable] = (*same.get(variable, ()), twin)
                    same[twin] = (*same.get(twin, ()), variable)
        return keys, same

    def resolve(self, scope: _Scope, name: str) -> _Output:
        """The node and output that a data input names, wherever calls lead."""
        for _ in range(4 * _MAX_DEPTH):  # each call crossed is one step down, each argument one up
            name, *rest = name.split(":")
            if name in scope.arguments and scope.caller is not None:
                name, scope = scope.call[scope.arguments[name]], scope.caller
                continue
            node = scope.nodes.get(name)
            if node is None:
                raise GraphUnusable(f"a node takes {name}, which is not in it")
            index = int(rest[-1]) if rest else 0
            if scope.function is not None and node.op in BATCH_NORMS and rest[0] != "y":
                index = -1  # in a function each named output counts from 0; the statistics are never taken
            if node.op not in CALLS:
                return _Output(scope, node, index)
            scope = self._inside(scope, node)
            name = scope.function.ret[scope.function.signature.output_arg[index].name]
        raise GraphUnusable("its functions call each other without an end")

    def _inside(self, scope: _Scope, call: Proto) -> _Scope:
        prefix = f"{scope.prefix}{call.name}/"
        if prefix not in self.scopes:
            function = self.library.get(call.attr["f"].func.name)
            if function is None or scope.depth >= _MAX_DEPTH:
                raise GraphUnusable(f"it calls a function that it does not hold, or too deeply ({call.name})")
            arguments = {argument.name: i for i, argument in enumerate(function.signature.input_arg)}
            self.scopes[prefix] = _Scope(
                prefix, _by_name(function.node_def), scope.depth + 1, function, scope, _data(call.input), arguments
            )
        return self.scopes[prefix]

    def _closed(self, outputs: Iterable[_Output]) -> dict[str, Node]:
        """The nodes of these outputs and every one that they need."""
        nodes: dict[str, Node] = {}
        waiting = list(outputs)
        while waiting:
            output = waiting.pop()
            name = output.ref[0]
            if name in nodes:
                continue
            if len(nodes) >= _MAX_NODES:
                raise GraphUnusable(f"it has more than {_MAX_NODES} nodes")
            inputs = [self.resolve(output.scope, one) for one in _data(output.node.input)]
            nodes[name] = Node(name, output.node.op, tuple(one.ref for one in inputs), output.node.attr)
            waiting += inputs
        return nodes

    def _read(self, scope: _Scope, name: str) -> _Output:
        """What a reference names, behind reads and identities."""
        output = self.resolve(scope, name)
        for _ in range(_MAX_DEPTH):
            if output.node.op not in READS:
                break
            output = self.resolve(output.scope, output.node.input[0])
        return output

    def _key(self, restored: _Output) -> str:
        """What a RestoreV2 reads for one of its outputs; empty for a part of a tensor."""
        _, names, slices = (self.resolve(restored.scope, name).node for name in _data(restored.node.input)[:3])
        if names.op != "Const" or slices.op != "Const":
            return ""
        key, part = (node.attr["value"].tensor.string_val[restored.index] for node in (names, slices))
        return "" if part else str(key.decode())


def _by_name(nodes: Iterable[Proto]) -> dict[str, Proto]:
    return {node.name: node for node in nodes}


def _data(inputs: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in inputs if not name.startswith("^"))


def trains(node: Node) -> bool:
    """Whether a node is a batch norm that uses the batch's statistics, as one does that does not say otherwise."""
    training = node.attribute("is_training")
    return node.op in BATCH_NORMS and (training is None or training.b)


def variables_named(graph: LoadedGraph, plain: str, own: str) -> dict[str, str]:
    """Every variable that may hold what the vocabulary calls `plain` and the source's reader `own`: key by node.

    A frozen graph's variable is the constant of that name. Otherwise it is a variable that the graph restores from
    `own`, one that starts as its copy, or the one called `plain` where the checkpoint is given it under another name,
    as a moving average is.
    """
    if not graph.checkpoint:
        return {own: own} if own in graph.nodes else {}
    found: dict[str, str] = {}
    for node in graph.restored.get(own, ()):
        found[node] = own
        found.update((twin, graph.keys.get(twin, own)) for twin in graph.same.get(node, ()))
    for name in (own, plain):
        found.setdefault(name, own)
    return {name: key for name, key in found.items() if name in graph.nodes and graph.nodes[name].op in VARIABLES}
