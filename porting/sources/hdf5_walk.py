"""A walk through an HDF5 file under limits; runs in the child process only (`hdf5_child`).

Whatever leads out of the file, or needs code that is not HDF5's own, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5o, h5s, h5t, h5z

from porting.sources.base import ITEM_SIZE

# Keras nests two groups a sub-model; the deepest real file seen has 8. The counts are far above any model's.
MAX_DEPTH = 64
MAX_OBJECTS = 200_000
MAX_CHUNK_BYTES = 64 << 20
SLAB_BYTES = 32 << 20
FILTERS = {h5z.FILTER_DEFLATE: "gzip", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}
NUMBERS = frozenset(ITEM_SIZE) - {"bfloat16"}
ATTRIBUTES = ("layer_names", "weight_names", "model_config", "name")


class RefusedError(Exception):
    """kind ("corrupt" or "unsupported"), subject, and what was found."""


def _text(value: bytes | str, subject: str) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError:
        raise RefusedError("corrupt", subject, "text that is not UTF-8") from None


def _attributes(node: h5o.ObjectID, path: str) -> dict[str, str | list[str]]:
    """The attributes that Keras writes and this project reads: strings, and lists of strings."""
    found: dict[str, str | list[str]] = {}
    for index in range(h5a.get_num_attrs(node)):
        attribute = h5a.open(node, index=index)
        key = _text(attribute.name, f"{path or '/'}: attributes")
        if key.rstrip("0123456789") not in ATTRIBUTES:
            continue
        subject = f"{path or '/'}: attribute {key}"
        if key == "name" and not path.endswith("vars"):
            continue
        shape = attribute.shape
        if shape == (0,):  # Keras writes no names as an empty list of floats
            found[key] = []
            continue
        kind = attribute.get_type()
        if not isinstance(kind, h5t.TypeStringID) or shape is None or len(shape) > 1:
            raise RefusedError("corrupt", subject, "neither a string nor a list of strings")
        if attribute.get_storage_size() > 16 << 20:
            raise RefusedError("corrupt", subject, f"{attribute.get_storage_size()} bytes")
        values = np.empty(shape, dtype=attribute.dtype)
        attribute.read(values)
        texts = [_text(value, subject) for value in values.reshape(-1).tolist()]
        found[key] = texts if shape else texts[0]
    return found


def _number(kind: h5t.TypeID, subject: str) -> tuple[str, str]:
    """A type as NumPy's name and byte order; strings are named, what has no name is refused."""
    if isinstance(kind, h5t.TypeStringID):
        return "string", "|"
    # Keras writes bfloat16 as two opaque bytes, and no other opaque type of two bytes.
    if isinstance(kind, h5t.TypeOpaqueID) and kind.get_size() == 2:
        return "bfloat16", "<"
    try:
        dtype = kind.dtype
    except (TypeError, ValueError):
        dtype = np.dtype("V1")
    if dtype.name not in NUMBERS:
        raise RefusedError("unsupported", subject, f"HDF5 type class {kind.get_class()}, which is no number")
    # NumPy's nearest type is not enough: the stored bits must be that type's.
    if not h5t.py_create(dtype, logical=True).equal(kind):
        raise RefusedError("unsupported", subject, f"a number type that NumPy's {dtype.name} does not hold bit for bit")
    return dtype.name, ">" if dtype.str[0] == ">" else "<"


def _dataset(node: h5d.DatasetID, path: str) -> dict[str, Any]:
    plist = node.get_create_plist()
    if plist.get_external_count():
        raise RefusedError("unsupported", path, "external storage (its bytes lie in another file)")
    layout = plist.get_layout()
    if layout == h5d.VIRTUAL:
        raise RefusedError("unsupported", path, "a virtual dataset (its bytes lie in other datasets)")
    for index in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(index)
        if code not in FILTERS:
            label = _text(name, path) or "unnamed"
            raise RefusedError(
                "unsupported", path, f"filter {code} ({label}); only gzip, shuffle and fletcher32 are read"
            )
    dtype, order = _number(node.get_type(), path)
    space = node.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        raise RefusedError("unsupported", path, "a dataset without a shape")
    shape = space.shape
    stored = node.get_storage_size()
    entry: dict[str, Any] = {"name": path, "dtype": dtype, "order": order, "shape": shape, "bytes": stored}
    if layout == h5d.CONTIGUOUS:
        # Asked even of an empty tensor, which has no place in the file.
        entry.update(storage="contiguous", offset=node.get_offset())
    elif layout == h5d.COMPACT:
        entry.update(storage="compact")
    else:
        chunk = plist.get_chunk()
        chunk_bytes = node.get_type().get_size() * int(np.prod(np.array(chunk, dtype=object)))
        if chunk_bytes > MAX_CHUNK_BYTES:
            raise RefusedError(
                "unsupported", path, f"chunks of {chunk_bytes} bytes; at most {MAX_CHUNK_BYTES} are read"
            )
        entry.update(storage="chunked", chunk=chunk)
    return entry


