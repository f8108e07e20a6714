"""Two networks small enough to be certified by convex relaxation: layers that
pipeline.certificates.bounds knows, and no others. They carry no batch norm, whose training
statistics an interval does not have.
"""

import torch
from torch import nn


def SmallFCN(channels: int, outputs: int, width: int) -> nn.Sequential:
    """Four convolutions at full resolution, receptive field 9×9: (N, C, H, W) to (N, K, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, outputs, 3, padding=1),
    )  # fmt: skip


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


class SmallUNet(nn.Module):
    """A U-Net (Ronneberger 2015) of two poolings: (N, C, H, W) to (N, K, H, W),
    H and W multiples of 4.
    """

    def __init__(self, channels: int, outputs: int, width: int):
        super().__init__()
        self.enter = _block(channels, width)
        self.down1, self.down2 = _block(width, 2 * width), _block(2 * width, 2 * width)
        self.pool = nn.AvgPool2d(2)
        self.up2 = nn.ConvTranspose2d(2 * width, 2 * width, 2, stride=2)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.merge2, self.merge1 = _block(4 * width, 2 * width), _block(3 * width, width)
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = self.enter(x)
        half = self.down1(self.pool(full))
        quarter = self.down2(self.pool(half))
        half = self.merge2(torch.cat([half, self.up2(quarter)], 1))
        full = self.merge1(torch.cat([full, self.up1(half)], 1))
        return self.out(full)
