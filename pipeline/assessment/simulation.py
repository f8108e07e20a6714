"""What the intervals and promises are worth: many samples of a city whose truth
is known everywhere.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.assessment.estimators import RATIOS, Design, Interval, assess
from pipeline.assessment.population import PROBABILITY, auxiliaries, doubt, shown
from pipeline.assessment.promise import promise
from pipeline.assessment.sampling import allocate, repeated_samples, strata, strata_for


@dataclass(frozen=True)
class KnownCity:
    """Histograms (N, LEVELS) of all frames' probabilities, of all pixels and of building pixels."""

    histogram: np.ndarray
    built: np.ndarray
    threshold: float

    def __len__(self) -> int:
        return len(self.histogram)

    @property
    def counts(self) -> np.ndarray:
        """(N, 3) TP, FP, FN."""
        drawn = shown(self.threshold)
        tp, fn = self.built[:, drawn].sum(1), self.built[:, ~drawn].sum(1)
        return np.stack([tp, self.histogram[:, drawn].sum(1) - tp, fn], 1).astype(float)

    @property
    def size(self) -> np.ndarray:
        return doubt(self.histogram, self.threshold)

    def stratified(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The stratum of every frame and how many are drawn of each, for n in all."""
        stratum = strata(self.size, strata_for(n))
        return stratum, allocate(stratum, self.size, n)


def coverage(city: KnownCity, n: int, draws: int, seed: int = 0, unusable: int = 0) -> dict:
    """Of 95 % intervals from n frames: how many hold the truth, and how wide they
    are, for IoU and built area.

    Model-assisted; plain on the same frames; and plain on a simple random sample,
    which knows nothing of the model. The first `unusable` frames of each sample's
    most doubtful stratum are lost.
    """
    stratum, chosen = city.stratified(n)
    drawn = repeated_samples(stratum, chosen, draws, seed)
    drawn = drawn[:, : drawn.shape[1] - unusable]
    anywhere = repeated_samples(np.zeros(len(city), int), np.array([n]), draws, seed + 1)
    counts, known = city.counts, auxiliaries(city.histogram, city.threshold)
    design = Design.of(stratum, drawn[0])
    roads = {
        "assisted": assess(counts[drawn], design, known[drawn], known.sum(0)),
        "plain": assess(counts[drawn], design),
        "random": assess(counts[anywhere], Design.of(np.zeros(len(city), int), anywhere[0])),
    }
    totals = counts.sum(0)
    truth = {
        name: totals @ np.array(part) / max(totals @ np.array(of), 1)
        for name, (part, of) in RATIOS.items()
    }
    truth["built"] = totals[0] + totals[2]
    return {
        name: {road: _worth(found[name], value, name == "built") for road, found in roads.items()}
        for name, value in truth.items()
    }


def _worth(found: Interval, truth: float, relative: bool) -> dict:
    """Of the draws that give an interval at all; None where none does."""
    low, high = (end[np.isfinite(found.low)] for end in (found.low, found.high))
    if not len(low):
        return {"coverage": None, "width": None}
    width = float(np.median(high - low)) / (truth if relative else 1)
    return {"coverage": float(((low <= truth) & (truth <= high)).mean()), "width": width}


def promises(
    city: KnownCity, n: int, draws: int, recall: float, confidence: float, per: str, seed: int = 0
) -> dict:
    """How often n frames allow a promise of recall, and how often it is not broken (none made
    is none broken).
    """
    stratum, chosen = city.stratified(n)
    inclusion = (chosen / np.bincount(stratum))[stratum]
    area = city.built.sum(1)
    missed = (city.built.cumsum(1) / np.maximum(area, 1)[:, None]).T
    size = (area > 0).astype(float) if per == "frame" else area / city.histogram.sum(1).max()
    truth = missed @ size / size.sum()
    made = broken = 0
    for drawn in repeated_samples(stratum, chosen, draws, seed):
        found = promise(
            PROBABILITY,
            missed[:, drawn],
            size[drawn],
            inclusion[drawn],
            len(city),
            1 - recall,
            confidence,
        )
        if found.threshold is not None:
            made += 1
            broken += truth[np.flatnonzero(found.threshold == PROBABILITY)[0]] > 1 - recall
    return {"made": made / draws, "kept": float(1 - broken / draws)}
