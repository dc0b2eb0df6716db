"""Writing a trace file: TensorFlow's side of a proof, for a machine or an environment that has no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from porting import artifact
from porting.origins import Progress, Quiet, find
from porting.plan import Options, build_plan
from porting.recognition import recognise, reference_name, reference_source
from porting.reference import SharedReference
from porting.reference.frames import Frame
from porting.reference.recording import IMAGE, Recorder
from porting.runs import proof_runs, trace_request
from porting.sources import open_source


def trace(
    src: str | Path,
    arch: str,
    out: str | Path,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    options: Options = Options(),  # noqa: B008 - frozen
    reference_python: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run a source in TensorFlow and write every activation to one file, for `porting.verify --trace`.

    Nothing here needs PyTorch. The file holds float64 values, about 1 GB for xception65 at 299x299.

    Args:
        src, arch, options: as `porting.port` takes them.
        out: the file to write; it appears whole or not at all.
        sizes: heights and widths to run at; default as `porting.port` proves.

    Raises:
        PortingError: as `porting.port` says of sources and TensorFlow; output.
    """
    out, watch = Path(out).absolute(), progress or Quiet()
    with ExitStack() as stack:
        tensorflow = stack.enter_context(SharedReference(reference_python))
        origin = find(src, arch, stack, watch, tensorflow)
        source = stack.enter_context(open_source(origin.path))
        recognised = recognise(source)
        plan = build_plan(recognised.contents, arch, options)
        source.verify_files()
        reference = tensorflow.take(src)
        name = reference.open(reference_source(recognised, plan)) or reference_name(recognised, plan)
        runs = proof_runs(recognised, plan.arch, sizes)
        artifact.prepare_folder(out.parent)
        file = stack.enter_context(artifact.temporary_file(out.parent))
        with artifact.output_errors(out.parent):
            entries = [{**run.as_json(), "float32": run.float32} for run in runs]
            header = {"arch": plan.arch, "reference": name, "source": source.digest(), "runs": entries}
            recorder = Recorder(file, header)
            watch.start("tracing in TensorFlow", len(plan.table.points) * len(runs))
            for index, run in enumerate(runs):
                request = trace_request(run)
                recorder.add(index, Frame(IMAGE, request.image))
                for frame in reference.trace(request):
                    recorder.add(index, frame)
                    watch.step()
            recorder.end()
            artifact.flush(file)
        artifact.publish({out: file})
    return out
