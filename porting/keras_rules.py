"""The original Xception's rule table: Keras's layer names in Keras's order (keras/src/applications/xception.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from porting.tables import FEATURES, Head, HeadOp, Layout, Rule, Shape, Table, TracePoint, batch_norm_rules

KERAS_ARCH = "xception"

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


def chain_place(position: int) -> str:
    """What the vocabulary calls the module at a position of a classifier that is a chain: "head/0"."""
    return f"head/{position}"


def chain_points(chain: Sequence[HeadOp]) -> tuple[tuple[TracePoint, HeadOp], ...]:
    """The activation of each module of a chain, the logits last; what does nothing at inference has none."""
    points = []
    for position, op in enumerate(chain):
        if not op.kind.endswith("dropout"):
            name = f"{chain_place(position)}/{op.layer.rpartition('/')[2]}" + (f"/{op.kind}" if op.fused else "")
            points.append((TracePoint(name, f"fc.{position}"), op))
    return tuple(points)


def _chain_rules(chain: Sequence[HeadOp]) -> Iterator[Rule]:
    for position, op in enumerate(chain):
        place, module = chain_place(position), f"fc.{position}"
        if op.kind == "linear":
            inputs, outputs = op.settings["inputs"], op.settings["outputs"]
            yield Rule(f"{place}/kernel", (inputs, outputs), Layout.IO_TO_OI, f"{module}.weight")
            if op.settings["bias"]:
                yield Rule(f"{place}/bias", (outputs,), Layout.SAME, f"{module}.bias")
        elif op.kind == "batch_norm":
            absent = {leaf for leaf, name in (("gamma", "scale"), ("beta", "center")) if not op.settings[name]}
            for rule in batch_norm_rules(place, module, op.settings["channels"]):
                if rule.variable.rpartition("/")[2] not in absent:
                    yield rule


def keras_table(head: Head | None) -> Table:
    """The table of the original network with the given classifier, or of its backbone alone."""
    rules = [rule for layer in keras_layers() for rule in layer.rules()]
    if head and head.chain:
        own = tuple(_chain_rules(head.chain))
        *inner, logits = (point for point, _ in chain_points(head.chain))
        pooled = TracePoint(f"{head.pooling}_pool", "global_pool")
        names = tuple(rule.variable for rule in own)
        return Table(KERAS_ARCH, (*rules, *own), keras_trace(), pooled, logits, names, head, tuple(inner))
    kernel, bias = f"{KERAS_HEAD}/kernel", f"{KERAS_HEAD}/bias"
    if head:
        rules.append(Rule(kernel, (FEATURES, head.classes), Layout.IO_TO_OI, "fc.weight", head.skip))
        rules.append(Rule(bias, (head.classes,), Layout.SAME, "fc.bias", head.skip))
    pooled, last = TracePoint(KERAS_POOLED, "global_pool"), TracePoint(KERAS_HEAD, "fc") if head else None
    return Table(KERAS_ARCH, tuple(rules), keras_trace(), pooled, last, (kernel, bias), head)
