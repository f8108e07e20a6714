"""The IoU to expect of a scene without labels, from its building probabilities alone.

Average thresholded confidence (Garg et al., ICLR 2022), once a class: on labelled validation tiles of the
training cities choose the confidence that as many pixels exceed as are right; in the new scene, the share of
pixels above it estimates how many are right. Right and wrong pixels of either class give I and U, hence an IoU.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.geo.scene import IGNORE


@dataclass(frozen=True)
class Thresholds:
    building: float  # probability above which predicted buildings count as right
    background: float  # the same for the probability of background


def fit_thresholds(probability: np.ndarray, labels: np.ndarray, found: np.ndarray | None = None) -> Thresholds:
    """Thresholds from building probability and labels of the training cities' validation tiles, any equal shapes.

    `found`, here and below: where the map in question has buildings, by default above ½.
    """
    valid = labels != IGNORE
    found = (probability > 0.5 if found is None else found)[valid]
    probability, truth = probability[valid], labels[valid] > 0

    def threshold(confidence: np.ndarray, right: np.ndarray) -> float:
        return float(np.quantile(confidence, 1 - right.mean())) if len(confidence) else 0.5

    return Thresholds(threshold(probability[found], truth[found]), threshold(1 - probability[~found], ~truth[~found]))


def thresholded_iou(
    probability: np.ndarray, thresholds: Thresholds, pixels: np.ndarray | int = 1, found: np.ndarray | None = None
) -> float:
    """The estimated IoU of a scene from its building probabilities; `pixels`: how many have each of them."""
    found = probability > 0.5 if found is None else found
    right = found & (probability >= thresholds.building)
    missed = ~found & (1 - probability < thresholds.background)
    return float(np.sum(pixels * right) / max(1, np.sum(pixels * (found | missed))))


def expected_iou(probability: np.ndarray, pixels: np.ndarray | int = 1, found: np.ndarray | None = None) -> float:
    """E[I] / E[U] if every probability were true (average confidence, Hendrycks and Gimpel 2017, as an IoU)."""
    found = probability > 0.5 if found is None else found
    right = np.sum(pixels * probability * found, dtype=np.float64)
    return float(right / max(1e-9, np.sum(pixels * np.where(found, 1, probability), dtype=np.float64)))
