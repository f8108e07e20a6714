"""A patch: a square of any pixels, scored only where the network hardly looks at it."""

import torch
from torch.nn import functional as F

from pipeline.labels import IGNORE


def receptive_radius(
    segmenter, images: torch.Tensor, share: float = 0.99
) -> tuple[int | None, int | None]:
    """How far a pixel's decision reaches, measured: gradients of the logits at the images' centre.

    images: (N, C, H, W), each mirrored to three times its side, one at a time, so that its edge
    caps no answer. Returns two Chebyshev radii in pixels: the least square around the centre that
    holds `share` of the gradient's absolute sum (Luo et al. 2016, the effective receptive field),
    and the support, outside which the gradient is zero. None where the edge of the mirrored image
    may hide a part, or no gradient arrives at all.
    """
    height, width = images.shape[-2:]
    row, column = height - 1 + height // 2, width - 1 + width // 2
    mass = torch.zeros((), dtype=torch.float64)
    for image in images.detach().split(1):
        leaf = F.pad(
            image, (width - 1, width - 1, height - 1, height - 1), mode="reflect"
        ).requires_grad_()
        with torch.enable_grad():
            logits = segmenter(leaf).float()[:, :, row, column]
            (gradient,) = torch.autograd.grad((logits[:, 1:].amax(1) - logits[:, 0]).sum(), leaf)
        mass = mass + gradient.abs().double().sum((0, 1)).cpu()
    down, right = (
        torch.arange(side) - centre for side, centre in zip(mass.shape, (row, column), strict=True)
    )
    by_radius = torch.bincount(
        torch.maximum(down.abs()[:, None], right.abs()).flatten(), mass.flatten()
    )
    if not by_radius.any():
        return None, None
    edge = min(row, column, len(down) - row - 1, len(right) - column - 1)
    effective = int((by_radius.cumsum(0) < share * by_radius.sum()).sum())
    support = int(by_radius.nonzero().max())
    return effective if effective < 0.9 * edge else None, support if support < edge else None


def corner_patch(images: torch.Tensor, side: int) -> torch.Tensor:
    """(N, 1, H, W), true in the upper left square: the place that leaves the
    most of a tile out of its reach.
    """
    mask = torch.zeros_like(images[:, :1], dtype=torch.bool)
    mask[..., :side, :side] = True
    return mask


def beyond(labels: torch.Tensor, reach: int) -> torch.Tensor:
    """Labels (N, H, W) with 255 on the upper left square of side `reach`: what
    is left is scored.
    """
    labels = labels.clone()
    labels[:, :reach, :reach] = IGNORE
    return labels
