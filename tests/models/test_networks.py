"""What a network does beyond its numbers: arguments, heads, maps, sizes and types."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from golden_networks import NAMES
from torch import Tensor, nn

from models import ModelError, create_model, get_info, list_models
from models.layers import DropPath, MaxPoolSame

PARAMETERS = {"xception": 22_855_952, "xception41": 26_969_560, "xception65": 39_916_312, "xception71": 42_338_736}
TENSORS = {"xception": 236, "xception41": 422, "xception65": 662, "xception71": 732}
SMALL = ("xception", "xception41")

# What PyTorch 2.4 says of its own code: checkpointing calls a name that it deprecates, and pickles load as pickles.
OWN_NAME_OF_2_4 = pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning")
OWN_PICKLE_OF_2_4 = pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")


def randomise(network: Any) -> Any:
    """Statistics that hide nothing: the defaults (mean 0, variance 1) would."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.05, 2.0)
    return network.eval()


@pytest.fixture(scope="module", params=SMALL)
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(1)
    return randomise(create_model(request.param, num_classes=7))


@pytest.fixture()
def image() -> Tensor:
    return torch.rand(2, 3, 39, 64) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_tensors(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name] == get_info(name).params
    keys = network.state_dict()
    assert sum(not key.endswith("num_batches_tracked") for key in keys) == TENSORS[name]
    assert all(module.eps == 1e-3 for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert not any(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))


def test_names() -> None:
    assert list_models() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_folded_has_biases_in_place_of_norms(name: str) -> None:
    with torch.device("meta"):
        plain, folded = create_model(name), create_model(name, folded=True)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert len(folded.state_dict()) == TENSORS[name] - 4 * norms + norms
    assert {path for path, _ in plain.named_modules()} == {path for path, _ in folded.named_modules()}
    depthwise = {k for k in folded.state_dict() if k.endswith("conv1.bias")} if name == "xception" else set()
    assert depthwise <= {"conv1.bias"}  # Keras has one batch norm a separable convolution, after both


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 64), (37, 38)])
def test_small_and_oblong_inputs(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = create_model(name, num_classes=5).eval()
    x = torch.empty(1, 3, *size, device="meta")
    if name == "xception" and min(size) < 7:
        with pytest.raises(ModelError, match="at least 7"):
            network(x)
    else:
        assert network(x).shape == (1, 5)


def test_smallest_inputs_are_finite(network: Any) -> None:
    side = network.smallest_input
    assert network(torch.rand(1, 3, side, side)).isfinite().all()


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8])
def test_pool_is_tensorflows(side: int) -> None:
    """Every output is the largest of the three columns and rows that start where SAME puts them."""
    x = -torch.rand(1, 1, side, 2 * side) - 1.0  # negative: padding by zero would show
    out = MaxPoolSame()(x)[0, 0]
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            top, left = 2 * row - side % 2, 2 * column - 0
            window = x[0, 0, max(top, 0) : top + 3, max(left, 0) : left + 3]
            assert out[row, column] == window.max()


def test_head(network: Any, image: Tensor) -> None:
    with torch.no_grad():
        features = network.forward_features(image)
        pooled = network.forward_head(features, pre_logits=True)
        assert features.shape[:2] == (2, network.num_features) and (features >= 0).all()
        torch.testing.assert_close(pooled, features.mean((2, 3)), rtol=0, atol=0)
        torch.testing.assert_close(network.get_classifier()(pooled), network(image), rtol=0, atol=0)
        torch.testing.assert_close(network.forward_head(features), network(image), rtol=0, atol=0)


def test_no_classes_gives_the_pooled_features(network: Any, image: Tensor) -> None:
    copied = copy.deepcopy(network)
    copied.reset_classifier(0)
    with torch.no_grad():
        pooled = network.forward_head(network.forward_features(image), pre_logits=True)
        torch.testing.assert_close(copied(image), pooled, rtol=0, atol=0)
    assert isinstance(copied.get_classifier(), nn.Identity) and copied.num_classes == 0
    copied.reset_classifier(3, "max")
    assert copied(image).shape == (2, 3) and copied.get_classifier().training is False
    with pytest.raises(ModelError, match="unpooled"):
        copied.reset_classifier(3, "")


