from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no real imagery: {name}/ is not beside the checkout (../shared/{name})")
    return SHARED / name


@pytest.fixture(scope="session")
def shared_cities() -> Path:
    """Five real cities with labels, for development only; never part of the repository."""
    return _shared("cities")


@pytest.fixture(scope="session")
def inria_crops() -> Path:
    """51 real crops of Inria's training cities, for development only; never part of the repository."""
    return _shared("inria_crops")
