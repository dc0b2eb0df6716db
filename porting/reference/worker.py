"""The reference's own process: reads requests on stdin, answers on stdout, and is the only one to hold TensorFlow.

A request is one line of JSON, then `nbytes` of payload. Answers are frames of the same form: `{"name", "shape",
"nbytes"}` with an activation as little-endian values of the request's dtype, `{"end": true, ...}` after the last, or
`{"error": text}`. Requests:

- `{"do": "synthesize", "arch", "seed", "folder"}`: write a synthetic source; the end frame holds its `path`.
- `{"do": "open", "source": {...}}`: the source that traces will run; the end frame's `reference` says which graph they
  run, where the source has one of its own.
- `{"do": "trace", "dtype", "output_stride", "probe", "silent", "noise", "shape", "nbytes"}` and a float32 NHWC image:
  every activation, in order. With `probe`, each layer that is not in `silent` passes on
  `porting.reference.frames.probe` in its output's place. With
  `noise`, the network runs in float32 beside, and frames hold its largest difference from float64.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from porting.reference.frames import Frame, Put, ReadAhead, largest_difference, probe

Network = Callable[..., None]
# What has a graph of its own, by kind of source, in words.
OWN_GRAPHS = {
    "graph": "the frozen graph itself",
    "saved-model": "the SavedModel's own graph",
    "meta": "the graph in the checkpoint's .meta file",
}
_LONGEST_REASON = 300  # characters: nodes' names are the file's, and of any length
NOISE_AHEAD_BYTES = 1 << 20  # float32's frames wait for float64's: the slower network sets the pace


def _frame(out: BinaryIO, header: Mapping[str, Any], payload: memoryview | None = None) -> None:
    body = {**header, "nbytes": payload.nbytes if payload is not None else 0}
    out.write(json.dumps(body).encode() + b"\n")
    if payload is not None:
        out.write(payload)


class Worker:
    """Answers requests about one source at a time."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.source: Mapping[str, Any] = {}
        self.models: dict[str, Any] = {}
        self.graphs: dict[str, Any] = {}  # the source's own graph by type, where it is the reference

    def synthesize(self, request: Mapping[str, Any], _: bytes) -> dict[str, Any]:
        from porting.reference import synthesis

        folder = Path(request["folder"])
        if request["arch"] == "xception":
            return {"path": str(synthesis.write_keras(request["seed"], folder))}
        return {"path": str(synthesis.write_checkpoint(request["arch"], request["seed"], folder))}

    def open(self, request: Mapping[str, Any], _: bytes) -> dict[str, Any]:
        self.source = request["source"]
        self.models, self.graphs = {}, {}
        own, other = OWN_GRAPHS.get(self.source["kind"]), self.source["otherwise"]
        if own is None:
            return {}
        from porting.reference.executed_graph import GraphNetwork
        from porting.reference.graph_loading import GraphUnusable

        try:
            graph = GraphNetwork(self.source, "float64")
            graph.infer()
        except GraphUnusable as reason:
            return {"reference": f"{other} ({own} is not run: {str(reason)[:_LONGEST_REASON]})"}
        self.graphs["float64"] = graph
        own += ", executed in float64"
        if self.source["arch"] == "xception":
            return {"reference": own}
        return {"reference": f"{own}, at output stride {graph.points.output_stride}; at others {other}"}

    def trace(self, request: Mapping[str, Any], payload: bytes) -> dict[str, Any]:
        dtype, stride = request["dtype"], request["output_stride"]
        image = np.frombuffer(payload, np.float32).reshape(request["shape"])
        probing = _Probing(request["probe"], frozenset(request["silent"]))

        size = image.shape[1:3]
        network = self._network(dtype, stride, size)
        beside = None
        if request["noise"]:
            lighter = self._network("float32", stride, size)  # made before it runs: Keras loads one model at a time
            beside = ReadAhead(lambda put: _run(lighter, image, put, probing), NOISE_AHEAD_BYTES)
        noisy = iter(beside or ())

        def emit(frame: Frame) -> None:
            header: dict[str, Any] = {"name": frame.name, "shape": frame.values.shape}
            if beside:
                other = next(noisy)
                if other.name != frame.name:
                    raise RuntimeError(f"float32 runs {other.name} where float64 runs {frame.name}")
                header["noise"] = largest_difference(other.values, frame.values)
            _frame(self.out, header, np.ascontiguousarray(frame.values).data.cast("B"))

        try:
            _run(network, image, emit, probing)
        finally:
            if beside:
                beside.close()
        return {}

    def _network(self, dtype: str, output_stride: int, size: tuple[int, int]) -> Network:
        if self.graphs and self.graphs["float64"].runs(*size, output_stride):
            if dtype not in self.graphs:
                self.graphs[dtype] = self.graphs["float64"].with_dtype(dtype)
            return self.graphs[dtype]  # type: ignore[no-any-return]
        if self.source["arch"] == "xception":
            from porting.reference.original import KerasXception

            if dtype not in self.models:
                given = None if self.source["kind"] == "keras" else _variables(self.source)
                self.models[dtype] = KerasXception(self.source, dtype, given)
            return self.models[dtype]  # type: ignore[no-any-return]
        variable = _variables(self.source)
        from porting.reference.aligned import AlignedXception

        return AlignedXception(self.source["arch"], variable, dtype, output_stride, self.source["classes"] > 0)


