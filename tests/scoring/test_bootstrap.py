import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.intervals import (
    SCENES,
    alike,
    built_up_better,
    coverage,
    one_in_eight_fails,
    uneven,
)
from pipeline.scoring.bootstrap import (
    Estimate,
    degrees_of_freedom,
    iou_interval,
    iou_of,
    mean_of,
    resample,
    worst_of,
)


@pytest.mark.parametrize("count", SCENES)
@pytest.mark.parametrize(
    ("city", "least"),
    [(alike, 0.94), (uneven, 0.94), (built_up_better, 0.9), (one_in_eight_fails, 0.9)],
)
def test_intervals_of_cities_cover_the_truth(city, least, count):
    """But for what 300 trials are off by once in a thousand seeds."""
    assert 300 * coverage(city, count, trials=300) >= binom.ppf(0.001, 300, least)


def test_intervals_are_not_wide_for_nothing():
    """Of forty scenes alike, about as wide as a normal mean's would be: 2 · 2.02 · σ /
    √(effective number).
    """
    rng = np.random.default_rng(2)
    widths = [np.diff(iou_interval(*alike(rng, 40), 200, 0)).item() for _ in range(50)]
    assert 0.06 < np.mean(widths) < 0.12


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [9, 1], [5, 2, 2, 1, 1]])
def test_the_degrees_of_freedom_are_those_of_the_quadratic_form(sizes):
    sizes = np.array(sizes, float)
    w = sizes / sizes.sum()
    residuals = np.eye(len(w)) - w
    form = residuals.T * w**2 @ residuals
    assert degrees_of_freedom(sizes) == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))


def test_equal_scenes_have_all_degrees_of_freedom_but_one_and_a_giant_hardly_any():
    assert degrees_of_freedom(np.ones(7)) == pytest.approx(6)
    assert degrees_of_freedom(np.array([100.0, *np.ones(6)])) < 1.3


def test_a_mean_knows_as_little_as_its_worst_known_part():
    known, vague = Estimate(0.6, 0.01, 40, 0.6), Estimate(0.5, 0.1, 1, 0.5)
    together, alone = mean_of([known, vague]), mean_of([known, known])
    assert together.value == pytest.approx(0.55) and together.error == pytest.approx(
        np.hypot(0.01, 0.1) / 2
    )
    assert together.freedom < 1.1 and alone.freedom == pytest.approx(80)
    assert mean_of([known, Estimate(0.5, np.nan, 0, 0.5)]).shown() == (None, None)


def test_an_interval_stays_within_its_limits_and_does_not_know_what_lies_at_an_end():
    low, high = Estimate(0.97, 0.05, 3, 0.97).interval()
    assert 0 < low < 0.97 < high < 1
    low, high = Estimate(-0.1, 0.3, 3, -0.1, (-1.0, 1.0)).interval()
    assert -1 < low < -0.1 < high < 1
    assert Estimate(0.0, 0.0, 5, 0.0).interval() == (0.0, 1.0) and Estimate(
        1.0, 0.0, 5, 1.0
    ).shown() == (None, None)


def test_the_worst_of_equal_cities_covers_the_truth_that_a_chosen_minimum_misses():
    rng, simultaneous, chosen = np.random.default_rng(3), [], []
    for _ in range(300):
        parts = [Estimate(v, 0.02, 30, v) for v in 0.6 + 0.02 * rng.normal(size=10)]
        for found, (low, high) in (
            (simultaneous, worst_of(parts)),
            (chosen, min(parts, key=lambda part: part.value).interval()),
        ):
            found.append(low <= 0.6 <= high)
    assert np.mean(simultaneous) > 0.92 and np.mean(chosen) < 0.85


def test_draws_agree_with_a_loop_over_resampled_scenes():
    rng = np.random.default_rng(3)
    intersections, unions = alike(rng, 7)
    counts = resample(7, 50, np.random.default_rng(0))
    np.testing.assert_allclose(counts.sum(axis=1), 7)
    for row, value in zip(counts, iou_of(counts, intersections, unions), strict=True):
        drawn = np.repeat(np.arange(7), np.rint(row * 6 / 7).astype(int))
        assert len(drawn) == 6
        assert value == pytest.approx(intersections[drawn].sum() / unions[drawn].sum())


def test_few_scenes_widen_the_interval_and_one_says_nothing():
    widths = [
        np.diff(Estimate(0.5, 0.01, freedom, 0.5).interval()).item() for freedom in (1, 2, 9, 1000)
    ]
    assert widths[0] > widths[1] > widths[2] > widths[3] == pytest.approx(2 * 1.96 * 0.01, rel=0.01)
    assert iou_interval(np.array([5]), np.array([10]), 100, 0) == (0.0, 1.0)
    assert iou_interval(np.zeros(3), np.zeros(3), 100, 0) == (0.0, 1.0)


def test_a_seed_fixes_the_draws():
    units = alike(np.random.default_rng(5), 9)
    assert iou_interval(*units, 500, 1) == iou_interval(*units, 500, 1)


def test_the_spread_of_the_draws_is_the_standard_error():
    """Of a mean: s / √n, which draws of n from n would miss by √(n / (n − 1))."""
    rng = np.random.default_rng(6)
    for count in (2, 3, 8):
        values = rng.normal(size=count)
        means = resample(count, 200_000, rng) @ values / count
        assert means.std() == pytest.approx(values.std(ddof=1) / np.sqrt(count), rel=0.01)


def test_scenes_without_a_building_say_nothing():
    units = alike(np.random.default_rng(7), 5)
    padded = [np.concatenate([counts, np.zeros(20)]) for counts in units]
    assert iou_interval(*padded, 500, 0) == iou_interval(*units, 500, 0)
    assert iou_interval(np.array([80.0, 0, 0]), np.array([100.0, 0, 0]), 500, 0) == (0.0, 1.0)
