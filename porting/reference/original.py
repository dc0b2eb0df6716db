"""Keras's own execution of an Xception: the user's model where the file holds one, else keras.applications'."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.scratch import scratch_folder
from porting.reference.tensorflow_import import keras, tf

Model = Any
Tensor = Any
Emit = Callable[[str, Tensor], Tensor]
Variable = Callable[[str], Any]


class KerasXception:
    """Keras layers of a user's Xception, run one by one so that only live activations are held.

    Args:
        source: as `porting.reference.requests.ReferenceSource` describes it.
        dtype: "float64" or "float32".
        variable: gives values by name, where the source is not a file that Keras loads.
    """

    def __init__(self, source: Mapping[str, Any], dtype: str, variable: Variable | None = None) -> None:
        layers: dict[str, str] = source["layers"]
        if variable:
            model = _filled(source, variable)
        elif source["has_graph"]:
            model = _load_model(source)
        else:
            model = _load_weights(source)
        backbone, names = _backbone(model, layers)
        self.dtype = dtype
        self.names = names  # layer of the backbone to the vocabulary's name
        self.backbone = _recast(backbone, dtype)
        self.pooling = source["pooling"]
        pools = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
        self.pool = pools[self.pooling](dtype=dtype)
        self.head: list[tuple[str, Callable[[Tensor], Tensor]]] = []  # trace point, and what computes it
        if source["dense"]:
            self.head.append(("predictions", _recast_layer(_layer(model, source["dense"]), dtype)))
        for step in source["head"]:
            layer = _layer(model, step["layer"])
            self.head.append((step["point"], _function_of(layer) if step["fused"] else _recast_layer(layer, dtype)))

    def __call__(self, image: Tensor, emit: Emit) -> None:
        """Run the network on an NHWC image and emit (name, activation) in Keras's own order.

        What `emit` returns is passed on to the layers that follow.
        """

        def passed_on(layer: Any, output: Tensor) -> Tensor:
            name = self.names.get(layer.name)
            return emit(name, output) if name else output

        features = run_layers(self.backbone, tf.cast(image, self.dtype), passed_on)
        value = emit(f"{self.pooling}_pool", self.pool(features))
        for point, compute in self.head:
            value = emit(point, compute(value))


def run_layers(model: Model, image: Tensor, passed_on: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """The last output of a functional model, run layer by layer, dropping activations after their last use.

    Args:
        passed_on: gets each layer with its output, and returns what the layers that follow take.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    inputs = {layer.name: layer.input if isinstance(layer.input, list) else [layer.input] for layer in layers}
    last_use = {id(tensor): layer.name for layer in layers for tensor in inputs[layer.name]}
    values = {id(model.inputs[0]): image}
    output = image
    for layer in layers:
        arguments = [values[id(tensor)] for tensor in inputs[layer.name]]
        # training=False reaches the layers that know it; eager layers run in inference mode by default anyway.
        output = passed_on(layer, layer(arguments if len(arguments) > 1 else arguments[0]))
        values[id(layer.output)] = output
        for tensor in inputs[layer.name]:
            if last_use[id(tensor)] == layer.name:
                values.pop(id(tensor), None)
    return output


def _load_model(source: Mapping[str, Any]) -> Model:
    """The user's own model; safe mode refuses code inside it."""
    with _named(source) as path:
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def _load_weights(source: Mapping[str, Any]) -> Model:
    """keras.applications' Xception with the file's weights, read by Keras."""
    has_head = source["classes"] > 0
    nested = bool(source["nested"])
    if nested and source["container"] == "keras-h5":
        # Legacy files are loaded by topology, so the nesting is rebuilt.
        backbone = keras.applications.Xception(weights=None, include_top=False, pooling="avg")
        inputs = keras.Input((None, None, 3))
        outputs = backbone(inputs)
        if has_head:
            outputs = keras.layers.Dense(source["classes"], name="predictions")(outputs)
        model = keras.Model(inputs, outputs)
        with _named(source) as path:
            model.load_weights(path)
        if not has_head:
            return backbone
        flat = keras.layers.Dense(source["classes"], name="predictions")(backbone.output)
        result = keras.Model(backbone.input, flat)
        result.get_layer("predictions").set_weights(model.get_layer("predictions").get_weights())
        return result
    model = _application(source)
    with _named(source) as path:
        model.load_weights(_lifted(path, source["store"]) if nested else path)
    return model


def _application(source: Mapping[str, Any]) -> Model:
    """keras.applications' Xception, with a classifier where the source has one."""
    return keras.applications.Xception(
        weights=None, include_top=source["classes"] > 0, classes=source["classes"] or 1000, classifier_activation=None
    )


