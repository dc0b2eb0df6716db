"""Frozen graphs, held to TensorFlow's own reading of the constants."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.sources import open_source
from porting.sources.protobuf import WireError
from porting.sources.tensor_proto import packed_varints
from tests.sources import wire
from tests.sources.conftest import Written


def test_every_constant_as_tensorflow_reads_it(graph_files: Written, tf: Any) -> None:
    path = graph_files.folder / "frozen.pb"
    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    constants = {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in graph.node if n.op == "Const"}
    with open_source(path) as source:
        assert source.container == "tf-frozen-graph"
        assert set(source.specs) == set(constants)
        for name, theirs in constants.items():
            ours = source.read(name)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert ours.tobytes() == theirs.tobytes(), name
        for name, array in graph_files.arrays.items():
            if name.startswith("net/"):
                assert source.read(name).tobytes() == array.tobytes()


def test_constants_written_as_lists(tf: Any, tmp_path: Path) -> None:
    """Every type, as raw bytes, as a whole list, and as a list whose last value repeats."""
    arrays = {
        "float16": [1.5, -2, -2], "bfloat16": [0.5, 3, 3], "float32": [1, 2, 2], "float64": [1, 2, 2],
        "int8": [-1, 2, 2], "uint8": [200, 2, 2], "int16": [-300, 5, 5], "uint16": [60000, 5, 5],
        "int32": [-5, 2, 2], "uint32": [2**32 - 1, 2, 2], "int64": [-5, 2**40, 2**40], "uint64": [2**64 - 1, 2, 2],
        "bool": [True, False, False], "complex64": [1j, 2, 2], "complex128": [1j, 2, 2],
    }  # fmt: skip
    fields = {
        "float16": "half_val", "bfloat16": "half_val", "float32": "float_val", "float64": "double_val",
        "int64": "int64_val", "bool": "bool_val", "complex64": "scomplex_val", "complex128": "dcomplex_val",
        "uint32": "uint32_val", "uint64": "uint64_val",
    }  # fmt: skip
    graph = tf.compat.v1.GraphDef()
    expected = {}
    for dtype, values in arrays.items():
        array = np.array(values, tf.as_dtype(dtype).as_numpy_dtype)
        for form in ("content", "list", "tail"):
            node = graph.node.add(name=f"{dtype}/{form}", op="Const")
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
            tensor = node.attr["value"].tensor
            if form == "content":
                tensor.ClearField(fields.get(dtype, "int_val"))
                tensor.tensor_content = array.tobytes()
            else:
                listed = getattr(tensor, fields.get(dtype, "int_val"))
                step = 2 if dtype.startswith("complex") else 1
                if not listed:
                    tensor.ClearField("tensor_content")
                    bits = array.view(np.uint16) if step == 1 and dtype in ("float16", "bfloat16") else array
                    flat = bits.view(np.float32 if dtype == "complex64" else np.float64) if step == 2 else bits
                    listed.extend(flat.tolist())
                if form == "tail":
                    del listed[2 * step :]
            expected[node.name] = tf.make_ndarray(tensor)
            assert np.array_equal(expected[node.name], array)
    (tmp_path / "graph.pb").write_bytes(graph.SerializeToString())
    with open_source(tmp_path / "graph.pb") as source:
        for name, theirs in expected.items():
            ours = source.read(name)
            theirs = theirs.astype(np.float32) if name.startswith("bfloat16") else theirs
            assert ours.dtype == theirs.dtype
            assert ours.tobytes() == theirs.tobytes(), name


def test_bfloat16_without_tensorflow(tmp_path: Path) -> None:
    """NumPy alone knows no bfloat16; where TensorFlow has been imported it does, so this runs in another process."""
    listed = wire.const_node("listed", wire.tensor(14, (2,), wire.message(13, b"\x80\x7f\x80\x81\x01")))
    raw = wire.const_node("raw", wire.tensor(14, (2,), wire.message(4, b"\x80\x3f\x80\x40")))
    path = tmp_path / "graph.pb"
    path.write_bytes(wire.message(1, listed) + wire.message(1, raw))
    code = f"from porting.sources import open_source; s = open_source({str(path)!r}); " + (
        "import sys; sys.exit([s.read(n).tolist() for n in s.specs] != [[1.0, 4.0]] * 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_values_that_are_not_packed(tmp_path: Path) -> None:
    values = b"".join(wire.fixed32(5, struct.unpack("<I", struct.pack("<f", v))[0]) for v in (1.5, 2.5))
    path = tmp_path / "graph.pb"
    path.write_bytes(wire.message(1, wire.const_node("x", wire.tensor(1, (2,), values))))
    with open_source(path) as source:
        assert source.read("x").tolist() == [1.5, 2.5]


@pytest.mark.parametrize("values", [[], [0], [127, 128], [1 << 63, 0, 300], list(range(0, 1 << 20, 4093))])
def test_packed_varints(values: list[int]) -> None:
    assert packed_varints(b"".join(map(wire.varint, values))).tolist() == values


def test_packed_varints_too_long() -> None:
    with pytest.raises(WireError, match="longer than 10"):
        packed_varints(b"\x80" * 10 + b"\x01")