def test_poolings() -> None:
    with torch.device("meta"):
        for name in SMALL:
            for pool in ("avg", "max", "avgmax"):
                assert create_model(name, global_pool=pool).eval()(torch.empty(1, 3, 64, 64)).shape == (1, 1000)
            unpooled = create_model(name, num_classes=0, global_pool="").eval()
            assert unpooled(torch.empty(1, 3, 64, 64)).shape == (1, 2048, 2, 2)


def test_poolings_compute_what_they_say(network: Any) -> None:
    x = torch.rand(2, 2048, 3, 4)
    copied = copy.deepcopy(network)
    expected = {"avg": x.mean((2, 3)), "max": x.amax((2, 3)), "avgmax": (x.mean((2, 3)) + x.amax((2, 3))) / 2}
    for pool, pooled in expected.items():
        copied.reset_classifier(0, pool)
        torch.testing.assert_close(copied.forward_head(x), pooled, rtol=1e-6, atol=0)


CHANNELS = {"xception": [64, 128, 256, 728, 2048]} | {key: [128, 256, 728, 1024, 2048] for key in NAMES[1:]}


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps_are_as_listed(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name, features_only=True).eval()
        maps = network(torch.empty(1, 3, 256, 320))
    assert network.feature_info.channels() == CHANNELS[name] == [one.shape[1] for one in maps]
    assert network.feature_info.reduction() == [2, 4, 8, 16, 32]
    if name != "xception":  # whose VALID stem rounds down
        assert [256 // one.shape[2] for one in maps] == [320 // one.shape[3] for one in maps] == [2, 4, 8, 16, 32]
    assert not any(key.startswith(("fc.", "head.")) for key in network.state_dict())
    assert network.feature_info[0]["num_chs"] == CHANNELS[name][0] and len(network.feature_info) == 5


@pytest.mark.parametrize("stride", [8, 16])
def test_feature_maps_at_smaller_output_strides(stride: int) -> None:
    with torch.device("meta"):
        for name in NAMES[1:]:
            network = create_model(name, features_only=True, output_stride=stride, out_indices=(2, -1)).eval()
            maps = network(torch.empty(1, 3, 128, 128))
            assert network.feature_info.reduction() == [8, stride] == [128 // one.shape[2] for one in maps]
            assert (
                create_model(name, output_stride=stride).state_dict().keys() == create_model(name).state_dict().keys()
            )


def test_feature_maps_are_the_modules_outputs(network: Any, image: Tensor) -> None:
    maps = create_model("xception" if hasattr(network, "conv1") else "xception41", features_only=True).eval()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith(("fc.", "head."))}
    maps.load_state_dict(state)
    seen: list[Tensor] = []
    for path in maps.feature_info.module_name():
        network.get_submodule(path).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        network(image)
        found = maps(image)
    for one, expected in zip(found, seen, strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=0)
    for module in network.modules():
        module._forward_hooks.clear()


def test_no_module_changes_what_a_hook_was_given(network: Any, image: Tensor) -> None:
    kept: list[tuple[Tensor, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: kept.append((output, output.clone())))
        for module in network.modules()
    ]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    assert len(kept) > 100
    assert all(torch.equal(output, copy_) for output, copy_ in kept)


@OWN_NAME_OF_2_4
def test_gradient_checkpointing_gives_the_same_gradients(network: Any, image: Tensor) -> None:
    plain, saving = copy.deepcopy(network), copy.deepcopy(network)
    saving.set_grad_checkpointing()
    for one in (plain, saving):
        one(image).square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0, msg=name)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in plain.parameters())


