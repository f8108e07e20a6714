"""Intervals of IoU = ΣI / ΣU over units: a city's scenes, the blocks of its single
large scene, or tiles.

Pixels of one scene are not independent, so scenes are drawn, never pixels. A draw is a vector of
weights, and all draws of a ratio are two matrix products: (draws, units) @ (units,). A draw takes n
− 1 of n units (the rescaling bootstrap: Rao and Wu, JASA 1988), so that its spread is the standard
error, without bias. Three corrections more:

- Student's t (Hesterberg, The American Statistician 2015) with the degrees of freedom that the
  spread really has: where one scene holds most of the buildings, ten scenes are worth two or three
  (Bell and McCaffrey 2002).
- On the logit scale, where an IoU has no end to run into.
- Scenes on which a model fails are few, and a test of few scenes may hold none of them: the low end
  of an IoU counts a quarter of a scene more, of Kish's effective size, that is not mapped at all.

By simulation (`python -m benchmarks.intervals`) 95 % intervals of 2, 3, 5, 10 and 40 scenes cover
.97–.99 where scenes are alike, .92–.96 where the built-up ones are mapped better, .92–.99 where one
in eight fails. Without the quarter of a scene the first would be .95–.98 and the last .82 of ten
scenes: a sample without a failure looks like a city without, so that what covers the one is too
wide for the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, stdtrit

TILE_DRAWS = 2000
UNMET = 0.25  # of a scene, counted as not mapped at the low end
IOU = (0.0, 1.0)


def resample(units: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The weight of each unit in each draw: (draws, units) float64, each row of units − 1 drawn
    summing to `units`.
    """
    drawn = max(1, units - 1)
    return rng.multinomial(drawn, np.full(units, 1 / units), size=draws) * (units / drawn)


def iou_of(weights: np.ndarray, intersections: np.ndarray, unions: np.ndarray) -> np.ndarray:
    """(draws,) IoU of resampled units; NaN for a draw without any building,
    whose IoU is undefined.
    """
    union = weights @ np.asarray(unions, np.float64)
    intersection = weights @ np.asarray(intersections, np.float64)
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def effective_units(sizes: np.ndarray) -> float:
    """Kish's: how many units of one size would be worth as much as these."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def degrees_of_freedom(sizes: np.ndarray) -> float:
    """Of Σ w² (r − Σ w r)², the variance of a mean of (units,) equally variable r
    by w = sizes / Σ sizes.

    Satterthwaite's 2 E² / Var (Bell and McCaffrey, Survey Methodology 2002): n − 1
    where all sizes are one.
    """
    w = sizes / sizes.sum()
    a, s = w**2, (w**2).sum()
    m0, m1, m2 = a.sum(), a @ w, a @ w**2
    own = s - 2 * w  # of r − Σ w r: covariance δ + s − w_i − w_j
    squares = (s * m0) ** 2 - 4 * s * m0 * m1 + 2 * m0 * m2 + 2 * m1**2 + a**2 @ (1 + 2 * own)
    return float((a @ (1 + own)) ** 2 / squares)


@dataclass(frozen=True)
class Estimate:
    """A value within `limits`, its standard error, the degrees of freedom of that error, and what
    an interval's low end starts from. No `freedom`: nothing is known but the value.
    """

    value: float
    error: float
    freedom: float
    least: float
    limits: tuple[float, float] = IOU

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The t interval on the logit scale of the limits; all of the limits
        where nothing can be said.
        """
        start, length = self.limits[0], self.limits[1] - self.limits[0]
        value, least = ((x - start) / length for x in (self.value, self.least))
        if self.freedom <= 0 or not np.isfinite(self.error) or not 0 < value < 1:
            return self.limits
        half = stdtrit(self.freedom, (1 + level) / 2) * self.error / length / (value * (1 - value))
        low, high = expit(logit(least) - half), expit(logit(value) + half)
        return float(start + length * low), float(start + length * high)

    def shown(self, level: float = 0.95) -> tuple[float | None, float | None]:
        """The interval for a table: none where it would be all that is possible."""
        return shown(self.interval(level), self.limits)


def shown(
    found: tuple[float, float], limits: tuple[float, float] = IOU
) -> tuple[float | None, float | None]:
    return (None, None) if found == limits else found


def satterthwaite(errors: np.ndarray, freedoms: np.ndarray) -> float:
    """Degrees of freedom of the error of a sum of independent parts; 0 where
    one part's error is not known.
    """
    if not (np.all(freedoms > 0) and np.isfinite(errors).all()):
        return 0.0
    parts = (errors**4 / freedoms).sum()
    return float((errors**2).sum() ** 2 / parts) if parts else float(freedoms.min())


