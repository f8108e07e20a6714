from math import cos, pi, radians

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.imagery.grid import (
    LEAST_STRIP,
    SPLITS,
    Grid,
    Window,
    draw_splits,
    ground_sample_distance,
    missing_splits,
    strips,
    target_grid,
    windows,
)

EARTH = 6378137.0  # metres, equatorial radius of WGS84
FLATTENING = 1 / 298.257223563


def mercator(latitude: float, pixel: float = 1.0, size: int = 10) -> Grid:
    """A grid of `pixel` EPSG:3857 units centred on a latitude."""
    y = EARTH * np.log(np.tan(pi / 4 + radians(latitude) / 2))
    corner = Affine.translation(1e6 - size / 2 * pixel, y + size / 2 * pixel)
    return Grid(size, size, corner @ Affine.scale(pixel, -pixel), "EPSG:3857")


def radii(latitude: float) -> tuple[float, float]:
    """Metres a radian eastwards and northwards on WGS84: N cos φ and the meridian radius M."""
    e2 = FLATTENING * (2 - FLATTENING)
    w = np.sqrt(1 - e2 * np.sin(radians(latitude)) ** 2)
    return EARTH / w * cos(radians(latitude)), EARTH * (1 - e2) / w**3


@pytest.mark.parametrize("latitude", [0.0, 27.6, -45.0, 60.0])
def test_mercator_shrinks_with_the_latitude(latitude):
    east, north = radii(latitude)
    stretch = EARTH / cos(radians(latitude))  # EPSG:3857 units a radian, both ways
    along_row, along_column = ground_sample_distance(mercator(latitude))
    assert along_row == pytest.approx(east / cos(radians(latitude)) / stretch, rel=1e-6)
    assert along_column == pytest.approx(north / stretch, rel=1e-6)
    assert along_row == pytest.approx(cos(radians(latitude)), rel=4e-3)  # half at 60°


@pytest.mark.parametrize("latitude", [0.0, 30.0, 60.0])
def test_degrees_become_metres(latitude):
    step = 1e-5
    grid = Grid(8, 8, Affine(step, 0, 10 - 4 * step, 0, -step, latitude + 4 * step), "EPSG:4326")
    east, north = radii(latitude)
    assert ground_sample_distance(grid) == pytest.approx(
        (east * radians(step), north * radians(step)), rel=1e-6
    )
    square = target_grid(grid, ground_sample_distance(grid), 0.1)
    # tiles are square on the ground
    assert square.width / square.height == pytest.approx(east / north, rel=0.03)


def test_feet_and_rotation_and_flips_keep_the_length():
    metres = Affine(0.5, 0, 617100, 0, -0.5, 3344400)
    expected = ground_sample_distance(Grid(100, 100, metres, "EPSG:26914"))
    assert expected == pytest.approx((0.5, 0.5), rel=1e-3)
    for other in (metres @ Affine.rotation(30), metres @ Affine.scale(1, -1)):
        assert ground_sample_distance(Grid(100, 100, other, "EPSG:26914")) == pytest.approx(
            expected, rel=1e-4
        )
    # Texas Central, US survey feet
    feet = Grid(100, 100, Affine(1, 0, 3.1e6, 0, -1, 1.0e7), "EPSG:2277")
    assert ground_sample_distance(feet) == pytest.approx((0.3048, 0.3048), rel=1e-3)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, 4, Affine.identity(), None),
        Grid(4, 4, Affine(1, 0, 1e9, 0, -1, 1e9), "EPSG:32633"),
        Grid(4, 4, Affine(0, 0, 5e5, 0, 0, 5e6), "EPSG:32633"),
    ],
)
def test_no_place_on_the_ground_is_refused(grid):
    with pytest.raises(InputError, match="CRS"):
        ground_sample_distance(grid)


@given(
    st.integers(1, 400), st.integers(1, 400), st.floats(0.05, 3), st.floats(0.1, 1.2), st.booleans()
)
def test_target_grid_keeps_the_outline(height, width, native, gsd, south_up):
    grid = Grid(height, width, Affine(native, 0.1, 500, 0.1, native if south_up else -native, 900))
    target = target_grid(grid, (native, native), gsd)
    assert np.allclose(target.corners(), grid.corners())
    assert (
        target.height == grid.height
        or abs(target.height - max(1, height * native / gsd)) <= 0.5 + 1e-9
    )
    assert (target.shape == grid.shape) or abs(native / gsd - 1) > 0.01 or min(height, width) < 60


