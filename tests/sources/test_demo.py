from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from pyproj import Geod
from rasterio.features import rasterize
from rasterio.warp import transform

from pipeline import params
from pipeline.errors import InputError
from pipeline.sources.demo import render
from pipeline.sources.demo import source as demo
from pipeline.sources.demo.layout import USES, draw_plan
from pipeline.sources.demo.schema import Manifest, find_city

MANIFEST = Path(__file__).resolve().parents[2] / "data" / "sources" / "demo.yaml"
KNOWN = params.load_section(Manifest, MANIFEST, "itself")
CITIES = list(KNOWN.cities)


def asked(cities: list[str], **changes) -> params.Fetch:
    return params.Fetch(
        source="demo", path=str(MANIFEST), cities=cities, **{"scene_size": 128, **changes}
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def fetched(tmp_path_factory) -> dict[str, tuple]:
    """Two small scenes of every city: name to (folder, City)."""
    root = tmp_path_factory.mktemp("demo")
    return {
        c: (root / c, demo.fetch(asked(CITIES, scenes=[1, 2]), c, root / c, root)) for c in CITIES
    }


def read(folder: Path, city, index: int):
    with rasterio.open(folder / city.scenes[index].image) as dataset:
        return dataset.read().transpose(1, 2, 0), dataset.profile


def outlines(folder: Path, crs) -> np.ndarray:
    return pyogrio.read_dataframe(folder / "footprints.fgb").to_crs(crs).geometry.to_numpy()


def test_same_seed_same_bytes_whatever_else_is_drawn(fetched, tmp_path):
    folder, _ = fetched["tinroof"]
    alone = demo.fetch(asked(["tinroof"], scenes=[2]), "tinroof", tmp_path / "a", tmp_path)
    again = demo.fetch(
        asked(["pinemoor", "tinroof"], scenes=[2]), "tinroof", tmp_path / "b", tmp_path
    )
    image = alone.scenes[0].image
    assert (tmp_path / "a" / image).read_bytes() == (folder / image).read_bytes()
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert alone == again


def test_another_seed_is_another_place(fetched, tmp_path):
    folder, city = fetched["brickvale"]
    other = demo.fetch(asked(["brickvale"], scenes=[1], seed=1), "brickvale", tmp_path, tmp_path)
    assert (tmp_path / other.scenes[0].image).read_bytes() != (
        folder / city.scenes[0].image
    ).read_bytes()
    assert other.scenes[0].stamp != city.scenes[0].stamp


@pytest.mark.parametrize("name", CITIES)
def test_images_are_georeferenced_at_the_manifests_gsd(fetched, name):
    folder, city = fetched[name]
    about = KNOWN.cities[name]
    image, profile = read(folder, city, 0)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert profile["crs"].to_epsg() == about.epsg and profile["tiled"]
    # The oracle: geodesic length of the scene's diagonal on the ellipsoid.
    corners = [profile["transform"] @ point for point in ((0, 0), (128, 128))]
    lon, lat = transform(profile["crs"], "EPSG:4326", *zip(*corners, strict=True))
    *_, metres = Geod(ellps="WGS84").inv(lon[0], lat[0], lon[1], lat[1])
    assert metres / (128 * np.sqrt(2)) == pytest.approx(about.gsd, rel=0.01)
    assert -180 < lon[0] < 180 and abs(lat[0]) < 70


def test_web_mercator_pixels_are_larger_than_the_ground_they_show(fetched):
    _, profile = read(*fetched["pinemoor"], 0)
    assert profile["crs"].to_epsg() == 3857
    assert profile["transform"].a > 1.9 * KNOWN.cities["pinemoor"].gsd


@pytest.mark.parametrize("name", CITIES)
def test_footprints_lie_within_the_images_and_are_valid(fetched, name):
    folder, city = fetched[name]
    shapes = outlines(folder, f"EPSG:{KNOWN.cities[name].epsg}")
    boxes = []
    for index in range(len(city.scenes)):
        with rasterio.open(folder / city.scenes[index].image) as dataset:
            boxes.append(shapely.box(*dataset.bounds))
    assert len(shapes) == city.notes["footprints"] > 0
    assert shapely.is_valid(shapes).all()
    assert not shapely.intersects(*boxes)
    assert shapely.covered_by(shapes, shapely.union_all(boxes).buffer(0.01)).all()


@pytest.mark.parametrize("name", CITIES)
def test_footprints_cover_the_roofs_that_were_drawn(fetched, name, monkeypatch):
    """The image's own roofs (what the renderer painted as building) against the vectors on disk."""
    folder, city = fetched[name]
    seen = []
    whole = render.render
    monkeypatch.setattr(demo, "render", lambda *a: (seen.append(p) or p for p in whole(*a)))
    demo.fetch(asked([name], scenes=[1]), name, folder.parent / f"{name}-again", folder.parent)
    _, profile = read(folder, city, 0)
    mask = (
        rasterize(outlines(folder, profile["crs"]), (128, 128), transform=profile["transform"]) > 0
    )
    # half a pixel of roof may go either way
    roofs, decided = seen[0].roofs > 0.5, seen[0].roofs != 0.5
    assert (mask & roofs & decided).sum() / ((mask | roofs) & decided).sum() > 0.97


@pytest.mark.parametrize("name", ["brickvale", "marlstead"])
def test_the_picture_has_its_edges_where_footprints_end(fetched, name):
    """Independent of the renderer's own mask: outlines moved by 2 m meet weaker gradients.

    Moved one way they may lie on the roofs' shadows: both ways count together.
    """
    folder, city = fetched[name]
    image, profile = read(folder, city, 0)
    mask = (
        rasterize(outlines(folder, profile["crs"]), image.shape[:2], transform=profile["transform"])
        > 0
    )
    rows, cols = np.gradient(image.astype(float), axis=(0, 1))
    steep = np.hypot(rows, cols).max(2)

    def along(shift: int) -> float:
        moved = np.roll(mask, shift, (0, 1))
        edge = np.logical_or.reduce([moved != np.roll(moved, 1, 0), moved != np.roll(moved, 1, 1)])
        return float(steep[8:-8, 8:-8][edge[8:-8, 8:-8]].mean())

    moved = round(2 / KNOWN.cities[name].gsd)
    assert along(0) > 1.3 * (along(moved) + along(-moved)) / 2


def test_the_second_scene_has_a_declared_wedge_without_data(fetched):
    for folder, city in fetched.values():
        image, profile = read(folder, city, 1)
        blank = (image == 0).all(2)
        assert profile["nodata"] == 0
        assert 0.02 < blank.mean() < 0.3
        assert (image[~blank] > 0).all()  # a dark pixel is no missing pixel
        assert min(blank[0].mean(), blank[-1].mean(), blank[:, 0].mean(), blank[:, -1].mean()) == 0
        assert read(folder, city, 0)[0].min() > 0


def test_cities_differ(fetched):
    names = {c: KNOWN.cities[c] for c in CITIES}
    assert len({c.gsd for c in names.values()}) == len({c.epsg for c in names.values()}) == 5
    assert any(c.epsg != c.labels_epsg for c in names.values())
    colours = np.array([read(folder, city, 0)[0].mean((0, 1)) for folder, city in fetched.values()])
    apart = np.abs(colours[:, None] - colours[None]).max(2)
    assert apart[~np.eye(5, dtype=bool)].min() > 2
    contrast = {c: read(*fetched[c], 0)[0].std() for c in CITIES}
    assert min(contrast, key=contrast.get) == "duskholm"  # haze


def test_windows_of_a_scene_join_without_seams(monkeypatch):
    city = KNOWN.cities["marlstead"]
    plan = draw_plan(city, KNOWN.materials, 96 * city.gsd, [0, 0, 1])
    (whole,) = render.render(plan, city, 96, 7)
    monkeypatch.setattr(render, "WINDOW", 40)
    joined = np.zeros_like(whole.image)
    for part in render.render(plan, city, 96, 7):
        rows, cols = part.image.shape[:2]
        joined[part.row : part.row + rows, part.col : part.col + cols] = part.image
    same = (np.abs(joined.astype(int) - whole.image) <= 1).all(2)
    assert same.mean() > 0.999  # all but shadows from beyond a window's reach


def test_shadow_falls_away_from_the_sun_as_far_as_height_over_tangent():
    height = np.zeros((1, 64), np.float32)
    height[0, 40] = 10.0
    # the sun stands to the right; 0.5 m a pixel
    shadow = render.shadow_height(height, (1.0, 0.0), 0.5)
    dark = np.flatnonzero(shadow[0] > 0.25)
    assert dark.tolist() == list(range(40 - 19, 40))
    assert shadow[0, 30] == pytest.approx(5.0)


def test_buildings_cover_a_fair_share_of_a_scene():
    for name, city in KNOWN.cities.items():
        plan = draw_plan(city, KNOWN.materials, 640 * city.gsd, [0, 1, 1])
        share = shapely.union_all(plan.footprints).area / plan.side**2
        assert 0.11 < share < 0.36, name


def test_unknown_city_names_the_nearest():
    with pytest.raises(InputError, match="no city 'brikvale'; did you mean brickvale"):
        demo.fetch(asked(["brikvale"]), "brikvale", Path("nowhere"), Path("nowhere"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read"),
        ("a: [", "not valid YAML"),
        ("materials: {}\ncities: {}\nmore: 1", "more"),
    ],
)
def test_a_bad_manifest_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "demo.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=sentence) as error:
        params.load_section(Manifest, path, "data/sources/demo.yaml")
    assert "\n" not in str(error.value)


def test_every_material_and_use_of_the_manifest_exists():
    for name in CITIES:
        city = find_city(KNOWN, name)
        assert set(city.uses) <= set(USES)
        roofs = [r.material for r in city.buildings.houses + city.buildings.halls]
        ground = [
            *city.yards,
            city.streets.surface,
            city.plants.grass,
            *filter(None, [city.streets.kerb]),
        ]
        assert set(roofs + ground) <= set(KNOWN.materials)


def test_streets_are_a_second_class_between_the_blocks_of_the_same_picture(fetched, tmp_path):
    folder, before = fetched["brickvale"]
    city = demo.fetch(
        asked(["brickvale"], scenes=[1, 2], streets=True), "brickvale", tmp_path, tmp_path
    )
    image, profile = read(tmp_path, city, 0)
    assert (image == read(folder, before, 0)[0]).all() and city.notes == before.notes
    frame = pyogrio.read_dataframe(tmp_path / "footprints.fgb").to_crs(profile["crs"])
    houses, streets = (frame.geometry[frame["label"] == kind].to_numpy() for kind in (1, 2))
    assert len(houses) == before.notes["footprints"] and len(streets)
    assert shapely.intersection(shapely.union_all(houses), shapely.union_all(streets)).area < 1e-3
    on, off = (
        rasterize(shapes, (128, 128), transform=profile["transform"]) > 0
        for shapes in (streets, houses)
    )
    rest = ~on & ~off & (image > 0).all(-1)
    # asphalt has no colour, grass and tiles have
    grey = image.astype(int).max(-1) - image.astype(int).min(-1)
    assert 0.05 < on.mean() < 0.5 and np.median(grey[on]) < np.median(grey[rest])
