"""Rule tables: how TensorFlow's and Keras's names, shapes and layouts become PyTorch's.

This file (with `porting.keras_names`, which reads Keras's containers into the names used here) is the only place on
the porting side that spells foreign names. One table drives both jobs: which variable becomes which parameter, and
which TensorFlow activation is compared with which PyTorch module. Tables are expanded by plain loops and carry every
shape, so that a plan can be proved without torch and before a byte of data is read.

Sources: deeplab/core/xception.py in tensorflow/models (aligned), keras/src/applications/xception.py (original).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

Shape = tuple[int, ...]


class Layout(Enum):
    """How a variable's axes become a parameter's. H, W: kernel; I: inputs; O: outputs; C: channels; M: multiplier."""

    SAME = "same"
    HWIO_TO_OIHW = "HWIO to OIHW"
    HWCM_TO_OIHW = "HWCM to (C*M)1HW"  # depthwise: output channel c*M+m
    IO_TO_OI = "IO to OI"
    HWIO_TO_OI = "11IO to OI"  # a 1x1 convolution on pooled features is a dense layer

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array in PyTorch's layout; a view wherever one exists."""
        result = array
        if self is Layout.HWIO_TO_OIHW:
            result = array.transpose(3, 2, 0, 1)
        elif self is Layout.HWCM_TO_OIHW:
            height, width, channels, multiplier = array.shape
            result = array.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
        elif self is Layout.IO_TO_OI:
            result = array.transpose(1, 0)
        elif self is Layout.HWIO_TO_OI:
            if array.shape[:2] != (1, 1):
                raise ValueError(f"a 1x1 kernel was expected, found {array.shape}")
            result = array[0, 0].transpose(1, 0)
        return result


class Role(Enum):
    """What a variable is to the network."""

    WEIGHT = "weight"  # learned
    STATISTIC = "BN statistic"  # a batch norm's running mean or variance