@OWN_NAME_OF_2_4
def test_gradient_checkpointing_of_feature_maps() -> None:
    network = create_model("xception41", features_only=True)
    network.eval().set_grad_checkpointing()
    maps = network(torch.rand(1, 3, 32, 32))
    sum(one.square().sum() for one in maps).backward()
    assert len(maps) == 5 and all(p.grad is not None for p in network.parameters())


def test_batch_of_none(network: Any) -> None:
    assert network(torch.empty(0, 3, 71, 71)).shape == (0, 7)


def test_channels_last(network: Any, image: Tensor) -> None:
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(image)
        found = last(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 2e-1)], ids=str
)
def test_other_types(network: Any, image: Tensor, dtype: torch.dtype, bound: float) -> None:
    with torch.no_grad():
        expected = network(image)
        found = copy.deepcopy(network).to(dtype)(image.to(dtype))
    assert found.dtype == dtype
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert error <= bound


def test_drop_path_drops_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 1, 1)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


def test_drop_rates_reach_the_layers() -> None:
    with torch.device("meta"):
        for name in SMALL:
            network = create_model(name, drop_rate=0.3, drop_path_rate=0.2)
            rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
            assert rates == sorted(rates) and len(rates) > 10
            assert any(isinstance(module, nn.Dropout) and module.p == 0.3 for module in network.modules())
        assert max(rates) == pytest.approx(0.2)


def test_training_step_changes_every_parameter() -> None:
    network = create_model("xception", num_classes=3).train()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    nn.functional.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    same = [name for name, p in network.named_parameters() if torch.equal(p, before[name])]
    assert not same


@OWN_PICKLE_OF_2_4
def test_copies_and_pickles(network: Any, image: Tensor) -> None:
    again = pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        assert torch.equal(again(image), network(image))
    assert again.default_cfg == network.default_cfg
    assert network.default_cfg["input_size"] == (3, 299, 299)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 64, 64), "unsqueeze"),
        (torch.zeros(1, 64, 64, 3), "permute"),
        (torch.zeros(1, 1, 64, 64), r"expected a floating tensor \(N, 3, H, W\).*found shape \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "models.preprocess"),
        (torch.zeros(1, 3, 0, 64), "at least"),
    ],
)
def test_wrong_inputs_say_what_is_expected(network: Any, x: Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        network(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": -1}, "num_classes"),
        ({"in_chans": 0}, "in_chans"),
        ({"output_stride": 4}, "expected 8, 16 or 32, found 4"),
        ({"global_pool": "median"}, "expected one of 'avg'"),
        ({"global_pool": ""}, "num_classes=0"),
        ({"drop_rate": 1.0}, "drop_rate"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"out_indices": (0,)}, "features_only"),
        ({"features_only": True, "out_indices": (5,)}, "0 to 4"),
        ({"features_only": True, "out_indices": (1, 1)}, "different"),
        ({"features_only": True, "out_indices": ()}, "out_indices"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=message):
        create_model("xception41", **arguments)


def test_original_has_one_output_stride() -> None:
    with torch.device("meta"), pytest.raises(ModelError, match="expected 32"):
        create_model("xception", output_stride=16)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("legacy_xception", "xception"),
        ("xception65.tf_in1k", "xception65"),
        ("tf_xception_65", "xception65"),
        ("Xception71", "xception71"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert get_info(alias).name == name
    with torch.device("meta"):
        assert create_model(alias).info.name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xception65.ra3_in1k", "training in PyTorch"),
        ("xception65p", "pre-activation"),
        ("xception64", "did you mean xception"),
        ("resnet50", "there are xception, xception41"),
    ],
)
def test_refused_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(name)


def test_information() -> None:
    info = get_info("xception")
    assert (info.crop_pct, info.interpolation, info.licence) == (0.8975, "bicubic", "MIT")
    assert get_info("xception65").top1 == 79.558
    assert info.default_cfg()["first_conv"] == "conv1"
