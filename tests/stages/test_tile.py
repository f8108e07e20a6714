"""The stage tile against direct readings of the same files."""

import json
import multiprocessing
import warnings

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from pipeline.errors import InputError
from pipeline.imagery.grid import windows
from pipeline.imagery.raster import Raster
from pipeline.imagery.scene import City, Scene, write_city
from pipeline.labels import IGNORE
from pipeline.params import parse_params
from pipeline.stages import evaluate, tile
from pipeline.tiles import tiling
from pipeline.tiles.store import CityTiles

CRS = "EPSG:32633"
CORNER = (500_000, 5_000_000)


def parameters(cities=("town",), classes=1, **options):
    train = {"model": {"architecture": "linear", "classes": classes}, "loss": {"dice": 1}}
    train |= {"epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "crop": 32}
    options = {"gsd": 0.5, "size": 32, "workers": 1} | options
    return parse_params(
        {
            "fetch": {"source": "demo", "path": "-", "cities": list(cities)},
            "tile": options,
            "train": train,
        }
    )


def raster(path, pixels, crs=CRS, transform=None, index=0, **profile):
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    transform = transform or Affine(0.5, 0, CORNER[0] + 1000 * index, 0, -0.5, CORNER[1])
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype,
            crs=crs, transform=transform, **profile,
        ) as dataset:  # fmt: skip
            dataset.write(pixels)
    return str(path)


class Town:
    """A city on disk whose scenes are added one by one, then tiled."""

    def __init__(self, root, name="town", **facts):
        self.root, self.name, self.facts, self.scenes = root, name, facts, []
        self.folder = root / "scenes" / name
        self.folder.mkdir(parents=True)

    def add(self, image, label=None, split=None, labels=None, **options):
        index = len(self.scenes)
        name = f"{self.name}{index}"
        path = raster(self.folder / f"{name}.tif", image, index=index, **options)
        if label is not None:
            plain = {key: value for key, value in options.items() if key in ("crs", "transform")}
            labels = raster(self.folder / f"{name}.label.tif", label, index=index, **plain)
        self.scenes.append(Scene(name, path, labels, split))
        return self

    def tiles(self, **options) -> CityTiles:
        write_city(self.folder, City(self.name, "test", self.scenes, **self.facts))
        params = parameters([self.name], **options)
        tile.run(params, scenes_root=self.root / "scenes", out_root=self.root / "tiles")
        return CityTiles(self.root / "tiles" / self.name)


def noise(*shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, high, shape).astype(dtype)


@pytest.fixture
def town(tmp_path):
    return Town(tmp_path)


def test_scenes_at_their_own_gsd_are_stored_byte_for_byte_once(town):
    pixels = [
        (noise(3, 40 + i, 50, seed=i), noise(40 + i, 50, high=3, seed=i) % 2) for i in range(5)
    ]
    for image, label in pixels:
        town.add(image, label)
    tiles = town.tiles()
    assert sorted(r.name for r in tiles.regions) == [f"town{i}" for i in range(5)]
    assert {r.split for r in tiles.regions} == {"train", "validation", "test"}
    for region in tiles.regions:
        image, label = pixels[int(region.parent[-1])]
        assert np.array_equal(tiles.image(region), np.moveaxis(image, 0, 2))
        assert np.array_equal(tiles.label(region), label)
        with rasterio.open(town.scenes[int(region.parent[-1])].image) as dataset:
            assert (
                tuple(dataset.transform)[:6] == region.transform
                and region.crs == dataset.crs.to_string()
            )


