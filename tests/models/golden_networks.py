"""The golden weights in our networks: TensorFlow's names next to ours, written out apart from the porting rules."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import create_model

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("xception", "xception41", "xception65", "xception71")
SCOPE = {"xception41": "xception_41", "xception65": "xception_65", "xception71": "xception_71"}
UNITS_A_BLOCK = {  # entry flow, middle flow, exit flow: units in each block, in order
    "xception41": ((1, 1, 1), (8,), (1, 1)),
    "xception65": ((1, 1, 1), (16,), (1, 1)),
    "xception71": ((1, 1, 1, 1, 1), (16,), (1, 1)),
}
BN = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def _load_recipe() -> Any:
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = _load_recipe()


@lru_cache(None)
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def aligned_units(name: str) -> list[str]:
    """TensorFlow's scope of each unit, in the order of `blocks`."""
    scopes = []
    for flow, blocks in zip(("entry_flow", "middle_flow", "exit_flow"), UNITS_A_BLOCK[name], strict=True):
        for block, units in enumerate(blocks, start=1):
            scopes += [f"{SCOPE[name]}/{flow}/block{block}/unit_{unit}/xception_module" for unit in range(1, units + 1)]
    return scopes


def _aligned_layers(name: str) -> dict[str, tuple[str, str]]:
    """TensorFlow's layer scope -> our convolution and our batch norm."""
    layers = {f"{SCOPE[name]}/entry_flow/conv1_{i + 1}": (f"stem.{i}.conv", f"stem.{i}.bn") for i in range(2)}
    for index, scope in enumerate(aligned_units(name)):
        layers[f"{scope}/shortcut"] = (f"blocks.{index}.shortcut.conv", f"blocks.{index}.shortcut.bn")
        for j in (1, 2, 3):
            ours = f"blocks.{index}.stack.conv{j}"
            layers[f"{scope}/separable_conv{j}_depthwise"] = (f"{ours}.conv_dw", f"{ours}.bn_dw")
            layers[f"{scope}/separable_conv{j}_pointwise"] = (f"{ours}.conv_pw", f"{ours}.bn_pw")
    layers[f"{SCOPE[name]}/logits"] = ("head.fc", "")
    return layers


def original_rep(keras_block: int, conv: int) -> tuple[str, str]:
    """Our separable convolution and batch norm of Keras' block `keras_block`, `sepconvC`."""
    if keras_block == 14:
        return f"conv{conv + 2}", f"bn{conv + 2}"
    first = 0 if keras_block == 2 else 1
    index = first + 3 * (conv - 1)
    return f"block{keras_block - 1}.rep.{index}", f"block{keras_block - 1}.rep.{index + 1}"


def original_key(variable: str) -> str:
    layer, leaf = variable.split("/")
    shortcuts = {"": 1, "_1": 2, "_2": 3, "_3": 12}
    if layer.startswith("predictions"):
        return {"kernel": "fc.weight", "bias": "fc.bias"}[leaf]
    if layer.startswith("batch_normalization"):
        return f"block{shortcuts[layer.removeprefix('batch_normalization')]}.skipbn.{BN[leaf]}"
    if layer.startswith("conv2d"):
        return f"block{shortcuts[layer.removeprefix('conv2d')]}.skip.weight"
    if layer.startswith("block1_conv"):
        number = layer[len("block1_conv")]
        return f"bn{number}.{BN[leaf]}" if layer.endswith("_bn") else f"conv{number}.weight"
    block, conv = layer.removesuffix("_bn").removeprefix("block").split("_sepconv")
    ours_conv, ours_bn = original_rep(int(block), int(conv))
    if layer.endswith("_bn"):
        return f"{ours_bn}.{BN[leaf]}"
    return {"depthwise_kernel": f"{ours_conv}.conv1.weight", "pointwise_kernel": f"{ours_conv}.pointwise.weight"}[leaf]


def aligned_key(name: str, variable: str) -> str:
    layers = _aligned_layers(name)
    scope, leaf = variable.rsplit("/", 1)
    if scope.endswith("/BatchNorm"):
        return f"{layers[scope.removesuffix('/BatchNorm')][1]}.{BN[leaf]}"
    return f"{layers[scope][0]}.{'bias' if leaf == 'biases' else 'weight'}"


def as_parameter(variable: str, value: np.ndarray) -> Tensor:
    if value.ndim == 4:
        leaf = variable.rsplit("/", 1)[-1]
        value = value.transpose((2, 3, 0, 1) if leaf.startswith("depthwise") else (3, 2, 0, 1))
        if "logits/" in variable:
            value = value[:, :, 0, 0]
    elif value.ndim == 2:
        value = value.T
    return torch.from_numpy(np.ascontiguousarray(value))


