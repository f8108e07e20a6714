"""A promise about what a map misses, from few labelled frames: proven at the
confidence asked for, or not made.

Risk control (Bates, Angelopoulos, Lei, Malik and Jordan, JACM 2021; its losses as in Angelopoulos,
Bates, Fisch, Lei and Schuster, Conformal Risk Control, 2022): the lower the threshold, the less is
missed, so thresholds are tried from the lowest up, each tested at the full level, until one fails.
Two losses: what a frame misses of its own buildings, averaged over the frames that have any; or
what the map misses of the city's whole built area.

The test of "more than a share α is missed" is a bet against it. Let gᵢ = sᵢ (missedᵢ − α) / qᵢ, sᵢ
a frame's weight (1 where anything is built there, or its built share) and qᵢ = N πᵢ / n its chance
of being drawn against an even one. If the hypothesis holds, E Π (1 − λ gᵢ) ≤ 1 for every λ that
keeps the factors positive: for frames drawn without replacement from a stratum by Maclaurin's
inequality, for strata of fixed size by that of the means, and for any mixture of λ. By Markov's
inequality the product exceeds 1/δ with chance δ at most. No distribution is assumed, no n is too
small.
"""

from dataclasses import dataclass

import numpy as np

BETS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])  # shares of the largest λ
PRIOR = np.array([*[0.05] * 10, 0.5])  # half is bet on a map that misses nothing
MOST = 1_000_000  # frames


@dataclass(frozen=True)
class Promise:
    """`threshold`: the highest of those tried that is proven, None where none is; `frames`: how
    many would do if more were labelled and looked like these, None where no number would.
    """

    threshold: float | None
    frames: int | None


def log_growth(
    missed: np.ndarray, size: np.ndarray, odds: np.ndarray, most: float, share: float
) -> np.ndarray:
    """(…, bets) log Π (1 − λ gᵢ) for each bet: frames' missed shares (…, n), sizes (…, n) in [0, 1]
    and odds qᵢ (n,).

    most: the greatest 1 / q of any frame of the city, which bounds g.
    """
    g = size * (missed - share) / odds
    return np.log1p(-BETS * g[..., None] * (1 - 1e-9) / (most * (1 - share))).sum(-2)


def log_evidence(growth: np.ndarray, times: float = 1.0) -> np.ndarray:
    """(…,) the logarithm of the mixture of the bets, had the sample been `times` as large."""
    wealth = times * growth + np.log(PRIOR)
    top = wealth.max(-1)
    return top + np.log(np.exp(wealth - top[..., None]).sum(-1))


def promise(
    thresholds: np.ndarray,
    missed: np.ndarray,
    size: np.ndarray,
    inclusion: np.ndarray,
    frames: int,
    share: float,
    confidence: float,
) -> Promise:
    """The highest of `thresholds` (k,), rising, at which no more than `share` is missed, proven
    with `confidence`.

    missed: (k, n) share of each labelled frame's buildings that is missed at each threshold, rising
    along k; inclusion: (n,) the frames' chance of being drawn; frames: all of the city's.
    """
    n = len(inclusion)
    odds = inclusion * frames / n
    most = max(1 / odds.min(), 1.0)
    growth = log_growth(missed, size, odds, most, share)
    proven = np.logical_and.accumulate(log_evidence(growth) >= -np.log1p(-confidence))
    if proven.any():
        return Promise(float(thresholds[proven.sum() - 1]), n)
    return Promise(None, _enough(growth[0], n, confidence))


def _enough(growth: np.ndarray, n: int, confidence: float) -> int | None:
    """How many frames like the n labelled ones would prove it."""
    needed = -np.log1p(-confidence)
    if growth.max() <= 0:
        return None
    low, high = n, MOST
    if log_evidence(growth, high / n) < needed:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if log_evidence(growth, middle / n) >= needed else (middle, high)
    return high
