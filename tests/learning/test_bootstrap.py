import numpy as np
import pytest

from pipeline.learning.bootstrap import interval, iou_interval, iou_of, resample


def scenes(rng, count, quality=0.7, spread=0.5):
    """Intersections and unions of `count` scenes whose IoU scatters around `quality`, the true pooled IoU."""
    difficulty = rng.normal(size=count)
    unions = rng.gamma(8.0, 1000, count)
    share = np.clip(quality + 0.1 * spread * difficulty, 0, 1)
    return share * unions, unions


@pytest.mark.parametrize("count", [2, 3, 5, 6, 12, 40])
def test_interval_covers_the_truth(count):
    rng = np.random.default_rng(1)
    hits = [
        low <= 0.7 <= high
        for trial in range(1500)
        for low, high in [iou_interval(*scenes(rng, count), draws=200, seed=trial)]
    ]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_draws_agree_with_a_loop_over_resampled_scenes():
    rng = np.random.default_rng(3)
    intersections, unions = scenes(rng, 7)
    counts = resample(7, 50, np.random.default_rng(0))
    np.testing.assert_allclose(counts.sum(axis=1), 7)
    for row, value in zip(counts, iou_of(counts, intersections, unions), strict=True):
        drawn = np.repeat(np.arange(7), np.rint(row * 6 / 7).astype(int))
        assert len(drawn) == 6
        assert value == pytest.approx(intersections[drawn].sum() / unions[drawn].sum())


def test_few_scenes_widen_the_interval_and_one_says_nothing():
    draws, limits = np.random.default_rng(4).normal(size=4000), (-100.0, 100.0)
    widths = [np.diff(interval(0.0, draws, units, limits)).item() for units in (2, 3, 10, 1000)]
    assert widths[0] > widths[1] > widths[2] > widths[3]
    assert widths[3] == pytest.approx(2 * 1.96, abs=0.2)
    assert interval(0.0, draws, 1, limits) == interval(0.0, draws * np.nan, 9, limits) == limits
    assert iou_interval(np.array([5]), np.array([10]), 100, 0) == (0.0, 1.0)


def test_a_seed_fixes_the_draws():
    units = scenes(np.random.default_rng(5), 9)
    assert iou_interval(*units, 500, 1) == iou_interval(*units, 500, 1)


def test_the_spread_of_the_draws_is_the_standard_error():
    """Of a mean: s / √n, which draws of n from n would miss by √(n / (n − 1))."""
    rng = np.random.default_rng(6)
    for count in (2, 3, 8):
        values = rng.normal(size=count)
        means = resample(count, 200_000, rng) @ values / count
        assert means.std() == pytest.approx(values.std(ddof=1) / np.sqrt(count), rel=0.01)


def test_scenes_without_a_building_say_nothing():
    units = scenes(np.random.default_rng(7), 5)
    padded = [np.concatenate([counts, np.zeros(20)]) for counts in units]
    assert iou_interval(*padded, 500, 0) == iou_interval(*units, 500, 0)
    assert iou_interval(np.array([80.0, 0, 0]), np.array([100.0, 0, 0]), 500, 0) == (0.0, 1.0)