@lru_cache(1)
def golden_state(name: str) -> dict[str, Tensor]:
    """The golden weights as a state dict of ours, in float32."""
    data = golden(name)
    state = {}
    for variable, padded in zip(data["variable_names"], data["variable_shapes"], strict=True):
        shape = tuple(int(side) for side in padded if side)
        key = original_key(variable) if name == "xception" else aligned_key(name, variable)
        assert key not in state
        state[key] = as_parameter(variable, recipe.variable(int(data["seed"]), variable, shape))
    return state


def classes(name: str) -> int:
    return int(golden(name)["logits"].size)


def golden_network(name: str, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    """Our network with the golden weights, loaded strictly, in evaluation mode."""
    with torch.device("meta"):  # nothing is initialised that the weights then replace
        network = create_model(name, num_classes=classes(name), **arguments)
    state = {key: value.to(dtype) for key, value in golden_state(name).items()}
    if arguments.get("features_only"):
        state = {key: value for key, value in state.items() if not key.startswith(("fc.", "head."))}
    counters = [key for key in network.state_dict() if key.endswith("num_batches_tracked")]
    network.load_state_dict(state | dict.fromkeys(counters, torch.tensor(0)), assign=True)
    return network.eval()


def golden_image(name: str, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """The golden input as (1, 3, height, width)."""
    image = recipe.image(int(golden(name)["seed"]), height, width)
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).to(dtype)


def endpoint_modules(name: str) -> dict[str, str]:
    """Golden endpoint -> our module whose output it is."""
    if name == "xception":
        return {endpoint: _original_endpoint(endpoint) for endpoint in golden(name)["endpoint_names"]}
    modules = {f"{SCOPE[name]}/entry_flow/conv1_{i + 1}": f"stem.{i}" for i in range(2)}
    units = aligned_units(name)
    for index, scope in enumerate(units):
        last = index == len(units) - 1
        for j in (1, 2, 3):
            ours = f"blocks.{index}.stack.conv{j}"
            modules[f"{scope}/separable_conv{j}_depthwise"] = f"{ours}.act_dw" if last else f"{ours}.bn_dw"
            modules[f"{scope}/separable_conv{j}_pointwise"] = f"{ours}.act_pw" if last else f"{ours}.bn_pw"
        modules[f"{scope}/shortcut"] = f"blocks.{index}.shortcut"
        modules[scope] = f"blocks.{index}"
        modules[scope.rsplit("/", 2)[0]] = f"blocks.{index}"  # a block ends with its last unit
    return modules | {"global_pool": "head.global_pool", f"{SCOPE[name]}/logits": "head.fc"}


def _original_endpoint(endpoint: str) -> str:
    adds = [f"block{n}" for n in range(1, 13)]
    if endpoint in ("avg_pool", "predictions"):
        return {"avg_pool": "global_pool", "predictions": "fc"}[endpoint]
    if endpoint.startswith("add"):
        return adds[int(endpoint.removeprefix("add").removeprefix("_") or 0)]
    if endpoint.startswith("conv2d"):
        return original_key(f"{endpoint}/kernel").removesuffix(".weight")
    if endpoint.startswith("batch_normalization"):
        return original_key(f"{endpoint}/gamma").removesuffix(".weight")
    block, layer = endpoint.removeprefix("block").split("_", 1)
    if layer == "pool":
        return f"block{int(block) - 1}.rep.{5 if block == '2' else 6}"
    kind = layer.removesuffix("_bn").removesuffix("_act")
    number = int(kind[-1])
    if kind.startswith("conv"):
        conv, norm, act = f"conv{number}", f"bn{number}", f"act{number}"
    else:
        conv, norm = original_rep(int(block), number)
        if block == "14":
            act = f"act{number + 2}"
        else:  # the ReLU comes before its convolution
            stem, index = conv.rsplit(".", 1)
            act = f"{stem}.{int(index) - 1}"
    return norm if layer.endswith("_bn") else act if layer.endswith("_act") else conv


def statistics(x: Tensor) -> np.ndarray:
    """Mean, standard deviation, largest |x| and eight values at flat NHWC indices floor(k (n-1) / 7)."""
    flat = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).detach().double().reshape(-1).numpy()
    picks = [k * (flat.size - 1) // 7 for k in range(8)]
    return np.concatenate([[flat.mean(), flat.std(), np.abs(flat).max()], flat[picks]])


def module_outputs(
    network: nn.Module, image: Tensor, wanted: Iterable[str], reduce: Any
) -> tuple[Tensor, dict[str, Any]]:
    """The network's output, and `reduce` of each wanted module's, in one forward pass."""
    outputs: dict[str, Any] = {}
    handles = []
    for path in wanted:

        def keep(_module: nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
            assert path not in outputs, f"{path} ran twice"
            outputs[path] = reduce(output)

        handles.append(network.get_submodule(path).register_forward_hook(keep))
    try:
        with torch.no_grad():
            result: Tensor = network(image)
    finally:
        for handle in handles:
            handle.remove()
    return result, outputs
