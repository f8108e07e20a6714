import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import InputError
from pipeline.imagery.grid import Window
from pipeline.labels import IGNORE
from pipeline.tiles.store import (
    CityTiles,
    Region,
    allocate,
    count_tiles,
    write_index,
    write_window,
    written_label,
)

SIZE, CHANNELS = 32, 3
SHAPES = {"north": (70, 50, "train"), "south": (20, 90, "train"), "east": (64, 32, "test")}


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A city of three regions of random pixels: the folder, and the (image,
    label) of every region.
    """
    folder, rng = tmp_path_factory.mktemp("tiles") / "town", np.random.default_rng(0)
    folder.mkdir()
    regions, offset = [], 0
    for i, (name, (height, width, split)) in enumerate(SHAPES.items()):
        transform = (0.5, 0, 500_000 + 100 * i, 0, -0.5, 5_000_000)
        regions.append(Region(name, name, split, height, width, offset, transform, "EPSG:32633"))
        offset += height * width
    allocate(folder, regions, CHANNELS)
    pixels = []
    for region in regions:
        shape = region.height, region.width
        image = rng.integers(0, 256, (*shape, CHANNELS), np.uint8)
        label = rng.choice(np.array([0, 1, IGNORE], np.uint8), shape)
        pixels.append((image, label))
        for window in (
            Window(0, 0, 15, region.width),
            Window(15, 0, shape[0] - 15, 11),
            Window(15, 11, shape[0] - 15, shape[1] - 11),
        ):
            # whole rows, and parts
            write_window(folder, region, window, image[window.slices], label[window.slices])
        assert np.array_equal(written_label(folder, region), label)
    about = {"city": "town", "gsd": 0.5, "size": SIZE, "channels": CHANNELS, "classes": 1}
    write_index(folder, about, regions, [count_tiles(label, SIZE) for _, label in pixels])
    return folder, pixels


def test_what_is_written_is_read(city):
    tiles = CityTiles(city[0])
    assert (tiles.city, tiles.gsd, tiles.size, tiles.channels, tiles.classes) == (
        "town",
        0.5,
        SIZE,
        CHANNELS,
        1,
    )
    assert [r.name for r in tiles.of_split("train")] == ["north", "south"] and tiles.of_split(
        "validation"
    ) == []
    for region, (image, label) in zip(tiles.regions, city[1], strict=True):
        assert np.array_equal(tiles.image(region), image) and np.array_equal(
            tiles.label(region), label
        )
        assert not tiles.image(region).flags.owndata and not tiles.image(region).flags.writeable


@settings(max_examples=50)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)),
                     elements=st.sampled_from([0, 1, 2, IGNORE])), st.integers(1, 17))  # fmt: skip
def test_counts_equal_a_loop_over_tiles(label, size):
    building, valid = count_tiles(label, size)
    for i, j in np.ndindex(building.shape):
        tile = label[i * size : (i + 1) * size, j * size : (j + 1) * size]
        assert (
            building[i, j] == np.isin(tile, [1, 2]).sum() and valid[i, j] == (tile != IGNORE).sum()
        )
    assert valid.sum() == (label != IGNORE).sum()


def test_table_says_what_the_arrays_hold(city):
    tiles = CityTiles(city[0])
    table = tiles.table
    assert len(table["row"]) == 3 * 2 + 1 * 3 + 2 * 1
    for i in range(len(table["row"])):
        label = tiles.label(tiles.regions[table["region"][i]])
        row, column = table["row"][i], table["column"][i]
        tile = label[row : row + SIZE, column : column + SIZE]
        # what sticks out is not valid
        assert table["valid"][i] == pytest.approx((tile != IGNORE).sum() / SIZE**2)
        assert table["building"][i] == pytest.approx((tile == 1).sum() / (tile != IGNORE).sum())
        assert table["split"][i] == tiles.regions[table["region"][i]].split


def test_footprints_cover_the_regions_ground_once(city):
    frame = geopandas.read_parquet(city[0] / "tiles.parquet")
    assert frame.crs == "EPSG:4326" and list(frame["scene"].unique()) == list(SHAPES)
    for index, group in frame.to_crs("EPSG:32633").groupby("region"):
        height, width, _ = list(SHAPES.values())[index]
        ground = shapely.box(
            500_000 + 100 * index,
            5_000_000 - height / 2,
            500_000 + 100 * index + width / 2,
            5_000_000,
        )
        assert group.area.sum() == pytest.approx(ground.area, rel=1e-6)
        assert shapely.union_all(group.geometry).symmetric_difference(ground).area < 1e-3


def test_geoparquet_metadata(city):
    import json

    import pyarrow.parquet as parquet

    geo = json.loads(parquet.read_metadata(city[0] / "tiles.parquet").metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert (
        geo["version"] >= "1.0.0"
        and column["encoding"] == "WKB"
        and column["geometry_types"] == ["Polygon"]
    )


def test_samples_are_tiles_with_buildings_first_and_none_half_empty(city):
    tiles = CityTiles(city[0])
    images, labels = tiles.sample("train", 100, seed=1)
    valid = tiles.table["valid"][tiles.table["split"] == "train"]
    assert 0 < (valid >= 0.5).sum() < len(valid)
    full = int((valid >= 0.5).sum())
    assert images.shape == (full, SIZE, SIZE, CHANNELS) and labels.shape == (full, SIZE, SIZE)
    assert ((labels != IGNORE).mean((1, 2)) >= 0.5).all()
    assert (labels[images.sum(axis=-1) == 0] == IGNORE).all()  # the part beyond a small region
    assert ((tiles.sample("train", 100, size=16)[1] != IGNORE).mean((1, 2)) >= 0.5).all()
    again = tiles.sample("train", 100, seed=1)
    assert np.array_equal(images, again[0]) and np.array_equal(labels, again[1])
    assert not np.array_equal(images, tiles.sample("train", 100, seed=2)[0])
    few = tiles.sample("train", 2, size=16)[0]
    assert few.shape == (2, 16, 16, CHANNELS)


def test_a_damaged_city_says_what_to_do(city, tmp_path):
    with pytest.raises(InputError, match="run the tile stage"):
        CityTiles(tmp_path)
    for name in ("regions.json", "labels.npy", "images.npy"):
        (tmp_path / name).write_bytes((city[0] / name).read_bytes())
    (tmp_path / "images.npy").write_bytes((city[0] / "images.npy").read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        CityTiles(tmp_path)


def test_a_full_disk_is_refused_before_writing(tmp_path):
    huge = Region("a", "a", "train", 2**25, 2**25, 0, (1, 0, 0, 0, -1, 0), None)
    (tmp_path / "city").mkdir()
    with pytest.raises(InputError, match="GB of tiles do not fit"):
        allocate(tmp_path / "city", [huge], 3)
    assert not list((tmp_path / "city").iterdir())


def test_where_all_is_nodata_a_sample_is_nodata(city):
    tiles = CityTiles(city[0])
    tiles.table["valid"] = np.zeros(len(tiles.table["valid"]))
    images, labels = tiles.sample("train", 2)
    assert images.shape == (2, SIZE, SIZE, CHANNELS) and labels.shape == (2, SIZE, SIZE)
    assert not len(tiles.sample("nowhere", 2)[0])
