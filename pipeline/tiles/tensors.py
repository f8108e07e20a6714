"""Tiles as a network takes them: channels first, in [0, 1]."""

import numpy as np
import torch


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Batch (N, H, W, C) uint8 to (N, C, H, W) float in [0, 1], channels last in memory: no
    copy but the conversion.
    """
    return images.movedim(-1, 1).to(torch.float32).div_(255)


def to_tensors(
    tiles: tuple[np.ndarray, np.ndarray], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles (N, H, W, C) and (N, H, W) uint8 to images (N, C, H, W) float in [0, 1] and labels
    (N, H, W) int64.
    """
    images, labels = (torch.from_numpy(array).to(device) for array in tiles)
    return to_float(images).contiguous(memory_format=torch.channels_last), labels.long()
