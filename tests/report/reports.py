"""Made-up reports, as full and as varied as real ones: a port that is right, one that is not, and weights alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Report = dict[str, Any]
MIDDLE_UNITS = {"xception41": 8, "xception65": 16, "xception71": 16}
ENTRY = {"xception71": [(128, 2), (256, 1), (256, 2), (728, 1), (728, 2)]}
RUNS = [((299, 299), 32, "image"), ((299, 299), 32, "probe"), ((97, 130), 32, "image"), ((97, 130), 16, "probe")]
RUNS += [((64, 65), 8, "probe"), ((71, 40), 32, "probe")]
EPSILON = "blocks.7.stack.conv2.bn_dw"
EXCHANGED = "blocks.12.stack.conv3.conv_pw"


def points(arch: str) -> Iterator[tuple[str, str, int, int]]:
    """Every layer of an aligned network: the reference's name, the module, the channels, the stride up to it."""
    root = f"xception_{arch.removeprefix('xception')}"
    for number, channels in ((1, 32), (2, 64)):
        for name, module in (("Conv2D", "conv"), ("BatchNorm", "bn"), ("Relu", "act")):
            yield f"{root}/entry_flow/conv1_{number}/{name}", f"stem.{number - 1}.{module}", channels, 2
    units = [("entry_flow", c, s) for c, s in ENTRY.get(arch, [(128, 2), (256, 2), (728, 2)])]
    units += [("middle_flow", 728, 1)] * MIDDLE_UNITS[arch] + [("exit_flow", 1024, 2), ("exit_flow", 2048, 1)]
    stride = 2
    for number, (flow, channels, step) in enumerate(units):
        scope = f"{root}/{flow}/block{number % 5 + 1}/unit_{number % 16 + 1}/xception_module"
        for part in (1, 2, 3):
            stride *= step if part == 3 else 1
            stem = f"blocks.{number}.stack"
            yield f"{scope}/Relu_{part}", f"{stem}.act{part}", channels, stride
            for half, short, kind in (("depthwise", "dw", "depthwise"), ("pointwise", "pw", "Conv2D")):
                inner = f"{scope}/separable_conv{part}_{half}"
                yield f"{inner}/{kind}", f"{stem}.conv{part}.conv_{short}", channels, stride
                yield f"{inner}/BatchNorm", f"{stem}.conv{part}.bn_{short}", channels, stride
        if flow != "middle_flow" and number < len(units) - 1:
            yield f"{scope}/shortcut/Conv2D", f"blocks.{number}.shortcut.conv", channels, stride
            yield f"{scope}/shortcut/BatchNorm", f"blocks.{number}.shortcut.bn", channels, stride
        yield f"{scope}/add", f"blocks.{number}", channels, stride
    yield "global_pool", "head.global_pool", 2048, 0
    yield f"{root}/logits", "head.fc", 1000, 0


def verified(arch: str = "xception65", seed: int = 0) -> Report:
    """A port that is right, in six runs."""
    chance = random.Random(seed)
    report: Report = {
        "schema_version": 1,
        "verdict": "verified",
        "arch": arch,
        "weights": {
            "file": f"tf_{arch[:8]}_{arch[8:]}-3e9cec34.pth",
            "sha256": "3e9cec34" + "0f1e2d3c4b5a6978" * 3 + "01234567",
            "content_digest": "c0ffee" + "5a" * 29,
            "parameters": 662,
            "differing": 0,
            "variant": {"folded": False, "dtype": "float32", "bn_eps": 0.001},
        },
        "source": {
            "name": "xception/model.ckpt",
            "kind": "tf-checkpoint-v2",
            "digest": "ab" * 32,
            "synthetic": False,
        },
        "reference": "DeepLab's aligned Xception on TensorFlow ops, float64",
        "runs": [],
        "layers": [],
        "faulty": [],
        "notes": [],
        "versions": {"tensorflow": "2.21.0", "torch": "2.13.0", "numpy": "2.4.6", "xception-porting": "0.1.0"},
    }
    for run, (size, stride, kind) in enumerate(RUNS):
        report["layers"] += [_layer(chance, run, size, number, point) for number, point in enumerate(points(arch))]
        report["runs"].append({"size": list(size), "output_stride": stride, "input": kind})
    return settled(report)