def mean_of(estimates: Iterable[Estimate]) -> Estimate:
    """The mean of independent estimates, with degrees of freedom of its own."""
    parts = list(estimates)
    value, errors, freedoms, least = np.array(
        [(p.value, p.error, p.freedom, p.least) for p in parts]
    ).T
    error = float(np.sqrt((errors**2).sum()) / len(parts))
    return Estimate(
        float(value.mean()),
        error,
        satterthwaite(errors, freedoms),
        float(least.mean()),
        parts[0].limits,
    )


def worst_of(estimates: Iterable[Estimate], level: float = 0.95) -> tuple[float, float]:
    """An interval of the least true value of several, whichever it is: no minimum
    is chosen after looking.

    The least of the low ends is too high only where the truly worst one's is: no correction. The
    least of the high ends is too low where any is: Bonferroni's correction for that side.
    """
    parts = list(estimates)
    lows = [p.interval(level)[0] for p in parts]
    highs = [p.interval(1 - (1 - level) / len(parts))[1] for p in parts]
    return min(lows), min(highs)


def gap_of(estimates: Iterable[Estimate], level: float = 0.95) -> tuple[float, float]:
    """An interval of the greatest true value of several less the least, whichever they are.

    Intervals of all at once (Bonferroni) hold every true value, and so both
    extremes: the gap is no less than between the highest low end and the lowest
    high end, and no more than between the outermost. The gap of the values
    themselves is too wide by chance, the more so the more there are.
    """
    parts = list(estimates)
    lows, highs = zip(*(p.interval(1 - (1 - level) / len(parts)) for p in parts), strict=True)
    return max(0.0, max(lows) - min(highs)), max(highs) - min(lows)


def iou_estimate(
    intersections: np.ndarray, unions: np.ndarray, draws: int, seed: int, held: float = 1.0
) -> Estimate:
    """ΣI/ΣU of (units,) pixel counts; `held` is the share of the variance that lies between the
    units (see blocks.py).

    Units without a building say nothing. Raises ZeroDivisionError where none has any.
    """
    some = np.asarray(unions) > 0
    intersections, unions = (
        np.asarray(counts, np.float64)[some] for counts in (intersections, unions)
    )
    value = float(intersections.sum()) / float(unions.sum())
    if len(unions) < 2:
        return Estimate(value, np.nan, 0.0, value)
    weights = resample(len(unions), draws, np.random.default_rng(seed))
    error = iou_of(weights, intersections, unions).std() / np.sqrt(held)
    return Estimate(value, float(error), degrees_of_freedom(unions), unmet(value, unions))


def drop_estimate(before, after, draws: int, seed: int, held: float = 1.0) -> Estimate:
    """By how much ΣI/ΣU falls from `before` to `after`, intersections and unions (2, units) each,
    of the same units: these are drawn together, so that what both share leaves no error.
    """
    before, after = (np.asarray(counts, np.float64) for counts in (before, after))
    sizes = before[1] + after[1]
    before, after, sizes = (counts[..., sizes > 0] for counts in (before, after, sizes))
    ones = np.ones((1, len(sizes)))
    value = float((iou_of(ones, *before) - iou_of(ones, *after)).item())
    if len(sizes) < 2:
        return Estimate(value, np.nan, 0.0, value, (-1.0, 1.0))
    weights = resample(len(sizes), draws, np.random.default_rng(seed))
    drawn = iou_of(weights, *before) - iou_of(weights, *after)
    error = float(np.nanstd(drawn) / np.sqrt(held))
    return Estimate(value, error, degrees_of_freedom(sizes), value, (-1.0, 1.0))


def unmet(iou: float, unions: np.ndarray) -> float:
    """The IoU if a little of another scene were not mapped at all."""
    units = effective_units(unions)
    return iou * units / (units + UNMET)


def iou_interval(
    intersections: np.ndarray,
    unions: np.ndarray,
    draws: int,
    seed: int,
    level: float = 0.95,
    held: float = 1.0,
) -> tuple[float, float]:
    """Interval of ΣI/ΣU from (units,) pixel counts; (0, 1) where fewer than two
    units hold a building.
    """
    if not np.any(np.asarray(unions) > 0):
        return IOU
    return iou_estimate(intersections, unions, draws, seed, held).interval(level)


def tile_interval(
    intersections: np.ndarray, unions: np.ndarray
) -> tuple[float | None, float | None]:
    """The 95 % interval of ΣI/ΣU of the tiles that attacks and certificates are
    measured on, for a table.
    """
    return shown(iou_interval(intersections, unions, TILE_DRAWS, seed=0))
