"""Regular outlines: known houses come back from their rasters, and whatever a mask holds,
outlines are sound.
"""

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize
from scipy import ndimage

from pipeline.mapping.polygons import Polygoniser
from pipeline.mapping.regular import Outlines, overlap, regularise

PIXEL = (0.5, 0.25)  # metres: an image in degrees has oblong pixels


def outlines_of(mask: np.ndarray, step: int, style: str = "regular", pixel=(0.5, 0.5)):
    """Outlines, which are regular, and the raw ones, of a mask pushed in bands of `step` rows;
    sorted by the raw.
    """
    polygoniser, outlines, found = (
        Polygoniser(mask.shape[1]),
        Outlines(style, mask.shape, pixel),
        [],
    )
    for top in [*range(0, len(mask), step), None]:
        band = mask[top : top + step] if top is not None else None
        raw = (polygoniser.finish() if band is None else polygoniser.add(band, band)).geometry
        found.append((*outlines.add(raw, polygoniser.row, polygoniser.opened), raw))
    shapes, regular, raw = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(shapely.to_wkb(raw))
    return shapes[order], regular[order], raw[order]


def drawn(house: shapely.Polygon, side: int = 220) -> np.ndarray:
    """The raw outline (1,) of a house's raster."""
    mask = rasterize([house], (side, side)).astype(np.uint8)
    return outlines_of(mask, side, "raw")[0]


def turns(polygon: shapely.Polygon) -> np.ndarray:
    """Degrees, from 0 to 90, between each wall and the next."""
    angles = []
    for ring in (polygon.exterior, *polygon.interiors):
        edges = np.diff(shapely.get_coordinates(ring), axis=0)
        direction = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
        apart = (np.roll(direction, -1) - direction) % 180
        angles.append(np.minimum(apart, 180 - apart))
    return np.concatenate(angles)


HOUSE = shapely.Polygon(
    [(60, 60), (160, 60), (160, 110), (110, 110), (110, 160), (60, 160)],
    [[(72, 72), (98, 72), (98, 98), (72, 98)]],
)


@pytest.mark.parametrize("angle", [0, 17, 45, 80])
def test_an_l_with_a_yard_comes_back_in_right_angles(angle):
    house = shapely.affinity.rotate(HOUSE, angle, "centroid")
    # pixels are half as high as wide
    raw = drawn(shapely.transform(house, lambda xy: xy * [1, 2]), 420)
    (outline,), (regular,) = regularise(raw, PIXEL)
    metres = shapely.transform(outline, lambda xy: xy * PIXEL)
    assert regular and np.abs(turns(metres) - 90).max() < 1e-3
    assert (
        len(metres.exterior.coords) == 7
        and len(metres.interiors) == 1
        and len(metres.interiors[0].coords) == 5
    )
    assert (
        overlap(np.array([metres]), np.array([shapely.transform(house, lambda xy: xy * 0.5)]))[0]
        > 0.94
    )


def test_a_chamfered_wall_stays_at_45_degrees():
    house = shapely.Polygon([(40, 40), (180, 40), (180, 100), (120, 160), (40, 160)])
    house = shapely.affinity.rotate(house, 20, "centroid")
    (outline,), (regular,) = regularise(drawn(house), (0.5, 0.5))
    assert regular and len(outline.exterior.coords) == 6
    assert sorted(np.rint(turns(outline) / 45).astype(int).tolist()) == [1, 1, 2, 2, 2]
    assert outline.intersection(house).area / outline.union(house).area > 0.97


def test_a_tank_is_a_circle_and_a_block_of_its_size_is_not():
    tank = shapely.Point(100, 100).buffer(40)
    (circle,), (regular,) = regularise(drawn(tank), (0.5, 0.5))
    radii = np.hypot(*(shapely.get_coordinates(circle) - [100, 100]).T)
    assert (
        regular
        and len(radii) == 25
        and np.ptp(radii) < 0.1
        and abs(circle.area / tank.area - 1) < 0.01
    )
    (block,), _ = regularise(drawn(shapely.box(60, 60, 140, 140)), (0.5, 0.5))
    assert len(block.exterior.coords) == 5


