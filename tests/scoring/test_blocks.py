"""What a single scene can say of more ground like it."""

import numpy as np
import pytest

from benchmarks.intervals import coverage_of_blocks, scene
from pipeline.scoring import blocks
from pipeline.scoring.blocks import CELL, FEW, correlated_over
from pipeline.scoring.bootstrap import iou_interval


def test_the_range_is_how_far_errors_are_alike():
    rng = np.random.default_rng(0)
    ranges = [
        np.median([correlated_over([scene(rng, 64, s)]) for _ in range(5)])
        for s in (0, 64, 128, 256)
    ]
    assert ranges[0] == CELL and ranges == sorted(ranges)
    # A Gaussian blur of σ leaves a correlation exp(−h²/4σ²), which is under 5 % from 3.5 σ on.
    assert ranges[2:] == pytest.approx([3.5 * 128, 3.5 * 256], rel=0.3)


@pytest.mark.parametrize("correlated", [0, 64, 128])
def test_blocks_of_correlated_errors_cover_the_truth(correlated):
    hit, share = coverage_of_blocks(64, correlated, trials=120)
    assert hit >= 0.9 and share > 0.7


def test_a_scene_a_few_ranges_wide_is_not_believed():
    assert coverage_of_blocks(32, 256, trials=60) == (None, 0)


def test_blocks_are_as_long_as_asked_or_as_errors_are_alike():
    rng = np.random.default_rng(1)
    even, patchy = scene(rng, 64, 0), scene(rng, 64, 160)
    assert len(blocks.blocks([even], 256).union) == (64 * CELL / 256) ** 2
    assert len(blocks.blocks([patchy], 256).union) < len(blocks.blocks([even], 256).union)
    assert (
        blocks.blocks([even], 256, reach=512).held < blocks.blocks([even], 512, reach=64).held < 1
    )


def test_a_scene_of_few_blocks_is_one_unit_and_has_no_interval():
    cells = scene(np.random.default_rng(2), 12, 0)
    found = blocks.blocks([cells], 256)
    assert 12 * CELL < FEW * 256 and found.union.tolist() == [cells[1].sum()]
    assert iou_interval(found.intersection, found.union, 100, 0) == (0.0, 1.0)


def test_several_scenes_are_the_units_whatever_their_regions():
    a, b = np.ones((2, 3, 2, 2), int)
    found = blocks.units({"a": [a, a], "b": [b]}, 256)
    assert found.union.tolist() == [8, 4] and not found.blocks


def test_ground_without_data_is_no_block():
    cells = scene(np.random.default_rng(3), 64, 0)
    cells[:, :, 32:] = 0
    assert len(blocks.blocks([cells], 256).union) == 8 * 16


def test_a_perfect_map_and_an_empty_one_have_no_range():
    cells = scene(np.random.default_rng(4), 8, 0)
    cells[0] = cells[1]
    assert correlated_over([cells]) == correlated_over([np.zeros_like(cells)]) == CELL
