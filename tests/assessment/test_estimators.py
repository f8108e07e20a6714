"""Estimates from a few labelled frames: known answers, and how often 95 %
intervals hold what is true.
"""

import numpy as np
import pytest

from pipeline.assessment.estimators import Design, assess, calibrated, more_to_halve
from pipeline.assessment.population import LEVELS, PROBABILITY
from pipeline.assessment.sampling import allocate, core_set, probability_sample, strata
from pipeline.assessment.simulation import KnownCity, coverage, promises


def city(frames: int = 300, overconfident: float = 1.0, seed: int = 0) -> KnownCity:
    """Frames of 4096 pixels whose probabilities are true; or, raised to a power, far from it."""
    rng = np.random.default_rng(seed)
    built, hard = rng.gamma(0.8, 0.15, frames).clip(0, 0.9), rng.beta(2, 5, frames)
    histogram = np.zeros((frames, LEVELS), int)
    for i in range(frames):
        inside = rng.beta(4 * (1 - hard[i]) + 0.4, 1 + hard[i], int(4096 * built[i]))
        outside = rng.beta(0.2 + hard[i], 8, 4096 - len(inside))
        levels = np.rint(254 * np.concatenate([inside, outside])).astype(int)
        histogram[i] = np.bincount(levels, minlength=LEVELS)
    true = rng.binomial(histogram, PROBABILITY**overconfident)
    return KnownCity(histogram, true, 0.5)


def test_everything_labelled_is_known():
    counts = city().counts
    stratum = strata(counts.sum(1) + 1, 3)
    found = assess(counts, Design.of(stratum, np.arange(len(counts))))["iou"]
    expected = counts[:, 0].sum() / counts.sum()
    np.testing.assert_allclose([found.value, found.low, found.high], expected, rtol=1e-9)


def test_counts_that_follow_the_model_are_known_from_few():
    counts = city().counts
    # wrong in scale, right in kind
    auxiliary = np.stack([counts.sum(1), counts[:, 1:].sum(1)], 1) * 0.7
    some = np.arange(0, 300, 20)
    design = Design.of(np.zeros(300, int), some)
    found = assess(counts[some], design, auxiliary[some], auxiliary.sum(0))["iou"]
    plain = assess(counts[some], design)["iou"]
    expected = counts[:, 0].sum() / counts.sum()
    np.testing.assert_allclose([found.value, found.high - found.low], [expected, 0], atol=0.01)
    assert plain.high - plain.low > 0.05


def test_calibrated_weights_add_up_to_what_is_known():
    rng = np.random.default_rng(0)
    weights, auxiliary = rng.uniform(1, 9, (4, 12)), rng.gamma(1, 1, (4, 12, 2))
    known = np.array([70.0, 55.0])
    found = calibrated(weights, auxiliary, known)
    np.testing.assert_allclose(
        (found[..., None] * auxiliary).sum(1), np.tile(known, (4, 1)), rtol=1e-6
    )


@pytest.mark.parametrize("overconfident", [1.0, 3.0])
@pytest.mark.parametrize("n", [10, 20, 40])
def test_intervals_cover(n, overconfident):
    """Also where the model is bad; 1,000 draws tell .95 within .014, and a small city is no
    normal distribution.
    """
    for unusable in (0, 1):
        found = coverage(city(overconfident=overconfident), n, 1000, unusable=unusable)
        for name in ("iou", "recall", "f1", "built"):
            assert 0.91 <= found[name]["assisted"]["coverage"] <= 0.995, (name, unusable)
        assert found["iou"]["assisted"]["width"] < 0.95 * found["iou"]["plain"]["width"]
        assert found["built"]["assisted"]["width"] < 0.7 * found["built"]["plain"]["width"]


def test_a_promise_is_kept_and_a_false_one_is_not_made():
    for per in ("frame", "area"):
        found = promises(city(), 100, 100, recall=0.8, confidence=0.95, per=per)
        assert found["kept"] >= 0.95
    assert promises(city(), 100, 20, recall=0.8, confidence=0.95, per="frame")["made"] > 0.9
    nothing = KnownCity(
        np.eye(1, LEVELS).repeat(50, 0) * 100, np.eye(1, LEVELS).repeat(50, 0) * 50, 0.5
    )
    assert promises(nothing, 30, 20, recall=0.8, confidence=0.95, per="frame")["made"] == 0


def test_neyman_gives_more_to_what_is_doubtful_and_to_what_is_large():
    stratum, size = np.repeat([0, 1], [100, 100]), np.repeat([1.0, 4.0], [100, 100])
    np.testing.assert_array_equal(allocate(stratum, size, 20), [4, 16])
    np.testing.assert_array_equal(allocate(np.repeat([0, 1], [150, 50]), np.ones(200), 20), [15, 5])
    np.testing.assert_array_equal(
        allocate(np.repeat([0, 1], [3, 97]), np.repeat([50.0, 1], [3, 97]), 10), [3, 7]
    )


def test_a_sample_is_each_strata_share_and_the_chances_add_up():
    size = np.random.default_rng(0).gamma(1, 10, 200) + 1
    found = probability_sample(size, 20, seed=1)
    assert len(set(found.drawn)) == 20 and found.inclusion.sum() == pytest.approx(20)
    assert np.ptp([size[found.stratum == h].sum() for h in range(4)]) < 2 * size.max()
    assert np.bincount(found.stratum[found.drawn], minlength=4).min() >= 2


def test_a_stratum_without_a_label_is_one_with_its_neighbour():
    stratum = np.repeat([0, 1, 2], [10, 10, 10])
    design = Design.of(stratum, np.array([0, 1, 2, 20, 21]))
    assert design.weights.sum() == pytest.approx(30)
    assert design.labelled.min() >= 2
    last = Design.of(stratum, np.array([0, 1, 10, 11, 20]))
    assert last.weights.sum() == pytest.approx(30) and len(last.frames) == 2


def test_three_times_as_many_again_halve_an_interval_of_a_large_city():
    assert more_to_halve(20, 10**9) == 60
    assert more_to_halve(20, 20) == 0
    assert more_to_halve(20, 40) == 12  # the rest of a small one sooner


def test_a_core_set_takes_one_of_each_kind():
    features = np.repeat(np.eye(4) * 10, 25, 0) + np.random.default_rng(0).normal(0, 0.1, (100, 4))
    assert {i // 25 for i in core_set(features, 4, seed=0)} == {0, 1, 2, 3}
