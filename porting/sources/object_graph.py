"""Names of the variables in object-based checkpoints (`tf.train.Checkpoint`, Keras, SavedModels).

Message: tensorflow/core/protobuf/trackable_object_graph.proto. Such a checkpoint stores tensors under paths through
Python objects; its graph gives each variable's own name, `block1_conv1/kernel`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from porting.errors import corrupt
from porting.sources.bundle import BundleSource
from porting.sources.bundle_index import Entry
from porting.sources.protobuf import BYTES, REPEATED, VARINT, Message, WireError, parse, signed, text

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# `model.export()` lists every variable twice; the two copies hold the same bytes.
_COPY = re.compile(r"_all_variables/\d+" + re.escape(_VALUE))


@dataclass(frozen=True)
class Attribute:
    """A stored part of an object: the name it has of its own, if any, and the key its tensor lies under."""

    full_name: str
    key: str


@dataclass(frozen=True)
class Node:
    """An object: its named children and, of an optimizer, (original, name, slot) for each slot variable, by number."""

    children: tuple[tuple[str, int], ...]
    attributes: tuple[Attribute, ...]
    slots: tuple[tuple[int, str, int], ...]


def parse_children(message: Message, count: int) -> tuple[tuple[str, int], ...]:
    """ObjectReferences (field 1) of one of `count` nodes.

    Raises:
        WireError: malformed, a node that is not there, a name used twice.
    """
    children: dict[str, int] = {}
    for data in message.get(1, []):
        child = parse(data, {1: VARINT, 2: BYTES})
        name, number = text(child.get(2, b"")), signed(child.get(1, 0))
        if not 0 <= number < count:
            raise WireError(f"child {name!r} is node {number} of {count}")
        if name in children:
            raise WireError(f"two children named {name!r}")
        children[name] = number
    return tuple(children.items())


def parse_graph(data: bytes, path: Path) -> list[Node]:
    """A TrackableObjectGraph's nodes; the first is the root.

    Raises:
        PortingError: corrupt.
    """
    subject = "object graph"
    nodes = []
    try:
        messages = parse(data, {1: BYTES | REPEATED}).get(1, [])
        for number, raw in enumerate(messages):
            subject = f"object graph, node {number}"
            message = parse(raw, {1: BYTES | REPEATED, 2: BYTES | REPEATED, 3: BYTES | REPEATED})
            attributes = []
            for raw_attribute in message.get(2, []):
                attribute = parse(raw_attribute, {1: BYTES, 2: BYTES, 3: BYTES})
                attributes.append(Attribute(text(attribute.get(2, b"")), text(attribute.get(3, b""))))
            slots = []
            for raw_slot in message.get(3, []):
                slot = parse(raw_slot, {1: VARINT, 2: BYTES, 3: VARINT})
                original, variable = signed(slot.get(1, 0)), signed(slot.get(3, 0))
                if not (0 <= original < len(messages) and 0 <= variable < len(messages)):
                    raise WireError(f"a slot variable of nodes {original} and {variable} of {len(messages)}")
                slots.append((original, text(slot.get(2, b"")), variable))
            nodes.append(Node(parse_children(message, len(messages)), tuple(attributes), tuple(slots)))
    except WireError as error:
        raise corrupt(path, subject, str(error)) from None
    if not nodes:
        raise corrupt(path, subject, "no nodes", "a root")
    return nodes


def read_graph(source: BundleSource) -> list[Node]:
    """The object graph that a checkpoint holds, as a string tensor.

    Raises:
        PortingError: missing (the shard), corrupt.
    """
    spec = source.entries[OBJECT_GRAPH_KEY].spec
    if spec.dtype != "string" or spec.shape:
        raise corrupt(source.path, OBJECT_GRAPH_KEY, f"{spec.dtype} {list(spec.shape)}", "one string")
    return parse_graph(source.read_strings(OBJECT_GRAPH_KEY)[0], source.path)


def resolve(
    nodes: list[Node], entries: Mapping[str, Entry], path: Path, other_names: Mapping[int, str] | None = None
) -> dict[str, str]:
    """The name of every stored tensor, by the key it lies under, in the index's order.

    A variable has the name it was given; a slot variable the name of its original, a slash, and the slot's name; what
    has no name, or one that different variables share, keeps its path through the objects. The graph itself, and
    second copies, are left out.

    Args:
        nodes: the object graph.
        entries: the checkpoint's index.
        path: the checkpoint, for messages.
        other_names: names by node, for variables to which the graph gives none.

    Raises:
        PortingError: corrupt (a key that is not there or belongs to two objects, slots of slots, one name twice).
    """
    given: dict[str, str] = {}
    holder: dict[str, int] = {}
    for number, node in enumerate(nodes):
        for attribute in node.attributes:
            key = attribute.key
            if key not in entries:
                raise corrupt(path, f"object graph, node {number}", f"no tensor {key}")
            if key in holder:
                raise corrupt(path, f"object graph, node {number}", f"{key}, which node {holder[key]} holds")
            holder[key] = number
            name = attribute.full_name
            if not name and other_names and key.endswith(_VALUE):
                name = other_names.get(number, "")
            given[key] = name or _path(key)
    by_node = {number: key for key, number in holder.items() if key.endswith(_VALUE)}
    slots = {variable: (original, name) for node in nodes for original, name, variable in node.slots}
    slot_keys = {by_node[variable] for variable in slots if variable in by_node}
    plain = {key: given.get(key, key) for key in entries if key != OBJECT_GRAPH_KEY and key not in slot_keys}
    names = _distinct(plain, entries, path)
    for variable, (original, slot) in slots.items():
        if original in slots:
            raise corrupt(path, f"object graph, node {variable}", f"a slot of node {original}, itself a slot")
        if variable in by_node:
            base = names.get(by_node.get(original, ""))
            names[by_node[variable]] = f"{base}/{slot}" if base else given[by_node[variable]]
    # Two optimizers may keep slots of one name, so this is looked at again.
    return _distinct({key: names[key] for key in entries if key in names}, entries, path)


def name_variables(source: BundleSource) -> None:
    """Give the tensors of an object-based checkpoint the names of its object graph, which lies in a shard.

    Raises:
        PortingError: missing (the shard), corrupt.
    """
    nodes = read_graph(source)
    source.rename(resolve(nodes, source.entries, source.path))
    source.container = "tf-object-checkpoint"


def _path(key: str) -> str:
    return key.removesuffix(_VALUE)


def _distinct(names: dict[str, str], entries: Mapping[str, Entry], path: Path) -> dict[str, str]:
    keys = defaultdict(list)
    for key, name in names.items():
        keys[name].append(key)
    for sharing in keys.values():
        if len(sharing) == 1:
            continue
        first = [key for key in sharing if not _COPY.fullmatch(key)]
        if len(first) == 1 and all(_same(entries[first[0]], entries[key]) for key in sharing):
            for key in sharing:
                if key != first[0]:
                    del names[key]
        else:
            for key in sharing:
                names[key] = _path(key)
    seen: dict[str, str] = {}
    for key, name in names.items():
        if name in seen:
            raise corrupt(path, name, f"the name of both {seen[name]} and {key}")
        seen[name] = key
    return names


def _same(one: Entry, other: Entry) -> bool:
    return (one.spec.dtype, one.spec.shape, one.crc) == (other.spec.dtype, other.spec.shape, other.crc)
