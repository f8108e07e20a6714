"""How good the whole map is, from a few labelled frames and what the model says of all of them.

Counts of true positive, false positive and false negative pixels are totals over all N frames of a
city; n are known.

Plain (Horvitz and Thompson 1952): Σ dᵢ yᵢ over the sample, dᵢ = N_h / n_h the
frames each one stands for.

Model-assisted (Särndal, Swensson and Wretman 1992, chapter 6; as calibration, Deville and Särndal,
JASA 1992): weights wᵢ near dᵢ under which the sample's auxiliaries xᵢ add up to what they are known
to add up to over the city. They are two: the union of map and truth, and their differences, as the
probabilities expect them. Where the model is right the errors nearly cancel; where it is wrong the
estimate stays consistent and its interval is wide.

A ratio (IoU, precision, recall, F1) is one of estimated totals. Its variance is the
stratified jackknife's: leave out each frame in turn and weigh anew, so that what
the weights owe to the frame itself counts too; linearised errors of ten frames
cover .88–.92 where they should cover .95. Intervals are Student's, on the logit
scale (area: on the log scale), with Satterthwaite's degrees of freedom.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, stdtrit

from pipeline.assessment.sampling import LEAST

CLOSE = 1e-4  # how near a share may come to 0 and 1 on the logit scale
UNMET = 0.1  # of a frame, counted as all wrong at an interval's far end
TINY = 1e-9  # ridge: auxiliaries may be copies of each other


@dataclass(frozen=True)
class Design:
    """The labelled frames' stratum (n,) and the number of frames (H,) in each stratum; every
    stratum has been labelled.

    A frame that could not be labelled is missing at random within its stratum: the
    others stand for it.
    """

    stratum: np.ndarray
    frames: np.ndarray

    @classmethod
    def of(cls, stratum: np.ndarray, labelled: np.ndarray, least: int = LEAST) -> "Design":
        """From the stratum (N,) of every frame and the indices (n,) of those labelled. A stratum
        with fewer than `least` of them (all others unusable, say) is one with its neighbour.
        """
        frames = np.bincount(stratum)
        merged, counts = (
            np.arange(len(frames)),
            np.bincount(stratum[labelled], minlength=len(frames)),
        )
        group, held, open_ = 0, 0, 0
        for h in range(len(frames)):
            merged[h] = group
            held, open_ = held + counts[h], open_ + frames[h]
            if held >= min(least, open_):
                group, held, open_ = group + 1, 0, 0
        if open_ and group:  # what is left joins the stratum below
            merged[merged == group] = group - 1
        return cls(merged[stratum[labelled]], np.bincount(merged, frames).astype(int))

    @property
    def labelled(self) -> np.ndarray:
        return np.bincount(self.stratum, minlength=len(self.frames))

    @property
    def weights(self) -> np.ndarray:
        """dᵢ (n,)."""
        return (self.frames / self.labelled)[self.stratum]


@dataclass(frozen=True)
class Interval:
    """Arrays of one shape, or numbers: what is estimated and its 95 % interval;
    NaN where there is none.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def shown(self) -> dict[str, float | None]:
        """For a metrics file."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {name: float(v) if np.isfinite(v) else None for name, v in found.items()}


def calibrated(weights: np.ndarray, auxiliary: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Weights (…, n) nearest to `weights` (…, n) under which auxiliaries (…, n, p)
    ≥ 0 add up to `totals` (p,).

    Deville and Särndal's equation 2.3, the distance of frame i divided by the size of its
    auxiliaries: errors spread as the root of what there is to be mapped.
    """
    scaled = auxiliary / (auxiliary.sum(-1, keepdims=True) + TINY)
    moments = np.swapaxes(scaled * weights[..., None], -1, -2) @ auxiliary
    ridge = TINY * np.trace(moments, axis1=-2, axis2=-1)[..., None, None] + 1e-300
    missing = totals - (weights[..., None] * auxiliary).sum(-2)
    slope = np.linalg.solve(moments + ridge * np.eye(len(totals)), missing[..., None])
    return weights * (1 + (scaled @ slope)[..., 0])


def _left_out(design: Design) -> np.ndarray:
    """Weights (n, n) of the stratified jackknife: row j without frame j, the others of its
    stratum standing for it.
    """
    n_h = design.labelled[design.stratum]
    same = design.stratum[:, None] == design.stratum
    grown = np.where(same, (n_h / np.maximum(n_h - 1, 1))[:, None], 1.0)
    np.fill_diagonal(grown, 0.0)
    return grown * design.weights


RATIOS = {  # of the totals TP, FP, FN
    "iou": ((1, 0, 0), (1, 1, 1)),
    "precision": ((1, 0, 0), (1, 1, 0)),
    "recall": ((1, 0, 0), (1, 0, 1)),
    "f1": ((2, 0, 0), (2, 1, 1)),
}
BUILT = (1, 0, 1)