def test_a_gsd_within_one_percent_is_kept():
    grid = Grid(5000, 5000, Affine(0.3, 0, 0, 0, -0.3, 0))
    assert target_grid(grid, (0.3012, 0.2997), 0.3) == grid
    assert target_grid(grid, (0.304, 0.304), 0.3).width == round(5000 * 0.304 / 0.3)


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1000, 500_000))
def test_windows_cover_once_within_the_budget(height, width, pixels):
    area, tops = 0, {}
    for w in windows(height, width, pixels):
        assert 0 < w.height * w.width <= pixels
        assert w.top + w.height <= height and w.left + w.width <= width
        area += w.height * w.width
        tops.setdefault((w.top, w.height), []).append((w.left, w.width))
    assert area == height * width
    row = 0
    for (top, rows), columns in tops.items():
        assert top == row
        row += rows
        edges = [0, *np.cumsum([width for _, width in columns]).tolist()]
        assert [left for left, _ in columns] == edges[:-1]


SPLIT = st.sampled_from([None, *SPLITS])


@given(
    st.lists(SPLIT, min_size=1, max_size=40),
    st.floats(0.01, 0.49),
    st.floats(0.01, 0.59),
    st.integers(0, 9),
)
def test_drawn_splits_honour_the_given_and_leave_none_empty(given_splits, validation, test, seed):
    splits = draw_splits(given_splits, validation, test, seed)
    assert splits == draw_splits(given_splits, validation, test, seed)
    assert all(asked in (None, got) for asked, got in zip(given_splits, splits, strict=True))
    if given_splits.count(None) >= len(missing_splits(given_splits)):
        assert None not in splits and (
            len(splits) < 3 or given_splits.count(None) < 3 or set(splits) == set(SPLITS)
        )
    else:
        assert splits == given_splits


def test_inria_keeps_its_test_scenes_and_draws_validation_from_the_rest():
    splits = draw_splits(["test"] * 5 + [None] * 31, 0.15, 0.2, seed=0)
    assert splits[:5] == ["test"] * 5 and splits.count("test") == 5
    assert splits.count("validation") == round(0.15 * 36) and splits.count("train") == 26
    assert splits != draw_splits(["test"] * 5 + [None] * 31, 0.15, 0.2, seed=1)


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 300), st.floats(0.01, 0.49),
    st.floats(0.01, 0.59),
    st.sampled_from([list(SPLITS), ["train", "validation"], ["validation", "test"]]),
)  # fmt: skip
def test_strips_are_disjoint_by_the_margin(height, width, margin, validation, test, splits):
    blocks = strips(
        Grid(height, width, Affine.identity()),
        splits,
        validation,
        test,
        margin,
        (0, max(height, width)),
    )
    if blocks is None:
        assert max(height, width) < len(splits) * LEAST_STRIP * 12 + (len(splits) - 1) * margin
        return
    assert list(blocks) == splits
    owner = np.full(max(height, width), -1)
    for i, window in enumerate(blocks.values()):
        along = window.slices[0 if height >= width else 1]
        across = window.slices[1 if height >= width else 0]
        assert (across.start, across.stop) == (0, min(height, width))
        assert (
            along.start >= 0
            and along.stop <= len(owner)
            and along.stop - along.start >= LEAST_STRIP
        )
        # no other within the margin
        assert (owner[max(0, along.start - margin) : along.stop + margin] == -1).all()
        owner[along] = i
    assert (owner == -1).sum() == margin * (len(splits) - 1)  # and nothing else is dropped


def test_corners_follow_the_pixels():
    grid = Grid(10, 20, Affine(2, 0, 100, 0, -3, 50))
    part = grid.window(Window(4, 5, 2, 3))
    assert part.bounds == (110, 50 - 18, 116, 50 - 12)
    assert np.array_equal(grid.corners([Window(4, 5, 2, 3)]), part.corners())


def test_outlines_are_cut_at_the_antimeridian():
    def town(west):  # a kilometre and a bit across, in Fiji
        return Grid(100, 100, Affine(1e-4, 0, west, 0, -1e-4, -17), "EPSG:4326")

    across, east, other = (town(west).outlines()[0] for west in (179.995, -179.999, 10.0))
    assert across.area == pytest.approx(1e-4) and across.bounds == pytest.approx(
        (-180, -17.01, 180, -17)
    )
    # 179.999° W to 179.995° W
    assert across.intersection(east).area / across.area == pytest.approx(0.4)
    assert not across.intersects(other)
    utm = Grid(100, 100, Affine(10, 0, 817_100, 0, -10, 8_000_000), "EPSG:32760")
    upper = utm.outlines([Window(0, 0, 50, 100)])[0]
    assert utm.outlines()[0].bounds[::2] == (-180, 180) and upper.area == pytest.approx(
        utm.outlines()[0].area / 2, 0.01
    )
