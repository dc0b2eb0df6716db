"""A plan carried out: every variable read once, converted, and checked to be finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from porting.errors import Defect, ErrorKind, PortingError
from porting.origins import Progress
from porting.plan import Contents, Plan
from porting.sources import TensorSource


def read_weights(plan: Plan, source: TensorSource, contents: Contents, progress: Progress) -> dict[str, Any]:
    """The state dict of a plan: every variable read once, converted, and checked to be finite.

    Raises:
        PortingError: corrupt (a checksum, NaN or infinity in a weight) or as the source's `read` says.
    """
    import torch

    progress.start("reading", len(plan.table.rules))
    state: dict[str, Any] = {}
    for rule in plan.table.rules:
        own = contents.own(rule.variable)
        target = rule.float32(source.read(own))
        _check_finite(source, own, target)
        state[rule.parameter] = torch.from_numpy(target)
        if rule.parameter.endswith(".running_var"):
            # PyTorch counts the batches that a running statistic saw; a ported one starts anew.
            state[rule.parameter.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        progress.step()
    return state


def _check_finite(source: TensorSource, name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    bad = int((~finite).sum())
    first = values.reshape(-1)[int((~finite).reshape(-1).argmax())]
    raise PortingError(
        ErrorKind.CORRUPT,
        source.path,
        [Defect(name, f"{bad} of {values.size} not finite (the first is {first})", "finite values")],
        "The training that wrote it diverged, or the file is damaged; use an earlier checkpoint.",
    )
