"""Confidence that means something: a temperature and thresholds, fitted on validation, stored in the card."""

from dataclasses import asdict

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from pipeline.geo.scene import IGNORE
from pipeline.geo.tiles import CityTiles
from pipeline.learning.crops import WindowGrid, to_float
from pipeline.learning.expected_iou import fit_thresholds
from pipeline.learning.metrics import confidence_counts
from pipeline.learning.models import Segmenter
from pipeline.learning.precision import autocast

UNCALIBRATED = {"temperature": 1.0, "threshold": 0.5, "confidence": None}


@torch.inference_mode()
def calibrate(segmenter: Segmenter, cities: list[CityTiles], size: int, pixels: int = 200_000) -> dict:
    """A segmenter's `temperature`, `threshold` and `confidence` on the validation regions, as the card holds them.

    The temperature minimises the cross-entropy of softmax(z / T) (Guo et al. 2017, section 4.2) on `pixels` random
    pixels; the threshold on the building probability maximises IoU after that; the thresholds of `confidence` give
    the IoU to expect elsewhere (see expected_iou.py).
    """
    windows = WindowGrid(cities, "validation", size)
    rng, on = np.random.default_rng(0), next(segmenter.buffers()).device
    share, logits, labels = max(1, len(windows) * size * size // pixels), [], []
    for index in rng.permutation(len(windows))[:256]:
        image, label = windows[index]
        keep = torch.from_numpy(rng.integers(0, share, label.shape) == 0) & (label != IGNORE)
        with autocast(on):
            z = segmenter(to_float(image[None]).to(on))[0].float().cpu()
        logits.append(z[:, keep].T)
        labels.append(label[keep].long())
    z, y = torch.cat(logits), torch.cat(labels)
    if not len(y):
        return UNCALIBRATED
    fit = minimize_scalar(lambda t: float(F.cross_entropy(z / np.exp(t), y)), bounds=(-3, 3), method="bounded")
    temperature = float(np.exp(fit.x))
    building, y = 1 - (z / temperature).softmax(1)[:, 0].numpy(), y.byte().numpy()
    return {
        "temperature": temperature,
        "threshold": best_threshold(confidence_counts(np.rint(building * 255).astype(np.uint8), y)),
        "confidence": asdict(fit_thresholds(building, y)),
    }


def best_threshold(counts: np.ndarray) -> float:
    """The building probability above which a pixel counts as building so that IoU is largest; 0.5 where it is moot."""
    fp, tp = counts[:, ::-1].cumsum(1)[:, ::-1]
    if not tp[0]:
        return 0.5
    level = int(np.argmax(tp / (fp + tp[0])))
    return float(np.clip((level - 0.5) / 255, 0.01, 0.99))
