"""Frozen graphs: a GraphDef whose variables have become Const nodes.

Messages: tensorflow/core/framework/{graph,node_def,attr_value}.proto. The file is gone through node by node, so that
no more than one node is held at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from porting.errors import corrupt, unsupported
from porting.sources.base import TensorSource, TensorSpec, open_file, read_exactly
from porting.sources.protobuf import BYTES, REPEATED, Message, WireError, parse, text, varint
from porting.sources.tensor_proto import parse_tensor, tensor_spec, tensor_values

_NODE = 1  # GraphDef.node
_NODE_FIELDS = {1: BYTES, 2: BYTES, 5: BYTES | REPEATED}  # name, op, attr
_HEADER = 20  # bytes: the longest tag and length


class FrozenGraphSource(TensorSource):
    """The constants of a GraphDef, under their nodes' names.

    Raises:
        PortingError: missing, corrupt, or unsupported (no constants).
    """

    container = "tf-frozen-graph"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_file(path)
        self._buffer = bytearray()
        self._nodes: dict[str, tuple[int, int]] = {}  # offset and size in bytes
        self.specs: dict[str, TensorSpec] = {}
        try:
            self._list()
        except BaseException:
            self.close()
            raise

    def _list(self) -> None:
        end = os.fstat(self._fd).st_size
        at = 0
        names = set()
        while at < end:
            where = f"byte {at}"
            try:
                head = self._bytes(at, min(_HEADER, end - at), where)
                tag, used = varint(head, 0, len(head))
                size, used = varint(head, used, len(head))
                if tag & 7 not in (0, BYTES) or tag >> 3 == 0:
                    raise WireError(f"field {tag >> 3} of wire type {tag & 7}, which no GraphDef has")
                at += used
                if tag & 7 != BYTES:
                    continue
                if size > end - at:
                    raise WireError(f"field {tag >> 3} claims {size} bytes where {end - at} are left")
                if tag >> 3 == _NODE:
                    node = parse(self._bytes(at, size, where), _NODE_FIELDS)
                    name = text(node.get(1, b""))
                    if name in names:
                        raise WireError(f"a second node {name}")
                    names.add(name)
                    if node.get(2, b"") == b"Const":
                        where = name
                        self.specs[name] = tensor_spec(_value(node), name, self.path)
                        self._nodes[name] = at, size
                at += size
            except WireError as error:
                raise corrupt(
                    self.path, where, str(error), remedy="Give a binary GraphDef; or fetch or copy the file again."
                ) from None
        if not self.specs:
            raise unsupported(
                self.path, "", f"a graph of {len(names)} nodes, none of them a constant", "Freeze its variables first."
            )

    def files(self) -> Sequence[Path]:
        return [self.path]

    def read(self, name: str) -> npt.NDArray[Any]:
        offset, size = self._nodes[name]
        try:
            tensor = _value(parse(self._bytes(offset, size, name), _NODE_FIELDS))
            if tensor_spec(tensor, name, self.path) != self.specs[name]:
                raise WireError("the file has changed since it was listed")
            return tensor_values(tensor, self.specs[name], self.path, repeat=True)
        except WireError as error:
            raise corrupt(self.path, name, str(error)) from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _bytes(self, offset: int, size: int, where: str) -> memoryview:
        """Bytes of the file, in the buffer; `size` is known to lie in it."""
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        got = read_exactly(self._fd, view, offset)
        if got != size:
            raise corrupt(self.path, where, f"the file ends at byte {offset + got}", f"{size} bytes from {offset}")
        return view


def _value(node: Message) -> Message:
    """The TensorProto under the attribute "value" of a Const node."""
    found = []
    for data in node.get(5, []):
        pair = parse(data, {1: BYTES, 2: BYTES})
        if pair.get(1, b"") == b"value":
            found.append(parse(pair.get(2, b""), {8: BYTES}).get(8))
    if len(found) != 1 or found[0] is None:
        raise WireError("a constant without a value")
    return parse_tensor(found[0])
