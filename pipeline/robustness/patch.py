"""A patch: a square of any pixels, scored only where the network hardly looks at it."""

import torch


def receptive_radius(segmenter, images: torch.Tensor, share: float = 0.99) -> tuple[int, int | None]:
    """How far a pixel's decision reaches, measured: gradients of the logits at the images' centre.

    images: (N, C, H, W). Returns two Chebyshev radii in pixels: the least square around the centre that holds `share`
    of the gradient's absolute sum (Luo et al. 2016, the effective receptive field), and the support, outside which the
    gradient is zero; None where the support reaches the images' edge, so that it is not seen whole.
    """
    height, width = images.shape[-2:]
    row, column = height // 2, width // 2
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = segmenter(leaf).float()[:, :, row, column]
        (gradient,) = torch.autograd.grad((logits[:, 1:].logsumexp(1) - logits[:, 0]).sum(), leaf)
    mass = gradient.abs().double().sum((0, 1)).cpu()
    distance = torch.maximum((torch.arange(height) - row).abs()[:, None], (torch.arange(width) - column).abs())
    by_radius = torch.bincount(distance.flatten(), mass.flatten())
    effective = int((by_radius.cumsum(0) < share * by_radius.sum()).sum())
    support = int(by_radius.nonzero().max()) if by_radius.any() else 0
    return effective, support if support < min(row, column, height - row - 1, width - column - 1) else None


def corner_patch(images: torch.Tensor, side: int) -> torch.Tensor:
    """(N, 1, H, W), true in the upper left square: the place that leaves the most of a tile out of its reach."""
    mask = torch.zeros_like(images[:, :1], dtype=torch.bool)
    mask[..., :side, :side] = True
    return mask


def beyond(labels: torch.Tensor, reach: int, ignore: int = 255) -> torch.Tensor:
    """Labels (N, H, W) with 255 on the upper left square of side `reach`: what is left is scored."""
    labels = labels.clone()
    labels[:, :reach, :reach] = ignore
    return labels
