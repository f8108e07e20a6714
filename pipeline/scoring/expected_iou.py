"""The IoU to expect of a scene without labels, from its building probabilities alone.

Average thresholded confidence (Garg et al., ICLR 2022): on labelled validation tiles of the
training cities choose the confidence that as many pixels exceed as are right; in the new scene, the
share of pixels above it estimates how many are right. The paper has one threshold, for an accuracy
(`fit_threshold`); an IoU hangs on the few pixels of buildings, so `fit_thresholds`, ours, has one a
class. Right and wrong pixels of either class give I and U, hence an IoU.

Soft Dice Confidence (Borges et al., arXiv:2402.10665) takes the probabilities at their word; so
does `expected_iou`, which is the same as an IoU. Both want them calibrated.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.labels import IGNORE


@dataclass(frozen=True)
class Thresholds:
    building: float  # probability above which predicted buildings count as right
    background: float  # the same for the probability of background


def fit_thresholds(
    probability: np.ndarray, labels: np.ndarray, found: np.ndarray | None = None
) -> Thresholds:
    """Thresholds from building probability and labels of the training cities'
    validation tiles, any equal shapes.

    `found`, here and below: where the map in question has buildings, by default above ½.
    """
    valid = labels != IGNORE
    found = (probability > 0.5 if found is None else found)[valid]
    probability, truth = probability[valid], labels[valid] > 0

    def threshold(confidence: np.ndarray, right: np.ndarray) -> float:
        return float(np.quantile(confidence, 1 - right.mean())) if len(confidence) else 0.5

    return Thresholds(
        threshold(probability[found], truth[found]),
        threshold(1 - probability[~found], ~truth[~found]),
    )


def fit_threshold(
    probability: np.ndarray, labels: np.ndarray, found: np.ndarray | None = None
) -> Thresholds:
    """The published one, of the confidence of either class: as many pixels
    exceed it as are right.
    """
    valid = labels != IGNORE
    found = (probability > 0.5 if found is None else found)[valid]
    confidence = np.where(found, probability[valid], 1 - probability[valid])
    right = found == (labels[valid] > 0)
    one = float(np.quantile(confidence, 1 - right.mean())) if len(confidence) else 0.5
    return Thresholds(one, one)


def thresholded_iou(
    probability: np.ndarray,
    thresholds: Thresholds,
    pixels: np.ndarray | int = 1,
    found: np.ndarray | None = None,
) -> float:
    """The estimated IoU of a scene from its building probabilities; `pixels`:
    how many have each of them.
    """
    found = probability > 0.5 if found is None else found
    right = found & (probability >= thresholds.building)
    missed = ~found & (1 - probability < thresholds.background)
    return float(np.sum(pixels * right) / max(1, np.sum(pixels * (found | missed))))


def soft_dice_confidence(
    probability: np.ndarray, pixels: np.ndarray | int = 1, found: np.ndarray | None = None
) -> float:
    """2 Σ p ŷ / (Σ p + Σ ŷ), ŷ the map (Borges et al., equation 9): the Dice score if every
    probability were true.
    """
    found = probability > 0.5 if found is None else found
    both, either = (
        np.sum(pixels * part, dtype=np.float64)
        for part in (probability * found, probability + found)
    )
    return float(2 * both / max(1e-9, either))


def expected_iou(
    probability: np.ndarray, pixels: np.ndarray | int = 1, found: np.ndarray | None = None
) -> float:
    """E[I] / E[U] if every probability were true: Soft Dice Confidence s as an IoU, s / (2 − s)."""
    dice = soft_dice_confidence(probability, pixels, found)
    return dice / (2 - dice)