def totals(
    counts: np.ndarray, design: Design, auxiliary: np.ndarray | None, known: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Estimated totals (…, 3) of counts (…, n, 3), and those without each frame (…, n, 3); plain
    without auxiliaries.

    auxiliary: (…, n, p) of the labelled frames, `known` (p,) their totals over all frames.
    """
    weights, left = design.weights, _left_out(design)
    if auxiliary is not None and known is not None:
        weights = calibrated(np.broadcast_to(weights, counts.shape[:-1]), auxiliary, known)
        left = calibrated(
            np.broadcast_to(left, (*counts.shape[:-2], *left.shape)),
            auxiliary[..., None, :, :],
            known,
        )
    return (weights[..., None, :] @ counts)[..., 0, :], left @ counts


def assess(
    counts: np.ndarray,
    design: Design,
    auxiliary: np.ndarray | None = None,
    known: np.ndarray | None = None,
    level: float = 0.95,
) -> dict[str, Interval]:
    """IoU, precision, recall, F1 and built pixels of the whole map, each with an interval, from the
    counts (…, n, 3) of TP, FP and FN pixels of the labelled frames. See `totals`."""
    counts = np.asarray(counts, float)
    sums = totals(counts, design, auxiliary, known)
    found = {name: _ratio(counts, *sums, design, level, *of) for name, of in RATIOS.items()}
    return {**found, "built": _built(counts, *sums, design, level)}


def _ratio(counts, whole, left, design: Design, level: float, part, of) -> Interval:
    """Of the totals' `part` to what it is a part `of`; no interval where all
    frames are wholly right or wrong.
    """
    parts, wholes = counts @ np.array(part, float), counts @ np.array(of, float)
    there = (wholes > 0).any(-1)
    known = (parts > 0).any(-1) & (parts < wholes).any(-1)
    value, without = (
        _share(s @ np.array(part, float), s @ np.array(of, float)) for s in (whole, left)
    )
    least = value * _met(wholes, design)
    half = _half(logit(value), logit(without), design, level)
    low, high = expit(logit(least) - half), expit(logit(value) + half)
    return Interval(
        np.where(there, np.where(known, value, np.round(value)), np.nan),
        np.where(known, low, np.nan),
        np.where(known, high, np.nan),
    )


def _built(counts, whole, left, design: Design, level: float) -> Interval:
    pixels = counts @ np.array(BUILT, float)
    some = (pixels > 0).any(-1)
    value, without = (np.maximum(s @ np.array(BUILT, float), TINY) for s in (whole, left))
    half = np.minimum(_half(np.log(value), np.log(without), design, level), 50)
    most = value / _met(pixels, design)
    return Interval(
        np.where(some, value, 0.0),
        np.where(some, value * np.exp(-half), np.nan),
        np.where(some, most * np.exp(half), np.nan),
    )


def _met(sizes: np.ndarray, design: Design) -> np.ndarray:
    """(…,) the share of the city that was met, had a little of one more frame been
    all wrong: few frames hold most of what a map misses, and a sample without one
    looks like a city without (as in scoring/bootstrap.py). UNMET of a frame of
    Kish's effective size, for the share that is not labelled.
    """
    weighted = design.weights * sizes
    effective = weighted.sum(-1) ** 2 / np.maximum((weighted**2).sum(-1), TINY)
    unmet = UNMET * (1 - len(design.stratum) / design.frames.sum())
    return np.where(effective > 0, effective / np.maximum(effective + unmet, TINY), 1.0)


def _share(part: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.clip(np.divide(part, of, out=np.zeros_like(of), where=of > 0), CLOSE, 1 - CLOSE)


def _half(value: np.ndarray, without: np.ndarray, design: Design, level: float) -> np.ndarray:
    """Half an interval's length (…,): Student's quantile times the jackknife's standard error
    of (…,) from (…, n).
    """
    n_h = design.labelled
    unlabelled = 1 - n_h / design.frames
    squares = (without - value[..., None]) ** 2 * (unlabelled * (n_h - 1) / n_h)[design.stratum]
    variances = np.stack([squares[..., design.stratum == h].sum(-1) for h in range(len(n_h))], -1)
    freedom = variances.sum(-1) ** 2 / np.maximum(
        (variances**2 / np.maximum(n_h - 1, 1)).sum(-1), 1e-300
    )
    return stdtrit(np.maximum(freedom, 1), (1 + level) / 2) * np.sqrt(variances.sum(-1))


def more_to_halve(labelled: int, frames: int) -> int:
    """How many more frames halve an interval: its length goes with √(1/n − 1/N)."""
    wanted = (1 / labelled - 1 / frames) / 4
    return int(np.ceil(1 / (wanted + 1 / frames) - 1e-9)) - labelled
