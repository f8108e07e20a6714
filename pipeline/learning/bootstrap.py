"""Bootstrap intervals of IoU = ΣI / ΣU over units: a city's scenes, or the blocks of its single large scene.

Pixels of one scene are not independent, so scenes are drawn, never pixels. A draw is a vector of weights, and all
draws of a ratio are two matrix products: (draws, units) @ (units,).

A city often has two or three test scenes, and quantiles of the usual bootstrap are then far too narrow: the "95 %"
of two scenes covers 50 %. Two textbook corrections make one rule for any number of units. A draw takes n − 1 of n
units (the rescaling bootstrap: Rao and Wu, JASA 1988), so that its spread is the standard error, without bias; and
the interval is estimate ± t · spread with Student's quantile of n − 1 degrees of freedom (Hesterberg, "What Teachers
Should Know About the Bootstrap", The American Statistician 2015). A test shows that it covers 93–97 % from 2 scenes
to 40. It covers less (88–92 %) where few scenes hold most of the buildings and are mapped better than the others.
"""

import numpy as np
from scipy.stats import t


def resample(units: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The weight of each unit in each draw: (draws, units) float64, each row of units − 1 drawn summing to `units`."""
    drawn = max(1, units - 1)
    return rng.multinomial(drawn, np.full(units, 1 / units), size=draws) * (units / drawn)


def iou_of(weights: np.ndarray, intersections: np.ndarray, unions: np.ndarray) -> np.ndarray:
    """(draws,) IoU of resampled units; NaN for a draw without any building, whose IoU is undefined."""
    union = weights @ np.asarray(unions, np.float64)
    intersection = weights @ np.asarray(intersections, np.float64)
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def interval(
    estimate: float, draws: np.ndarray, units: float, limits: tuple[float, float] = (0.0, 1.0), level: float = 0.95
) -> tuple[float, float]:
    """The t interval around `estimate` by the spread of its `draws`, from `units` units, within its `limits`.

    All of `limits` where nothing can be said: a single unit has no spread to resample, all-NaN draws no value.
    """
    draws = draws[np.isfinite(draws)]
    if units < 2 or not len(draws):
        return limits
    half = t.ppf((1 + level) / 2, units - 1) * draws.std()
    return float(max(limits[0], estimate - half)), float(min(limits[1], estimate + half))


def iou_interval(
    intersections: np.ndarray, unions: np.ndarray, draws: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of ΣI/ΣU from (units,) pixel counts; (0, 1) where fewer than two units hold a building."""
    some = np.asarray(unions) > 0
    if np.count_nonzero(some) < 2:
        return 0.0, 1.0
    intersections, unions = np.asarray(intersections)[some], np.asarray(unions)[some]
    weights = resample(len(unions), draws, np.random.default_rng(seed))
    estimate = intersections.sum() / unions.sum()
    return interval(estimate, iou_of(weights, intersections, unions), len(unions), level=level)
