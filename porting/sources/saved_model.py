"""SavedModel folders: saved_model.pb beside variables/variables.{index,data-*}, a V2 checkpoint.

Messages: tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph}.proto. saved_model.pb is read for names
alone, and only where the checkpoint's own object graph has none.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from porting.errors import ErrorKind, PortingError, corrupt, unsupported
from porting.sources.base import TensorSource, open_file, read_exactly
from porting.sources.bundle import BundleSource
from porting.sources.object_graph import OBJECT_GRAPH_KEY, Node, parse_children, read_graph, resolve
from porting.sources.protobuf import BYTES, REPEATED, WireError, parse, text

_OBJECT_GRAPH, _VARIABLE, _NAME = 7, 7, 6  # MetaGraphDef.object_graph_def, SavedObject.variable, SavedVariable.name


def open_saved_model(folder: Path) -> TensorSource:
    """Open a SavedModel folder, its variables under their layers' names.

    Raises:
        PortingError: missing, corrupt, or unsupported (no variables, a text saved_model.pbtxt).
    """
    pb = folder / "saved_model.pb"
    if not pb.is_file():
        raise unsupported(folder, "saved_model.pbtxt", "a SavedModel in text form", "Save it as saved_model.pb.")
    prefix = folder / "variables" / "variables"
    if not prefix.with_name("variables.index").is_file():
        raise PortingError(
            ErrorKind.MISSING, folder, ["a SavedModel without variables/variables.index"],
            "Copy the whole folder; a SavedModel with frozen variables is not read.",
        )  # fmt: skip
    source = BundleSource(prefix, container="tf-saved-model", path=folder, beside=[pb])
    try:
        saved = _saved_objects(pb)
        if OBJECT_GRAPH_KEY in source.entries:
            nodes = read_graph(source)
            source.rename(resolve(nodes, source.entries, prefix, _names_by_node(nodes, saved)))
    except BaseException:
        source.close()
        raise
    return source


def _saved_objects(pb: Path) -> list[tuple[str, dict[str, int]]]:
    """(variable name, children) of each object that saved_model.pb lists; none in SavedModels of TensorFlow 1."""
    fd = open_file(pb)
    try:
        data = bytearray(os.fstat(fd).st_size)
        got = read_exactly(fd, memoryview(data), 0)
    finally:
        os.close(fd)
    where = "saved_model.pb"
    try:
        graphs = parse(memoryview(data)[:got], {2: BYTES | REPEATED}).get(2, [])
        if not graphs:
            raise WireError("no graph")
        objects = parse(graphs[0], {_OBJECT_GRAPH: BYTES}).get(_OBJECT_GRAPH, b"")
        nodes = parse(objects, {1: BYTES | REPEATED}).get(1, [])
        found = []
        for number, raw in enumerate(nodes):
            where = f"saved_model.pb, node {number}"
            message = parse(raw, {1: BYTES | REPEATED, _VARIABLE: BYTES})
            name = text(parse(message.get(_VARIABLE, b""), {_NAME: BYTES}).get(_NAME, b""))
            found.append((name, dict(parse_children(message, len(nodes)))))
    except WireError as error:
        raise corrupt(pb, where, str(error)) from None
    return found


def _names_by_node(nodes: list[Node], saved: list[tuple[str, dict[str, int]]]) -> dict[int, str]:
    """Variable names by node of the checkpoint's graph: both graphs are walked from the root along the same children.

    Objects may refer to each other in circles, so every node is visited once.
    """
    names: dict[int, str] = {}
    if not saved:
        return names
    seen = {0}
    queue = deque([(0, 0)])
    while queue:
        number, twin = queue.popleft()
        name, children = saved[twin]
        if name:
            names[number] = name.removesuffix(":0")
        for child, node in nodes[number].children:
            if child in children and node not in seen:
                seen.add(node)
                queue.append((node, children[child]))
    return names