class _Probing(NamedTuple):
    """Whether layers pass on probes, and which ones pass on their own output all the same."""

    wanted: bool
    silent: frozenset[str]


def _run(network: Network, image: Any, put: Put, probing: _Probing) -> None:
    from porting.reference.tensorflow_import import tf

    def emit(name: str, tensor: Any) -> Any:
        values = np.asarray(memoryview(tensor))  # numpy() would copy a gigabyte in all
        put(Frame(name, values))
        passes_probe = probing.wanted and name not in probing.silent
        return tf.constant(probe(name, values), tensor.dtype) if passes_probe else tensor

    network(image, emit)


def _variables(source: Mapping[str, Any]) -> Callable[[str], Any]:
    """Values by the vocabulary's names, read by TensorFlow's own readers."""
    from porting.reference.tensorflow_import import tf

    names: Mapping[str, str] = source["variables"]
    if source["kind"] == "graph":
        graph = tf.compat.v1.GraphDef.FromString(Path(source["path"]).read_bytes())
        constants = {node.name: node for node in graph.node if node.op == "Const"}
        return lambda name: tf.make_ndarray(constants[names.get(name, name)].attr["value"].tensor)
    folder = Path(source["path"])
    prefix = folder / "variables" / "variables" if source["kind"] == "saved-model" else folder
    reader = tf.train.load_checkpoint(str(prefix))
    return lambda name: reader.get_tensor(names.get(name, name))


def serve(requests: BinaryIO, out: BinaryIO) -> None:
    """Answer requests until the stream ends."""
    worker = Worker(out)
    _import_tensorflow()
    actions = {"synthesize": worker.synthesize, "open": worker.open, "trace": worker.trace}
    while line := requests.readline():
        request = json.loads(line)
        payload = requests.read(request.get("nbytes", 0))
        try:
            answer = actions[request["do"]](request, payload)
        except BrokenPipeError:
            return
        except Exception as error:  # every failure crosses to the other side, which reports it
            _frame(out, {"error": f"{type(error).__name__}: {error}"})
        else:
            _frame(out, {"end": True, **answer})
        out.flush()


def _import_tensorflow() -> None:
    """Import it now, while the other side reads: that is what takes longest."""
    gc.disable()  # nothing of a million objects is garbage, and looking for it takes a tenth of the import's time
    from porting.reference import tensorflow_import

    assert tensorflow_import.tf is not None
    gc.freeze()
    gc.enable()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, whatever it is doing: importing, computing, or waiting."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Serve on the standard streams; whatever else is printed to stdout goes to stderr instead."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, out)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)  # the other side is gone; nothing to flush to


if __name__ == "__main__":
    main()
