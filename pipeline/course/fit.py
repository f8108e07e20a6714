"""Stochastic gradient descent in ten lines, for networks that learn in seconds; the stage
`train` does it properly.
"""

import torch
from torch import nn

from pipeline.networks.models import Segmenter
from pipeline.scoring.metrics import iou
from pipeline.training.losses import Loss, cross_entropy


def segmenter(network: nn.Module, images: torch.Tensor) -> Segmenter:
    """A network behind the normalisation of the images (N, C, H, W) it will learn from."""
    whole = Segmenter(network, images.shape[1], 1)
    whole.set_normalisation(images.mean((0, 2, 3)), images.std((0, 2, 3)))
    return whole


def fit(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    *,
    loss: Loss = cross_entropy,
    rate: float = 1e-2,
    batch: int = 8,
    optimiser: type = torch.optim.Adam,
    **options,
) -> list[float]:
    """w ← w − η ∇L(w) on random batches, η along one cycle; the loss of each step. The network
    ends in eval mode.
    """
    descent = optimiser(network.parameters(), rate, **options)
    cycle = torch.optim.lr_scheduler.OneCycleLR(descent, rate, steps, cycle_momentum=False)
    network.train()
    history = []
    for _ in range(steps):
        pick = torch.randint(len(images), (batch,))
        value = loss(network(images[pick]), labels[pick])
        descent.zero_grad()
        value.backward()
        descent.step()
        cycle.step()
        history.append(value.item())
    network.eval()
    return history


@torch.no_grad()
def classes(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The likeliest class of each pixel, (N, H, W), a few images at a time."""
    return torch.cat([network(part).argmax(1) for part in images.split(16)])


def quality(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Pooled IoU of the buildings."""
    return iou(classes(network, images), labels)
