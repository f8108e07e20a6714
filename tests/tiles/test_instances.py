"""Which building is which: from footprints that touch to instances, and the ground between them."""

import numpy as np
import shapely
from affine import Affine
from scipy import ndimage

from pipeline.imagery.grid import Grid, windows
from pipeline.imagery.rasterize import VectorLabels
from pipeline.labels import IGNORE
from pipeline.tiles.instances import NEAR, contacts, instances, number_apart


def houses(rows: int = 6, columns: int = 8, side: int = 10) -> np.ndarray:
    """A grid of square houses, wall to wall."""
    return np.array(
        [
            shapely.box(x, y, x + side, y + side)
            for y in range(0, rows * side, side)
            for x in range(0, columns * side, side)
        ],
        object,
    )


def test_neighbours_bear_different_numbers_and_few_are_needed():
    polygons = houses()
    numbers = number_apart(polygons, NEAR)
    near = shapely.dwithin(polygons[:, None], polygons[None], NEAR) & ~np.eye(
        len(polygons), dtype=bool
    )
    assert not (near & (numbers[:, None] == numbers[None])).any()
    assert numbers.min() == 1 and numbers.max() <= near.sum(1).max() + 1
    assert not len(number_apart(np.empty(0, object), NEAR))


def test_more_neighbours_than_numbers_is_no_error():
    numbers = number_apart(np.array([shapely.box(0, 0, 1, 1)] * 300, object), 1)
    assert len(np.unique(numbers)) == 254


def test_footprints_that_touch_are_instances_whatever_the_windows():
    polygons, labels = houses(), np.ones(48, np.uint8)
    labels[5] = IGNORE
    reader = VectorLabels(
        polygons, labels, Grid(64, 84, Affine.identity()), 1, numbers=number_apart(polygons, NEAR)
    )
    whole = reader.read_numbered(next(iter(windows(64, 84, 10**6))))
    for window in windows(64, 84, 900):
        for part, layer in zip(reader.read_numbered(window), whole, strict=True):
            assert np.array_equal(part, layer[window.slices])
    label, numbers = whole
    assert ((numbers > 0) == (label == 1)).all()
    found = instances(label, numbers)
    assert found.max() == 47 and np.bincount(found.ravel())[1:].tolist() == [100] * 47
    assert instances(label).max() == 1  # without numbers they are one


def test_without_numbers_instances_are_components():
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, IGNORE], np.uint8), (40, 40))
    expected = ndimage.label((label > 0) & (label != IGNORE))[0]
    for numbers in (None, np.zeros_like(label)):
        assert np.array_equal(instances(label, numbers), expected)


def test_contacts_are_where_two_buildings_are_near():
    """By hand: the two least distances to a building are both within reach."""
    which = np.zeros((40, 60), np.int32)
    which[5:20, 5:20], which[5:20, 20:35], which[5:20, 39:55], which[30:38, 5:20] = 1, 2, 3, 4
    away = np.sort([ndimage.distance_transform_edt(which != k) for k in (1, 2, 3, 4)], axis=0)[1]
    near = contacts(which, 3)
    assert near[away <= 2].all() and not near[away > 3.5].any()
    assert near[10, 18:22].all() and near[10, 37] and not near[10, 10] and not near[25, 10]
    assert not contacts(np.where(which == 1, 1, 0), 3).any() and not contacts(which * 0, 3).any()
