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


@pytest.fixture(scope="module", params=[SMALL[0], pytest.param(SMALL[1], marks=pytest.mark.slow)])
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(5)
    return randomise(create_model(request.param, num_classes=5))


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


def assert_same(found: Any, expected: Any, bound: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=bound * other.abs().max().item())


@pytest.mark.slow
def test_compile_captures_one_graph(network: Any) -> None:
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        x = image(47, 64)
        assert_same([compiled(x)], [network(x)])


def test_compile_of_a_block_for_every_size(block: Any) -> None:
    torch.compiler.reset()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(2, 8, *size)
            assert_same([compiled(x)], [block(x)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_of_one_block(block: Any) -> None:
    """The compiler's own code, on one block: a whole network takes minutes."""
    compiled = torch.compile(block)
    x = torch.randn(1, 8, 14, 15)
    with torch.no_grad():
        assert_same([compiled(x)], [block(x)])
    torch.compiler.reset()


AUTO = torch.export.Dim.AUTO


def export(module: Any, x: Tensor, *dynamic: int) -> Any:
    """The exported program for any size along the `dynamic` dimensions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, (x,), dynamic_shapes={"x": dict.fromkeys(dynamic, AUTO)})


@pytest.fixture(scope="module")
def exported(network: Any) -> Any:
    # Any batch. Any size too would take the exporter minutes: one block stands for that, in `exported_block`.
    return export(network, image(47, 64), 0)


def test_export(network: Any, exported: Any) -> None:
    module = exported.module()
    with torch.no_grad():
        for batch in (2, 3):
            x = image(47, 64, batch)
            assert_same([module(x)], [network(x)])


@pytest.fixture(scope="module")
def block() -> Any:
    """A block of the original network, with every kind of layer it has."""
    torch.manual_seed(6)
    return randomise(OriginalBlock(8, BlockConfig((8, 16), halves=True), 0.0, folded=False))


@pytest.fixture(scope="module")
def exported_block(block: Any) -> Any:
    return export(block, torch.randn(2, 8, 24, 32), 0, 2, 3)


def test_export_of_a_block_with_any_size(block: Any, exported_block: Any) -> None:
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(3, 8, *size)
            assert_same([exported_block.module()(x)], [block(x)])


def test_trace_holds_no_size(network: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # a size in the graph would warn
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        traced = torch.jit.trace(network, image(48, 64))
    with torch.no_grad():
        for size in SIZES:
            x = image(*size)
            assert_same([traced(x)], [network(x)])


@pytest.mark.slow
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


def run_onnx(exported: Any, path: Path, inputs: list[Tensor]) -> list[Tensor]:
    pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript: pip install onnx onnxscript onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="running ONNX files needs onnxruntime")
    # From the exported program: the exporter's own capture does not solve the sizes' inequalities (torch 2.13).
    torch.onnx.export(exported, (), path, dynamo=True, verbose=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0])) for x in inputs]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations
def test_onnx(network: Any, exported: Any, tmp_path: Path) -> None:
    inputs = [image(47, 64, batch) for batch in (1, 3)]
    found = run_onnx(exported, tmp_path / "network.onnx", inputs)
    with torch.no_grad():
        assert_same(found, [network(x) for x in inputs])


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_a_block_with_any_size(block: Any, exported_block: Any, tmp_path: Path) -> None:
    inputs = [torch.randn(2, 8, *size) for size in SIZES]
    found = run_onnx(exported_block, tmp_path / "block.onnx", inputs)
    with torch.no_grad():
        assert_same(found, [block(x) for x in inputs])
