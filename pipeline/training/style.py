"""Training crops in the light of others: what a city looks like is not what its buildings are."""

import torch


def restyled(
    images: torch.Tensor, share: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """A share of images (N, C, H, W) with each channel's mean and deviation part of the way to
    another's of the batch.

    MixStyle's statistics (Zhou et al., ICLR 2021), of the pixels instead of features; the way is
    uniform in [0, 1].
    """
    order = torch.randperm(len(images), generator=generator)
    mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True) + 1e-3
    way, drawn = (
        torch.rand(len(images), 1, 1, 1, generator=generator).to(images) for _ in range(2)
    )
    styled = (images - mean) / std * std.lerp(std[order], way) + mean.lerp(mean[order], way)
    return torch.where(drawn < share, styled, images)
