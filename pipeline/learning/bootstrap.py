"""Bootstrap intervals of IoU = ΣI / ΣU over units: a city's scenes, or the blocks of its single large scene.

Pixels of one scene are not independent, so scenes are drawn, never pixels. A draw is a vector of multinomial
counts, and all draws of a ratio are two matrix products: (draws, units) @ (units,).

Plain percentile intervals are too narrow for few units. The expanded percentile interval (Hesterberg, "What
Teachers Should Know About the Bootstrap", The American Statistician 2015) takes quantiles further out, to the
width of Student's t: of three scenes the whole range of the draws, of a hundred nearly the plain interval.
"""

import numpy as np
from scipy.stats import norm, t


def resample(units: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each unit is drawn: (draws, units) int64, each row summing to `units`."""
    return rng.multinomial(units, np.full(units, 1 / units), size=draws)


def iou_of(counts: np.ndarray, intersections: np.ndarray, unions: np.ndarray) -> np.ndarray:
    """(draws,) IoU of resampled units; NaN for a draw without any building, whose IoU is undefined."""
    union = counts @ np.asarray(unions, np.float64)
    intersection = counts @ np.asarray(intersections, np.float64)
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def interval(statistics: np.ndarray, units: float, level: float = 0.95) -> tuple[float, float] | None:
    """The expanded percentile interval of bootstrap `statistics` drawn from `units` units.

    None where nothing can be said: a single unit has no spread to resample, and all-NaN statistics no value.
    """
    statistics = statistics[np.isfinite(statistics)]
    if units < 2 or not len(statistics):
        return None
    tail = norm.cdf(np.sqrt(units / (units - 1)) * t.ppf((1 - level) / 2, units - 1))
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return float(low), float(high)


def iou_interval(
    intersections: np.ndarray, unions: np.ndarray, draws: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of ΣI/ΣU from (units,) pixel counts; (0, 1) where one unit or an empty union says nothing."""
    counts = resample(len(intersections), draws, np.random.default_rng(seed))
    return interval(iou_of(counts, intersections, unions), len(intersections), level) or (0.0, 1.0)
