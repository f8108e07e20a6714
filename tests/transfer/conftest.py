"""Toy cities with known answers: rectangles brighter than a noisy ground, and the same seen
under other light.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.networks.models import Segmenter
from pipeline.tiles.tensors import to_float


def tiles(seed: int, count: int = 16, side: int = 48, contrast: float = 0.25, spread: float = 0.08):
    """Images (N, S, S, 3) uint8 and labels (N, S, S) uint8: buildings differ
    from the ground by `contrast`.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, side, side), np.uint8)
    for label in labels:
        for _ in range(3):
            top, left = rng.integers(0, side - 18, 2)
            label[top : top + rng.integers(8, 18), left : left + rng.integers(8, 18)] = 1
    images = 0.45 + spread * rng.normal(size=(count, side, side, 3)) + contrast * labels[..., None]
    return np.clip(np.rint(images * 255), 1, 255).astype(np.uint8), labels


def dim(images: np.ndarray) -> np.ndarray:
    """A radiometric shift: another sensor, later in the day. What is a building has not changed."""
    return np.rint(0.4 * images + 10).astype(np.uint8)


@pytest.fixture(scope="session")
def make_tiles():
    return tiles


@pytest.fixture(scope="session")
def make_dim():
    return dim


@pytest.fixture(scope="session")
def toy_segmenter() -> Segmenter:
    """A small batch-norm network that finds the toy buildings (IoU > 0.9 on unseen tiles)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    segmenter = Segmenter(network, channels=3, classes=1).train()
    optimizer = torch.optim.Adam(segmenter.parameters(), 0.02)
    for step in range(60):
        images, labels = tiles(1000 + step, count=8)
        loss = F.cross_entropy(
            segmenter(to_float(torch.from_numpy(images))), torch.from_numpy(labels).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return segmenter.eval().requires_grad_(False)