def test_what_straight_walls_would_spoil_stays_and_says_so():
    bow = shapely.Point(110, 110).buffer(90).difference(shapely.Point(110, 110).buffer(80))
    bow = bow.intersection(shapely.box(110, 0, 220, 220))  # a crescent
    raw = drawn(bow)
    (outline,), (regular,) = regularise(raw, (0.5, 0.5))
    assert not regular and overlap(np.array([outline]), raw)[0] > 0.8


def town(seed: int, side: int = 150) -> np.ndarray:
    """Houses at any angle, many of which touch or lie a pixel apart, some with
    yards, some cut by the border.
    """
    rng, mask = np.random.default_rng(seed), np.zeros((side, side), np.uint8)
    for _ in range(40):
        middle, size, angle = rng.uniform(0, side, 2), rng.uniform(6, 24, 2), rng.uniform(0, 90)
        house = shapely.affinity.rotate(shapely.box(*(middle - size), *(middle + size) / 1), angle)
        new = rasterize([house], mask.shape).astype(bool)
        around = ndimage.binary_dilation(mask > 0, iterations=rng.integers(1, 3))
        mask[new & ~around] = rng.integers(1, 3)
        if rng.random() < 0.3:
            mask[int(middle[1]) % side :, int(middle[0]) % side][:6] = 0
    mask[rng.random(mask.shape) < 0.002] = 0
    return mask


def test_a_sliver_without_a_wall_keeps_its_outline():
    """None of its edges is as long as a wall; alone in its band there was nothing to regularise."""
    sliver = shapely.Polygon(
        [(107, 120), (107, 126), (108, 126), (108, 124), (109, 124), (109, 122), (110, 122),
         (110, 120), (111, 120), (111, 117), (112, 117), (112, 115), (113, 115), (113, 113),
         (112, 113), (112, 114), (111, 114), (111, 115), (110, 115), (110, 116), (109, 116),
         (109, 117), (108, 117), (108, 120)]
    )  # fmt: skip
    (outline,), (regular,) = regularise(np.array([sliver]), (0.5, 0.5))
    assert outline.is_valid and not regular
    assert sliver.symmetric_difference(outline).area < 0.5 * sliver.area


@pytest.mark.parametrize("style", ["regular", "simplified"])
@pytest.mark.parametrize("seed", range(3))
def test_outlines_are_valid_inside_apart_and_do_not_depend_on_the_bands(seed, style):
    mask = town(seed)
    shapes, regular, raw = outlines_of(mask, len(mask), style)
    assert regular.any() == (style == "regular") and len(shapes) > 20
    shapes = shapes[~shapely.is_empty(shapes)]
    assert len(shapes) >= len(raw) - 1
    assert (
        shapely.is_valid(shapes).all()
        and (shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON).all()
    )
    assert shapely.covers(shapely.box(0, 0, 150, 150), shapes).all()
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    assert shared[one != other].max(initial=0) < 1e-3
    for step in (1, 7, 40):
        banded = outlines_of(mask, step, style)
        assert (
            shapely.to_wkb(banded[0]).tolist()
            == shapely.to_wkb(outlines_of(mask, 150, style)[0]).tolist()
        )
        np.testing.assert_array_equal(banded[1], regular)


def test_what_two_claim_stays_with_the_one_that_ends_first():
    upper, lower = shapely.box(10, 10, 50, 30.6), shapely.box(10, 30, 50, 60)
    outlines = Outlines("simplified", (100, 100), (1.0, 1.0))
    (first,), _ = outlines.add(np.array([upper]), 31, np.array([shapely.bounds(lower)]))
    (second,), _ = outlines.add(np.array([lower]), 61, np.empty((0, 4)))
    assert first.equals(upper) or abs(first.area - upper.area) < 1e-3
    assert abs(second.area - 40 * 29.4) < 0.01 and first.intersection(second).area < 1e-6
    # the upper one lies beyond the reach of what is still to come
    assert len(outlines.earlier) == 1


def test_raw_outlines_are_those_of_the_raster():
    shapes, regular, raw = outlines_of(town(0), 20, "raw")
    assert shapes.tolist() == raw.tolist() and not regular.any()