def _children(group: h5g.GroupID, path: str) -> Iterator[tuple[str, bytes, int]]:
    """Path, name and address of what a group holds, in the order of the names."""
    names: list[bytes] = []
    group.links.iterate(names.append)  # HDF5 visits each once, in name order
    for name in names:
        text = _text(name, f"{path or '/'}: names")
        if not text or "/" in text or text in {".", ".."}:
            raise RefusedError("corrupt", path or "/", f"a member named {text!r}")
        child = f"{path}/{text}" if path else text
        info = group.links.get_info(name)
        kind = info.type
        if kind == h5py.h5l.TYPE_SOFT:
            raise RefusedError("unsupported", child, "a soft link; Keras writes none")
        if kind == h5py.h5l.TYPE_EXTERNAL:
            raise RefusedError("unsupported", child, "an external link (it leads to another file)")
        if kind != h5py.h5l.TYPE_HARD:
            raise RefusedError("unsupported", child, f"a link of type {kind}")
        yield child, name, info.u


def index(root: h5g.GroupID) -> dict[str, Any]:
    """Every dataset and every wanted attribute; an object that is reached twice is a cycle or a second name."""
    datasets: list[dict[str, Any]] = []
    attributes: dict[str, dict[str, str | list[str]]] = {}
    seen: dict[int, str] = {}
    groups: list[tuple[h5g.GroupID, str, int]] = [(root, "", 0)]
    seen[h5o.get_info(root).addr] = "/"
    while groups:
        group, path, depth = groups.pop()
        if values := _attributes(group, path):
            attributes[path] = values
        for child, name, address in _children(group, path):
            node = h5o.open(group, name)
            if address in seen:
                raise RefusedError("corrupt", child, f"the same object as {seen[address]}")
            seen[address] = child
            if len(seen) > MAX_OBJECTS:
                raise RefusedError("unsupported", "/", f"more than {MAX_OBJECTS} objects")
            if isinstance(node, h5d.DatasetID):
                datasets.append(_dataset(node, child))
            elif isinstance(node, h5g.GroupID):
                if depth == MAX_DEPTH:
                    raise RefusedError("unsupported", child, f"groups nested more than {MAX_DEPTH} deep")
                groups.append((node, child, depth + 1))
            else:
                raise RefusedError("unsupported", child, "neither a group nor a dataset")
    return {"datasets": datasets, "attributes": attributes}


def slabs(node: h5d.DatasetID) -> Iterator[bytes]:
    """A dataset's bytes in order, a few whole chunks along the first axis at a time."""
    dtype = node.dtype
    shape = node.shape
    array: np.ndarray[Any, Any]
    if not shape or int(np.prod(shape)) * dtype.itemsize <= SLAB_BYTES:
        array = np.empty(shape, dtype)
        if array.size:
            node.read(h5s.ALL, h5s.ALL, array)
        yield array.tobytes()
        return
    row = int(np.prod(shape[1:])) * dtype.itemsize
    step = max(1, SLAB_BYTES // row)
    plist = node.get_create_plist()
    if plist.get_layout() == h5d.CHUNKED:
        chunk = plist.get_chunk()[0]
        step = max(1, step // chunk) * chunk
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        array = np.empty((count, *shape[1:]), dtype)
        space = node.get_space()
        space.select_hyperslab((start,) + (0,) * (len(shape) - 1), array.shape)
        node.read(h5s.create_simple(array.shape), space, array)
        yield array.tobytes()
