"""A segmenter on a batch of tiles, and the IoU of what it says: the short measurements of this folder."""

import numpy as np
import torch

from pipeline.geo.scene import IGNORE
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


def tile_iou(probability: np.ndarray, labels: np.ndarray) -> float | None:
    """ΣI/ΣU of probability > ½ against labels (N, H, W) uint8, 255 ignored; None without any building."""
    valid = labels != IGNORE
    found, truth = (probability > 0.5) & valid, (labels > 0) & valid
    union = np.count_nonzero(found | truth)
    return float(np.count_nonzero(found & truth) / union) if union else None
