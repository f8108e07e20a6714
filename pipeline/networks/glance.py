"""A glance: a tiny network that sees which ground may hold a building, so that the
full one passes over the rest.

The first stage of a cascade (Viola and Jones, CVPR 2001): cheap, blind to shapes, asked only not to
miss. It answers for cells of CELL pixels; a window in which no cell reaches the threshold is not
looked at. The threshold is the one under which windows hold next to nothing of what the full
network maps of validation scenes (training/glance.py). It promises nothing of windows smaller than
those: fewer cells would have to say no.
"""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.networks.folding import fold

CELL = 16  # pixels along a cell's side
WIDTHS = (16, 24, 32, 48)


class Glance(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, ⌈H/CELL⌉, ⌈W/CELL⌉) that a
    cell holds building.
    """

    def __init__(self, channels: int):
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        for narrow, wide in pairwise((channels, *WIDTHS)):
            layers += [
                nn.Conv2d(narrow, wide, 3, 2, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
            ]
        around = nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 3, padding=1)
        last = nn.Conv2d(WIDTHS[-1], 1, 1)
        self.layers = nn.Sequential(*layers, around, nn.ReLU(inplace=True), last)
        self.threshold: torch.Tensor
        self.side: torch.Tensor
        self.register_buffer("threshold", torch.tensor(0.0))
        # pixels, of the windows that the threshold was set on
        self.register_buffer("side", torch.tensor(0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)[:, 0]

    def folded(self) -> "Glance":
        """One that answers alike by fewer passes over memory; not to learn on."""
        copy = deepcopy(self).eval()
        first, *rest = copy.layers
        assert isinstance(first, nn.BatchNorm2d)
        for convolution, norm in pairwise(rest):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fold(convolution, norm)
        rest = [layer for layer in rest if not isinstance(layer, nn.BatchNorm2d)]
        copy.layers = nn.Sequential(Scaled(first), *rest)
        return copy

    def sees(self, images: torch.Tensor) -> torch.Tensor:
        """(N,) bool: whether any cell may hold building. Windows too small for
        the threshold may.
        """
        if min(images.shape[-2:]) < self.side:
            return torch.ones(len(images), dtype=torch.bool, device=images.device)
        return (self(images) >= self.threshold).flatten(1).any(1)


class Scaled(nn.Module):
    """A batch norm in eval mode, in one pass: torch's own is slow over three channels."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        times = (norm.weight / (variance + norm.eps).sqrt())[:, None, None]
        self.register_buffer("times", times.detach())
        self.register_buffer("plus", (norm.bias - mean * times[:, 0, 0])[:, None, None].detach())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.get_buffer("plus"), images, self.get_buffer("times"))


def built(labels: torch.Tensor) -> torch.Tensor:
    """Building pixels (N, H, W), 0 or 1, to those of each cell (N, ⌈H/CELL⌉, ⌈W/CELL⌉)."""
    down, right = -labels.shape[-2] % CELL, -labels.shape[-1] % CELL
    return F.avg_pool2d(F.pad(labels.float(), (0, right, 0, down))[:, None], CELL)[:, 0] * CELL**2
