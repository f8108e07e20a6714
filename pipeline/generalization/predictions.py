"""A segmenter on a batch of tiles, and the IoU of what it says: the short measurements of this folder."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.geo.scene import IGNORE
from pipeline.geo.tiles import CityTiles
from pipeline.learning.crops import to_float
from pipeline.learning.models import Segmenter
from pipeline.learning.precision import autocast


def batches(images: np.ndarray, size: int, on: torch.device):
    """Yield (n, C, H, W) float tensors in [0, 1] of at most `size` tiles from (N, H, W, C) uint8."""
    for start in range(0, len(images), size):
        yield to_float(torch.from_numpy(np.ascontiguousarray(images[start : start + size])).to(on))


@torch.inference_mode()
def building_probability(segmenter: Segmenter, images: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Tiles (N, H, W, C) uint8 to the probability of any building class, (N, H, W) float32."""
    on = next(segmenter.buffers()).device
    maps = []
    for batch in batches(images, batch_size, on):
        with autocast(on):
            logits = segmenter(batch)
        maps.append((1 - logits.float().softmax(1)[:, 0]).cpu().numpy())
    return np.concatenate(maps) if maps else np.empty(images.shape[:3], np.float32)


@torch.inference_mode()
def drawn(segmenter: Segmenter, images: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Tiles (N, H, W, C) uint8 to the classes deployed, (N, H, W)."""
    on = next(segmenter.buffers()).device
    maps = []
    for batch in batches(images, batch_size, on):
        with autocast(on):
            logits = segmenter(batch)
        maps.append(segmenter.decide(logits.float()).cpu().numpy())
    return np.concatenate(maps) if maps else np.empty(images.shape[:3], np.int64)


@torch.inference_mode()
def drawn_of_tensor(segmenter: Segmenter, images: torch.Tensor) -> np.ndarray:
    """The same of images that are no longer 8-bit: in full precision, as they were attacked."""
    return segmenter.decide(segmenter(images)).cpu().numpy()


def tile_iou(found: np.ndarray, labels: np.ndarray) -> float | None:
    """ΣI/ΣU of the classes drawn, or of a building probability > ½, against labels (N, H, W) uint8, 255 ignored; None
    without any building.
    """
    valid = labels != IGNORE
    found, truth = (found > 0.5) & valid, (labels > 0) & valid
    union = np.count_nonzero(found | truth)
    return float(np.count_nonzero(found & truth) / union) if union else None


def mean(ious: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [iou for iou in ious if iou is not None]
    return float(np.mean(known)) if known else None


def unlabelled(city: CityTiles, count: float, side: int, seed: int, split: str = "train") -> np.ndarray:
    """Image crops of a city, from another split where this one has none; labels and their table stay unopened."""
    for name in (split, "train", "validation", "test"):
        if city.of_split(name):
            return city.unlabelled(name, math.ceil(count), side, seed)
    raise InputError(f"{city.folder}: no scenes; run the tile stage again")
