"""Sites that several tests look at, built once; whoever changes one gets a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from porting.release.build import build
from tests.release import samples


@pytest.fixture(scope="session")
def mixed_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.mixed(tmp_path_factory.mktemp("ported") / "mixed")


@pytest.fixture(scope="session")
def mixed_site(mixed_weights: Path) -> Path:
    return build(mixed_weights, mixed_weights.with_name("site")).site


@pytest.fixture(scope="session")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = samples.hostile(tmp_path_factory.mktemp("hostile") / "weights")
    return build(weights, weights.with_name("site"), allow_unverified=True, allow_synthetic=True).site


@pytest.fixture
def site_copy(mixed_site: Path, tmp_path: Path) -> Path:
    """The mixed site, to be tampered with; its files are not linked to anything."""
    return shutil.copytree(mixed_site, tmp_path / "site")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder for weights, still empty."""
    folder = tmp_path / "ported"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """`refused(weights, **options)`: what a build says that must fail; nothing may be left of it."""
    from porting import PortingError

    def run(folder: Path, **options: object) -> str:
        out = tmp_path / "nowhere" / "site"
        with pytest.raises(PortingError) as caught:
            build(folder, out, **options)  # type: ignore[arg-type]
        assert not list(out.parent.glob("*")) if out.parent.exists() else True
        return str(caught.value)

    return run
