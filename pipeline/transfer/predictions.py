"""A segmenter on a batch of tiles, and the IoU of what it says: the short
measurements of this folder.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.imagery.grid import SPLITS
from pipeline.labels import Split
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import autocast
from pipeline.scoring.metrics import iou
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float


def batches(images: np.ndarray, size: int, on: torch.device):
    """Yield (n, C, H, W) float tensors in [0, 1] of at most `size` tiles from
    (N, H, W, C) uint8.
    """
    for start in range(0, len(images), size):
        yield to_float(torch.from_numpy(np.ascontiguousarray(images[start : start + size])).to(on))


@torch.inference_mode()
def maps(
    segmenter: Segmenter, images: np.ndarray, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles (N, H, W, C) uint8 to the classes deployed, uint8, and the probability of any building
    as trained and as calibrated, float32: (N, H, W).
    """
    on = next(segmenter.buffers()).device
    classes = np.empty(images.shape[:3], np.uint8)
    probability, calibrated = (np.empty(classes.shape, np.float32) for _ in range(2))
    for i, batch in enumerate(batches(images, batch_size, on)):
        with autocast(on):
            logits = segmenter(batch).float()
        part = slice(i * batch_size, i * batch_size + len(batch))
        classes[part] = segmenter.decide(logits).cpu().numpy()
        for found, temperature in ((probability, 1), (calibrated, segmenter.decision.temperature)):
            found[part] = (1 - (logits / temperature).softmax(1)[:, 0]).cpu().numpy()
    return classes, probability, calibrated


def building_probability(
    segmenter: Segmenter, images: np.ndarray, batch_size: int = 16
) -> np.ndarray:
    """Tiles (N, H, W, C) uint8 to the probability of any building class, (N, H, W) float32."""
    return maps(segmenter, images, batch_size)[1]


def tile_iou(segmenter: Segmenter, images: np.ndarray, labels: np.ndarray) -> float | None:
    """ΣI/ΣU of the map deployed on tiles (N, H, W, C) uint8, as the stage evaluate counts it on
    whole scenes; None where labels (N, H, W) uint8, 255 ignored, know no building.
    """
    return iou(maps(segmenter, images)[0], labels)


def mean(ious: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [iou for iou in ious if iou is not None]
    return float(np.mean(known)) if known else None


def unlabelled(
    city: CityTiles, count: float, side: int, seed: int, split: Split = "train"
) -> np.ndarray:
    """Image crops of a city, from another split where this one has none; labels
    and their table stay unopened.
    """
    for name in (split, *SPLITS):
        if city.of_split(name):
            return city.unlabelled(name, math.ceil(count), side, seed)
    raise InputError(f"{city.folder}: no scenes; run the tile stage again")
