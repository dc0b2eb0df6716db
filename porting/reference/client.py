"""This side of the reference: starts its process, sends requests, and streams activations back."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from porting.errors import ErrorKind, PortingError
from porting.reference.frames import Frame, Put, ReadAhead
from porting.reference.requests import ReferenceSource, TraceRequest

# Activations read ahead of the comparison, so that the two frameworks overlap without holding more than a few layers.
READ_AHEAD_BYTES = 64 << 20
_PIPE_BYTES = 1 << 20  # the most that Linux lets anybody ask for

_END = Frame("", np.empty(0))  # of one trace among several


def _split(frames: Iterator[Frame], count: int) -> Iterator[Iterator[Frame]]:
    for _ in range(count):
        one = _until_end(frames)
        yield one
        for _ in one:
            pass


def _until_end(frames: Iterator[Frame]) -> Iterator[Frame]:
    while (frame := next(frames)) is not _END:
        yield frame


def tensorflow_available() -> bool:
    """Whether TensorFlow is installed beside this package; does not import it."""
    return importlib.util.find_spec("tensorflow") is not None


def require_tensorflow(file: object) -> None:
    """Raises PortingError: missing, where TensorFlow is not installed."""
    if not tensorflow_available():
        raise PortingError(
            ErrorKind.MISSING,
            file,
            ["TensorFlow is not installed, and a port is proved against it"],
            "Install it (pip install tensorflow), or port without proof: --no-verify. "
            "Reading a source does not need it.",
        )


class Reference:
    """TensorFlow in a process of its own; a context manager that always ends the process.

    Args:
        file: what is ported, for messages.
        python: the interpreter that has TensorFlow; default this one.
    """

    def __init__(self, file: object, python: str | None = None) -> None:
        if python is None:
            require_tensorflow(file)
        self.file = file
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.tracing = False
        root = str(Path(__file__).resolve().parents[2])
        environment = dict(os.environ)
        environment.pop("PYTHONWARNINGS", None)  # as errors they would stop Keras, which NumPy warns of
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
        try:
            self.process = subprocess.Popen(
                [python or sys.executable, "-m", "porting.reference.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                env=environment,
            )
        except OSError as error:
            self.log.close()
            raise PortingError(
                ErrorKind.MISSING, python, [f"cannot be run: {error.strerror}"], "Give a Python that has TensorFlow."
            ) from None

        self._widen(self._stream(self.process.stdout))

    @staticmethod
    def _widen(pipe: IO[bytes]) -> None:
        """Let a pipe hold a mebibyte: activations are a gigabyte in all, and each 64 KiB would wake both sides."""
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):  # where this user's pipes hold much already
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def is_idle(self) -> bool:
        """Whether it lives and waits for a request."""
        return self.process.poll() is None and not self.tracing

    def synthesize(self, arch: str, seed: int, folder: Path) -> Path:
        """Have TensorFlow write a synthetic source into a folder; returns what to port."""
        return Path(self._ask({"do": "synthesize", "arch": arch, "seed": seed, "folder": str(folder)})["path"])

    def open(self, source: ReferenceSource) -> str:
        """Choose the source that `trace` runs; returns what runs it, in words, where it is a graph of the source's."""
        return str(self._ask({"do": "open", "source": asdict(source)}).get("reference") or "")

    def trace(self, request: TraceRequest) -> Iterator[Frame]:
        """Every activation of the network, in TensorFlow's order, read ahead a little.

        Raises:
            PortingError: reference, where TensorFlow could not run the source; from the iterator.
        """
        return next(self.traces([request]))

    def traces(self, requests: Sequence[TraceRequest]) -> Iterator[Iterator[Frame]]:
        """What `trace` gives for each request; TensorFlow begins the next one while the last is still compared.

        What is left of one when the next is asked for is passed over.
        """
        self._expect_no_trace()
        self.tracing = bool(requests)
        return _split(iter(ReadAhead(lambda put: self._run(requests, put), READ_AHEAD_BYTES)), len(requests))

    def _run(self, requests: Sequence[TraceRequest], put: Put) -> None:
        for index, request in enumerate(requests, 1):
            values = np.ascontiguousarray(request.image)
            self._send(request.as_json(), values.data.cast("B"))
            self._frames(np.dtype(request.dtype), put)
            self.tracing = index < len(requests)
            put(_END)

    def _frames(self, dtype: np.dtype[Any], put: Put) -> None:
        while not (header := self._header()).get("end"):
            values = np.empty(header["shape"], dtype)
            self._fill(values.reshape(-1).data.cast("B"))
            put(Frame(header["name"], values, header.get("noise")))

    def _expect_no_trace(self) -> None:
        if self.tracing:  # its process would wait for a reader, and this one for its process
            raise RuntimeError("the last trace was not read to its end")

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._expect_no_trace()
        self._send(request)
        header = self._header()
        if not header.get("end"):
            raise self._failed(f"an answer was expected, found {header}")
        return header

    def _send(self, request: Mapping[str, Any], payload: memoryview | None = None) -> None:
        stream = self._stream(self.process.stdin)
        try:
            stream.write(json.dumps(request).encode() + b"\n")
            if payload is not None:
                stream.write(payload)
            stream.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _header(self) -> dict[str, Any]:
        line = self._stream(self.process.stdout).readline()
        if not line:
            raise self._gone()
        header: dict[str, Any] = json.loads(line)
        if "error" in header:
            self.tracing = False
            raise self._failed(header["error"])
        return header

    def _fill(self, buffer: memoryview) -> None:
        stream = self._stream(self.process.stdout)
        done = 0
        while done < len(buffer):
            count = stream.readinto(buffer[done:])  # type: ignore[attr-defined]
            if not count:
                raise self._gone()
            done += count

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None  # both are pipes
        return stream

    def _failed(self, text: str) -> PortingError:
        return PortingError(
            ErrorKind.REFERENCE,
            self.file,
            [f"TensorFlow could not run it: {text}"],
            "Without TensorFlow's side there is no proof; --no-verify ports it unverified.",
        )

    def _gone(self) -> PortingError:
        code = self.process.wait()
        self.log.seek(0)
        tail = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        return self._failed(f"its process ended with status {code}" + (f" ({tail[0]})" if tail else ""))

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with suppress(BrokenPipeError):  # what was still to be written has no reader any more
                    stream.close()
        self.process.wait()
        self.log.close()

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
