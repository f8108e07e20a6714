"""A task with a planted non-robust cue, and two networks that learn it: the known answer of
adversarial training.

Each 32² tile holds grey noise identical in all channels, rectangles of class 1 brighter by a
contrast that varies per tile (.12 ± .06), and a noise-free tint of ±4/255 between blue and green
that follows the class exactly. A standard network leans on the tint, which a budget of 4/255 erases
and one of 8/255 turns round; an adversarially trained one cannot, and is left with the brightness.
"""

import numpy as np
import torch
from torch import nn

from pipeline.networks.decision import leading
from pipeline.params import Adversarial
from pipeline.training.adversarial import adversarial_loss
from pipeline.training.losses import cross_entropy

TINT, NOISE = 4 / 255, 0.06


def tiles(
    count: int, seed: int, tint: float = 1.0, size: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, S, S) in [0, 1] and labels (N, S, S). `tint` 1 as planted, 0 removed, −1
    flipped; the rest of the image stays the same.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, size, size), np.int64)
    for label in labels:
        for _ in range(rng.integers(1, 4)):
            height, width = rng.integers(6, 16, 2)
            top, left = rng.integers(0, size - height), rng.integers(0, size - width)
            label[top : top + height, left : left + width] = 1
    contrast = rng.normal(0.12, 0.06, (count, 1, 1))
    grey = 0.45 + NOISE * rng.standard_normal((count, size, size)) + contrast * labels
    sign = tint * TINT * (2 * labels - 1)
    images = np.stack([grey, grey - sign, grey + sign], 1)
    return torch.from_numpy(images.clip(0, 1).astype(np.float32)), torch.from_numpy(labels)


def network(width: int = 24) -> nn.Module:
    """A fully convolutional net with a receptive field of 15 pixels."""
    layers, channels = [], 3
    for dilation in (1, 2, 4):
        layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        channels = width
    return nn.Sequential(_Centre(), *layers, nn.Conv2d(width, 2, 1))


class _Centre(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5) / 0.1


def train(
    config: Adversarial, steps: int, seed: int = 0, batch: int = 8, width: int = 24, init=None
) -> nn.Module:
    torch.manual_seed(seed)
    segmenter = network(width)
    if init is not None:
        segmenter.load_state_dict(init.state_dict())
    optimizer = torch.optim.Adam(segmenter.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    images, labels = tiles(512, seed + 1)
    for step in range(steps):
        pick = torch.randint(len(images), (batch,))
        loss, _ = adversarial_loss(
            segmenter, images[pick], labels[pick], cross_entropy, config, step / steps
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return segmenter.eval()


def pooled(segmenter: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    from pipeline.attacks.engine import counts

    with torch.no_grad():
        intersection, union = counts(leading(segmenter(images)), labels)
    return float(intersection.sum() / union.sum())
