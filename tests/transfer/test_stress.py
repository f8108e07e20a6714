"""What a city's IoU withstands."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from pipeline.networks.models import Segmenter
from pipeline.params import Attack, Certify, Generalize
from pipeline.transfer import stress


class Rough(nn.Module):
    """Building where a pixel differs from what most of the batch look like: noise shows roofs."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        unlike = (images - images.median()).abs() * 255 - 0.2
        return torch.cat([-unlike, unlike], 1)


def test_an_attack_that_helps_is_no_attack():
    images, labels = np.full((2, 64, 64, 1), 128, np.uint8), np.zeros((2, 64, 64), np.uint8)
    labels[:, :32], images[:, :3] = 1, 140  # smooth roofs, of which three rows are seen
    city = SimpleNamespace(gsd=0.3, sample=lambda *_, **__: (images, labels))
    params = SimpleNamespace(
        attack=Attack(),
        certify=Certify(crop=64, methods=["lipschitz"]),
        generalize=Generalize(corruption_tiles=2, attack_steps=2),
    )
    found = stress.robust(params, city, Segmenter(Rough(), 1, 1).eval())
    assert found["attacked"] <= found["clean"] == 3 / 32
