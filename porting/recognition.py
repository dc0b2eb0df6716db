"""What a source holds, from its names, shapes and configuration alone: nothing is proved, and no torch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from porting import rules
from porting.checkpoint_names import checkpoint_contents, holds_keras_names, layer_name_contents
from porting.keras_model import KerasModel
from porting.keras_names import KerasContents, is_keras, keras_contents
from porting.plan import Contents, Plan
from porting.reference.requests import ReferenceSource
from porting.sources.base import TensorSource

DEFAULT_SIZE = (299, 299)  # what all four networks are evaluated at


@dataclass(frozen=True)
class Recognised:
    """An open source and its variables under the vocabulary of `porting.rules`.

    Attributes:
        source: as opened.
        contents: what a plan is built from.
        keras: what a Keras file's own structure says; None for TensorFlow's containers.
    """

    source: TensorSource
    contents: Contents
    keras: KerasContents | None

    @property
    def model(self) -> KerasModel | None:
        """The Xception in the file's own Keras graph, where it holds one."""
        return self.keras.model if self.keras else None

    @property
    def activation(self) -> str:
        """What the source applies to its logits, "" where it applies nothing or does not say."""
        return self.model.head.activation if self.model else ""

    def notes(self, plan: Plan) -> tuple[str, ...]:
        """What a port leaves out that the user might expect in it."""
        model = self.model
        if model is None:
            return ()
        notes = [f"before the network: {layer}, not understood and not ported" for layer in model.inputs.unknown]
        if model.head.activation and plan.classes:
            notes.append(f"{model.head.activation} after the head is not part of the port: logits come out")
        return tuple(notes)


def recognise(source: TensorSource) -> Recognised:
    """Give a source's variables the vocabulary's names.

    Raises:
        PortingError: corrupt (an impossible configuration), unsupported or mismatch.
    """
    if is_keras(source):
        keras = keras_contents(source)
        return Recognised(source, keras.contents, keras)
    if holds_keras_names(source):
        return Recognised(source, layer_name_contents(source), None)
    return Recognised(source, checkpoint_contents(source), None)


def reference_source(recognised: Recognised, plan: Plan) -> ReferenceSource:
    """What TensorFlow must load to run the same network."""
    source, keras = recognised.source, recognised.keras
    path = str(source.location.absolute())
    stored_classes = plan.classes + plan.skipped
    dense = rules.KERAS_HEAD if stored_classes else ""
    if keras is None:
        names = {}
        for rule in plan.table.rules:
            plain = rule.variable.removesuffix(f"/{rules.SHADOW}")
            own = source.stored_name(recognised.contents.own(rule.variable))
            if own != plain:
                names[plain] = own
        kind, path = _graph_of(source)
        otherwise = reference_name(recognised, plan)
        return ReferenceSource(kind, path, plan.arch, stored_classes, names, dense=dense, otherwise=otherwise)
    model, head = keras.model, plan.table.classifier
    return ReferenceSource(
        "keras",
        path,
        plan.arch,
        stored_classes,
        container=source.container,
        has_graph=model is not None,
        layers=dict(model.layers) if model else {},
        dense=model.head.dense if model and dense else dense,
        pooling=head.pooling if head else "avg",
        head=_steps(head) if head else (),
        store=keras.store,
        nested=keras.nested,
    )


def _graph_of(source: TensorSource) -> tuple[str, str]:
    """Kind and path of a TensorFlow container for the reference: its own graph, where it has one."""
    location = source.location.absolute()
    if source.container == "tf-frozen-graph":
        return "graph", str(location)
    if source.container == "tf-saved-model":
        return "saved-model", str(location.parent.parent)  # the location is the prefix variables/variables in it
    meta = location.with_name(f"{location.name}.meta")
    return ("meta" if meta.is_file() else "checkpoint"), str(location)


def _steps(head: rules.Head) -> tuple[dict[str, Any], ...]:
    """The modules of a classifier that is a chain, as the reference runs them."""
    points = rules.chain_points(head.chain)
    return tuple({"point": point.name, "layer": op.layer, "fused": op.fused} for point, op in points)


def reference_name(recognised: Recognised, plan: Plan) -> str:
    """What the port was held to, for manifests and summaries."""
    if plan.arch != rules.KERAS_ARCH:
        return "DeepLab's aligned Xception on TensorFlow ops, float64"
    return "the file's own Keras model" if recognised.model else "keras.applications.Xception with the file's weights"
