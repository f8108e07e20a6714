"""How much of an IoU estimated without labels to believe: how far a city's features
lie, how wrong estimates were.

The estimates themselves, from a city's probabilities, are in pipeline/scoring/expected_iou.py. They
are worth having where they err less than guesses that look at no image of the new city.
"""

import numpy as np
import torch

from pipeline.networks.models import Segmenter
from pipeline.networks.precision import autocast
from pipeline.params import Params
from pipeline.scoring.expected_iou import (
    expected_iou,
    fit_threshold,
    fit_thresholds,
    thresholded_iou,
)
from pipeline.tiles.store import Cities
from pipeline.transfer.adaptation import batch_norms
from pipeline.transfer.gap import Fold
from pipeline.transfer.predictions import batches, maps, mean, unlabelled

ESTIMATES = ("thresholded", "atc", "expected")  # guesses from the new city's images alone
NAIVE = ("no_gap", "mean_gap", "mean_unseen")  # guesses that look at no image of the new city


@torch.inference_mode()
def feature_distance(
    segmenter: Segmenter, images: np.ndarray, batch_size: int = 16
) -> float | None:
    """How far a city's features lie from the training cities', in units of their
    spread; 0 = the same.

    At every batch norm, the Fréchet distance of each channel's normal distribution (Δμ² + Δσ²) to
    the stored one, over the stored variance; the root of the mean. None for a model without batch
    norm, or without images.
    """
    layers, on = batch_norms(segmenter), next(segmenter.buffers()).device
    if not layers or not len(images):
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
        known_mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        shift = (mean - known_mean) ** 2 + (deviation - variance.sqrt()) ** 2
        distances.append((shift / (variance + layer.eps)).mean())
    return float(torch.stack(distances).mean().sqrt())


def mean_error(rows: dict[str, dict], guess: str) -> float | None:
    """Mean absolute error of one way to guess IoU over the folds; None where no
    fold has its guess.
    """
    return mean(abs(row[guess] - row["iou"]) for row in rows.values() if row[guess] is not None)


def estimated(
    params: Params, cities: Cities, fold: Fold, segmenter: Segmenter
) -> dict[str, float | None]:
    """Label-free estimates of a held-out city's IoU, by a model that has met none of its labels.

    "thresholded" is average thresholded confidence once a class, "atc" the published one,
    "expected" Soft Dice Confidence as an IoU, of calibrated probabilities.
    """
    g = params.generalize
    validation = [
        cities[c].sample("validation", g.adaptation_tiles, seed=g.seed) for c in fold.training
    ]
    images, labels = (np.concatenate(part) for part in zip(*validation, strict=True))
    classes, probability, _ = maps(segmenter, images)
    thresholds, one = (
        fit(probability, labels, classes > 0) for fit in (fit_thresholds, fit_threshold)
    )
    target = unlabelled(
        cities[fold.held_out], 2 * g.adaptation_tiles, params.tile.size, g.seed, "test"
    )
    classes, probability, calibrated = maps(segmenter, target)
    return {
        "thresholded": thresholded_iou(probability, thresholds, found=classes > 0),
        "atc": thresholded_iou(probability, one, found=classes > 0),
        "expected": expected_iou(calibrated, found=classes > 0),
        "distance": feature_distance(segmenter, target),
    }


def estimate_table(of_city: dict[str, dict], held_out: list[Fold], matrix: dict) -> dict:
    """What each city's `estimated` says beside its IoU, and the mean absolute
    errors over the folds.

    "estimate" is the one that erred least, in hindsight too. Three naive guesses stand beside them:
    the model's IoU on its own cities' test scenes ("no_gap"), that guess less the other folds' mean
    gap ("mean_gap"), and the other folds' mean unseen IoU ("mean_unseen"). The last two are
    flattered, as the other folds' models have trained on this city; the estimates have met none of
    its labels. "naive" is the guess that erred least, in hindsight: what the estimates must beat.
    """
    rows: dict[str, dict] = {}
    for fold in [fold for fold in held_out if fold.held_out in of_city]:
        city, known = fold.held_out, matrix[f"without-{fold.held_out}"]
        rows[city] = {
            "iou": known[city],
            **of_city[city],
            "no_gap": mean(known[c] for c in fold.training),
        }
    for city, row in rows.items():
        others = [other for c, other in rows.items() if c != city and other["no_gap"] is not None]
        row["mean_unseen"] = mean(other["iou"] for other in others)
        gap = mean(other["no_gap"] - other["iou"] for other in others)
        row["mean_gap"] = None if None in (gap, row["no_gap"]) else max(0.0, row["no_gap"] - gap)
    errors = {guess: mean_error(rows, guess) for guess in (*ESTIMATES, *NAIVE)}
    known = {guess: error for guess, error in errors.items() if error is not None}
    estimate, naive = (
        min((guess for guess in guesses if guess in known), key=known.__getitem__, default=None)
        for guesses in (ESTIMATES, NAIVE)
    )
    return {"city": rows, "mean_error": errors, "estimate": estimate, "naive": naive}
