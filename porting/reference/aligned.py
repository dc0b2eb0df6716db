"""DeepLab's aligned Xception-41, 65 and 71 on plain TensorFlow ops.

Written from deeplab/core/xception.py (tensorflow/models), not from this project's rule tables or PyTorch models: it is
what they are held to, and the golden files, which DeepLab's own code produced, hold it. It therefore spells the
variable scopes itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from porting.reference.tensorflow_import import tf

EPSILON = 1e-3  # deeplab/core/xception.py, xception_arg_scope: batch_norm_epsilon
Tensor = Any
Variable = Callable[[str], "np.ndarray[Any, np.dtype[Any]]"]
Emit = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Unit:
    """One xception_module: scope, widths, stride of the third convolution, kind of shortcut, where the ReLUs are."""

    scope: str
    depths: tuple[int, int, int]
    stride: int
    skip: str = "conv"
    relu_inside: bool = False


def units(arch: str) -> list[Unit]:
    """The units of a network in order."""
    if arch == "xception71":
        entry = [((128,) * 3, 2), ((256,) * 3, 1), ((256,) * 3, 2), ((728,) * 3, 1), ((728,) * 3, 2)]
    else:
        entry = [((128,) * 3, 2), ((256,) * 3, 2), ((728,) * 3, 2)]
    middle = {"xception41": 8, "xception65": 16, "xception71": 16}[arch]
    units = [Unit(f"entry_flow/block{i}/unit_1", depths, stride) for i, (depths, stride) in enumerate(entry, 1)]
    units += [Unit(f"middle_flow/block1/unit_{i}", (728,) * 3, 1, "sum") for i in range(1, middle + 1)]
    units.append(Unit("exit_flow/block1/unit_1", (728, 1024, 1024), 2))
    units.append(Unit("exit_flow/block2/unit_1", (1536, 1536, 2048), 1, "none", relu_inside=True))
    return units


class AlignedXception:
    """The network as a function that reports every activation.

    Args:
        arch: xception41, xception65 or xception71.
        variable: gives a variable's values by TensorFlow's name.
        dtype: "float64" or "float32"; weights are cast as they are used, so only one layer's are held at a time.
        output_stride: 32, 16 or 8.
        logits: whether to compute the classifier.
    """

    def __init__(
        self, arch: str, variable: Variable, dtype: str = "float64", output_stride: int = 32, logits: bool = True
    ) -> None:
        self.arch, self.variable, self.dtype = arch, variable, dtype
        self.output_stride, self.with_logits = output_stride, logits
        self.root = f"xception_{arch.removeprefix('xception')}"

    def __call__(self, image: Tensor, emit: Emit) -> None:
        """Run the network on an NHWC image and emit (name, activation) in order; what `emit` returns is passed on."""
        self.emit = emit
        net = tf.cast(image, self.dtype)
        for scope, stride in (("conv1_1", 2), ("conv1_2", 1)):
            net = self._conv(net, f"{self.root}/entry_flow/{scope}", stride)
            net = self._relu(net, f"{self.root}/entry_flow/{scope}/Relu")
        # After the stem the stride is 2; DeepLab's stack_blocks_dense counts from there.
        target, current, rate = self.output_stride // 2, 1, 1
        for unit in units(self.arch):
            if current == target:
                net = self._module(net, unit, 1, rate)
                rate *= unit.stride
            else:
                net = self._module(net, unit, unit.stride, 1)
                current *= unit.stride
        net = self.emit("global_pool", tf.reduce_mean(net, [1, 2]))
        if self.with_logits:
            scope = f"{self.root}/logits"
            net = net[:, None, None, :]
            net = tf.nn.conv2d(net, self._value(f"{scope}/weights"), 1, "SAME") + self._value(f"{scope}/biases")
            self.emit(scope, net[:, 0, 0, :])

    def _value(self, name: str) -> Tensor:
        # Through float32: what is ported is float32, whatever the checkpoint holds.
        return tf.cast(tf.constant(self.variable(name).astype(np.float32, copy=False)), self.dtype)

    def _relu(self, net: Tensor, name: str) -> Tensor:
        return self.emit(name, tf.nn.relu(net))

    def _batch_norm(self, net: Tensor, scope: str) -> Tensor:
        gamma, beta, mean, variance = (
            self._value(f"{scope}/BatchNorm/{leaf}") for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        net = tf.nn.batch_normalization(net, mean, variance, beta, gamma, EPSILON)
        return self.emit(f"{scope}/BatchNorm", net)

    def _conv(self, net: Tensor, scope: str, stride: int) -> Tensor:
        """conv2d_same: explicit symmetric padding where the stride is not 1, then batch norm."""
        kernel = self._value(f"{scope}/weights")
        size, padding = int(kernel.shape[0]), "SAME"
        if stride != 1 and size > 1:
            net, padding = _fixed_padding(net, size, 1), "VALID"
        net = self.emit(f"{scope}/Conv2D", tf.nn.conv2d(net, kernel, stride, padding))
        return self._batch_norm(net, scope)

    def _depthwise(self, net: Tensor, scope: str, stride: int, rate: int) -> Tensor:
        kernel = self._value(f"{scope}/depthwise_weights")
        padding = "SAME"
        if stride != 1:
            net, padding = _fixed_padding(net, int(kernel.shape[0]), rate), "VALID"
        net = tf.nn.depthwise_conv2d(net, kernel, [1, stride, stride, 1], padding, dilations=[rate, rate])
        return self._batch_norm(self.emit(f"{scope}/depthwise", net), scope)

    def _module(self, inputs: Tensor, unit: Unit, stride: int, rate: int) -> Tensor:
        scope = f"{self.root}/{unit.scope}/xception_module"
        residual = inputs
        for index in range(3):
            name = f"{scope}/separable_conv{index + 1}"
            if not unit.relu_inside:
                residual = self._relu(residual, f"{scope}/Relu" + (f"_{index}" if index else ""))
            residual = self._depthwise(residual, f"{name}_depthwise", stride if index == 2 else 1, rate)
            if unit.relu_inside:
                residual = self._relu(residual, f"{name}_depthwise/Relu")
            residual = self._conv(residual, f"{name}_pointwise", 1)
            if unit.relu_inside:
                residual = self._relu(residual, f"{name}_pointwise/Relu")
        if unit.skip == "none":
            return residual
        shortcut = inputs if unit.skip == "sum" else self._conv(inputs, f"{scope}/shortcut", stride)
        return self.emit(f"{scope}/add", residual + shortcut)


def _fixed_padding(net: Tensor, kernel_size: int, rate: int) -> Tensor:
    """Pad as an odd input would be padded, whatever the input's size."""
    effective = kernel_size + (kernel_size - 1) * (rate - 1)
    total = effective - 1
    before = total // 2
    return tf.pad(net, [[0, 0], [before, total - before], [before, total - before], [0, 0]])
