"""Broken and odd V1 checkpoints, object graphs, SavedModels and frozen graphs."""

from __future__ import annotations

from pathlib import Path

from porting.sources.object_graph import OBJECT_GRAPH_KEY
from porting.sources.ordered_code import slice_key
from porting.sources.tensorflow_types import Slice
from tests.sources import wire
from tests.sources.broken_paths import MORE, ONES, broken, shard

# V1.


def _v1_rows() -> list[tuple[bytes, bytes]]:
    tensors = {"a/weights": ONES, "b/biases": MORE}
    metas, rows = b"", []
    for name, array in tensors.items():
        whole = wire.slices([None] * array.ndim)
        metas += wire.message(1, _v1_meta(name, array.shape, whole))
        saved = wire.message(1, name) + wire.message(2, whole) + wire.message(3, wire.message(5, array.tobytes()))
        rows.append((slice_key(name, Slice((0,) * array.ndim, (-1,) * array.ndim)), wire.message(2, saved)))
    return [(b"", wire.message(1, metas)), *rows]


def _v1_meta(name: str, dims: tuple[int, ...], whole: bytes, dtype: int = 1) -> bytes:
    return wire.message(1, name) + wire.message(2, wire.shape(dims)) + wire.integer(3, dtype) + wire.message(4, whole)


def _v1(folder: Path, rows: list[tuple[bytes, bytes]], name: str = "model.ckpt") -> Path:
    path = folder / name
    path.write_bytes(wire.table(rows))
    return path


def _v1_header(folder: Path, *metas: bytes, more: bytes = b"") -> Path:
    header = wire.message(1, b"".join(wire.message(1, meta) for meta in metas) + more)
    return _v1(folder, [(b"", header), *_v1_rows()[1:]])


_WHOLE = wire.slices([None])


@broken
def _v1_shard_for_the_prefix(folder: Path) -> Path:
    return _v1(folder, _v1_rows(), "model.ckpt-00000-of-00002")


@broken
def _v1_missing_shard(folder: Path) -> Path:
    _v1(folder, _v1_rows(), "model.ckpt-00000-of-00002")
    return folder / "model.ckpt"


@broken
def _v1_shards_of_two_sets(folder: Path) -> Path:
    _v1(folder, _v1_rows(), "model.ckpt-00000-of-00001")
    _v1(folder, _v1_rows(), "model.ckpt-00000-of-00002")
    return folder / "model.ckpt"


@broken
def _v1_tensor_listed_twice(folder: Path) -> Path:
    return _v1_header(folder, *[_v1_meta("b/biases", (4,), _WHOLE)] * 2)


@broken
def _v1_newer_version(folder: Path) -> Path:
    return _v1_header(folder, more=wire.message(2, wire.integer(2, 5)))


@broken
def _v1_shape_that_no_file_holds(folder: Path) -> Path:
    return _v1_header(folder, _v1_meta("b/biases", (1 << 50,), _WHOLE))


@broken
def _v1_tensor_without_slices(folder: Path) -> Path:
    meta = wire.message(1, "b/biases") + wire.message(2, wire.shape((4,))) + wire.integer(3, 1)
    return _v1_header(folder, meta)


@broken
def _v1_tensor_without_values(folder: Path) -> Path:
    return _v1(folder, _v1_rows()[:2])


@broken
def _v1_values_of_another_tensor(folder: Path) -> Path:
    rows = _v1_rows()
    return _v1(folder, [rows[0], rows[1], (rows[2][0], rows[1][1])])


@broken
def _v1_too_few_values(folder: Path) -> Path:
    rows = _v1_rows()
    saved = wire.message(1, "b/biases") + wire.message(2, _WHOLE) + wire.message(3, wire.message(5, bytes(12)))
    return _v1(folder, [rows[0], rows[1], (rows[2][0], wire.message(2, saved))])


@broken
def _v1_values_of_another_size(folder: Path) -> Path:
    rows = _v1_rows()
    saved = wire.message(1, "b/biases") + wire.message(2, _WHOLE) + wire.message(3, wire.message(5, bytes(15)))
    return _v1(folder, [rows[0], rows[1], (rows[2][0], wire.message(2, saved))])


# Object graphs.


def _objects(folder: Path, *nodes: bytes, graph: bytes | None = None) -> Path:
    bundle = wire.small_bundle({f"{name}/.ATTRIBUTES/VARIABLE_VALUE": MORE for name in "abc"})
    bundle.add_string(OBJECT_GRAPH_KEY, wire.object_graph(nodes) if graph is None else graph)
    return bundle.write(folder / "ckpt-1")


def _value(name: str, full_name: str) -> bytes:
    return wire.attribute(full_name, f"{name}/.ATTRIBUTES/VARIABLE_VALUE")


@broken
def _graph_without_nodes(folder: Path) -> Path:
    return _objects(folder)


@broken
def _graph_that_is_garbage(folder: Path) -> Path:
    return _objects(folder, graph=b"\x0a\xff\xff\x03garbage")


@broken
def _graph_that_is_a_number(folder: Path) -> Path:
    return wire.small_bundle({OBJECT_GRAPH_KEY: MORE}).write(folder / "ckpt-1")


