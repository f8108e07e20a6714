"""Confidence that means something: a temperature and thresholds, fitted on
validation, stored in the card.
"""

from dataclasses import asdict

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from pipeline.labels import IGNORE
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import autocast
from pipeline.scoring.expected_iou import Thresholds, fit_thresholds, thresholded_iou
from pipeline.scoring.metrics import calibration_error, confidence_counts
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float
from pipeline.training.crops import WindowGrid

UNCALIBRATED: dict = {
    "temperature": 1.0,
    "threshold": 0.5,
    "confidence": None,
    "least_expected_iou": None,
}


@torch.inference_mode()
def calibrate(
    segmenter: Segmenter, cities: list[CityTiles], size: int, pixels: int = 200_000
) -> dict:
    """A segmenter's `temperature`, `threshold`, `confidence` and `least_expected_iou` on the
    validation regions, as the card holds them.

    The temperature minimises the cross-entropy of softmax(z / T) (Guo et al. 2017, section 4.2) on
    `pixels` random pixels; fitted on every other window, it must lower the calibration error of the
    rest, or it is 1. The threshold on the building probability maximises IoU after that; the
    thresholds of `confidence` give the IoU to expect elsewhere (see expected_iou.py), and the least
    that they give of a validation scene tells what is still usual.
    """
    windows = WindowGrid(cities, "validation", size)
    rng, on = np.random.default_rng(0), next(segmenter.buffers()).device
    share, logits, labels = max(1, len(windows) * size * size // pixels), [], []
    half, scenes = [], []
    for turn, index in enumerate(rng.permutation(len(windows))[:256]):
        image, label = windows[index]
        keep = torch.from_numpy(rng.integers(0, share, label.shape) == 0) & (label != IGNORE)
        with autocast(on):
            z = segmenter(to_float(image[None]).to(on))[0].float().cpu()
        logits.append(z[:, keep].T)
        labels.append(label[keep].long())
        half.append(torch.full((len(labels[-1]),), turn % 2 == 0))
        scenes += [windows.scene(index)] * len(labels[-1])
    z, y, fitted = torch.cat(logits), torch.cat(labels), torch.cat(half)
    if not len(y):
        return UNCALIBRATED
    temperature = fit_temperature(z, y) if helps(fitted, z, y) else 1.0
    building, y = building_probability(z, temperature), y.byte().numpy()
    thresholds = fit_thresholds(building, y)
    return {
        "temperature": temperature,
        "threshold": best_threshold(confidence_counts(in_255(building), y)),
        "confidence": asdict(thresholds),
        "least_expected_iou": least_expected_iou(building, np.array(scenes), thresholds),
    }


def least_expected_iou(
    probability: np.ndarray, scenes: np.ndarray, thresholds: Thresholds
) -> float | None:
    """The least IoU expected of a scene from its building probabilities (N,),
    `scenes` (N,) telling whose they are.

    None where no scene holds a building, as `label_free_iou` says of one.
    """
    built = np.unique(scenes[probability > 0.5])
    return min(
        (thresholded_iou(probability[scenes == scene], thresholds) for scene in built), default=None
    )


def fit_temperature(z: torch.Tensor, y: torch.Tensor) -> float:
    """T of least cross-entropy of softmax(z / T), logits (N, K) and classes (N,)."""
    fit = minimize_scalar(
        lambda t: float(F.cross_entropy(z / np.exp(t), y)), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(fit.x))


def helps(fitted: torch.Tensor, z: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the temperature of the pixels `fitted` (N,) lowers the
    calibration error of the others.
    """
    held, truth = z[~fitted], y[~fitted].byte().numpy()
    if not fitted.any() or not len(held):
        return False
    before, after = (
        calibration_error(confidence_counts(in_255(building_probability(held, t)), truth))
        for t in (1.0, fit_temperature(z[fitted], y[fitted]))
    )
    return before is not None and after is not None and after < before


def building_probability(z: torch.Tensor, temperature: float) -> np.ndarray:
    return 1 - (z / temperature).softmax(1)[:, 0].numpy()


def in_255(probability: np.ndarray) -> np.ndarray:
    return np.rint(probability * 255).astype(np.uint8)


def best_threshold(counts: np.ndarray) -> float:
    """The building probability above which a pixel counts as building so that IoU is largest;
    0.5 where it is moot.
    """
    fp, tp = counts[:, ::-1].cumsum(1)[:, ::-1]
    if not tp[0]:
        return 0.5
    level = int(np.argmax(tp / (fp + tp[0])))
    return float(np.clip((level - 0.5) / 255, 0.01, 0.99))
