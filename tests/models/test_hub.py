"""PyTorch Hub: the entry points of hubconf.py, and its own download of a published file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import flip, offer, serving, write_index
from test_networks import randomise

import hubconf
from models import ModelError, create_model, list_models

ROOT = Path(__file__).parents[2]
X = torch.linspace(-1, 1, 3 * 33 * 40).reshape(1, 3, 33, 40)


def from_hub(name: str, **arguments: Any) -> Any:
    return torch.hub.load(str(ROOT), name, source="local", **arguments)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(5)
    return randomise(create_model("xception", num_classes=6)).eval()


@pytest.fixture(scope="module")
def site(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("hub") / "site"
    site.mkdir()
    write_index(site, offer(site, network.state_dict()))
    return site


def test_entry_points() -> None:
    names = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")]
    assert sorted(names) == list_models()  # as torch.hub.list finds them
    for name in names:
        with torch.device("meta"):
            assert from_hub(name, num_classes=7).info.name == name


def test_pretrained_from_a_page(network: Any, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with serving(site) as server:
        monkeypatch.setenv("PORTING_WEIGHTS", server.url)
        loaded = from_hub("xception", pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(loaded(X), network(X))
        assert loaded.labels == tuple(f"kind {number}" for number in range(6))
        with pytest.raises(ModelError, match="no weights for xception41"):
            from_hub("xception41", pretrained=True)


def test_torch_hub_checks_a_published_file(
    network: Any, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    path = next(iter(site.rglob("*.pth")))
    with serving(site) as server:

        def load(place: str) -> Any:
            return torch.hub.load_state_dict_from_url(
                f"{server.url}/weights/{path.name}",
                tmp_path / place,
                check_hash=True,
                progress=False,
                weights_only=True,
            )

        state = load("right")
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
        flip(path)
        with pytest.raises(RuntimeError, match="invalid hash value"):
            load("changed")
        flip(path)


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
import torch
model = torch.hub.load({ROOT!r}, "xception", source="local", pretrained={WEIGHTS!r})
print(model.num_classes, sorted({BLOCKED} & set(sys.modules)))
"""


@pytest.mark.parametrize("blocked", [{"numpy", "PIL", "h5py", "tqdm", "crc32c", "cramjam", "safetensors"}, {"torch"}])
def test_pytorch_is_all_that_it_needs(site: Path, tmp_path: Path, blocked: set[str]) -> None:
    weights = str(next(iter(site.rglob("*.pth"))))
    code = BLOCKED.replace("{BLOCKED}", repr(blocked)).replace("{ROOT!r}", repr(str(ROOT)))
    code = code.replace("{WEIGHTS!r}", repr(weights))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    if "torch" in blocked:  # the control
        assert done.returncode != 0 and "torch is blocked" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "6 []\n"), done.stderr
