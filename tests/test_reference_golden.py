"""The TensorFlow reference against what DeepLab's own code and keras.applications computed: the golden files.

The reference is what every port is held to, so it is held to numbers that this project did not make.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from porting.plan import Options, build_plan
from porting.recognition import recognise, reference_source
from porting.reference import Activation, Reference, TraceRequest
from porting.sources import open_source
from tests.golden import recipe
from tests.golden_files import ARCHS, DEEPER_ARE_SLOW, FOLDER, golden, unpadded

ROOT = FOLDER.parents[1]
# The golden arrays are float32 computations, off by up to 6e-7 of each layer's maximum.
BOUND = 1e-5


@pytest.fixture(scope="module")
def golden_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The golden weights as TensorFlow and Keras write them, one folder a network (half a gigabyte, so not kept)."""
    folder = tmp_path_factory.mktemp("golden-weights")
    command = [sys.executable, "-m", "tests.golden_sources", str(folder), *ARCHS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def process(golden_weights: Path) -> Iterator[Reference]:
    with Reference("golden") as process:
        yield process


@pytest.fixture(scope="module", params=DEEPER_ARE_SLOW)
def reference(request: pytest.FixtureRequest, golden_weights: Path, process: Reference) -> tuple[str, Reference]:
    """The one process, with each network's golden weights open in turn."""
    arch: str = request.param
    path = golden_weights / arch / ("xception.weights.h5" if arch == "xception" else "model.ckpt")
    with open_source(path) as source:
        recognised = recognise(source)
        plan = build_plan(recognised.contents, arch, Options(keep_background=True))
        process.open(reference_source(recognised, plan))
    return arch, process


def seed(arch: str) -> int:
    return int(golden(arch)["seed"])


def error(found: npt.NDArray[Any], expected: npt.NDArray[Any], scale: float | None = None) -> float:
    """Largest difference as a share of `scale`, the largest expected value unless given."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    return float(difference / (np.abs(expected).max() if scale is None else scale))


def statistics(values: Activation) -> npt.NDArray[np.float64]:
    """Mean, standard deviation, largest |x|, and eight values at flat NHWC indices floor(k (n-1) / 7)."""
    flat = values.reshape(-1).astype(np.float64)
    picks = [k * (flat.size - 1) // 7 for k in range(8)]
    return np.concatenate([[flat.mean(), flat.std(), np.abs(flat).max()], flat[picks]])


def activation_names(arch: str, endpoints: list[str]) -> dict[str, str]:
    """Golden endpoint to the reference's activation.

    TF-Slim's endpoints follow the batch norm, and the ReLU where one follows at once: in the stem and the last unit.
    """
    if arch == "xception":
        return {endpoint: endpoint for endpoint in endpoints}
    names = {}
    for endpoint in endpoints:
        leaf, last = endpoint.rpartition("/")[2], "/exit_flow/block2" in endpoint
        if endpoint == "global_pool" or leaf == "logits":
            names[endpoint] = endpoint
        elif leaf.startswith("conv1_"):
            names[endpoint] = f"{endpoint}/Relu"
        elif leaf.startswith("separable_conv"):
            names[endpoint] = f"{endpoint}/{'Relu' if last else 'BatchNorm'}"
        elif leaf == "shortcut":
            names[endpoint] = f"{endpoint}/BatchNorm"
        else:  # a unit, or a block: what its last unit gives
            units = [one for one in endpoints if one.startswith(f"{endpoint}/") and one.endswith("/xception_module")]
            unit = units[-1] if units else endpoint
            names[endpoint] = f"{unit}/separable_conv3_pointwise/Relu" if last else f"{unit}/add"
    return names


def same_shape(found: tuple[int, ...], padded: npt.NDArray[Any]) -> bool:
    """TF-Slim keeps the sides of 1 of a pooled map."""
    expected = unpadded(padded)
    return found == expected or (len(found) == 2 and expected == (found[0], 1, 1, found[1]))


def logits_of(process: Reference, arch: str, size: int, dtype: str) -> Activation:
    *_, (_, logits, _) = process.trace(TraceRequest(recipe.image(seed(arch), size, size), dtype=dtype))
    assert logits.dtype == dtype
    return logits[0]


def expected_logits(arch: str, size: int) -> npt.NDArray[Any]:
    return golden(arch)["logits" if size == 299 else f"logits_{size}x{size}"]


def test_every_endpoint_and_the_logits(reference: tuple[str, Reference]) -> None:
    arch, process = reference
    dtype = "float64" if arch in ("xception", "xception41") else "float32"  # half the bytes for the deeper ones
    data = golden(arch)
    endpoints = [str(name) for name in data["endpoint_names"]]
    names = activation_names(arch, endpoints)
    found = {}
    last = np.empty(0)
    for name, values, _ in process.trace(TraceRequest(recipe.image(seed(arch), 299, 299), dtype=dtype)):
        if name in names.values():
            found[name] = (values.shape, statistics(values))
        last = values
    worst = 0.0
    for endpoint, expected, shape in zip(endpoints, data["endpoint_stats"], data["endpoint_shapes"], strict=True):
        found_shape, found_statistics = found[names[endpoint]]
        assert same_shape(found_shape, shape), endpoint
        worst = max(worst, error(found_statistics, expected, scale=expected[2]))
        assert worst <= BOUND, endpoint
    assert len(found) == len(set(names.values())) > 90
    assert 0 < error(last[0], data["logits"]) <= BOUND
    assert worst > 0  # an exact zero would mean that nothing was compared


@pytest.mark.parametrize("size", [299, 224])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reference", ["xception", "xception41"], indirect=True)
def test_logits_at_every_size_and_type(reference: tuple[str, Reference], size: int, dtype: str) -> None:
    arch, process = reference
    assert error(logits_of(process, arch, size, dtype), expected_logits(arch, size)) <= BOUND


@pytest.mark.parametrize("reference", DEEPER_ARE_SLOW[2:], indirect=True)
def test_logits_of_the_deeper_networks(reference: tuple[str, Reference]) -> None:
    """Their code is xception41's; 299 is `test_every_endpoint_and_the_logits`."""
    arch, process = reference
    assert error(logits_of(process, arch, 224, "float32"), expected_logits(arch, 224)) <= BOUND


def features_error(process: Reference, arch: str, key: str, output_stride: int, feature: str) -> float:
    data = golden(arch)
    image = recipe.image(seed(arch), 193, 257)
    trace = process.trace(TraceRequest(image, dtype="float32", output_stride=output_stride))
    values = {frame.name: frame.values for frame in trace if frame.name == feature}[feature]
    assert values.shape == unpadded(data[f"{key}_shape"])
    by_statistics = error(statistics(values), data[f"{key}_stats"], scale=data[f"{key}_stats"][2])
    by_channel = error(values.mean((0, 1, 2), dtype=np.float64), data[f"{key}_mean"])
    return max(by_statistics, by_channel)


def features_name(arch: str) -> str:
    if arch == "xception":
        return "block14_sepconv2_act"
    scope = f"xception_{arch.removeprefix('xception')}/exit_flow/block2/unit_1/xception_module"
    return f"{scope}/separable_conv3_pointwise/Relu"


def test_features_at_every_output_stride(reference: tuple[str, Reference]) -> None:
    arch, process = reference
    if arch == "xception":
        assert features_error(process, arch, "features_193x257", 32, features_name(arch)) <= BOUND
        return
    for stride in (16, 8):
        key = f"features_os{stride}_193x257"
        assert features_error(process, arch, key, stride, features_name(arch)) <= BOUND


# --- negative controls ------------------------------------------------------------------------------------------------

_OTHER_EPSILON = """
import sys
import numpy as np
from porting.reference import aligned
from porting.reference.tensorflow_import import tf
from tests.golden import recipe

variable, results = tf.train.load_checkpoint(sys.argv[1]).get_tensor, []
for epsilon in (aligned.EPSILON, 1e-5):
    aligned.EPSILON = epsilon
    kept = {}
    network = aligned.AlignedXception("xception41", variable, "float32")
    network(recipe.image(int(sys.argv[2]), 224, 224), lambda name, tensor: kept.setdefault(name, tensor))
    results.append(kept["xception_41/logits"].numpy()[0])
np.save(sys.argv[3], results)
"""


def test_another_epsilon_misses_the_bound(golden_weights: Path, tmp_path: Path) -> None:
    prefix, output = str(golden_weights / "xception41" / "model.ckpt"), str(tmp_path / "logits.npy")
    command = [sys.executable, "-c", _OTHER_EPSILON, prefix, str(seed("xception41")), output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    right, wrong = np.load(output)
    assert error(right, expected_logits("xception41", 224)) <= BOUND
    assert error(wrong, expected_logits("xception41", 224)) > 10 * BOUND


def test_the_endpoints_of_another_activation_miss_the_bound() -> None:
    """Before its ReLU, a stem layer has other statistics: the mapping of endpoints is not indifferent."""
    data = golden("xception")
    names, stats = [str(name) for name in data["endpoint_names"]], data["endpoint_stats"]
    before, after = stats[names.index("block1_conv1_bn")], stats[names.index("block1_conv1_act")]
    assert error(before, after, scale=after[2]) > 10 * BOUND


def test_one_class_too_few_is_not_broadcast() -> None:
    with pytest.raises(AssertionError):
        error(np.ones(1000), np.ones(1001))
