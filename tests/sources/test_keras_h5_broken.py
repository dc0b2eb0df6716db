"""Broken and hostile HDF5 files, each with the exact text it must produce, and children that hang or die."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from porting.errors import PortingError
from porting.sources import hdf5_process
from porting.sources.hdf5_process import Hdf5Process
from porting.sources.keras_h5 import open_h5
from tests.sources.keras_files import legacy_h5, weights_h5

AGAIN = "Fetch or copy the file again."
Edit = Callable[[h5py.File], None]


@pytest.fixture(scope="module")
def process() -> Iterator[Hdf5Process]:
    one = Hdf5Process()
    yield one
    one.close()


def plain(edit: Edit | None = None) -> bytes:
    content = io.BytesIO()
    layers = {"one": {"one/kernel:0": np.arange(6, dtype="float32")}, "two": {"two/bias:0": np.ones(3, "float32")}}
    legacy_h5(content, layers, edit=edit)
    return content.getvalue()


def keras3(edit: Edit | None = None) -> bytes:
    content = io.BytesIO()
    weights_h5(content, edit)
    return content.getvalue()


def low(name: str, configure: Callable[[h5py.h5p.PropDCID], None]) -> Edit:
    """A dataset made with HDF5's own properties, which h5py's calls do not offer."""

    def edit(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        configure(plist)
        space = h5py.h5s.create_simple((64,))
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_I32LE, space, plist)

    return edit


def external(file: h5py.File) -> None:
    file.create_dataset("layers/x/vars/0", (4,), "float32", external=[("secret.bin", 0, 16)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "data", (4,))
    file.create_virtual_dataset("layers/x/vars/0", layout)


def link(target: object) -> Edit:
    def edit(file: h5py.File) -> None:
        file["layers/conv2d/linked"] = target

    return edit


def cycle(file: h5py.File) -> None:
    file["layers/conv2d/again"] = file["layers"]


def second_name(file: h5py.File) -> None:
    file["layers/conv2d/vars/1"] = file["layers/conv2d/vars/0"]


def deep(file: h5py.File) -> None:
    file.create_group("/".join(["g"] * 70))


def renamed(file: h5py.File) -> None:
    for layer in ("dense", "conv2d"):
        file.move(f"layers/{layer}/vars", f"layers/{layer}/values")


def unwritten(file: h5py.File) -> None:
    file.create_dataset("layers/x/vars/0", (4,), "float32")


def compound(file: h5py.File) -> None:
    file["layers/x/vars/0"] = np.zeros(2, [("a", "f4"), ("b", "i4")])


def odd_float(file: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    h5py.h5d.create(file.id, b"odd", kind, h5py.h5s.create_simple((2,)))


def shapeless(file: h5py.File) -> None:
    file["layers/x/vars/0"] = h5py.Empty("float32")


def named_type(file: h5py.File) -> None:
    file["layers/kind"] = np.dtype("float32")


def big_chunks(file: h5py.File) -> None:
    file.create_dataset("layers/x/vars/0", (1 << 26,), "float32", chunks=(1 << 26,))


def attribute(name: str, value: object, group: str = "/") -> Edit:
    def edit(file: h5py.File) -> None:
        file[group].attrs[name] = value

    return edit


def twice(file: h5py.File) -> None:
    file["one/one/kernel"] = np.zeros(2)


def without(path: str) -> Edit:
    def edit(file: h5py.File) -> None:
        del file[path]

    return edit


def sparse_chunks(file: h5py.File) -> None:
    file.create_dataset("layers/x/vars/0", (1 << 20,), "float32", chunks=(1 << 10,))


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1 and len(old) == len(new)
    return content.replace(old, new)


def moved(offset: int, size: int = 36) -> bytes:
    """conv2d's 36 bytes, said to lie at `offset`: the layout message holds offset and size (section IV.A.2.i)."""
    content = keras3()
    with h5py.File(io.BytesIO(content)) as file:
        at = file["layers/conv2d/vars/0"].id.get_offset()
    old = at.to_bytes(8, "little") + (36).to_bytes(8, "little")
    return patched(content, old, (offset % 2**64).to_bytes(8, "little") + size.to_bytes(8, "little"))


def other_place() -> bytes:
    content = keras3()
    with h5py.File(io.BytesIO(content)) as file:
        return moved(file["layers/dense/vars/0"].id.get_offset())