@dataclass(frozen=True)
class Rule:
    """One variable becomes one parameter or buffer.

    Attributes:
        variable: TensorFlow's name, without ":0".
        shape: the variable's shape.
        layout: the change of axes.
        parameter: key in the state dict.
        skip: leading outputs left out (1 where a background class is dropped).
        role: learned, or a running statistic.
    """

    variable: str
    shape: Shape
    layout: Layout
    parameter: str
    skip: int = 0
    role: Role = Role.WEIGHT

    def convert(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The parameter's values for a variable's, as a view where possible."""
        return self.layout.apply(array)[self.skip :]

    def float32(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The parameter's values as a new float32 array; float64 beyond its range becomes infinite."""
        import numpy as np

        values = self.convert(array)
        result: npt.NDArray[Any] = np.empty(values.shape, np.float32)
        with np.errstate(over="ignore"):
            np.copyto(result, values, casting="same_kind")
        return result

    @property
    def target_shape(self) -> Shape:
        """The parameter's shape, found by running the layout on a dummy that has no storage."""
        import numpy as np  # only here: the names of the networks must cost a command's --help nothing

        return self.convert(np.broadcast_to(np.zeros((), np.float32), self.shape)).shape


@dataclass(frozen=True)
class TracePoint:
    """One activation of the reference and the PyTorch module whose output must equal it."""

    name: str
    module: str


@dataclass(frozen=True)
class Table:
    """Everything that is known about one network's names.

    Attributes:
        rules: in the order in which the network uses the variables.
        trace: activations to compare, in the order in which PyTorch computes them.
        pooled: the trace point of the pooled features.
        logits: the trace point of the classifier; absent for a backbone.
        head: variables of the classifier, whether the table maps them or not.
    """

    arch: str
    rules: tuple[Rule, ...]
    trace: tuple[TracePoint, ...]
    pooled: TracePoint
    logits: TracePoint | None
    head: tuple[str, str]

    @property
    def points(self) -> tuple[TracePoint, ...]:
        """Every activation to compare, the output last."""
        return (*self.trace, self.pooled, *([self.logits] if self.logits else []))


@dataclass(frozen=True)
class Head:
    """The classifier of a source: how many outputs are stored, and how many leading ones are left out."""

    classes: int
    skip: int = 0


KERAS_ARCH = "xception"
ALIGNED_SCOPES = {"xception41": "xception_41", "xception65": "xception_65", "xception71": "xception_71"}
ARCHS = (KERAS_ARCH, *ALIGNED_SCOPES)
BACKGROUND_CLASSES = 1001  # ImageNet's 1000 after a background class, as TF-Slim trained them
FEATURES = 2048
BATCH_NORM_EPSILON = 1e-3  # both TF-Slim's networks and Keras's are built with it

# (block's three widths, stride of the last depthwise) of the entry flow; the rest is common to all three.
_ENTRY = {
    "xception41": ((128, 2), (256, 2), (728, 2)),
    "xception65": ((128, 2), (256, 2), (728, 2)),
    "xception71": ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
_MIDDLE_UNITS = {"xception41": 8, "xception65": 16, "xception71": 16}


def batch_norm_rules(scope: str, module: str, channels: int) -> Iterator[Rule]:
    """The four variables of a batch norm, by the leaf names that TF-Slim and Keras share."""
    for leaf, parameter, role in (
        ("gamma", "weight", Role.WEIGHT),
        ("beta", "bias", Role.WEIGHT),
        ("moving_mean", "running_mean", Role.STATISTIC),
        ("moving_variance", "running_var", Role.STATISTIC),
    ):
        yield Rule(f"{scope}/{leaf}", (channels,), Layout.SAME, f"{module}.{parameter}", role=role)


class _AlignedTable:
    """Expands one aligned network's table; `Table` is what leaves this file."""

    def __init__(self, arch: str) -> None:
        self.scope = ALIGNED_SCOPES[arch]
        self.rules: list[Rule] = []
        self.trace: list[TracePoint] = []
        self._stem()
        units = [("entry_flow", f"block{n}/unit_1", (w, w, w)) for n, (w, _) in enumerate(_ENTRY[arch], 1)]
        units += [("middle_flow", f"block1/unit_{n}", (728,) * 3) for n in range(1, _MIDDLE_UNITS[arch] + 1)]
        units += [("exit_flow", "block1/unit_1", (728, 1024, 1024)), ("exit_flow", "block2/unit_1", (1536, 1536, 2048))]
        inputs = 64
        for index, (flow, unit, widths) in enumerate(units):
            scope = f"{self.scope}/{flow}/{unit}/xception_module"
            last = index == len(units) - 1
            self._unit(scope, f"blocks.{index}", inputs, widths, shortcut=flow != "middle_flow" and not last, last=last)
            inputs = widths[-1]

    def _conv(self, scope: str, conv: str, norm: str, shape: Shape, leaf: str = "weights") -> None:
        depthwise = leaf == "depthwise_weights"
        layout = Layout.HWCM_TO_OIHW if depthwise else Layout.HWIO_TO_OIHW
        self.rules.append(Rule(f"{scope}/{leaf}", shape, layout, f"{conv}.weight"))
        self.rules += batch_norm_rules(f"{scope}/BatchNorm", norm, shape[2] if depthwise else shape[3])
        self.trace.append(TracePoint(f"{scope}/{'depthwise' if depthwise else 'Conv2D'}", conv))
        self.trace.append(TracePoint(f"{scope}/BatchNorm", norm))

    def _stem(self) -> None:
        for index, shape in enumerate([(3, 3, 3, 32), (3, 3, 32, 64)]):
            scope = f"{self.scope}/entry_flow/conv1_{index + 1}"
            self._conv(scope, f"stem.{index}.conv", f"stem.{index}.bn", shape)
            self.trace.append(TracePoint(f"{scope}/Relu", f"stem.{index}.act"))

    def _unit(self, scope: str, block: str, inputs: int, widths: Shape, *, shortcut: bool, last: bool) -> None:
        first = inputs
        for n, width in enumerate(widths, 1):
            conv = f"{block}.stack.conv{n}"
            depthwise, pointwise = f"{scope}/separable_conv{n}_depthwise", f"{scope}/separable_conv{n}_pointwise"
            if not last:
                self.trace.append(TracePoint(f"{scope}/Relu" + (f"_{n - 1}" if n > 1 else ""), f"{block}.stack.act{n}"))
            self._conv(depthwise, f"{conv}.conv_dw", f"{conv}.bn_dw", (3, 3, inputs, 1), "depthwise_weights")
            if last:
                self.trace.append(TracePoint(f"{depthwise}/Relu", f"{conv}.act_dw"))
            self._conv(pointwise, f"{conv}.conv_pw", f"{conv}.bn_pw", (1, 1, inputs, width))
            if last:
                self.trace.append(TracePoint(f"{pointwise}/Relu", f"{conv}.act_pw"))
            inputs = width
        if shortcut:
            path = f"{block}.shortcut"
            self._conv(f"{scope}/shortcut", f"{path}.conv", f"{path}.bn", (1, 1, first, inputs))
        if not last:
            self.trace.append(TracePoint(f"{scope}/add", block))

    def table(self, arch: str, head: Head | None) -> Table:
        scope = f"{self.scope}/logits"
        weights, biases = f"{scope}/weights", f"{scope}/biases"
        if head:
            shape = (1, 1, FEATURES, head.classes)
            self.rules.append(Rule(weights, shape, Layout.HWIO_TO_OI, "head.fc.weight", head.skip))
            self.rules.append(Rule(biases, (head.classes,), Layout.SAME, "head.fc.bias", head.skip))
        pooled, logits = TracePoint("global_pool", "head.global_pool"), TracePoint(scope, "head.fc") if head else None
        return Table(arch, tuple(self.rules), tuple(self.trace), pooled, logits, (weights, biases))


# --- original Xception: Keras ---------------------------------------------------------------------------------------

# Keras names every layer of the network but these, which get the next free automatic names ("conv2d_5", "add_12").
# The project's one vocabulary gives them the names that a fresh process gives, in the order of the network.
SHORTCUT_BLOCKS = (2, 3, 4, 13)


class KerasClass(Enum):
    """Keras layer classes that hold variables, with the variables' names in Keras's own order."""

    CONV = "Conv2D"
    SEPARABLE = "SeparableConv2D"
    BATCH_NORM = "BatchNormalization"
    DENSE = "Dense"


@dataclass(frozen=True)
class KerasLayer:
    """One layer with variables, and the module (two for a separable convolution) that computes it."""

    kind: KerasClass
    name: str
    module: str
    shape: Shape  # kernel shape; for a separable convolution (inputs, outputs); for a batch norm (channels,)

    def rules(self) -> Iterator[Rule]:
        if self.kind is KerasClass.CONV:
            yield Rule(f"{self.name}/kernel", self.shape, Layout.HWIO_TO_OIHW, f"{self.module}.weight")
        elif self.kind is KerasClass.SEPARABLE:
            inputs, outputs = self.shape
            depthwise, pointwise = f"{self.name}/depthwise_kernel", f"{self.name}/pointwise_kernel"
            yield Rule(depthwise, (3, 3, inputs, 1), Layout.HWCM_TO_OIHW, f"{self.module}.conv1.weight")
            yield Rule(pointwise, (1, 1, inputs, outputs), Layout.HWIO_TO_OIHW, f"{self.module}.pointwise.weight")
        elif self.kind is KerasClass.BATCH_NORM:
            yield from batch_norm_rules(self.name, self.module, self.shape[0])

    @property
    def trace(self) -> TracePoint:
        # Keras computes a separable convolution in one layer, so only the pointwise output can be seen.
        module = f"{self.module}.pointwise" if self.kind is KerasClass.SEPARABLE else self.module
        return TracePoint(self.name, module)


def automatic_name(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def _keras_network() -> Iterator[KerasLayer | TracePoint]:
    """The network in Keras's own layer order; layers without variables come as trace points."""
    conv, separable, norm = KerasClass.CONV, KerasClass.SEPARABLE, KerasClass.BATCH_NORM
    for n, shape in ((1, (3, 3, 3, 32)), (2, (3, 3, 32, 64))):
        yield KerasLayer(conv, f"block1_conv{n}", f"conv{n}", shape)
        yield KerasLayer(norm, f"block1_conv{n}_bn", f"bn{n}", shape[3:])
        yield TracePoint(f"block1_conv{n}_act", f"act{n}")
    inputs = 64
    widths = {2: (128, 128), 3: (256, 256), 4: (728, 728), **dict.fromkeys(range(5, 13), (728,) * 3), 13: (728, 1024)}
    for add, (n, outputs) in enumerate(widths.items()):
        block, first = f"block{n - 1}", inputs
        position = 0  # in the Sequential `rep`
        for k, width in enumerate(outputs, 1):
            if not (n == 2 and k == 1):  # block 2 starts after a ReLU already
                yield TracePoint(f"block{n}_sepconv{k}_act", f"{block}.rep.{position}")
                position += 1
            yield KerasLayer(separable, f"block{n}_sepconv{k}", f"{block}.rep.{position}", (inputs, width))
            yield KerasLayer(norm, f"block{n}_sepconv{k}_bn", f"{block}.rep.{position + 1}", (width,))
            position += 2
            inputs = width
        if n in SHORTCUT_BLOCKS:
            index = SHORTCUT_BLOCKS.index(n)
            yield KerasLayer(conv, automatic_name("conv2d", index), f"{block}.skip", (1, 1, first, inputs))
            yield TracePoint(f"block{n}_pool", f"{block}.rep.{position}")
            yield KerasLayer(norm, automatic_name("batch_normalization", index), f"{block}.skipbn", (inputs,))
        yield TracePoint(automatic_name("add", add), block)
    for n, width in ((1, 1536), (2, FEATURES)):
        yield KerasLayer(separable, f"block14_sepconv{n}", f"conv{n + 2}", (inputs, width))
        yield KerasLayer(norm, f"block14_sepconv{n}_bn", f"bn{n + 2}", (width,))
        yield TracePoint(f"block14_sepconv{n}_act", f"act{n + 2}")
        inputs = width


KERAS_INPUT, KERAS_FEATURES = "block1_conv1", "block14_sepconv2_act"  # first layer, and last before the head
KERAS_POOLED, KERAS_HEAD = "avg_pool", "predictions"


def keras_layers() -> tuple[KerasLayer, ...]:
    """The layers with variables, without a head, in Keras's own layer order (the order that its files count in)."""
    return tuple(item for item in _keras_network() if isinstance(item, KerasLayer))


def keras_trace() -> tuple[TracePoint, ...]:
    """The activations of every layer, without a head, in Keras's own layer order."""
    return tuple(item if isinstance(item, TracePoint) else item.trace for item in _keras_network())


def table(arch: str, head: Head | None) -> Table:
    """The rule table of a network with the given classifier, or of its backbone alone.

    Raises:
        KeyError: no such network.
    """
    if arch != KERAS_ARCH:
        return _AlignedTable(arch).table(arch, head)
    rules = [rule for layer in keras_layers() for rule in layer.rules()]
    kernel, bias = f"{KERAS_HEAD}/kernel", f"{KERAS_HEAD}/bias"
    if head:
        rules.append(Rule(kernel, (FEATURES, head.classes), Layout.IO_TO_OI, "fc.weight", head.skip))
        rules.append(Rule(bias, (head.classes,), Layout.SAME, "fc.bias", head.skip))
    pooled, logits = TracePoint(KERAS_POOLED, "global_pool"), TracePoint(KERAS_HEAD, "fc") if head else None
    return Table(arch, tuple(rules), keras_trace(), pooled, logits, (kernel, bias))


# --- variables that are never read, and why -------------------------------------------------------------------------

# `<variable>/<slot>`; TensorFlow 1's optimizers name their slots after themselves.
SLOTS = frozenset(
    f"{optimizer}{suffix}"
    for optimizer in ("Momentum", "RMSProp", "Adam", "Adagrad", "Adadelta", "Ftrl")
    for suffix in ("", "_1", "_2")
)
SHADOW = "ExponentialMovingAverage"
COUNTERS = {
    "global_step": "training step counter",
    "beta1_power": "optimizer state (Adam)",
    "beta2_power": "optimizer state (Adam)",
}
