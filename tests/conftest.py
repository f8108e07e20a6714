from pathlib import Path

import hypothesis
import pytest
from http_server import server  # noqa: F401  a fixture
from s3_server import store  # noqa: F401  a fixture
from toy import toy_scene, write_city

# A slow machine is no fault of the code: no example has a time limit.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

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
    """51 real crops of Inria's training cities, for development only; never
    part of the repository.
    """
    return _shared("inria_crops")


@pytest.fixture
def toy_tiles(tmp_path) -> Path:
    """A folder of tiles of two toy cities, each three training, one validation
    and two test scenes.
    """
    for c, (city, contrast) in enumerate({"toyton": 90, "dimham": 45}.items()):
        splits = ["train", "train", "train", "validation", "test", "test"]
        scenes = [
            (split, *toy_scene(10 * c + i, contrast=contrast)) for i, split in enumerate(splits)
        ]
        write_city(tmp_path / "tiles", scenes, city)
    return tmp_path / "tiles"
