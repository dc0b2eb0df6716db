"""The networks as captured graphs: torch.compile, torch.export, torch.jit.trace, ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_networks import SMALL, randomise
from torch import Tensor, nn

from models import create_model
from models.layers import MaxPoolSame
from models.xception import Block as OriginalBlock
from models.xception import BlockConfig

# Even, odd and mixed sides: a graph with one size's padding baked in is wrong for the others.
SIZES = ((48, 64), (47, 51), (49, 64))


@pytest.fixture(scope="module", params=SMALL)
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(5)
    return randomise(create_model(request.param, num_classes=5))


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


def assert_same(found: Any, expected: Any, bound: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=bound * other.abs().max().item())


def test_compile_captures_one_graph_for_every_size(network: Any) -> None:
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        for size in SIZES:
            x = image(*size)
            assert_same([compiled(x)], [network(x)])
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_of_one_block() -> None:
    """The compiler's own code, on the block that holds every kind of layer (a whole network takes minutes)."""
    block = randomise(OriginalBlock(8, BlockConfig((8, 16), halves=True), 0.0, folded=False))
    compiled = torch.compile(block)
    x = torch.randn(1, 8, 14, 15)
    with torch.no_grad():
        assert_same([compiled(x)], [block(x)])
    torch.compiler.reset()


def test_export_with_any_batch_and_size(network: Any) -> None:
    auto = torch.export.Dim.AUTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(network, (image(96, 128),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    module = exported.module()
    with torch.no_grad():
        for batch, size in enumerate(SIZES, start=2):
            x = image(*size, batch)
            assert_same([module(x)], [network(x)])


def test_trace_holds_no_size(network: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # a size in the graph would warn
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        traced = torch.jit.trace(network, image(48, 64))
    with torch.no_grad():
        for size in SIZES:
            x = image(*size)
            assert_same([traced(x)], [network(x)])


def test_feature_maps_compile() -> None:
    maps = randomise(create_model("xception41", features_only=True, output_stride=16))
    compiled = torch.compile(maps, backend="eager", fullgraph=True)
    with torch.no_grad():
        x = image(33, 48)
        assert_same(compiled(x), maps(x))
    torch.compiler.reset()


def test_a_fixed_padding_would_be_noticed() -> None:
    """The control: traced at an even size with the padding worked out in Python, the pool is wrong at an odd one."""

    class Baked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            odd = [int(side) % 2 for side in x.shape[-2:]]
            padded = nn.functional.pad(x, (odd[1], 1, odd[0], 1), value=float("-inf"))
            return nn.functional.max_pool2d(padded, 3, 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baked = torch.jit.trace(Baked(), image(48, 64))
        right = torch.jit.trace(MaxPoolSame(), image(48, 64))
    x = image(47, 51)
    assert torch.equal(right(x), MaxPoolSame()(x))
    assert baked(x).shape != right(x).shape or not torch.equal(baked(x), right(x))


@pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations
def test_onnx(network: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript: pip install onnx onnxscript onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="running ONNX files needs onnxruntime")
    path = tmp_path / "network.onnx"
    dynamic = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
    torch.onnx.export(network, (image(96, 128),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for count, size in enumerate(SIZES, start=1):
        x = image(*size, count)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert_same([torch.from_numpy(np.asarray(found))], [network(x)])
