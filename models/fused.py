"""A convolution for inference on the CPU: its kernel in oneDNN's own order, its ReLU in the same pass."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import is_traced, is_transformed


@cache
def _onednn_fuses() -> bool:
    """Whether this build of PyTorch has oneDNN, and the operation that is used of it."""
    onednn: Any = torch.backends.mkldnn
    return bool(onednn.is_available()) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class FusedConv2d(nn.Conv2d):
    """`conv`, then a ReLU where `relu`, for a network that is no longer trained.

    On the CPU in float32 and without gradients, the kernel is reordered once, not in every call, and the ReLU reads and
    writes no map of its own; elsewhere the two are computed one after the other, as they are in a captured graph. The
    reordered kernel is a second copy of it in memory, made in the first call. It is made anew where another tensor, or
    an operation in place, changes the parameter; a change through `.data` is not noticed.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        assert conv.padding_mode == "zeros" and not isinstance(conv.padding, str)  # as all of these networks' are
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            device="meta",  # both parameters are replaced
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.relu = relu
        self._packed: Tensor | None = None
        self._packed_from: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self._can_fuse(x):
            out = super().forward(x)
            return F.relu(out) if self.relu else out
        # What torch.compile puts in a convolution's place on the CPU (torch/_inductor/fx_passes/mkldnn_fusion.py)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        after: tuple[Any, ...] = ("relu" if self.relu else "none", [], None)
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self._reordered(x), self.bias, *geometry, *after)
        return fused

    def _can_fuse(self, x: Tensor) -> bool:
        onednn: Any = torch.backends.mkldnn
        return bool(
            not is_traced()
            and not is_transformed()
            and x.device.type == "cpu" == self.weight.device.type
            and x.dtype == torch.float32 == self.weight.dtype
            and x.numel() > 0
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and onednn.enabled
            and _onednn_fuses()
        )

    def _reordered(self, x: Tensor) -> Tensor:
        weight = self.weight
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._packed is None or self._packed_from != state:
            # oneDNN chooses the order by the first images' shape; where another wants another, it reorders as it did
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            plain: Tensor = weight.detach().to_mkldnn()
            self._packed = reorder(plain, self.padding, self.stride, self.dilation, self.groups, list(x.shape))
            self._packed_from = state
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        """Without the reordered kernel, which can be neither copied nor saved, and is made again."""
        return {**self.__dict__, "_packed": None, "_packed_from": None}
