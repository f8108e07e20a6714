"""How much of an IoU estimated without labels to believe: how far a city's features lie, how wrong estimates were.

The estimates themselves, from a city's probabilities, are in pipeline/learning/expected_iou.py. All such scores
are too hopeful under a large shift. The mean excess over the *other* leave-one-city-out folds, whose labels are
known before the new city's are, is taken off: `corrected`.
"""

import numpy as np
import torch

from pipeline.console import progress
from pipeline.generalization.adaptation import batch_norms
from pipeline.generalization.gap import Fold
from pipeline.generalization.predictions import batches, building_probability, mean, unlabelled
from pipeline.geo.tiles import Cities
from pipeline.learning.expected_iou import expected_iou, fit_thresholds, thresholded_iou
from pipeline.learning.models import Segmenter
from pipeline.learning.precision import autocast
from pipeline.params import Params


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


def estimated(params: Params, cities: Cities, held_out: list[Fold], unseen: dict[str, Segmenter], matrix: dict) -> dict:
    """Label-free estimates of each held-out city's IoU, and their mean absolute error over the folds.

    Two naive guesses stand beside them: the model's IoU on its own cities' test scenes ("no_gap"), and that
    guess less the other folds' mean gap ("mean_gap").
    """
    g, size = params.generalize, params.tile.size
    rows: dict[str, dict] = {}
    for fold in progress(held_out, "label-free estimates"):
        city, segmenter = fold.held_out, unseen[fold.held_out]
        iou = matrix[f"without-{city}"][city]
        if iou is None:
            continue
        validation = [cities[c].sample("validation", g.adaptation_tiles, seed=g.seed) for c in fold.training]
        images, labels = (np.concatenate(part) for part in zip(*validation, strict=True))
        thresholds = fit_thresholds(building_probability(segmenter, images), labels)
        target = unlabelled(cities[city], 2 * g.adaptation_tiles, size, g.seed, "test")
        probability = building_probability(segmenter, target)
        own = [matrix[f"without-{city}"][c] for c in fold.training]
        rows[city] = {
            "iou": iou,
            "thresholded": thresholded_iou(probability, thresholds),
            "expected": expected_iou(probability),
            "distance": feature_distance(segmenter, target),
            "no_gap": mean(own),
        }
    truths = {city: row["iou"] for city, row in rows.items()}
    for name, score in (("corrected", "thresholded"), ("mean_gap", "no_gap")):
        estimates = corrected({city: row[score] for city, row in rows.items()}, truths)
        for city, estimate in estimates.items():
            rows[city][name] = estimate
    guesses = ("thresholded", "expected", "corrected", "no_gap", "mean_gap")
    error = {name: mean_error({c: r[name] for c, r in rows.items()}, truths) for name in guesses}
    return {"city": rows, "error": error}
