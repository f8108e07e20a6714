"""A folded network maps as the one it was, and what cannot be folded is left alone."""

import pytest
import torch
from torch import nn

from pipeline.networks.folding import folded
from pipeline.networks.models import Segmenter, build_model
from pipeline.params import Model


def trained(segmenter: Segmenter) -> Segmenter:
    """With statistics, scales and shifts as after a training, not as at its start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in segmenter.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.1)
    return segmenter.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "unet", "encoder": "tu-tf_efficientnet_lite0"},
        {"architecture": "unet", "encoder": "resnet18", "contact": 1},
        {"architecture": "deeplabv3_resnet50"},
    ],
)
def test_a_folded_network_maps_alike(model):
    segmenter = trained(build_model(Model(**model), 3))
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    fast = folded(segmenter)
    images = torch.rand(2, 3, 96, 70)
    with torch.no_grad():
        one, other = segmenter(images, contacts=True), fast(images, contacts=True)
    assert torch.allclose(one, other, atol=1e-4 * one.abs().max())
    assert norms(segmenter) and not norms(fast)
    after = segmenter.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class Standardised(nn.Conv2d):
    """Convolves by its weights over their deviation (Qiao 2019)."""

    def forward(self, x):
        return self._conv_forward(
            x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias
        )


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(Standardised(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)),  # before it, nothing to fold into
    ],
    ids=["more than its weights", "norm first"],
)
def test_what_would_map_otherwise_is_left_alone(network):
    segmenter = trained(Segmenter(network, 3, 1))
    assert folded(segmenter) is segmenter and norms(segmenter) == 1


def test_what_has_no_norm_is_not_copied():
    segmenter = build_model(Model(architecture="small_unet", width=4), 3).eval()
    assert folded(segmenter) is segmenter


def test_what_answers_no_number_is_left_alone():
    segmenter = trained(build_model(Model(architecture="unet", encoder="resnet18"), 3))
    next(m for m in segmenter.modules() if isinstance(m, nn.BatchNorm2d)).running_var.fill_(-1)
    assert folded(segmenter) is segmenter
