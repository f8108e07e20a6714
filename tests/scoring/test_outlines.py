"""Outlines against footprints: shapes whose distance, turn and corners are known."""

import numpy as np
import pytest
import shapely
from shapely.affinity import rotate, translate

from pipeline.scoring.outlines import METRICS, compare, dominant_direction, pairs, summary

HOUSE = shapely.Polygon([(0, 0), (20, 0), (20, 10), (8, 10), (8, 16), (0, 16)])


def scored(outline: shapely.Polygon, footprint: shapely.Polygon = HOUSE) -> dict[str, float]:
    found = compare(np.array([outline]), np.array([footprint]))
    return {name: total / count for name, (total, count) in found.items()}


def test_a_footprint_against_itself_is_perfect():
    found = scored(HOUSE)
    assert found["iou"] == found["c_iou"] == found["vertex_ratio"] == 1
    assert found["polis"] == found["rotation"] == 0 and found["tangent"] < 1e-4


def test_a_shifted_box_is_as_far_off_as_it_was_shifted():
    found = scored(shapely.box(1, 0, 21, 10), shapely.box(0, 0, 20, 10))
    assert found["iou"] == pytest.approx(190 / 210)
    assert found["polis"] == pytest.approx(0.5)  # two corners of four lie on the other's wall
    assert found["rotation"] == 0 and found["vertex_ratio"] == 1


@pytest.mark.parametrize("degrees", [-8, 3, 12])
def test_a_turned_house_is_turned_by_as_much(degrees):
    found = scored(rotate(HOUSE, degrees, "centroid"))
    assert (
        found["rotation"] == pytest.approx(abs(degrees)) and found["tangent"] >= abs(degrees) - 1e-6
    )
    assert scored(rotate(HOUSE, 90 + degrees, "centroid"), rotate(HOUSE, 90, "centroid"))[
        "rotation"
    ] == pytest.approx(abs(degrees))


def test_stairs_have_the_house_s_area_and_not_its_corners_nor_its_walls():
    steps = [(x, 10 + x % 2) for x in range(21) for x in (x, x + 1)][:-1]
    stairs = shapely.Polygon([(0, 0), (20, 0), *reversed(steps[:40])]).normalize()
    found = scored(stairs, shapely.box(0, 0, 20, 10.5))
    assert found["iou"] > 0.9 and found["vertex_ratio"] > 5 and found["tangent"] > 45
    assert found["c_iou"] < 0.4 * found["iou"]


def test_circles_have_no_direction_and_do_not_count():
    tank = shapely.Point(0, 0).buffer(10)
    assert dominant_direction(np.array([tank]))[1][0] < 0.1
    found = compare(np.array([tank, translate(HOUSE, 50)]), np.array([tank, translate(HOUSE, 50)]))
    assert found["rotation"] == (0, 1) and found["iou"][1] == 2
    # a round outline of a house that has one is not let off
    assert compare(np.array([tank]), np.array([shapely.box(-9, -9, 9, 9)]))["rotation"][1] == 1


def test_pairs_are_one_to_one():
    boxes = np.array([shapely.box(x, 0, x + 10, 10) for x in (0, 10, 30)])
    i, j, iou = pairs(boxes, np.array([shapely.box(4, 0, 15, 10), shapely.box(31, 0, 40, 10)]))
    assert i.tolist() == [2] and j.tolist() == [1] and iou.tolist() == [0.9]


def test_a_summary_has_intervals_of_several_scenes_and_null_of_none():
    turned = [
        compare(np.array([rotate(HOUSE, a, "centroid")]), np.array([HOUSE])) for a in (2, 3, 4, 5)
    ]
    found = summary(turned, 500)
    assert found["pairs"] == 4 and found["rotation"] == pytest.approx(3.5)
    for name in METRICS:
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert (low is None and high is None) or low <= found[name] <= high
    assert found["rotation_low"] > 1 and found["rotation_high"] < 8
    assert summary(turned[:1], 500)["rotation_low"] is None
    nothing = compare(np.array([shapely.box(90, 90, 99, 99)]), np.array([HOUSE]))
    empty = summary([nothing], 500)
    assert empty["pairs"] == 0 and all(empty[name] is None for name in METRICS)
