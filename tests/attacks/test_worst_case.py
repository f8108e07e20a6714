import itertools

import numpy as np
import pytest

from pipeline.attacks.worst_case import pooled_iou, worst_case


@pytest.mark.parametrize("seed", range(200))
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    attacks, tiles = rng.integers(1, 5), rng.integers(1, 6)
    truth = rng.integers(0, 500, tiles) * (rng.random(tiles) > 0.2)
    truth[0] += not truth.any()
    unions = truth + rng.integers(0, 500, (attacks, tiles)) * (rng.random((attacks, tiles)) > 0.1)
    intersections = rng.integers(0, truth + 1, (attacks, tiles))
    iou, choice = worst_case(intersections, unions)
    every = itertools.product(range(attacks), repeat=int(tiles))
    index = np.arange(tiles)
    brute = min(pooled_iou(intersections[list(c), index], unions[list(c), index]) for c in every)
    assert abs(iou - brute) < 1e-12
    assert abs(pooled_iou(intersections[choice, index], unions[choice, index]) - iou) < 1e-12
    single = [pooled_iou(i, u) for i, u in zip(intersections, unions, strict=True)]
    assert iou <= min(single) + 1e-12


def test_choosing_each_tile_alone_is_not_the_answer():
    """The tile's own IoU prefers 1/3 to 10/20; the pool does not: its union is
    what dilutes the first tile.
    """
    intersections, unions = np.array([[50, 1], [50, 10]]), np.array([[100, 3], [100, 60]])
    iou, choice = worst_case(intersections, unions)
    assert choice[1] == 1 and iou == 60 / 160


def test_more_candidates_never_help_the_model():
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 100, (6, 10))
    intersections = rng.integers(0, unions + 1)
    ious = [worst_case(intersections[:n], unions[:n])[0] for n in range(1, 7)]
    assert all(b <= a for a, b in itertools.pairwise(ious))


def test_an_empty_map_of_an_empty_place_is_neither_right_nor_wrong():
    assert worst_case(np.zeros((2, 3)), np.zeros((2, 3)))[0] is None
    assert pooled_iou(np.zeros(3), np.zeros(3)) is None
