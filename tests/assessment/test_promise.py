"""The promise: a proof that can be computed by hand, and one that is kept."""

import itertools

import numpy as np
import pytest

from pipeline.assessment.promise import BETS, PRIOR, log_evidence, log_growth, promise


def of_flawless(n: int, share: float = 0.1, confidence: float = 0.95):
    """The promise from n frames, evenly drawn from many, whose buildings are
    all found at every threshold.
    """
    missed = np.zeros((3, n))
    return promise(
        np.array([0.1, 0.3, 0.5]),
        missed,
        np.ones(n),
        np.full(n, n / 1e4),
        10_000,
        share,
        confidence,
    )


def test_so_many_flawless_frames_prove_it_and_one_less_does_not():
    # all is bet on the largest λ with half the wealth: ½ (1 / .9)ⁿ alone is worth 20 from n = 36 on
    enough = next(n for n in range(1, 100) if of_flawless(n).threshold is not None)
    assert 29 < enough <= 36
    assert of_flawless(enough).threshold == 0.5
    short = of_flawless(20)
    assert short.threshold is None and short.frames == enough


def test_no_number_of_frames_proves_what_is_false():
    missed = np.full((2, 30), 0.3)
    found = promise(np.array([0.2, 0.5]), missed, np.ones(30), np.full(30, 0.1), 300, 0.1, 0.95)
    assert found.threshold is None and found.frames is None


def test_frames_without_a_building_prove_nothing():
    n = 200
    found = promise(
        np.array([0.5]), np.zeros((1, n)), np.zeros(n), np.full(n, 0.1), 2000, 0.1, 0.95
    )
    assert found.threshold is None and found.frames is None


def test_the_highest_threshold_below_the_first_failure():
    n = 100
    missed = np.stack([np.zeros(n), np.full(n, 0.01), np.full(n, 0.5), np.full(n, 0.6)])
    found = promise(
        np.array([0.1, 0.2, 0.3, 0.4]), missed, np.ones(n), np.full(n, 0.01), 10_000, 0.1, 0.95
    )
    assert found.threshold == 0.2


@pytest.mark.parametrize("chosen", [(2, 1), (1, 3)])
def test_the_bet_is_fair_over_every_stratified_sample_there_is(chosen):
    """All samples of a small city enumerated: where the hypothesis just holds,
    the mean wealth is at most 1.
    """
    rng, share = np.random.default_rng(0), 0.3
    strata = [np.arange(4), np.arange(4, 10)]
    size, missed = rng.random(10), rng.random(10)
    missed *= share * size.sum() / (size @ missed)  # exactly a share of all is missed
    assert size @ missed == pytest.approx(share * size.sum()) and missed.max() < 1
    n = sum(chosen)
    inclusion = np.concatenate(
        [np.full(len(s), c / len(s)) for s, c in zip(strata, chosen, strict=True)]
    )
    odds = inclusion * 10 / n
    wealth = [
        np.exp(log_evidence(log_growth(missed[i], size[i], odds[i], max(1 / odds.min(), 1), share)))
        for parts in itertools.product(
            *(itertools.combinations(s, c) for s, c in zip(strata, chosen, strict=True))
        )
        for i in [np.concatenate(parts)]
    ]
    assert 0.9 < np.mean(wealth) <= 1 + 1e-9


def test_the_prior_is_one():
    assert PRIOR.sum() == pytest.approx(1) and len(PRIOR) == len(BETS)