@settings(deadline=None, max_examples=8)
@example(285, 40, False, None, 0.4)  # 285 · (356 / 285) is a little more than 356
@given(
    st.integers(250, 320), st.integers(40, 80), st.booleans(), st.sampled_from([None, 0, 20]),
    st.sampled_from([0.4, 0.5]),
)  # fmt: skip
def test_blocks_of_one_scene_never_share_a_pixel_nor_its_margin(
    tmp_path_factory, long, short, tall, margin, gsd
):
    town = Town(tmp_path_factory.mktemp("blocks"))
    # every pixel tells its place
    where = np.stack(np.meshgrid(np.arange(long), np.arange(short), indexing="ij"))
    image = np.stack([where[0] // 256, where[0] % 256, where[1]]).astype(np.uint8)
    label = np.zeros((long, short), np.uint8)
    image, label = (image, label) if tall else (image.transpose(0, 2, 1), label.T)
    tiles = town.add(image, label).tiles(margin=margin, gsd=gsd)
    assert {r.split for r in tiles.regions} == {"train", "validation", "test"}
    assert {r.name for r in tiles.regions} == {
        f"town0/{split}" for split in ("train", "validation", "test")
    }
    axis = 1 if tall else 0
    asked = (32 if margin is None else margin) * abs(tiles.regions[0].transform[4 * axis])
    spans = sorted((r.grid.bounds[axis], r.grid.bounds[axis + 2], r.split) for r in tiles.regions)
    for (_, end, _), (start, _, _) in zip(spans, spans[1:], strict=False):
        assert start - end >= asked - 1e-6
    if gsd == 0.5:
        images = [tiles.image(r).astype(int) for r in tiles.regions]
        rows = [set((256 * image[..., 0] + image[..., 1]).flat) for image in images]
        assert not (rows[0] & rows[1] or rows[1] & rows[2] or rows[0] & rows[2])


def test_a_scene_too_small_for_blocks_says_what_to_lower(town):
    with pytest.raises(
        InputError,
        match=r"town0 has 150 pixels at 0.5 m.*lower tile.gsd or "
        r"tile.margin",
    ):
        town.add(noise(3, 150, 100), noise(150, 100, high=2)).tiles()


@pytest.mark.parametrize("tall", [True, False])
def test_blocks_are_cut_where_the_data_are(town, tall):
    image, label = noise(3, 600, 60), np.ones((600, 60), np.uint8)
    image[:, :100] = image[:, 430:] = 0
    image, label = (image, label) if tall else (image.transpose(0, 2, 1), label.T)
    tiles = town.add(image, label, nodata=0).tiles(margin=0, test=0.3)
    assert [r.split for r in tiles.regions] == ["train", "validation", "test"]
    assert all((tiles.label(region) == 1).all() for region in tiles.regions)
    assert sum(region.pixels for region in tiles.regions) == 330 * 60
    assert [max(region.grid.shape) for region in tiles.regions][2] == 99


def test_a_split_without_a_pixel_or_a_building(town, capsys):
    empty = np.full((40, 40), IGNORE, np.uint8)
    for split in ("train", "validation", "test"):
        town.add(
            noise(3, 40, 40), empty if split == "test" else np.ones((40, 40), np.uint8), split=split
        )
    with pytest.raises(
        InputError,
        match=r"town: its test split \(town2\) has no pixel with both "
        r"data and a label",
    ):
        town.tiles()
    raster(town.folder / "town2.label.tif", np.zeros((40, 40), np.uint8), index=2)
    town.tiles()
    assert "town: no building in its test split" in " ".join(capsys.readouterr().out.split())


def test_official_splits_are_honoured(town):
    for i in range(6):
        town.add(noise(3, 40, 40), noise(40, 40, high=3) % 2, split="test" if i < 2 else None)
    splits = {r.parent: r.split for r in town.tiles().regions}
    assert [name for name, split in splits.items() if split == "test"] == ["town0", "town1"]
    assert sorted(splits.values()) == ["test", "test", "train", "train", "train", "validation"]


def three(town, *images, labels=None, **options):
    """Three scenes, one a split, so that every one is tiled whole."""
    for image, split in zip(
        images * 3 if len(images) == 1 else images, ("train", "validation", "test"), strict=True
    ):
        label = None if labels else np.zeros(image.shape[-2:], np.uint8)
        town.add(image, label, split=split, labels=labels, **options)
    return town


def test_nodata_becomes_ignore_and_black(town):
    image = noise(3, 40, 40)
    image[:, :10] = 0
    tiles = three(town, image, nodata=0).tiles()
    for region in tiles.regions:
        assert (tiles.label(region)[:10] == IGNORE).all() and (tiles.label(region)[10:] == 0).all()
        assert not tiles.image(region)[:10].any()
    assert tiles.about["statistics"]["ignored"] == pytest.approx(0.25)


def test_sixteen_bits_are_scaled_alike_in_every_scene(town):
    bright, dark = (
        noise(3, 64, 64, high=4000, dtype=np.uint16),
        noise(3, 64, 64, high=400, dtype=np.uint16),
    )
    tiles = three(town, bright, dark, bright // 2).tiles()
    low, high = tiles.about["range"]
    for region, pixels in zip(tiles.regions, (bright, dark, bright // 2), strict=True):
        expected = np.rint(np.clip((pixels.astype(float) - low) / (high - low), 0, 1) * 255)
        assert np.abs(np.moveaxis(tiles.image(region), 2, 0) - expected).max() <= 1
    # dark stays dark
    assert tiles.image(tiles.regions[1]).mean() < 0.3 * tiles.image(tiles.regions[0]).mean()


def test_reflectance_beside_counts_is_not_black(town, capsys):
    counts = noise(3, 64, 64, high=4000, dtype=np.uint16)
    tiles = three(town, counts, counts // 2, (counts / 4000).astype(np.float32)).tiles()
    means = [tiles.image(region).mean() for region in tiles.regions]
    assert means[2] == pytest.approx(means[0], rel=0.05) and means[1] < 0.6 * means[0]
    assert "town2: other units than in the other scenes" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_stated_range_that_fits_no_value_is_said(tmp_path, capsys):
    eight_bits = noise(3, 40, 40)
    three(
        Town(tmp_path, range=(0, 4000)),
        eight_bits.astype(np.uint16) * 15,
        eight_bits,
        eight_bits * 0.5,
    ).tiles()
    assert "town1, town2: values far from fetch.overrides.town.range" in " ".join(
        capsys.readouterr().out.split()
    )


def test_bands_are_read_where_each_scene_declares_its_colours(town, capsys):
    image = noise(3, 40, 40)
    three(town, image[::-1], image, image, photometric="minisblack")
    with rasterio.open(town.scenes[0].image, "r+") as dataset:
        dataset.colorinterp = ColorInterp.blue, ColorInterp.green, ColorInterp.red
    tiles = town.tiles()
    assert all(np.array_equal(tiles.image(r), np.moveaxis(image, 0, 2)) for r in tiles.regions)
    assert tiles.about["bands"] == [1, 2, 3]
    assert "town0: red, green and blue are declared in another order" in " ".join(
        capsys.readouterr().out.split()
    )


def test_building_everywhere_is_said(town, capsys):
    for i, split in enumerate(("train", "validation", "test")):
        town.add(noise(3, 40, 40), np.full((40, 40), i > 0, np.uint8), split=split)
    town.tiles()
    assert "building everywhere in town1, town2" in " ".join(capsys.readouterr().out.split())


def test_shared_ground_is_found_across_the_antimeridian(town, capsys):
    def at(west):
        return {"crs": "EPSG:4326", "transform": Affine(5e-6, 0, west, 0, -5e-6, -17)}

    for west, split in ((179.9999, "train"), (179.9, "validation"), (-179.99995, "test")):
        town.add(noise(3, 40, 60), np.zeros((40, 60), np.uint8), split=split, **at(west))
    tiles = town.tiles()
    assert "town0 (train) and town2 (test) share 50 % of their ground" in " ".join(
        capsys.readouterr().out.split()
    )
    frame = geopandas.read_parquet(tiles.folder / "tiles.parquet")
    assert shapely.area(frame.geometry.to_numpy()).max() < 1e-6  # no tile reaches round the Earth


def test_a_declared_range_and_bands_are_used(tmp_path):
    town = three(Town(tmp_path, range=(0, 510), bands=[4, 1, 2]), noise(4, 40, 40))
    tiles = town.tiles()
    with rasterio.open(town.scenes[0].image) as dataset:
        expected = np.rint(np.moveaxis(dataset.read([4, 1, 2]), 0, 2) / 2)
    assert np.array_equal(tiles.image(tiles.regions[0]), expected)


def footprints(path, *shapes, crs=CRS, **columns):
    geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs).to_crs("EPSG:4326").to_file(
        path
    )
    return str(path)


def test_footprints_land_on_their_pixels(town, tmp_path):
    def box(left, top, right, bottom, index=0):
        x, y = CORNER[0] + 1000 * index, CORNER[1]
        return shapely.box(x + left / 2, y - bottom / 2, x + right / 2, y - top / 2)

    vectors = footprints(
        tmp_path / "buildings.gpkg", box(10.3, 5.3, 20.3, 15.3), box(-5, 30.2, 5.2, 50),
        box(25.2, 25.2, 30.2, 30.2, index=1), label=[2, 1, 255],
    )  # fmt: skip
    tiles = three(town, noise(3, 40, 40), labels=vectors).tiles(classes=2)
    first, second, third = (tiles.label(region) for region in tiles.regions)
    expected = np.zeros((40, 40), np.uint8)
    expected[5:15, 10:20], expected[30:, :5] = 2, 1
    assert np.array_equal(first, expected)
    assert (
        (second == IGNORE).sum() == 25
        and (second[25:30, 25:30] == IGNORE).all()
        and not third.any()
    )
    with pytest.raises(InputError, match="label 2"):
        town.tiles(classes=1)


def test_groups_of_footprints_land_on_their_buildings(town, tmp_path):
    def box(left, index):
        x, y = CORNER[0] + 1000 * index, CORNER[1]
        return shapely.box(x + left / 2, y - 10, x + left / 2 + 5, y - 5)

    vectors = footprints(
        tmp_path / "buildings.gpkg",
        box(2, 0),
        box(20, 0),
        box(2, 1),
        box(20, 1),
        income=["low", "high", None, "low"],
    )
    town.facts = {"groups": "income"}
    tiles = three(town, noise(3, 40, 40), labels=vectors).tiles()
    assert tiles.group_names == ["high", "low"] and tiles.grouped_by == "income"
    with pytest.raises(InputError, match=r"grouped by their income, fetch.groups is kind; run"):
        evaluate._check_groups([tiles], "kind")
    first, second, third = (tiles.groups(region) for region in tiles.regions)
    assert (
        (first[10:20, 2:12] == 2).all()
        and (first[10:20, 20:30] == 1).all()
        and (first > 0).sum() == 200
    )
    assert (second > 0).sum() == 100 and not third.any()
    # a building of no group is one all the same
    assert (tiles.label(tiles.regions[1]) == 1).sum() == 200


def test_values_are_no_groups(town, tmp_path):
    boxes = [
        shapely.box(CORNER[0] + i, CORNER[1] - 2, CORNER[0] + i + 0.5, CORNER[1] - 1)
        for i in range(21)
    ]
    vectors = footprints(tmp_path / "buildings.gpkg", *boxes, income=[1.5 * i for i in range(21)])
    town.facts = {"groups": "income"}
    three(town, noise(3, 40, 40), labels=vectors)
    with pytest.raises(
        InputError,
        match=r"column income holds 21 values; bring them into at most "
        r"20 groups",
    ):
        town.tiles()
    assert not (tmp_path / "tiles" / "town").exists()


def test_a_south_up_scene_equals_its_north_up_twin(town, tmp_path):
    image = noise(3, 48, 64)
    shape = shapely.Polygon(
        [(CORNER[0] + x / 2, CORNER[1] - y / 2) for x, y in [(5, 5), (40, 11), (33, 30), (9, 41)]]
    )
    north = Affine(0.5, 0, CORNER[0], 0, -0.5, CORNER[1])
    south = Affine(0.5, 0, CORNER[0], 0, 0.5, CORNER[1] - 24)
    vectors = footprints(tmp_path / "buildings.geojson", shape)
    town.add(image, labels=vectors, split="train", transform=north)
    tiles = town.add(image[:, ::-1], labels=vectors, split="test", transform=south).tiles()
    up, down = tiles.regions
    assert tiles.label(up).sum() > 500
    assert np.array_equal(tiles.label(up), tiles.label(down)[::-1])
    assert np.array_equal(tiles.image(up), tiles.image(down)[::-1])
    frame = geopandas.read_parquet(tiles.folder / "tiles.parquet").to_crs(CRS)
    ground = [shapely.union_all(frame[frame["scene"] == r.parent].geometry) for r in tiles.regions]
    assert ground[0].symmetric_difference(ground[1]).area < 1e-3


def test_a_scene_smaller_than_a_tile_is_padded_with_ignore(town, capsys):
    tiles = three(town, noise(3, 20, 24)).tiles(size=64)
    assert "town: 3 of 3 scenes are smaller than a tile of 64 px" in capsys.readouterr().out
    assert tiles.table["valid"].tolist() == pytest.approx([20 * 24 / 64**2] * 3)
    labels = tiles.sample("train", 1)[1][0]
    assert (labels != IGNORE).sum() == 20 * 24 and (labels[:20, :24] == 0).all()


def test_windows_workers_and_memory_change_no_byte(tmp_path, monkeypatch):
    image, label = noise(3, 700, 300, dtype=np.uint16, high=3000), noise(700, 300, high=3) % 2
    folders = []
    for name, options in {"one": {}, "two": {"workers": 2}, "small": {"memory": 64}}.items():
        if name == "small":
            monkeypatch.setattr(tiling, "windows", lambda h, w, _: windows(h, w, 5000))
        town = Town(tmp_path / name).add(image, label, nodata=17)
        monkeypatch.setattr(tiling, "SHARD", 20_000)
        folders.append(town.tiles(gsd=0.7, **options).folder)
    for name in ("images.npy", "labels.npy", "tiles.parquet"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name


def test_memory_bounds_the_windows_not_the_scene(town, monkeypatch):
    """A sparse scene of 6000×6000: no window read holds more than the budget,
    whatever the scene's size.
    """
    path = town.folder / "wide.tif"
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": 6000,
        "width": 6000,
        "dtype": "uint8",
        "crs": CRS,
    }
    profile |= {
        "transform": Affine(0.5, 0, *CORNER[:1], 0, -0.5, CORNER[1]),
        "sparse_ok": True,
        "tiled": True,
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(noise(3, 256, 256), window=((0, 256), (0, 256)))
    town.scenes.append(
        Scene(
            "wide", str(path), footprints(town.folder / "b.gpkg", shapely.box(0, 0, 1, 1)), "train"
        )
    )
    seen = []
    read = Raster._read

    def measured(self, bands, window, out=None):
        seen.append(len(np.atleast_1d(bands)) * window.height * window.width)
        return read(self, bands, window, out)

    monkeypatch.setattr(Raster, "_read", measured)
    tiles = town.tiles(gsd=2.0, memory=64)
    assert 64e6 / 40 < max(seen) < 64e6 / 4  # bytes, with the floats they become beside them
    assert tiles.regions[0].height == round(1500 / 0.9996)  # UTM shrinks the ground at its meridian


def test_an_unchanged_city_is_kept_and_a_new_one_leaves_it_alone(tmp_path, capsys):
    for name in ("one", "two"):
        town = three(Town(tmp_path, name), noise(3, 40, 40))
        write_city(town.folder, City(name, "test", town.scenes))
    roots = {"scenes_root": tmp_path / "scenes", "out_root": tmp_path / "tiles"}
    tile.run(parameters(["one"]), **roots)
    first = (tmp_path / "tiles/one/images.npy").stat()
    tile.run(parameters(["one", "two"], workers=2, memory=99), **roots)
    assert "one: scenes and parameters unchanged" in capsys.readouterr().out
    again = (tmp_path / "tiles/one/images.npy").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    tile.run(parameters(["one"], gsd=0.8), **roots)
    assert CityTiles(tmp_path / "tiles/one").gsd == 0.8
    before = (tmp_path / "tiles/one/images.npy").stat().st_mtime_ns
    (tmp_path / "tiles/one/labels.npy").write_bytes(b"broken")
    tile.run(parameters(["one"], gsd=0.8), **roots)
    assert (tmp_path / "tiles/one/images.npy").stat().st_mtime_ns != before


def test_a_city_without_crs_uses_its_declared_gsd(tmp_path):
    tiles = three(
        Town(tmp_path, gsd=0.25), noise(3, 64, 64), crs=None, transform=Affine.identity()
    ).tiles()
    assert all(r.crs is None and r.height == 32 and r.transform[0] == 2 for r in tiles.regions)
    assert geopandas.read_parquet(tiles.folder / "tiles.parquet").geometry.isna().all()


BAD = {
    "CRS missing": (dict(image=noise(3, 40, 40), crs=None), "scene town0: .*no CRS"),
    "one band": (dict(image=noise(1, 40, 40)), r"scene town0: .*has 1 band, but band 3"),
    "label size": (
        dict(image=noise(3, 40, 40), label=noise(30, 40, high=2)),
        "scene town0: .*sizes must agree",
    ),
    "label value": (
        dict(image=noise(3, 40, 40), label=noise(40, 40, high=9)),
        "scene town0: .*labels hold",
    ),
    "all nodata": (
        dict(image=np.zeros((3, 40, 40), np.uint8), nodata=0),
        "town: scene town0 is nodata everywhere",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_scenes_are_named_and_leave_nothing(town, case):
    options, words = BAD[case]
    town.add(**{"label": np.zeros((40, 40), np.uint8), "split": "train"} | options)
    with pytest.raises(InputError, match=words) as caught:
        town.tiles()
    assert "\n" not in str(caught.value)
    assert not list((town.root / "tiles").glob("*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_truncated_scene_is_named_from_any_process(town, workers, monkeypatch):
    monkeypatch.setattr(tiling, "SHARD", 1)
    image = noise(3, 400, 400)
    town.add(image, np.zeros((400, 400), np.uint8), split="train", compress="deflate", tiled=True)
    path = town.folder / "town0.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"scene town0: .*town0\.tif: cannot be read"):
        town.tiles(workers=workers)
    assert not multiprocessing.active_children() and not list((town.root / "tiles").iterdir())


def test_labels_are_needed_somewhere(town):
    town.add(noise(3, 40, 40))
    with pytest.raises(InputError, match="no scene has labels"):
        town.tiles()


def test_warnings_for_upsampling_emptiness_and_shared_ground(town, capsys):
    same = Affine(0.5, 0, *CORNER[:1], 0, -0.5, CORNER[1])
    three(town, noise(3, 40, 40), transform=same).tiles(gsd=0.2, max_upsampling=2)
    said = " ".join(capsys.readouterr().out.split())
    assert "town: 3 of 3 scenes are enlarged 2.5 times" in said
    assert "town: no building anywhere" in said
    assert "share 100 % of their ground" in said
    town.tiles(gsd=0.5)
    assert "enlarged" not in capsys.readouterr().out


def test_montenegro_end_to_end(shared_cities, tmp_path):
    folder = shared_cities / "montenegro"
    scenes = [
        Scene(path.stem, str(path), str(folder / "buildings.geojson"))
        for path in sorted((folder / "images").glob("*.tif"))
    ]
    write_city(tmp_path / "scenes/montenegro", City("montenegro", "folder", scenes))
    tile.run(
        parameters(["montenegro"], gsd=0.6, size=64, workers=2),
        "montenegro",
        tmp_path / "scenes",
        tmp_path / "tiles",
    )
    tiles = CityTiles(tmp_path / "tiles/montenegro")
    assert len(tiles.regions) == 12 and {r.split for r in tiles.regions} == {
        "train",
        "validation",
        "test",
    }
    about = json.loads((tiles.folder / "regions.json").read_text())["statistics"]
    assert 0.18 < about["building"] < 0.26 and about["ignored"] == 0
    assert about["native_gsd"] == pytest.approx([0.35, 0.35], rel=1e-3)

    frame = geopandas.read_parquet(tiles.folder / "tiles.parquet")
    buildings = geopandas.read_file(folder / "buildings.geojson")
    utm = frame.estimate_utm_crs()
    ground, drawn = frame.to_crs(utm), buildings.to_crs(utm).geometry.make_valid()
    covered = shapely.intersection(shapely.union_all(drawn), ground.geometry.to_numpy())
    pixels = (frame["building"] * frame["valid"]).to_numpy() * 64**2 * 0.6**2
    # square metres, tile by tile
    assert np.abs(shapely.area(covered) - pixels).max() < 0.05 * (64 * 0.6) ** 2
    assert pixels.sum() == pytest.approx(shapely.area(covered).sum(), rel=0.01)


def test_houses_wall_to_wall_stay_houses(town, tmp_path):
    left, top = CORNER
    houses = [shapely.box(left + x, top - 20, left + x + 8, top - 8) for x in (10, 18, 26)]
    apart = shapely.box(left + 50, top - 20, left + 58, top - 8)
    vectors = footprints(tmp_path / "houses.geojson", *houses, apart, label=[1, 1, 1, 255])
    tiles = three(town, noise(3, 160, 160), labels=vectors).tiles()
    region = tiles.regions[0]
    found = tiles.instances(region)
    assert (
        np.bincount(found.ravel())[1:].tolist() == [16 * 24] * 3
        and tiles.numbers(region).max() <= 4
    )
    (tiles.folder / "numbers.npy").unlink()  # as older tiles are
    assert CityTiles(tiles.folder).instances(region).max() == 1
