"""Keras 3's `.weights.h5` files, written: what `model.load_weights` takes.

Format: keras/src/saving/saving_lib.py (`H5IOStore`): a group for each layer, `layers/<class>_<i>/vars`, with its
variables as datasets "0", "1", ... in the layer's own order and its name as an attribute.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt


def write_weights_h5(path: Path, variables: Iterable[tuple[str, str, npt.NDArray[Any]]]) -> None:
    """Write a file of variables, one after another; its bytes depend on nothing else.

    Args:
        path: the file, which is created or replaced.
        variables: place in the file ("layers/conv2d/vars/0"), name of the layer, values.

    Raises:
        OSError: it cannot be written.
    """
    import h5py

    try:
        with h5py.File(path, "w") as file:
            file.create_group("vars")  # the model's own; early releases of Keras 3 fail where there is none
            for place, layer, values in variables:
                folder, _, number = place.rpartition("/")
                if folder not in file:
                    file.create_group(folder).attrs["name"] = layer
                file[folder].create_dataset(number, data=values, track_times=False)
    except RuntimeError as error:  # what h5py makes of a failure while a file is closed
        raise OSError(errno.EIO, str(error).splitlines()[0]) from None