KERAS = "Save it with model.save('x.keras') or model.save_weights('x.weights.h5')."
BROKEN = {
    "empty": (b"", f"corrupt: superblock: expected at least 48 bytes, found 0 bytes\n{AGAIN}"),
    "a few bytes": (plain()[:20], f"corrupt: superblock: expected at least 48 bytes, found 20 bytes\n{AGAIN}"),
    "cut in half": (
        plain()[: len(plain()) // 2],
        f"corrupt: size: expected {len(plain())} bytes, found {len(plain()) // 2} bytes\n"
        "The file is cut short: fetch it again.",
    ),
    "not HDF5": (
        b"x" * 100,
        "corrupt: signature: expected 89 48 44 46 0d 0a 1a 0a, found 78 78 78 78 78 78 78 78\n" + AGAIN,
    ),
    "a later version": (plain()[:8] + b"\7" + plain()[9:], "unsupported: superblock: version 7; 0 to 3 are read"),
    "narrow offsets": (
        plain()[:13] + b"\4" + plain()[14:],
        "unsupported: superblock: offsets and lengths of 4 and 8 bytes; 8 are read",
    ),
    "external storage": (
        keras3(external),
        "unsupported: layers/x/vars/0: external storage (its bytes lie in another file)",
    ),
    "virtual": (
        keras3(virtual),
        "unsupported: layers/x/vars/0: a virtual dataset (its bytes lie in other datasets)",
    ),
    "soft link": (
        keras3(link(h5py.SoftLink("/layers"))),
        "unsupported: layers/conv2d/linked: a soft link; Keras writes none",
    ),
    "external link": (
        keras3(link(h5py.ExternalLink("/etc/passwd", "/"))),
        "unsupported: layers/conv2d/linked: an external link (it leads to another file)",
    ),
    "cycle": (keras3(cycle), f"corrupt: layers/conv2d/again: the same object as layers\n{AGAIN}"),
    "second name": (
        keras3(second_name),
        f"corrupt: layers/conv2d/vars/1: the same object as layers/conv2d/vars/0\n{AGAIN}",
    ),
    "deep": (keras3(deep), f"unsupported: {'/'.join(['g'] * 65)}: groups nested more than 64 deep"),
    "never written": (
        keras3(unwritten),
        f"corrupt: layers/x/vars/0: expected 16 bytes (float32 [4]), found 0 bytes stored\n{AGAIN}",
    ),
    "chunks never written": (
        keras3(sparse_chunks),
        "corrupt: layers/x/vars/0: expected no more than 1100 to 1, found 0 bytes stored for 4194304\n" + AGAIN,
    ),
    "compound": (keras3(compound), "unsupported: layers/x/vars/0: HDF5 type class 6, which is no number"),
    "odd float": (
        keras3(odd_float),
        "unsupported: odd: a number type that NumPy's float64 does not hold bit for bit",
    ),
    "shapeless": (keras3(shapeless), "unsupported: layers/x/vars/0: a dataset without a shape"),
    "named type": (keras3(named_type), "unsupported: layers/kind: neither a group nor a dataset"),
    "lzf": (
        keras3(lambda file: file.create_dataset("z", data=np.zeros(64), compression="lzf")),
        "unsupported: z: filter 32000 (lzf); only gzip, shuffle and fletcher32 are read",
    ),
    "scale-offset": (
        keras3(low("z", lambda p: (p.set_chunk((64,)), p.set_scaleoffset(h5py.h5z.SO_INT, 4)))),
        "unsupported: z: filter 6 (scaleoffset); only gzip, shuffle and fletcher32 are read",
    ),
    "big chunks": (
        keras3(big_chunks),
        "unsupported: layers/x/vars/0: chunks of 268435456 bytes; at most 67108864 are read",
    ),
    "not Keras": (
        keras3(renamed),
        f"unsupported: HDF5: neither layer_names nor vars groups, so not Keras weights\n{KERAS}",
    ),
    "configuration is no JSON": (
        plain(attribute("model_config", "{")),
        "corrupt: model_config: not JSON (Expecting property name enclosed in double quotes: "
        f"line 1 column 2 (char 1))\n{AGAIN}",
    ),
    "configuration is a list": (
        plain(attribute("model_config", "[]")),
        f"corrupt: model_config: expected a JSON object, found list\n{AGAIN}",
    ),
    "configuration nests": (
        plain(attribute("model_config", "[" * 60000)),
        f"corrupt: model_config: JSON nested too deeply\n{AGAIN}",
    ),
    "configuration is a number": (
        plain(attribute("model_config", 5)),
        f"corrupt: /: attribute model_config: neither a string nor a list of strings\n{AGAIN}",
    ),
    "name is no text": (
        plain(attribute("weight_names", np.array([b"\xff\xfe"]), "one")),
        f"corrupt: one: attribute weight_names: text that is not UTF-8\n{AGAIN}",
    ),
    "two of a name": (plain(twice), f"corrupt: one/one/kernel: two datasets of this name\n{AGAIN}"),
    "a weight is missing": (
        plain(without("two/two/bias:0")),
        f"corrupt: two/two/bias:0: expected one, as weight_names lists it, found no dataset\n{AGAIN}",
    ),
    "a layer is missing": (
        plain(without("two")),
        f"corrupt: two: expected one, as layer_names lists it, found no group with weight_names\n{AGAIN}",
    ),
    "a weight listed twice": (
        plain(attribute("weight_names", np.array([b"one/kernel:0", b"one/kernel:0"]), "one")),
        f"corrupt: one/one/kernel:0: named twice in weight_names or layer_names\n{AGAIN}",
    ),
    "another's bytes": (
        other_place(),
        "corrupt: layers/conv2d/vars/0: expected bytes of its own, found the same bytes as layers/dense/vars/0\n"
        + AGAIN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_says_so(tmp_path: Path, process: Hdf5Process, case: str) -> None:
    content, text = BROKEN[case]
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with pytest.raises(PortingError) as caught:
        open_h5(path, process)
    assert str(caught.value) == f"{path}: {text}"


def test_the_unbroken_files_open(tmp_path: Path, process: Hdf5Process) -> None:
    for content in (plain(), keras3()):
        (tmp_path / "a.h5").write_bytes(content)
        with open_h5(tmp_path / "a.h5", process) as source:
            assert [source.read(name).size for name in source.specs]


@pytest.mark.parametrize(("offset", "size"), ((2048, 32), (2048, 2**63 - 1), (1 << 40, 36), (2**64 - 40, 36)))
def test_a_place_that_cannot_be(tmp_path: Path, process: Hdf5Process, offset: int, size: int) -> None:
    """HDF5 finds some of these itself, in words that depend on its version."""
    path = tmp_path / "a.h5"
    path.write_bytes(moved(offset, size))
    with pytest.raises(PortingError, match=r"corrupt: (HDF5 cannot read it: |layers/conv2d/vars/0: expected )"):
        open_h5(path, process)


def test_damaged_compressed_data(tmp_path: Path, process: Hdf5Process) -> None:
    content = io.BytesIO()
    value = np.random.default_rng(0).normal(size=2000)
    legacy_h5(content, {"a": {"w": value}}, compression="gzip", fletcher32=True)
    with h5py.File(content) as file:
        at = file["a/w"].id.get_chunk_info(0).byte_offset
    broken = bytearray(content.getvalue())
    broken[at + 100] ^= 1
    path = tmp_path / "a.h5"
    path.write_bytes(broken)
    with open_h5(path, process) as source, pytest.raises(PortingError) as caught:
        source.read("a/w")
    assert str(caught.value).startswith(f"{path}: corrupt: a/w: HDF5 cannot read it: ")


def test_a_tensor_that_takes_too_much_memory(tmp_path: Path, process: Hdf5Process) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("vars/0", (1, 48 << 20), "float32", chunks=(1, 4 << 20), compression="gzip")
        for start in range(0, 48 << 20, 4 << 20):  # 192 MiB in one row
            dataset[0, start : start + (4 << 20)] = 0
    assert path.stat().st_size < 1 << 20
    with open_h5(path, process) as source, pytest.raises(PortingError) as caught:
        source.read("vars/0")
    assert str(caught.value) == (f"{path}: unsupported: vars/0: HDF5 needs more than 167772160 bytes of memory for it")


def child_that(does: str) -> str:
    return (
        "import json, os, signal, sys\n"
        "print(json.dumps({'ready': True}), flush=True)\n"
        "request = json.loads(sys.stdin.readline())\n" + does
    )


DEATHS = {
    "hangs": (
        "signal.setitimer(signal.ITIMER_PROF, 0.05)\nwhile True: pass",
        "HDF5 did not finish reading it in 0.2 s of processor time",
    ),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "HDF5 crashed on it (SIGSEGV)"),
    "leaves": ("sys.exit(3)", "HDF5 crashed on it (exit code 3)"),
    "raves": ("print('[1, 2]', flush=True)", "the process that reads HDF5 gave an answer that makes no sense"),
    "babbles": ("print('}{', flush=True)", "the process that reads HDF5 gave an answer that makes no sense"),
    "lies": (
        "print(json.dumps({'attributes': {}, 'datasets': [{'name': 'vars', 'dtype': 'float32', 'order': '<', "
        "'shape': [4], 'bytes': 16, 'storage': 'contiguous', 'offset': 1 << 62}]}), flush=True)\nsys.stdin.readline()",
        "vars: expected a place in the file's 8 bytes, found bytes",
    ),
    "is silent": ("sys.stdin.readline()", "HDF5 gave no answer in 1 s"),
}


@pytest.mark.parametrize("case", DEATHS)
def test_a_child_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    does, text = DEATHS[case]
    path = tmp_path / "a.h5"
    path.write_bytes(plain())
    text = text.replace("8 bytes", f"{len(plain())} bytes")
    monkeypatch.setattr(hdf5_process, "_START", child_that(does))
    monkeypatch.setattr(hdf5_process, "SILENCE_SECONDS", 0.2 if case == "is silent" else 60.0)
    process = Hdf5Process()
    with pytest.raises(PortingError) as caught:
        open_h5(path, process)
    assert f"{path}: corrupt: {text}" in str(caught.value)
    monkeypatch.undo()
    if case == "lies":
        process.close()  # it would go on lying
    with open_h5(path, process) as source:  # the next file gets a new child
        assert len(source.specs) == 2
    process.close()


def test_a_child_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(plain())
    monkeypatch.setattr(hdf5_process, "_START", "raise ImportError('h5py')")
    with pytest.raises(PortingError) as caught:
        open_h5(path)
    expected = 'missing: the process that reads HDF5 did not start\nCheck that h5py works: python -c "import h5py"'
    assert str(caught.value) == f"{path}: {expected}"


def test_a_child_that_dies_at_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    content = io.BytesIO()
    legacy_h5(content, {"a": {"v": np.ones(9), "w": np.ones(9)}}, chunks=True)
    path.write_bytes(content.getvalue())
    with open_h5(path) as source:
        child = source._process._child
        assert child is not None
        child.send_signal(signal.SIGSEGV)
        child.wait()
        for text in ("HDF5 crashed on it (SIGSEGV)", "HDF5 failed on this file before"):
            with pytest.raises(PortingError) as caught:
                source.read("a/w")
            assert f"{path}: corrupt: a/w: {text}" in str(caught.value) or "SIGSEGV" in text


def test_what_a_child_may_use(tmp_path: Path, process: Hdf5Process) -> None:
    (tmp_path / "a.h5").write_bytes(plain())
    open_h5(tmp_path / "a.h5", process).close()
    child = process._child
    assert child is not None
    lines = Path(f"/proc/{child.pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[0] for line in lines}
    held = sorted(int(fd.name) for fd in Path(f"/proc/{child.pid}/fd").iterdir())
    assert int(limits["Max open files"]) == held[-1] + 1  # the user's file is the last that it could open
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert 100 << 20 < int(limits["Max address space"]) < 2 << 30


def test_no_child_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    content = io.BytesIO()
    legacy_h5(content, {"a": {"w": np.ones(9)}}, chunks=True)  # chunked, so the child stays while the source is open
    path.write_bytes(content.getvalue())
    source = open_h5(path)
    child = source._process._child
    assert child is not None and child.poll() is None
    source.close()
    source.close()
    assert child.returncode == -signal.SIGKILL
    path.write_bytes(plain())
    with open_h5(path) as source:
        assert source._process._child is None  # all contiguous: not needed any more


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    content = io.BytesIO()
    legacy_h5(content, {"a": {"w": np.ones(9)}}, chunks=True)
    path.write_bytes(content.getvalue())
    code = (
        "import os, sys; from pathlib import Path; from porting.sources.keras_h5 import open_h5\n"
        f"s = open_h5(Path({str(path)!r})); print(s._process._child.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    child = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and ") Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} outlives its parent")
