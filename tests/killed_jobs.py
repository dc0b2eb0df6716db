"""What `tests.kills` kills: ports and downloads, each with the scene it finds and what may be there afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from models import download, scratch
from porting import artifact, pipeline
from porting.plan import Plan
from porting.reference import Recording  # noqa: F401 - loads what a port loads when it first runs
from porting.sources import open_source
from porting.sources.bundle import BundleSource
from porting.sources.download import Retry, _Place, fetch
from porting.writers.bundle import data_path, index_path, write_bundle
from tests.checkpoint_writer import golden_variables
from tests.commands import members, start_convert
from tests.golden_files import variable_shapes
from tests.sources.downloads.local_server import Server, _Handler, _Quiet

ARCH = "xception41"
LEFT, UNFINISHED = "left behind", "unfinished under its final name"  # the faults
HURRIED = Retry(attempts=5, pause=0.0, timeout=5.0)
Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    """Every file below a folder, by its relative name, with its digest; and every empty folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[f"{path.relative_to(folder)}/"] = ""
    return found


@dataclass
class Job:
    """Something that is killed.

    Attributes:
        place: the folder that it fills.
        scenes: what `place` may look like before: each sets it up.
        work: does the job.
        seconds: how long that takes.
        whole: what is there when it is done.
    """

    name: str
    place: Path
    scenes: list[Callable[[], object]]
    work: Callable[[], object]
    seconds: float = 0.0
    whole: Tree = field(default_factory=dict)

    def begin(self, scene: Callable[[], object]) -> Tree:
        """Set up a scene; returns what is there then."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        scene()
        return tree(self.place)

    def learn(self) -> Job:
        """Do it undisturbed: what comes out, and how long it takes once everything is loaded."""
        for scene in self.scenes:
            self.begin(scene)
            began = time.monotonic()
            self.work()
            self.seconds = time.monotonic() - began
            self.whole = tree(self.place)
        return self

    def killed(self, scene: Callable[[], object], kill: Callable[[Callable[[], object]], bool]) -> list[str]:
        """What is wrong after a kill, and after the next run."""
        before = self.begin(scene)
        wrong = [] if kill(self.work) else ["was not killed"]
        for name, digest in tree(self.place).items():
            if name in self.whole and digest not in (self.whole[name], before.get(name)):
                wrong.append(f"{name}: {UNFINISHED}")
        try:
            self.work()
        except Exception as error:
            return [*wrong, f"the next run fails: {error}"]
        after = tree(self.place)
        wrong += [f"{name}: {LEFT}" for name in sorted(after.keys() - self.whole.keys())]
        wrong += [f"{name}: not as it should be" for name in self.whole if after.get(name) != self.whole[name]]
        temporary = Path(tempfile.gettempdir())
        wrong += [f"temporary {path.name}: {LEFT}" for path in temporary.iterdir()]
        for path in temporary.iterdir():
            shutil.rmtree(path)
        return wrong


def nothing() -> None:
    """The scene where nothing is there."""


# --- a port -----------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, real: bool, seed_offset: int = 0) -> Path:
    """A whole source, of the golden weights or of zeros, written without TensorFlow."""
    folder.mkdir(parents=True)
    prefix = folder / "model.ckpt"
    zeros = {name: np.zeros(shape, np.float32) for name, shape in variable_shapes(ARCH).items()}
    values = golden_variables(ARCH, seed_offset) if real else zeros
    with data_path(prefix).open("xb") as data, index_path(prefix).open("xb") as index:
        write_bundle(data, index, sorted(values.items()))
    return prefix


def port_job(folder: Path, small: bool) -> Job:
    """Porting a checkpoint; of a `small` one few weights are read, and more is written: the steps are the same."""
    source, out = checkpoint(folder / "source", real=False), folder / "out"
    formats = ("pth", "safetensors", "hf") if small else ("pth",)

    def few(plan: Plan, *_: object) -> dict[str, torch.Tensor]:
        return {rule.parameter: torch.full((2, 3), 0.5) for rule in plan.table.rules[:3]}

    def work() -> None:
        with ExitStack() as stack:
            if small:
                stack.enter_context(mock.patch.object(pipeline, "read_weights", few))
                stack.enter_context(mock.patch.object(BundleSource, "digest", lambda _: "0" * 64))
            pipeline.port(source, ARCH, out=out, formats=formats, verify=False)

    def damaged() -> None:
        """An earlier port, whose files were damaged since."""
        for name in job.whole:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(b"damaged")

    job = Job("convert", out, [nothing, damaged], work)
    return job.learn()


def archive_job(folder: Path) -> Job:
    """Unpacking an archive for a port."""
    archive, made = folder / "source.zip", folder / "made"
    made.mkdir()
    with data_path(made / "x").open("xb") as data, index_path(made / "x").open("xb") as index:
        write_bundle(data, index, [(f"w{number}", np.ones(1000, np.float32)) for number in range(9)])
    with zipfile.ZipFile(archive, "w") as file:
        for path in made.iterdir():
            file.write(path, path.name)

    def work() -> None:
        with open_source(archive) as source:
            source.read("w0")

    return Job("unpacking", folder / "nothing", [nothing], work).learn()


# --- downloads --------------------------------------------------------------------------------------------------------

CUT = 500_000  # bytes of a first answer
NEW, OLD = (np.random.default_rng(seed).bytes(900_000) for seed in (0, 1))


class _Changing(_Handler):
    """Breaks off every first answer; its file is whatever lies on the disk now."""

    def do_GET(self) -> None:  # noqa: N802
        content = Path(self.server.content).read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        state = Server(content=content, etag=tag, cuts=[] if self.headers.get("Range") else [CUT])
        if self.path.endswith(".json"):
            state = Server(content=b"{}", etag=None)
        self.server = SimpleNamespace(state=state)  # this answer's own: others may still be on their way
        super().do_GET()


def serve(folder: Path, stack: ExitStack) -> tuple[str, Path]:
    """A server in a process of its own: its address, and the file that it gives."""
    content = folder / "content"
    content.write_bytes(NEW)
    server: Any = _Quiet(("127.0.0.1", 0), _Changing)
    server.content = content
    child = os.fork()
    if child == 0:
        server.serve_forever()
    server.socket.close()
    stack.callback(os.waitpid, child, 0)
    stack.callback(os.kill, child, signal.SIGKILL)
    return f"http://127.0.0.1:{server.server_port}", content


def download_jobs(folder: Path, stack: ExitStack) -> list[Job]:
    """A source for a port, and published weights, each with nothing there, or with half of what was there before."""
    address, content = serve(folder, stack)
    cache, home = folder / "cache", folder / "home"
    stack.enter_context(mock.patch.dict(os.environ, no_proxy="*"))
    stack.enter_context(mock.patch.object(download, "cache_folder", lambda: home))
    stack.enter_context(mock.patch.object(download, "_RETRY", HURRIED))

    def job(name: str, place: Path, work: Callable[[], object]) -> Job:
        def half() -> None:
            """A run that was killed halfway, before the file was replaced by another at the same address."""
            content.write_bytes(OLD)
            run = os.fork()
            if run == 0:
                with mock.patch.object(os, "fsync", lambda _: os._exit(0)):
                    work()
            os.waitpid(run, 0)
            content.write_bytes(NEW)
            assert [path.stat().st_size for path in place.rglob("*.part")] == [CUT]

        return Job(name, place, [nothing, half], work).learn()

    name = f"net-{hashlib.sha256(NEW).hexdigest()[:8]}.pth"
    return [
        job("a source's download", cache, lambda: fetch(f"{address}/model.h5", cache=cache, retry=HURRIED)),
        job("a download of weights", home, lambda: download.fetch(f"{address}/{name}")),
    ]


def jobs(folder: Path, small: bool, stack: ExitStack) -> list[Job]:
    """All of them; what they need ends with the stack."""
    torch.set_num_threads(1)  # a process that is forked has no others
    # What a killed process has written is there all the same; a disk that others keep busy takes its time.
    stack.enter_context(mock.patch.object(os, "fsync", lambda _: None))
    archives = [archive_job(folder)] if small else []
    return [port_job(folder, small), *archives, *download_jobs(folder, stack)]


# --- controls ---------------------------------------------------------------------------------------------------------


LEFT, UNFINISHED = "left behind", "unfinished under its final name"


def careless(folder: Path) -> Iterator[tuple[str, bool]]:
    """Writers as they are often written, and whether they are found out."""
    from tests.kills import run_killed, steps_of

    def publish(files: dict[Path, Any]) -> None:
        for path, file in files.items():
            path.parent.mkdir(exist_ok=True)
            content = Path(file.name).read_bytes()
            with path.open("wb") as straight:
                straight.write(content[:100])
                straight.flush()
                os.utime(path)
                straight.write(content[100:])

    never = [(module, "remove_left", lambda _: None) for module in (scratch, artifact)]
    part = property(lambda place: place.file)
    with ExitStack() as stack:
        port, archive, source, _ = jobs(folder, True, stack)
        for name, job, patches, fault in (
            ("a port without temporary files", port, [(artifact, "publish", publish)], UNFINISHED),
            ("a port that never clears up", port, never, LEFT),
            ("an archive that nobody clears up", archive, never, LEFT),
            ("a download under the final name", source, [(_Place, "part", part)], UNFINISHED),
        ):
            with ExitStack() as changed:
                for target, attribute, value in patches:
                    changed.enter_context(mock.patch.object(target, attribute, value))
                job.begin(job.scenes[0])
                steps = reversed(range(steps_of(job.work)))
                killed = (job.killed(job.scenes[0], partial(run_killed, step=step)) for step in steps)
                yield name, any(fault in text for found in killed for text in found)


# --- whole commands ---------------------------------------------------------------------------------------------------


def killed_proofs(folder: Path, moments: list[float]) -> list[str]:
    """Kill `convert` at moments of its time, TensorFlow's process beside it; what is wrong afterwards."""
    prefix, out = checkpoint(folder / "source", real=True), folder / "out"
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    arguments = ("--src", prefix, "--arch", ARCH, "--out", out, "--fast")
    began, process = time.monotonic(), start_convert(*arguments, env=environment)
    wrong = [] if process.communicate()[0] else ["the undisturbed run fails"]
    seconds, whole = time.monotonic() - began, tree(out)
    for moment in moments:
        shutil.rmtree(out)
        process = start_convert(*arguments, env=environment)
        time.sleep(moment * seconds)
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 120  # TensorFlow's process may be in its import, which nothing interrupts
        while (left := members(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        at = f"a proof, after {moment * seconds:.1f} s"
        wrong += [f"{at}: {command} still runs" for command in left.values()]
        found = tree(out) if out.exists() else {}
        wrong += [f"{at}: {name}: unfinished" for name in found if name in whole and found[name] != whole[name]]
        pipeline.port(prefix, ARCH, out=out, verify=False)
        hidden = [
            path for path in (*out.iterdir(), *Path(tempfile.gettempdir()).iterdir()) if path.name.startswith(".")
        ]
        wrong += [f"{at}: {path.name}: {LEFT}" for path in hidden]
    return wrong