@broken
def _graph_in_a_missing_shard(folder: Path) -> Path:
    prefix = _objects(folder, _value("a", "x"))
    shard(prefix).unlink()
    return prefix


@broken
def _graph_with_a_flipped_byte(folder: Path) -> Path:
    prefix = _objects(folder, _value("a", "x"))
    data = bytearray(shard(prefix).read_bytes())
    data[-1] ^= 1
    shard(prefix).write_bytes(data)
    return prefix


@broken
def _graph_whose_lengths_lie(folder: Path) -> Path:
    prefix = _objects(folder, _value("a", "x"))
    data = bytearray(shard(prefix).read_bytes())
    data[48] ^= 1
    shard(prefix).write_bytes(data)
    return prefix


@broken
def _child_that_is_not_there(folder: Path) -> Path:
    return _objects(folder, wire.child(5, "model"))


@broken
def _two_children_of_one_name(folder: Path) -> Path:
    return _objects(folder, wire.child(0, "model") + wire.child(0, "model"))


@broken
def _slot_that_is_not_there(folder: Path) -> Path:
    return _objects(folder, wire.slot(0, "m", -1))


@broken
def _slots_in_a_circle(folder: Path) -> Path:
    return _objects(folder, wire.slot(1, "m", 2) + wire.slot(2, "m", 1), _value("a", "x"), _value("b", "y"))


@broken
def _key_that_is_not_there(folder: Path) -> Path:
    return _objects(folder, _value("z", "x"))


@broken
def _key_of_two_objects(folder: Path) -> Path:
    return _objects(folder, _value("a", "x"), _value("a", "y"))


@broken
def _two_variables_of_one_name(folder: Path) -> Path:
    # "x" is shared, so both keep their paths, and one path is another variable's name.
    return _objects(folder, _value("a", "x"), _value("b", "x"), _value("c", "a"))


# SavedModels.


@broken
def _saved_model_in_text(folder: Path) -> Path:
    (folder / "saved_model.pbtxt").write_text("")
    return folder


@broken
def _saved_model_without_variables(folder: Path) -> Path:
    (folder / "saved_model.pb").write_bytes(wire.integer(1, 1) + wire.message(2, b""))
    return folder


def _saved(folder: Path, data: bytes) -> Path:
    (folder / "saved_model.pb").write_bytes(data)
    _objects(folder, _value("a", "x"))
    (folder / "variables").mkdir()
    for path in folder.glob("ckpt-1.*"):
        path.rename(folder / "variables" / path.name.replace("ckpt-1", "variables"))
    return folder


@broken
def _saved_model_without_a_graph(folder: Path) -> Path:
    return _saved(folder, wire.integer(1, 1))


@broken
def _saved_model_cut_off(folder: Path) -> Path:
    return _saved(folder, wire.integer(1, 1) + wire.message(2, bytes(30))[:-9])


@broken
def _saved_model_with_a_wild_child(folder: Path) -> Path:
    graph = wire.message(7, wire.object_graph([wire.child(9, "model")]))
    return _saved(folder, wire.integer(1, 1) + wire.message(2, graph))


# Frozen graphs.


def _frozen(folder: Path, *nodes: bytes, more: bytes = b"") -> Path:
    path = folder / "graph.pb"
    path.write_bytes(b"".join(wire.message(1, node) for node in nodes) + more)
    return path


def _constant(values: bytes, dims: tuple[int, ...] = (4,), dtype: int = 1) -> bytes:
    return wire.const_node("net/weights", wire.tensor(dtype, dims, values))


@broken
def _frozen_without_constants(folder: Path) -> Path:
    return _frozen(folder, wire.message(1, "x") + wire.message(2, "Placeholder"))


@broken
def _frozen_cut_off(folder: Path) -> Path:
    path = _frozen(folder, _constant(wire.message(4, bytes(16))))
    path.write_bytes(path.read_bytes()[:-1])
    return path


@broken
def _frozen_with_a_node_twice(folder: Path) -> Path:
    return _frozen(folder, *[_constant(wire.message(4, bytes(16)))] * 2)


@broken
def _frozen_constant_without_a_value(folder: Path) -> Path:
    return _frozen(folder, wire.message(1, "x") + wire.message(2, "Const"))


@broken
def _frozen_content_of_another_size(folder: Path) -> Path:
    return _frozen(folder, _constant(wire.message(4, bytes(12))))


@broken
def _frozen_too_many_values(folder: Path) -> Path:
    return _frozen(folder, _constant(wire.message(5, bytes(20))))


@broken
def _frozen_splat_bomb(folder: Path) -> Path:
    return _frozen(folder, _constant(wire.message(5, bytes(4)), (1 << 40,)))


@broken
def _frozen_number_out_of_range(folder: Path) -> Path:
    return _frozen(folder, _constant(wire.integer(7, 300), (), 4))


@broken
def _frozen_varint_cut_off(folder: Path) -> Path:
    return _frozen(folder, _constant(wire.message(10, b"\x01\xff"), (2,), 9))


@broken
def _frozen_odd_complex(folder: Path) -> Path:
    return _frozen(folder, _constant(wire.message(9, bytes(12)), (2,), 8))


@broken
def _frozen_garbage_field(folder: Path) -> Path:
    return _frozen(folder, _constant(wire.message(4, bytes(16))), more=b"\x0d\x00\x00")
