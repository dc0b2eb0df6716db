"""What a rule table is made of: rules with their layouts, trace points, and the tables that hold them.

A table knows every name and shape of a network, so that a plan can be proved without torch and before data is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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

    def invert(self, array: npt.NDArray[Any], shape: Shape) -> npt.NDArray[Any]:
        """The array in TensorFlow's layout: what `apply` made it of, a view always.

        Args:
            array: in PyTorch's layout, as `apply` gives it of a variable of `shape`.
            shape: the variable's; a depthwise kernel's channels and multiplier cannot be told apart without it.
        """
        result = array
        if self is Layout.HWIO_TO_OIHW:
            result = array.transpose(2, 3, 1, 0)
        elif self is Layout.HWCM_TO_OIHW:
            height, width, channels, multiplier = shape
            result = array.reshape(channels, multiplier, height, width).transpose(2, 3, 0, 1)
        elif self is Layout.IO_TO_OI:
            result = array.transpose(1, 0)
        elif self is Layout.HWIO_TO_OI:
            result = array.transpose(1, 0)[None, None]
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

    def revert(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The variable's values for a parameter's, as a view; `convert` the other way round.

        Raises:
            ValueError: values of another shape than the parameter's, or a rule that leaves outputs out: they are gone.
        """
        if self.skip:
            raise ValueError(f"{self.variable}: {self.skip} outputs were left out and cannot come back")
        if array.shape != self.target_shape:
            raise ValueError(f"{self.parameter}: expected shape {self.target_shape}, found {array.shape}")
        return self.layout.invert(array, self.shape)

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
        classifier: what the table was made with.
        head_trace: activations between the pooled features and the logits, where the classifier is a chain.
    """

    arch: str
    rules: tuple[Rule, ...]
    trace: tuple[TracePoint, ...]
    pooled: TracePoint
    logits: TracePoint | None
    head: tuple[str, ...]
    classifier: Head | None = None
    head_trace: tuple[TracePoint, ...] = ()

    @property
    def points(self) -> tuple[TracePoint, ...]:
        """Every activation to compare, the output last."""
        return (*self.trace, self.pooled, *self.head_trace, *([self.logits] if self.logits else []))


@dataclass(frozen=True)
class HeadOp:
    """One module of a classifier that is a chain.

    Attributes:
        kind: the module, as `models.heads` spells it: "linear", "batch_norm", "dropout", or an activation.
        layer: path in the user's model of the layer that computes it.
        settings: as `models.heads` takes them.
        is_activation: whether it is one.
        fused: whether the layer is a dense one that applies this activation itself.
    """

    kind: str
    layer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_activation: bool = False
    fused: bool = False


@dataclass(frozen=True)
class Head:
    """The classifier of a source.

    Attributes:
        classes: outputs that are stored.
        skip: leading outputs that are left out.
        chain: its modules in order, where it is more than one dense layer with a bias on the average-pooled features.
        pooling: how such a chain has the features pooled, "avg" or "max".
    """

    classes: int
    skip: int = 0
    chain: tuple[HeadOp, ...] = ()
    pooling: str = "avg"

    def entry(self) -> dict[str, Any]:
        """A chain in a manifest's words, which `models.heads.read_chain` takes."""
        return {"pooling": self.pooling, "modules": [{"kind": op.kind, **op.settings} for op in self.chain]}


FEATURES = 2048  # channels of the last map, which the pooled features have
BATCH_NORM_EPSILON = 1e-3  # both TF-Slim's networks and Keras's are built with it


def batch_norm_rules(scope: str, module: str, channels: int) -> Iterator[Rule]:
    """The four variables of a batch norm, by the leaf names that TF-Slim and Keras share."""
    for leaf, parameter, role in (
        ("gamma", "weight", Role.WEIGHT),
        ("beta", "bias", Role.WEIGHT),
        ("moving_mean", "running_mean", Role.STATISTIC),
        ("moving_variance", "running_var", Role.STATISTIC),
    ):
        yield Rule(f"{scope}/{leaf}", (channels,), Layout.SAME, f"{module}.{parameter}", role=role)
