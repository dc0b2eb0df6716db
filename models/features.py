"""What `features_only` gives: which maps there are, and the check of an input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from models.errors import ModelError
from models.layers import is_traced


@dataclass(frozen=True)
class FeatureMap:
    """One intermediate map: its channels, how much smaller than the input it is, and the module whose output it is."""

    num_chs: int
    reduction: int
    module: str


@dataclass(frozen=True)
class FeatureInfo:
    """The maps of a network in order of depth, read as timm's are: `.channels()`, `[i]["num_chs"]`."""

    maps: tuple[FeatureMap, ...]
    out_indices: tuple[int, ...]

    def _selected(self) -> list[FeatureMap]:
        return [self.maps[index] for index in self.out_indices]

    def channels(self) -> list[int]:
        """Channels of each map that is returned."""
        return [one.num_chs for one in self._selected()]

    def reduction(self) -> list[int]:
        """Input size over map size, for each map that is returned."""
        return [one.reduction for one in self._selected()]

    def module_name(self) -> list[str]:
        """The module whose output each returned map is."""
        return [one.module for one in self._selected()]

    def __getitem__(self, index: int) -> dict[str, object]:
        return asdict(self.maps[index])

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (asdict(one) for one in self.maps)

    def __len__(self) -> int:
        return len(self.maps)


def select_maps(maps: Sequence[FeatureMap], out_indices: Sequence[int] | None) -> FeatureInfo:
    """The maps at `out_indices` (all of them for None; negative ones count from the end).

    Raises:
        ModelError: an index that is out of range or given twice.
    """
    count = len(maps)
    wanted = range(count) if out_indices is None else out_indices
    indices = tuple(index + count if index < 0 else index for index in wanted)
    if not indices or len(set(indices)) != len(indices) or not all(0 <= index < count for index in indices):
        raise ModelError(f"out_indices: expected different numbers from 0 to {count - 1}, found {list(wanted)}")
    return FeatureInfo(tuple(maps), tuple(sorted(indices)))


def check_images(x: Tensor, channels: int, smallest: int) -> None:
    """Refuse an input that the network cannot take, saying what it takes.

    Raises:
        ModelError: not a floating (N, `channels`, H, W) with H and W at least `smallest`.
    """
    if is_traced():
        return
    expected = f"expected a floating tensor (N, {channels}, H, W), H and W at least {smallest}"
    if x.ndim != 4 or x.shape[1] != channels:
        found = tuple(x.shape)
        hint = ""
        if x.ndim == 3:
            hint = "; add the batch dimension with x.unsqueeze(0)"
        elif x.ndim == 4 and x.shape[3] == channels:
            hint = "; channels come first here: x.permute(0, 3, 1, 2)"
        raise ModelError(f"input: {expected}, found shape {found}{hint}")
    if x.shape[2] < smallest or x.shape[3] < smallest:
        raise ModelError(f"input: {expected}, found shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ModelError(f"input: {expected}, found {x.dtype}; models.preprocess scales images to [-1, 1]")
