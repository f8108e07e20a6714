import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid, windows
from pipeline.imagery.rasterize import VectorLabels, rasterize

GRID = Grid(40, 50, Affine(0.5, 0, 1000, 0, -0.5, 2000), "EPSG:32633")


def polygons(*shapes):
    return np.array(shapes, object)


def ground(transform, *rings):
    """A polygon given in pixels (column, row), placed by `transform`; rings
    after the first are holes.
    """
    placed = [[transform @ point for point in ring] for ring in rings]
    return shapely.Polygon(placed[0], placed[1:])


def square(left, top, side):
    return [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]


TRANSFORMS = {
    "north-up": GRID.transform,
    "south-up": Affine(0.5, 0, 1000, 0, 0.5, 1980),
    "rotated": GRID.transform @ Affine.rotation(33),
    "sheared": Affine(0.5, 0.1, 1000, 0.2, -0.4, 2000),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_square_has_its_exact_area_and_place(transform):
    grid = Grid(40, 50, transform, None)
    shape = ground(transform, square(7.25, 5.25, 20), square(12.25, 9.25, 6))
    drawn = rasterize(polygons(shape), np.array([1], np.uint8), grid)
    expected = np.zeros((40, 50), np.uint8)
    expected[5:25, 7:27] = 1
    expected[9:15, 12:18] = 0  # the hole
    assert np.array_equal(drawn, expected)


def test_footprints_from_outside_and_nothing_at_all():
    shape = ground(GRID.transform, square(-10.0, -10.0, 15))
    drawn = rasterize(polygons(shape), np.array([1], np.uint8), GRID)
    assert drawn.sum() == 25 and drawn[:5, :5].all()
    assert not rasterize(polygons(), np.zeros(0, np.uint8), GRID).any()


def test_classes_win_over_ignore_in_any_order():
    shapes = polygons(*(ground(GRID.transform, square(i, i, 10)) for i in (0, 5, 8)))
    labels = np.array([1, 255, 2], np.uint8)
    drawn = rasterize(shapes, labels, GRID)
    assert (drawn[9, 9], drawn[7, 7], drawn[12, 7], drawn[12, 12]) == (2, 1, 255, 2)
    assert np.array_equal(rasterize(shapes[::-1], labels[::-1], GRID), drawn)


def test_all_touched_adds_the_rim():
    shape = polygons(ground(GRID.transform, square(10.7, 10.7, 4.6)))
    assert rasterize(shape, np.array([1], np.uint8), GRID).sum() == 16  # centres 11.5 to 14.5
    assert rasterize(shape, np.array([1], np.uint8), GRID, all_touched=True).sum() == 36


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(30, 900), st.sampled_from(sorted(TRANSFORMS)))
def test_windows_equal_the_whole(seed, pixels, kind):
    grid = Grid(40, 50, TRANSFORMS[kind], None)
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-5, 55, (12, 2))
    rings = centres[:, None] + rng.normal(0, 8, (12, 3, 2))
    shapes = polygons(*(ground(grid.transform, ring) for ring in rings))
    labels = rng.choice(np.array([1, 2, 255], np.uint8), 12)
    whole = rasterize(shapes, labels, grid)
    reader = VectorLabels(shapes, labels, grid, classes=2)
    for window in windows(*grid.shape, pixels):
        assert np.array_equal(reader.read(window), whole[window.slices])


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(InputError, match="label 3"):
        VectorLabels(
            polygons(ground(GRID.transform, square(0, 0, 3))),
            np.array([3], np.uint8),
            GRID,
            classes=2,
        )
