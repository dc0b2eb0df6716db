"""Valid HDF5 files with one thing wrong, which h5py itself can write, or which is patched in."""

from __future__ import annotations

import io
from collections.abc import Callable

import h5py
import numpy as np

from tests.sources.keras_files import legacy_h5, weights_h5

Edit = Callable[[h5py.File], None]


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
