"""Networks that are given, not trained, so that what they rest on is known."""

import pytest
import torch
from torch import nn

from pipeline.networks.models import Segmenter


def deployed(network: nn.Module):
    return Segmenter(network, 3, 1).eval().requires_grad_(False).deployed()


class Answer(nn.Module):
    """Logits 0 and z of a function z of images (N, 3, H, W)."""

    def __init__(self, z):
        super().__init__()
        self.z = z

    def forward(self, images):
        z = self.z(images)
        return torch.cat([torch.zeros_like(z), z], 1)


@pytest.fixture
def by_colour():
    """Building where blue exceeds green: the planted tint and nothing else."""
    network = nn.Conv2d(3, 2, 1)
    network.weight.data.copy_(torch.tensor([[0.0, 0, 0], [0, -200, 200]]).view(2, 3, 1, 1))
    network.bias.data.zero_()
    return deployed(network)


@pytest.fixture
def by_brightness():
    """Building where a small neighbourhood is bright, whatever its colour."""

    def z(images):
        return 100 * (nn.functional.avg_pool2d(images.mean(1, keepdim=True), 5, 1, 2) - 0.51)

    return deployed(Answer(z))


@pytest.fixture
def by_shadow():
    """Building on the eight pixels to the left of what is dark."""

    def z(images):
        dark = (0.3 - images.mean(1, keepdim=True)).relu()
        right = nn.functional.pad(dark, (0, 8))[..., 1:]
        right = nn.functional.max_pool2d(right, (1, 8), 1)
        return 100 * right - 1000 * dark - 1

    return deployed(Answer(z))
