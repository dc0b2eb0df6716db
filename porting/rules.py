"""Rule tables: how TensorFlow's and Keras's names, shapes and layouts become PyTorch's.

This file, with `porting.keras_rules` (the original network's half) and `porting.keras_names` (which reads Keras's
containers into the names used here), is the only place on the porting side that spells foreign names. One table drives
both jobs: which variable becomes which parameter, and which TensorFlow activation is compared with which PyTorch
module. Tables are expanded by plain loops.

Source of the aligned networks': deeplab/core/xception.py in tensorflow/models.
"""

from __future__ import annotations

from porting.keras_rules import (
    KERAS_ARCH,
    KERAS_FEATURES,
    KERAS_HEAD,
    KERAS_INPUT,
    KERAS_POOLED,
    SHORTCUT_BLOCKS,
    KerasClass,
    KerasLayer,
    automatic_name,
    chain_place,
    chain_points,
    keras_layers,
    keras_table,
    keras_trace,
)
from porting.tables import (
    BATCH_NORM_EPSILON,
    FEATURES,
    Head,
    HeadOp,
    Layout,
    Role,
    Rule,
    Shape,
    Table,
    TracePoint,
    batch_norm_rules,
)

__all__ = [
    "ALIGNED_SCOPES",
    "ARCHS",
    "BACKGROUND_CLASSES",
    "BATCH_NORM_EPSILON",
    "COUNTERS",
    "FEATURES",
    "KERAS_ARCH",
    "KERAS_FEATURES",
    "KERAS_HEAD",
    "KERAS_INPUT",
    "KERAS_POOLED",
    "SHADOW",
    "SHORTCUT_BLOCKS",
    "SLOTS",
    "Head",
    "HeadOp",
    "KerasClass",
    "KerasLayer",
    "Layout",
    "Role",
    "Rule",
    "Shape",
    "Table",
    "TracePoint",
    "automatic_name",
    "batch_norm_rules",
    "chain_place",
    "chain_points",
    "keras_layers",
    "keras_trace",
    "table",
]

ALIGNED_SCOPES = {"xception41": "xception_41", "xception65": "xception_65", "xception71": "xception_71"}
ARCHS = (KERAS_ARCH, *ALIGNED_SCOPES)
BACKGROUND_CLASSES = 1001  # ImageNet's 1000 after a background class, as TF-Slim trained them

# (block's three widths, stride of the last depthwise) of the entry flow; the rest is common to all three.
_ENTRY = {
    "xception41": ((128, 2), (256, 2), (728, 2)),
    "xception65": ((128, 2), (256, 2), (728, 2)),
    "xception71": ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
_MIDDLE_UNITS = {"xception41": 8, "xception65": 16, "xception71": 16}


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
        return Table(arch, tuple(self.rules), tuple(self.trace), pooled, logits, (weights, biases), head)


def table(arch: str, head: Head | None) -> Table:
    """The rule table of a network with the given classifier, or of its backbone alone.

    Raises:
        KeyError: no such network.
    """
    return keras_table(head) if arch == KERAS_ARCH else _AlignedTable(arch).table(arch, head)


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
