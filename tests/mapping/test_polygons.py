import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import Geod
from rasterio.features import rasterize, shapes
from scipy import ndimage

from pipeline.imagery.grid import Grid, Window
from pipeline.labels import IGNORE
from pipeline.mapping.polygons import (
    Buildings,
    Polygoniser,
    identifiers,
    longitude_latitude,
    pixel_areas,
)


def polygons_of(mask: np.ndarray, confidence: np.ndarray, step: int, least: int = 1) -> Buildings:
    """Pushed in bands of `step` rows, sorted."""
    polygoniser = Polygoniser(mask.shape[1], least)
    bands = range(0, len(mask), step)
    parts = [polygoniser.add(mask[i : i + step], confidence[i : i + step]) for i in bands] + [
        polygoniser.finish()
    ]
    whole = Buildings(*(np.concatenate([getattr(p, key) for p in parts]) for key in vars(parts[0])))
    return whole.where(np.argsort(shapely.to_wkb(whole.geometry)))


def random_mask(seed: int, least: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Speckle at the percolation threshold: long, branching components with
    holes and diagonal touches.
    """
    rng = np.random.default_rng(seed)
    shape = rng.integers(least, 60, 2)
    mask = (rng.random(shape) < rng.uniform(0.3, 0.7)) * rng.integers(1, 3, shape)
    mask[rng.random(shape) < 0.05] = IGNORE
    return mask.astype(np.uint8), rng.random(shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_the_components_and_do_not_depend_on_the_bands(seed):
    mask, confidence = random_mask(seed)
    whole = polygons_of(mask, confidence, len(mask))
    components = [ndimage.label(mask == k) for k in (1, 2)]
    assert len(whole) == sum(count for _, count in components)
    assert shapely.is_valid(whole.geometry).all()
    np.testing.assert_array_equal(shapely.area(whole.geometry), whole.pixels)
    drawn = rasterize(zip(whole.geometry, whole.label.tolist(), strict=True), mask.shape)
    np.testing.assert_array_equal(drawn, np.where(mask == IGNORE, 0, mask))
    means = [ndimage.mean(confidence, labels, range(1, count + 1)) for labels, count in components]
    np.testing.assert_allclose(np.sort(whole.confidence), np.sort(np.concatenate(means)), rtol=1e-5)
    for step in (1, 2, 7):
        banded = polygons_of(mask, confidence, step)
        assert shapely.to_wkb(banded.geometry).tolist() == shapely.to_wkb(whole.geometry).tolist()
        np.testing.assert_array_equal(banded.label, whole.label)
        np.testing.assert_allclose(banded.confidence, whole.confidence, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", [1, 7, 60])
def test_specks_are_left_out_and_nothing_else_changes(seed, step):
    mask, confidence = random_mask(seed, least=40)
    every, without = polygons_of(mask, confidence, 60), polygons_of(mask, confidence, step, least=5)
    expected = every.where(every.pixels >= 5)
    assert 0 < len(expected) < len(every)
    assert shapely.to_wkb(without.geometry).tolist() == shapely.to_wkb(expected.geometry).tolist()
    np.testing.assert_array_equal(without.label, expected.label)
    np.testing.assert_allclose(without.confidence, expected.confidence, rtol=1e-5)


def test_polygons_equal_those_of_gdal_on_the_whole_mask():
    mask, confidence = random_mask(3)
    mask[mask == 2] = 0
    expected = [shapely.geometry.shape(s) for s, _ in shapes(mask, mask=mask == 1, connectivity=4)]
    expected = np.sort(shapely.to_wkb(shapely.normalize(expected)))
    assert shapely.to_wkb(polygons_of(mask, confidence, 3).geometry).tolist() == expected.tolist()


def test_a_ring_across_many_seams_keeps_its_hole_and_its_yard_building():
    mask = np.zeros((60, 40), np.uint8)
    mask[5:55, 5:35] = 1
    mask[15:45, 12:28] = 0
    mask[20:30, 15:20] = 1
    ring, inner = sorted(polygons_of(mask, mask, 4).geometry, key=shapely.area, reverse=True)
    assert len(ring.interiors) == 1 and ring.area == 50 * 30 - 30 * 16
    # two closed rectangles: no vertex left by a seam
    assert len(shapely.get_coordinates(ring)) == 10
    assert inner.area == 50 and not inner.interiors


def test_open_components_are_all_that_is_kept():
    mask = np.zeros((400, 50), np.uint8)
    mask[::2, ::2] = 1  # no building is taller than a row
    polygoniser = Polygoniser(50)
    for top in range(0, 400, 10):
        polygoniser.add(mask[top : top + 10], mask[top : top + 10])
        assert len(polygoniser.open) == 0
    mask[:, 0] = 1
    polygoniser = Polygoniser(50)
    polygoniser.add(mask, mask)
    assert len(polygoniser.open) == 1 and polygoniser.open[0].pixels == 400


GRIDS = {  # half a metre on the ground at 60° of latitude or thereabouts
    "web mercator": Grid(1000, 1000, Affine(1, 0, 1e6, 0, -1, 8399737.9), "EPSG:3857"),
    "degrees": Grid(1000, 1000, Affine(9e-6, 0, 10, 0, -4.5e-6, 60), "EPSG:4326"),
    "utm": Grid(1000, 1000, Affine(0.5, 0, 5e5, 0, -0.5, 6.65e6), "EPSG:32632"),
    "feet": Grid(1000, 1000, Affine(1.64, 0, 9e5, 0, -1.64, 9e5), "EPSG:2263"),
    "rotated": Grid(1000, 1000, Affine(0.4, 0.3, 5e5, 0.3, -0.4, 6.65e6), "EPSG:32632"),
    "south up": Grid(1000, 1000, Affine(9e-6, 0, 10, 0, 4.5e-6, 60), "EPSG:4326"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_areas_are_those_on_the_ellipsoid(name):
    grid = GRIDS[name]
    for corner in (0, 900):
        house = shapely.box(corner, corner, corner + 30, corner + 20)
        longitude, latitude = longitude_latitude(grid, shapely.get_coordinates(house))
        on_ground = abs(Geod(ellps="WGS84").polygon_area_perimeter(longitude, latitude)[0])
        centre = shapely.get_coordinates(house.centroid)
        assert house.area * pixel_areas(grid, centre, (0, 0))[0] == pytest.approx(
            on_ground, rel=1e-6
        )


def test_without_a_crs_a_pixel_has_its_stated_size():
    grid = Grid(10, 10, Affine.identity(), None)
    assert pixel_areas(grid, np.zeros((2, 2)), (0.5, 0.25)).tolist() == [0.125, 0.125]


def test_identifiers_are_unique_and_of_the_place():
    mask, confidence = random_mask(1)
    grid = GRIDS["utm"]
    ids = identifiers(polygons_of(mask, confidence, 7), grid, "scene")
    assert len(set(ids)) == len(ids) and all(len(i) == 12 for i in ids)
    # another scene of the same ground
    around = [np.pad(array, ((10, 0), (20, 0))) for array in (mask, confidence)]
    wider = grid.window(Window(-10, -20, 200, 200))
    assert set(identifiers(polygons_of(*around, 100), wider, "another")) == set(ids)
    elsewhere = grid.window(Window(500, 500, 100, 100))
    assert not set(ids) & set(identifiers(polygons_of(mask, confidence, 7), elsewhere, "scene"))
