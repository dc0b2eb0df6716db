"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from models.errors import ModelError
from models.layers import Pooling
from models.xception import Xception
from models.xception_aligned import XCEPTION41, XCEPTION65, XCEPTION71, XceptionAligned

Network = Xception | XceptionAligned

BUILDERS: Mapping[str, Callable[..., Network]] = {
    "xception": Xception,
    "xception41": partial(XceptionAligned, XCEPTION41),
    "xception65": partial(XceptionAligned, XCEPTION65),
    "xception71": partial(XceptionAligned, XCEPTION71),
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return sorted(BUILDERS)


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    output_stride: int = 32,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    folded: bool = False,
) -> Network:
    """The network `name`, untrained.

    Raises:
        ModelError: an unknown name, or an argument the network does not take.
    """
    if name not in BUILDERS:
        raise ModelError(f"{name}: no such network; there are {', '.join(list_models())}")
    if features_only and out_indices is None:
        out_indices = range(5)
    return BUILDERS[name](
        num_classes=num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
        global_pool=Pooling(global_pool),
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        folded=folded,
        out_indices=out_indices if features_only else None,
    )
