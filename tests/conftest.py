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


def write_city(folder: Path, scenes: list, city: str = "toyton", gsd: float = 0.5, size: int = 64) -> Path:
    """Write tiles as the tile stage does. `scenes`: (split, image (H, W, C) uint8, label (H, W) uint8) each."""
    import json

    import geopandas as gpd
    import numpy as np
    from shapely.geometry import box

    folder = folder / city
    folder.mkdir(parents=True)
    regions, rows, offset = [], [], 0
    for i, (split, _, label) in enumerate(scenes):
        height, width = label.shape
        name = f"{city}-{i + 1}"
        regions.append({
            "name": name, "parent": name, "split": split, "height": height, "width": width, "offset": offset,
            "transform": [gsd, 0, 1000.0 * i, 0, -gsd, 0], "crs": "EPSG:32633",
        })  # fmt: skip
        offset += height * width
        for top in range(0, height, size):
            for left in range(0, width, size):
                part = label[top : top + size, left : left + size]
                rows.append({
                    "region": i, "split": split, "row": top, "column": left, "scene": name,
                    "building": float((part == 1).mean()), "valid": float((part != 255).mean()),
                    "geometry": box(left, top, left + size, top + size),
                })  # fmt: skip
    np.save(folder / "images.npy", np.concatenate([image.ravel() for _, image, _ in scenes]))
    np.save(folder / "labels.npy", np.concatenate([label.ravel() for *_, label in scenes]))
    gpd.GeoDataFrame(rows, crs="EPSG:4326").to_parquet(folder / "tiles.parquet")
    about = {"city": city, "gsd": gsd, "size": size, "channels": scenes[0][1].shape[-1], "classes": 1}
    (folder / "regions.json").write_text(json.dumps({**about, "regions": regions}))
    return folder


def toy_scene(seed: int, side: int = 128, contrast: int = 90):
    """Bright rectangles on noise: image (S, S, 3) and label (S, S), easy for any network."""
    import numpy as np

    random = np.random.default_rng(seed)
    label = np.zeros((side, side), np.uint8)
    for _ in range(side * side // 1500):
        top, left = random.integers(0, side - 20, 2)
        label[top : top + random.integers(8, 20), left : left + random.integers(8, 20)] = 1
    image = random.normal(90, 20, (side, side, 3)) + contrast * label[..., None]
    return np.clip(image, 1, 255).astype(np.uint8), label


@pytest.fixture
def toy_tiles(tmp_path) -> Path:
    """A folder of tiles of two toy cities, each three training, one validation and two test scenes."""
    for c, (city, contrast) in enumerate({"toyton": 90, "dimham": 45}.items()):
        splits = ["train", "train", "train", "validation", "test", "test"]
        scenes = [(split, *toy_scene(10 * c + i, contrast=contrast)) for i, split in enumerate(splits)]
        write_city(tmp_path / "tiles", scenes, city)
    return tmp_path / "tiles"
