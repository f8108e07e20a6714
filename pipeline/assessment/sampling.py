"""Which frames to label: a probability sample for an honest estimate, or an active
one to learn from.

A probability sample is stratified by the errors that the model expects of itself, with Neyman's
allocation: more frames where its map is doubtful. Every frame has a known chance of being drawn, so
that whatever is counted on the labelled ones holds for all of them (Olofsson et al., Remote Sensing
of Environment 2014). An active sample has not: it may teach more, and measures nothing.
"""

from dataclasses import dataclass

import numpy as np

FRAMES_PER_STRATUM, MOST_STRATA = 5, 5
LEAST = 2  # labelled frames of a stratum: one has no variance


@dataclass(frozen=True)
class Sample:
    """Indices (n,) of the frames drawn, the stratum (N,) of every frame, and
    its chance (N,) of being drawn.
    """

    drawn: np.ndarray
    stratum: np.ndarray
    inclusion: np.ndarray


def strata(size: np.ndarray, count: int) -> np.ndarray:
    """The stratum (N,) 0, 1, … of each frame: in the order of `size` (N,), each holding an
    equal share of its sum.
    """
    order = np.argsort(size, kind="stable")
    share = (np.cumsum(size[order]) - size[order] / 2) / size.sum()
    found = np.empty(len(size), int)
    found[order] = np.minimum((share * count).astype(int), count - 1)
    return np.unique(found, return_inverse=True)[1]  # none is empty: one large frame may fill two


def strata_for(count: int) -> int:
    """How many strata a sample of `count` frames is worth."""
    return int(np.clip(count // FRAMES_PER_STRATUM, 1, MOST_STRATA))


def allocate(stratum: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """Frames (H,) to draw of each stratum, `count` in all: Neyman's n_h ∝ N_h S_h, exact in whole
    numbers (Wright, The American Statistician 2012), at least LEAST of each.

    S_h, the deviation of what will be found, is guessed as the root mean square of `size`.
    """
    frames = np.bincount(stratum)
    spread = np.sqrt(np.bincount(stratum, size**2) / frames)
    chosen = np.minimum(LEAST, frames)
    while chosen.sum() < min(count, len(size)):
        priority = np.where(chosen < frames, frames * spread / np.sqrt(chosen * (chosen + 1)), -1)
        chosen[priority.argmax()] += 1
    return chosen


def probability_sample(size: np.ndarray, count: int, seed: int) -> Sample:
    """Draw `count` frames, in random order, of those whose expected errors are `size` (N,) > 0."""
    rng = np.random.default_rng(seed)
    stratum = strata(size, strata_for(count))
    chosen = allocate(stratum, size, count)
    drawn = [
        rng.choice(np.flatnonzero(stratum == h), n, replace=False) for h, n in enumerate(chosen)
    ]
    inclusion = (chosen / np.bincount(stratum))[stratum]
    return Sample(rng.permutation(np.concatenate(drawn)), stratum, inclusion)


def repeated_samples(stratum: np.ndarray, chosen: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Indices (draws, n) of many such samples, their frames sorted by stratum: for simulations."""
    rng, drawn = np.random.default_rng(seed), []
    for h, n in enumerate(chosen):
        inside = np.flatnonzero(stratum == h)
        drawn.append(inside[rng.random((draws, len(inside))).argsort(1)[:, :n]])
    return np.concatenate(drawn, axis=1)


def core_set(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices (count,) that leave no frame far from one of them: the greedy k-centre of Sener and
    Savarese (ICLR 2018) in standardised features (N, d).
    """
    z = _standardised(features)
    chosen = [int(np.random.default_rng(seed).integers(len(z)))]
    distance = ((z - z[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(count, len(z)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((z - z[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def active_sample(features: np.ndarray, doubt: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices (count,) of doubtful frames unlike each other: k-means++ over features (N, d) scaled
    by `doubt` (N,), as BADGE does with gradients (Ash et al., ICLR 2020).
    """
    rng = np.random.default_rng(seed)
    z = _standardised(features)
    z = np.concatenate([z, np.ones((len(z), 1))], 1) * np.sqrt(doubt / doubt.mean())[:, None]
    chosen = [int((z**2).sum(1).argmax())]
    distance = ((z - z[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(count, len(z)):
        if not distance.any():  # nothing left that differs
            distance = np.where(np.isin(np.arange(len(z)), chosen), 0.0, 1.0)
        chosen.append(int(rng.choice(len(z), p=distance / distance.sum())))
        distance = np.minimum(distance, ((z - z[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def _standardised(features: np.ndarray) -> np.ndarray:
    return (features - features.mean(0)) / np.maximum(features.std(0), 1e-9)
