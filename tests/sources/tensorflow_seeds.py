"""Small valid files of TensorFlow's containers, and mutations that keep their checksums right."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import numpy as np

from porting.sources import open_source
from porting.sources.object_graph import OBJECT_GRAPH_KEY
from porting.sources.ordered_code import slice_key
from porting.sources.protobuf import WireError, varint
from porting.sources.table import Table
from porting.sources.tensorflow_types import Slice
from tests.sources import wire
from tests.sources.fuzzing import Files, Reader, mutate_bytes

_FLOATS = np.arange(24, dtype=np.float32)
_NUMBERS = (0, 1, 2, 3, 7, 8, 14, 100, 127, 128, 255, 65536, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, 1 << 63, -1, -2)


def _bundle(folder: Path) -> list[Path]:
    bundle = wire.small_bundle({
        "a/weights": _FLOATS.reshape(2, 3, 4), "b": _FLOATS[:3].astype(np.float16), "c": np.array([True, False]),
        "global_step": np.array(7, np.int64), "z": np.zeros((0, 3), np.float32),
    })  # fmt: skip
    bundle.add_string("text", b"words")
    parts = [Slice((0, 0), (1, 4)), Slice((1, 0), (2, 4))]
    described = b"".join(
        wire.message(7, wire.slices(list(zip(part.starts, part.lengths, strict=True)))) for part in parts
    )
    bundle.rows[b"part"] = wire.entry(1, (3, 4), more=described)
    for part in parts:
        bundle.add(slice_key("part", part), _FLOATS[: part.lengths[0] * 4].reshape(part.lengths))
    many = wire.small_bundle({f"layer{i}/kernel": _FLOATS[: i % 5] for i in range(45)})
    state = folder / "state"
    wire.small_bundle({"w": _FLOATS}).write(state / "model.ckpt-2")
    (state / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-2"\nall_model_checkpoint_paths: "model.ckpt-2"\n'
    )
    return [bundle.write(folder / "bundle" / "model.ckpt"), many.write(folder / "many" / "m"), state]


def _v1(folder: Path) -> list[Path]:
    tensors = {f"layer{i}/weights": _FLOATS[: 4 + i].reshape(-1, 1) for i in range(9)}
    paths = []
    for snappy in (False, True):
        path = folder / f"v1-{snappy}" / "model.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(wire.v1_checkpoint(tensors, snappy))
        paths.append(path)
    return paths


_KEYS = [f"model/_operations/{i}/{name}/.ATTRIBUTES/VARIABLE_VALUE" for i in (1, 2) for name in ("_kernel", "bias")]
_SLOT = "model/_operations/1/_kernel/.OPTIMIZER_SLOT/opt/m/.ATTRIBUTES/VARIABLE_VALUE"
_NODES = [
    wire.child(1, "model") + wire.child(7, "optimizer"),
    wire.child(2, "layer-1") + wire.child(0, "parent"),
    wire.child(3, "kernel") + wire.child(4, "bias") + wire.child(6, "other"),
    wire.attribute("block1_conv1/kernel", _KEYS[0]), wire.attribute("block1_conv1/bias", _KEYS[1]),
    wire.attribute("block2_conv1/kernel", _KEYS[2]), wire.attribute("", _KEYS[3]),
    wire.slot(3, "m", 8), wire.attribute("Adam/block1_conv1/kernel/m", _SLOT),
]  # fmt: skip


def _objects() -> wire.Bundle:
    bundle = wire.small_bundle({key: _FLOATS[: 2 + i] for i, key in enumerate([*_KEYS, _SLOT])})
    bundle.add_string(OBJECT_GRAPH_KEY, wire.object_graph(_NODES))
    return bundle


def _object_graph(folder: Path) -> list[Path]:
    return [_objects().write(folder / "objects" / "ckpt-1")]


def _saved_model(folder: Path) -> list[Path]:
    root = folder / "saved"
    _objects().write(root / "variables" / "variables")
    variable = wire.message(7, wire.integer(1, 1) + wire.message(6, "block2_conv1/bias"))
    objects = wire.object_graph(
        [wire.child(1, "model"), wire.child(2, "layer-1") + wire.child(0, "parent"), wire.child(3, "other"), variable]
    )
    graph = wire.message(1, b"") + wire.message(7, objects)
    (root / "saved_model.pb").write_bytes(wire.integer(1, 1) + wire.message(2, graph))
    return [root]


def _frozen(folder: Path) -> list[Path]:
    raw = wire.message(4, _FLOATS.tobytes())
    nodes = [
        wire.const_node("net/weights", wire.tensor(1, (2, 12), raw)),
        wire.const_node("net/splat", wire.tensor(1, (3, 3), wire.message(5, struct.pack("<f", 0.5)))),
        wire.const_node("net/half", wire.tensor(19, (3,), wire.message(13, b"\x80\x78\x01\x02"))),
        wire.const_node("net/bfloat16", wire.tensor(14, (2,), wire.message(13, b"\x80\x7f\x01"))),
        wire.const_node("net/flag", wire.tensor(10, (2,), wire.message(11, b"\x01"))),
        wire.const_node("net/step", wire.tensor(9, (), wire.integer(10, 7))),
        wire.const_node("net/name", wire.tensor(7, (), wire.message(8, "x"))),
        wire.message(1, "net/weights/read") + wire.message(2, "Identity") + wire.message(3, "net/weights"),
    ]
    path = folder / "frozen" / "graph.pb"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(wire.message(1, node) for node in nodes) + wire.message(4, wire.integer(1, 1087)))
    return [path]


def mutate_message(data: bytes, random: Random, depth: int = 0) -> bytes:
    """A protobuf message with one field changed, dropped, doubled, moved, or (often) changed further within."""
    fields = []
    at = 0
    try:
        while at < len(data):
            tag, body = varint(data, at, len(data))
            wire_type = tag & 7
            if wire_type == 0:
                _, end = varint(data, body, len(data))
                content = body
            elif wire_type == 2:
                size, content = varint(data, body, len(data))
                end = content + size
            else:
                content, end = body, body + (4 if wire_type == 5 else 8)
            if end > len(data) or wire_type not in (0, 1, 2, 5):
                return mutate_bytes(data, random)
            fields.append((tag, data[content:end]))
            at = end
    except WireError:
        return mutate_bytes(data, random)
    if not fields:
        return mutate_bytes(data, random) if random.random() < 0.5 else wire.integer(random.randrange(1, 9), 1)
    number = random.randrange(len(fields))
    tag, content = fields[number]
    kind = random.randrange(12)
    if kind == 0:
        del fields[number]
    elif kind == 1:
        fields.insert(random.randrange(len(fields) + 1), fields[number])
    elif kind == 2:
        other = random.randrange(len(fields))
        fields[number], fields[other] = fields[other], fields[number]
    elif kind == 3:
        fields[number] = (random.randrange(1, 17) << 3 | tag & 7, content)
    elif tag & 7 == 0:
        fields[number] = (tag, wire.varint(random.choice(_NUMBERS)))
    elif tag & 7 == 2 and depth < 8:
        deeper = random.random() < 0.8
        fields[number] = (
            tag, mutate_message(content, random, depth + 1) if deeper else mutate_bytes(content, random)
        )  # fmt: skip
    else:
        fields[number] = (tag, mutate_bytes(content, random))
    parts = []
    for tag, content in fields:
        parts.append(wire.varint(tag) + (wire.varint(len(content)) if tag & 7 == 2 else b"") + content)
    return b"".join(parts)


def _mutate_rows(rows: list[tuple[bytes, bytes]], random: Random) -> list[tuple[bytes, bytes]]:
    number = random.randrange(len(rows))
    key, value = rows[number]
    kind = random.randrange(10)
    if kind == 0:
        del rows[number]
    elif kind == 1:
        rows[number] = (mutate_bytes(key, random), value)
    elif kind == 2:
        rows[number] = (key, rows[random.randrange(len(rows))][1])
    elif kind == 3:
        rows.insert(number, rows[number])
    else:
        rows[number] = (key, mutate_message(value, random))
    return rows if random.random() < 0.3 else sorted(rows)


def mutate_table(data: bytes, random: Random) -> bytes:
    """A table with a changed row, block or index, every checksum right."""
    rows = _rows(data)
    snappy = random.random() < 0.2
    if random.random() < 0.75:
        rows = _mutate_rows(rows, random)
        return wire.table(rows, random.choice((1, 4, 40)), snappy)
    blocks = [wire.block(rows[i : i + 8], random.choice((1, 3, 16))) for i in range(0, len(rows), 8)]
    last = [rows[i : i + 8][-1][0] for i in range(0, len(rows), 8)]
    number = random.randrange(len(blocks))
    if random.random() < 0.8:
        blocks[number] = mutate_bytes(blocks[number], random)
    else:
        last[number] = mutate_bytes(last[number], random)
    return wire.raw_table(blocks, last, snappy)


_ROWS: dict[bytes, list[tuple[bytes, bytes]]] = {}


def _rows(data: bytes) -> list[tuple[bytes, bytes]]:
    if data not in _ROWS:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            table = Table(Path(file.name))
            _ROWS[data] = list(table.items())
            table.close()
    return list(_ROWS[data])


def _mutate_index(files: Files, random: Random) -> Files:
    name = random.choice([name for name, data in files.items() if data[-8:] == wire.MAGIC.to_bytes(8, "little")])
    return {name: mutate_table(files[name], random)}


def _mutate_graph(files: Files, random: Random) -> Files:
    """The object graph in the shard changed, its length and checksums in the index made to fit."""
    index = next(name for name in files if name.endswith(".index"))
    shard = next(name for name in files if ".data-" in name)
    graph = wire.object_graph(_NODES)
    at = files[shard].index(graph)
    bundle = wire.Bundle(dict(_rows(files[index])), files[shard])
    assert at + len(graph) == len(bundle.data)  # it was added last
    bundle.add_string(OBJECT_GRAPH_KEY, mutate_message(graph, random))
    return {index: wire.table(sorted(bundle.rows.items())), shard: bundle.data}


def _mutate_objects(files: Files, random: Random) -> Files:
    return _mutate_graph(files, random) if random.random() < 0.7 else _mutate_index(files, random)


def _mutate_saved_model(files: Files, random: Random) -> Files:
    if random.random() < 0.5:
        return {"saved_model.pb": mutate_message(files["saved_model.pb"], random)}
    return _mutate_objects(files, random)


def _mutate_frozen(files: Files, random: Random) -> Files:
    return {name: mutate_message(data, random) for name, data in files.items()}


READERS = [
    Reader("bundle", _bundle, open_source, _mutate_index),
    Reader("checkpoint-v1", _v1, open_source, _mutate_index),
    Reader("object-checkpoint", _object_graph, open_source, _mutate_objects),
    Reader("saved-model", _saved_model, open_source, _mutate_saved_model),
    Reader("frozen-graph", _frozen, open_source, _mutate_frozen),
]