def _filled(source: Mapping[str, Any], variable: Variable) -> Model:
    """keras.applications' Xception with values by layer name."""
    model = _application(source)
    names = fresh_names(model)
    for layer in model.layers:
        layer.set_weights([variable(f"{names[layer.name]}/{weight.name}") for weight in layer.weights])
    return model


def _lifted(path: str, store: str) -> str:
    """A copy of a `.weights.h5` file in which a nested model's layers lie at the top, beside the outer dense layer."""
    import h5py

    lifted = str(Path(path).with_name("lifted.weights.h5"))
    with h5py.File(path, "r") as source, h5py.File(lifted, "w") as target:
        source.copy(f"{store}layers", target, "layers")
        if "dense" in source["layers"] and "dense" not in target["layers"]:
            source.copy("layers/dense", target["layers"], "dense")
    return lifted


# What Keras expects a file of each kind to be called; it goes by the extension, this project by content.
_FILE_NAMES = {"keras-h5": "model.h5", "keras-weights-h5": "model.weights.h5", "keras-zip": "model.keras"}


@contextmanager
def _named(source: Mapping[str, Any]) -> Iterator[str]:
    """The file under a name that Keras reads it by."""
    with scratch_folder(Path(tempfile.gettempdir())) as folder:
        link = Path(folder, _FILE_NAMES[source["container"]])
        link.symlink_to(Path(source["path"]).resolve())
        yield str(link)


def _layer(model: Model, path: str) -> Any:
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def _backbone(model: Model, layers: Mapping[str, str]) -> tuple[Model, dict[str, str]]:
    """The part of a model from the first convolution to the features, and its layers' vocabulary names."""
    holder = layers["block1_conv1"].rpartition("/")[0] if layers else ""
    if holder:
        model = _layer(model, holder)
    first, last = model.get_layer("block1_conv1"), model.get_layer("block14_sepconv2_act")
    backbone = keras.Model(first.input, last.output)
    if layers:
        return backbone, {path.rpartition("/")[2]: name for name, path in layers.items()}
    return backbone, fresh_names(backbone)


def fresh_names(backbone: Model) -> dict[str, str]:
    """Vocabulary names for a keras.applications model: its own, automatic ones counted from the start."""
    names = {}
    counts: dict[str, int] = {}
    for layer in backbone.layers:
        stem = layer.name.rstrip("0123456789").rstrip("_")
        if stem in ("conv2d", "batch_normalization", "add"):
            index = counts[stem] = counts.get(stem, -1) + 1
            names[layer.name] = f"{stem}_{index}" if index else stem
        else:
            names[layer.name] = layer.name
    return names


def _recast(model: Model, dtype: str) -> Model:
    """The same model with another type and free height and width.

    `set_floatx` does not reach a built model, so the types in its configuration are rewritten.
    """
    config = model.get_config()
    for item in config["layers"]:
        if item["class_name"] == "InputLayer":
            item["config"]["batch_shape"] = [None, None, None, 3]
        item["build_config"] = None
    copy = keras.Model.from_config(_with_dtype(json.loads(json.dumps(config)), dtype))
    copy.set_weights(model.get_weights())
    return copy


def _recast_layer(layer: Any, dtype: str) -> Callable[[Tensor], Tensor]:
    """A layer of the user's head with another type; a dense one without its activation."""
    if isinstance(layer, keras.layers.Activation):
        return _function_of(layer)
    config = _with_dtype(layer.get_config(), dtype)
    if isinstance(layer, keras.layers.Dense):
        config["activation"] = "linear"
    copy = type(layer).from_config(config)
    weights = layer.get_weights()
    if weights:
        copy.build((None, weights[0].shape[0]))
        copy.set_weights(weights)
    return copy  # type: ignore[no-any-return]


def _function_of(layer: Any) -> Callable[[Tensor], Tensor]:
    """The activation that a layer applies; one that is a layer itself, with the input's type."""
    function = layer.activation
    if isinstance(function, keras.layers.Layer):
        return lambda value: _recast_layer(function, value.dtype.name)(value)
    return _gelu if function is keras.activations.gelu else function


def _gelu(value: Tensor) -> Tensor:
    """Keras's gelu. TensorFlow's rounds its constant to float32 whatever the type, which shows in float64 (5e-9)."""
    root = tf.sqrt(tf.constant(2.0, value.dtype))
    return value * (1 + tf.math.erf(value / root)) / 2


def _with_dtype(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {key: dtype if key == "dtype" else _with_dtype(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_dtype(item, dtype) for item in value]
    return value
