"""How much of an IoU estimated without labels to believe: how far a city's features lie, how wrong estimates were.

The estimates themselves, from a city's probabilities, are in pipeline/learning/expected_iou.py. All such scores
are too hopeful under a large shift. The mean excess over the *other* leave-one-city-out folds, whose labels are
known before the new city's are, is taken off: `corrected`.
"""

import numpy as np
import torch

from pipeline.generalization.adaptation import batch_norms
from pipeline.generalization.predictions import batches
from pipeline.learning.models import Segmenter
from pipeline.learning.precision import autocast


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