def _layer(
    chance: random.Random, run: int, size: tuple[int, int], number: int, point: tuple[str, str, int, int]
) -> Report:
    name, module, channels, stride = point
    shape = [1, *(-(-length // stride) for length in size), channels] if stride else [1, channels]
    drift = 1 + number / 60  # errors add up along the network
    error = chance.lognormvariate(0, 0.45) * 2.4e-16 * drift
    noise = chance.lognormvariate(0, 0.35) * 1.1e-7 * drift**0.6
    value = chance.gauss(0, 2)
    single = {"error": noise * chance.uniform(0.6, 1.8), "noise": noise, "bound": 4 * noise, "passed": True}
    return {
        "layer": name,
        "module": module,
        "run": run,
        "shape": shape,
        "error": 0.0 if name.endswith(("Relu", "Relu_1")) and number < 8 else error,
        "bound": 1e-10,
        "passed": True,
        "index": [0, *(chance.randrange(length) for length in shape[1:])],
        "found": value * (1 + error),
        "expected": value,
        "float32": single if run == 0 else None,
    }


def settled(report: Report) -> Report:
    """The report with every verdict, count and worst layer as its layers and faults say."""
    for layer in report["layers"]:
        for result in (layer, layer["float32"]):
            if result:
                result["passed"] = result["error"] is not None and result["error"] <= result["bound"]
    for number, run in enumerate(report["runs"]):
        layers = [layer for layer in report["layers"] if layer["run"] == number]
        worst = max(layers, key=lambda layer: float("inf") if layer["error"] is None else layer["error"])
        run["worst"] = {"layer": worst["layer"], "error": worst["error"]}
        run["differing"] = sum(not layer["passed"] for layer in layers)
    wrong = any(
        not layer["passed"] or (layer["float32"] and not layer["float32"]["passed"]) for layer in report["layers"]
    )
    report["verdict"] = "failed" if wrong or report["faulty"] or report["weights"]["differing"] else "verified"
    return report


def failed(arch: str = "xception65") -> Report:
    """The epsilon of one batch norm, a kernel that was exchanged, and an overflow in the logits."""
    report = verified(arch)
    after = {EPSILON: 3.1e-3, EXCHANGED: 0.74, "head.fc": None}
    for layer in report["layers"]:
        if layer["module"] not in after:
            continue
        layer["error"] = after[layer["module"]]
        layer["found"] = None if layer["error"] is None else layer["expected"] + 0.37
        if layer["float32"]:
            layer["float32"]["error"] = layer["error"]
    main = {layer["module"]: layer for layer in report["layers"] if layer["run"] == 0}
    report["faulty"] = [
        _fault(main[EPSILON], "epsilon 1e-05 instead of 0.001", "", "", 3.1e-3),
        _fault(
            main[EXCHANGED],
            "exchanged with xception_65/middle_flow/block1/unit_9/xception_module/separable_conv2_pointwise/weights",
            "xception_65/middle_flow/block1/unit_9/xception_module/separable_conv3_pointwise/weights",
            f"{EXCHANGED}.weight",
            0.74,
        ),
        _fault(main["head.fc"], "a value that is not finite", "xception_65/logits/biases", "head.fc.bias", None),
    ]
    report["weights"]["differing"] = 2
    report["notes"] = ["The manifest beside the file says verified, of a file with another digest."]
    return settled(report)


def _fault(layer: Report, cause: str, variable: str, parameter: str, error: float | None) -> Report:
    fault = {key: layer[key] for key in ("layer", "module", "shape", "index")}
    fault |= {"expected": f"{layer['expected']:.9g}", "found": "nan" if error is None else f"{layer['found']:.9g}"}
    return fault | {
        "variable": variable,
        "parameter": parameter,
        "error": error,
        "run": None if variable else 0,
        "cause": cause,
    }


def weights_only() -> Report:
    """A port of random weights, of which only the weights were compared."""
    report = verified()
    report |= {"reference": None, "runs": [], "layers": []}
    report["source"] |= {"name": "synthetic:0", "synthetic": True}
    return settled(report)
