"""What will the IoU be in a city without labels? Estimates from its images alone, and how wrong they were.

Average thresholded confidence (Garg et al., ICLR 2022), once a class: on labelled validation tiles of the training
cities choose the confidence that as many pixels exceed as are right; in the new city, the share of pixels above it
estimates how many are right. Right and wrong pixels of either class give I and U, hence an IoU.

All such scores are too hopeful under a large shift. The mean excess over the *other* leave-one-city-out
folds, whose labels are known before the new city's are, is taken off: `corrected`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.generalization.adaptation import batch_norms
from pipeline.generalization.predictions import batches
from pipeline.geo.scene import IGNORE
from pipeline.learning.models import Segmenter
from pipeline.learning.precision import autocast


@dataclass(frozen=True)
class Thresholds:
    building: float  # probability above which predicted buildings count as right
    background: float  # the same for the probability of background


def fit_thresholds(probability: np.ndarray, labels: np.ndarray) -> Thresholds:
    """Thresholds from building probability and labels of the training cities' validation tiles, any equal shapes."""
    valid = labels != IGNORE
    probability, truth = probability[valid], labels[valid] > 0
    found = probability > 0.5

    def threshold(confidence: np.ndarray, right: np.ndarray) -> float:
        return float(np.quantile(confidence, 1 - right.mean())) if len(confidence) else 0.5

    return Thresholds(threshold(probability[found], truth[found]), threshold(1 - probability[~found], ~truth[~found]))


def thresholded_iou(probability: np.ndarray, thresholds: Thresholds) -> float:
    """The estimated IoU of a city from its building probabilities alone."""
    found = probability > 0.5
    right = np.count_nonzero(probability[found] >= thresholds.building)
    missed = np.count_nonzero(1 - probability[~found] < thresholds.background)
    return right / max(1, np.count_nonzero(found) + missed)


def expected_iou(probability: np.ndarray) -> float:
    """E[I] / E[U] if every probability were true (average confidence, Hendrycks and Gimpel 2017, as an IoU)."""
    found = probability > 0.5
    right = probability[found].sum(dtype=np.float64)
    return float(right / max(1e-9, found.sum() + probability[~found].sum(dtype=np.float64)))


@torch.inference_mode()
def feature_distance(segmenter: Segmenter, images: np.ndarray, batch_size: int = 16) -> float | None:
    """How far a city's features lie from the training cities', in units of their spread; 0 = the same.

    At every batch norm, the Fréchet distance of each channel's normal distribution (Δμ² + Δσ²) to the stored
    one, over the stored variance; the root of the mean. None for a model without batch norm.
    """
    layers, on = batch_norms(segmenter), next(segmenter.buffers()).device
    if not layers:
        return None
    sums: dict[int, torch.Tensor] = {}

    def measure(layer, inputs) -> None:
        x = inputs[0].float()
        moments = torch.stack([x.mean((0, 2, 3)), (x * x).mean((0, 2, 3))]) * len(x)
        sums[id(layer)] = sums.get(id(layer), 0) + moments

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    for batch in batches(images, batch_size, on):
        with autocast(on):
            segmenter(batch)
    for hook in hooks:
        hook.remove()
    distances = []
    for layer in layers:
        mean, square = sums[id(layer)] / len(images)
        deviation = (square - mean**2).clamp_min(0).sqrt()
        shift = (mean - layer.running_mean) ** 2 + (deviation - layer.running_var.sqrt()) ** 2
        distances.append((shift / (layer.running_var + layer.eps)).mean())
    return float(torch.stack(distances).mean().sqrt())


def corrected(scores: dict[str, float], truths: dict[str, float]) -> dict[str, float]:
    """Each city's score less the mean excess (score − IoU) of the other cities; with no other city, as it is."""
    excess = {city: scores[city] - truths[city] for city in scores}
    return {
        city: float(np.clip(score - np.mean([e for c, e in excess.items() if c != city] or [0]), 0, 1))
        for city, score in scores.items()
    }


def mean_error(estimates: dict[str, float], truths: dict[str, float]) -> float:
    """Mean absolute error of estimated IoU over the folds."""
    return float(np.mean([abs(estimates[city] - truths[city]) for city in estimates]))
