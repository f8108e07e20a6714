"""A shift planted between footprints and image is found again; between
unrelated ones none is believed.
"""

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from scipy import ndimage

from pipeline.imagery.grid import Grid, ground_sample_distance
from pipeline.imagery.rasterize import rasterize
from pipeline.imagery.vector import Footprints, read_footprints
from pipeline.sources.open_buildings.alignment import GSD, STRONG, estimate_shift, translation


def houses(count=40, side=300, seed=0):
    """Turned rectangles (N,), in pixels with the row pointing down, as x, y."""
    random = np.random.default_rng(seed)
    boxes = [shapely.box(-w, -h, w, h) for w, h in random.uniform(4, 10, (count, 2))]
    turned = [
        shapely.affinity.rotate(box, angle)
        for box, angle in zip(boxes, random.uniform(0, 90, count), strict=True)
    ]
    places = random.uniform(15, side - 15, (count, 2))
    return np.array(
        [shapely.affinity.translate(b, *xy) for b, xy in zip(turned, places, strict=True)], object
    )


def picture(polygons, side=300, seed=1):
    """Roofs both brighter and darker than textured ground, (side, side) float32."""
    random = np.random.default_rng(seed)
    image = (
        ndimage.gaussian_filter(random.normal(0, 1, (side, side)), 3).astype(np.float32) * 150 + 120
    )
    for i, polygon in enumerate(polygons):
        roof = (
            rasterize(
                np.array([polygon]), np.ones(1, np.uint8), Grid(side, side, Affine.identity())
            )
            > 0
        )
        image[roof] = 60 if i % 2 else 190
    return image + random.normal(0, 8, image.shape).astype(np.float32)


@pytest.mark.parametrize("planted", [(0, 0), (7, -12), (-20, 20), (3.5, 0.25)])
def test_planted_translation_is_found_to_a_fraction_of_a_pixel(planted):
    polygons = houses()
    away = shapely.transform(polygons, lambda xy: xy - planted[::-1])  # rows are y
    mask = rasterize(away, np.ones(len(away), np.uint8), Grid(300, 300, Affine.identity())) > 0
    rows, columns, strength = translation(picture(polygons), np.ones((300, 300), bool), mask, 20)
    assert (rows, columns) == pytest.approx(planted, abs=0.5)
    assert strength > STRONG


def test_unrelated_footprints_are_not_believed():
    image, valid = picture(houses()), np.ones((300, 300), bool)
    for seed in range(1, 6):
        mask = (
            rasterize(houses(seed=seed), np.ones(40, np.uint8), Grid(300, 300, Affine.identity()))
            > 0
        )
        assert translation(image, valid, mask, 20)[2] < STRONG


def test_nodata_has_no_edges():
    polygons = houses()
    image, valid = picture(polygons), np.ones((300, 300), bool)
    valid[:, 150:] = False
    image[~valid] = 0
    mask = (
        rasterize(polygons, np.ones(len(polygons), np.uint8), Grid(300, 300, Affine.identity())) > 0
    )
    wall = np.zeros_like(mask)
    wall[50:250, 145:] = True  # its edge lies five pixels before the border of nodata
    rows, columns, strength = translation(image, valid, mask | wall, 20)
    assert (rows, columns) == pytest.approx((0, 0), abs=0.5)


@pytest.mark.parametrize("crs", ["EPSG:32636", "EPSG:3857", "EPSG:4326"])
def test_metres_east_and_north_in_any_crs(tmp_path, crs):
    """A pixel of EPSG:3857 at 60° north is half a metre of ground, of EPSG:4326
    half as wide as high.
    """
    step = 1e-5 if crs == "EPSG:4326" else 1.0
    corners = {
        "EPSG:32636": (500_000, 6_651_000),
        "EPSG:3857": (3_673_000, 8_399_000),
        "EPSG:4326": (33, 60),
    }
    corner = corners[crs]
    transform = Affine(step, 0, corner[0], 0, -step, corner[1])
    polygons = houses()
    path = tmp_path / "scene.tif"
    profile = {
        "count": 1,
        "height": 300,
        "width": 300,
        "dtype": "uint8",
        "crs": crs,
        "transform": transform,
    }
    with rasterio.open(path, "w", driver="GTiff", **profile) as dataset:
        dataset.write(picture(polygons).clip(0, 255).astype(np.uint8), 1)
    away = shapely.transform(polygons, lambda xy: np.stack(transform @ (xy + [-4, -6]).T, axis=1))
    shift = estimate_shift(str(path), Footprints(away, np.ones(len(away), np.uint8)))
    along_row, along_column = ground_sample_distance(Grid(300, 300, transform, crs))
    east, north = 4 * along_row, -6 * along_column  # six rows down are south
    if crs == "EPSG:32636":  # on its central meridian, where the grid's north is north
        assert (east, north) == pytest.approx((4, -6), rel=1e-3)
    assert (shift.east, shift.north) == pytest.approx((east, north), abs=max(GSD, along_row))
    assert shift.strength > STRONG


def test_no_footprint_in_view_gives_no_shift(tmp_path):
    path = tmp_path / "scene.tif"
    profile = {"count": 1, "height": 99, "width": 99, "dtype": "uint8", "crs": "EPSG:32636"}
    with rasterio.open(
        path, "w", driver="GTiff", transform=Affine(1, 0, 5e5, 0, -1, 0), **profile
    ) as dataset:
        dataset.write(np.random.default_rng(0).integers(0, 255, (1, 99, 99), dtype=np.uint8))
    assert (
        estimate_shift(str(path), Footprints(np.array([], object), np.array([], np.uint8))) is None
    )


def test_real_footprints_lie_where_they_are_drawn(shared_cities):
    image = shared_cities / "zanzibar/images/zanzibar_1.tif"
    with rasterio.open(image) as dataset:
        crs, bounds = dataset.crs, tuple(dataset.bounds)
    found = read_footprints(shared_cities / "zanzibar/buildings.geojson", crs, bounds)
    true = estimate_shift(str(image), found)
    assert true.strength > STRONG and true.metres < 1
    moved = shapely.transform(found.polygons, lambda xy: xy + [3, -5])  # EPSG:3857 near the equator
    off = estimate_shift(str(image), Footprints(moved, found.labels))
    assert (off.east - true.east, off.north - true.north) == pytest.approx((-3, 5), abs=GSD)
