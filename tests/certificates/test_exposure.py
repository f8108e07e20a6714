"""A certificate over exposures: sound for every one tried, tighter in more cells, and exact for
a linear network.
"""

import torch
from torch import nn

from pipeline.certificates.bounds import ABSTAIN
from pipeline.certificates.exposure import exposure_classes
from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter
from pipeline.networks.small_nets import SmallFCN


def given(seed: int = 0, width: int = 4):
    """A segmenter of given weights that draws half of a picture as buildings."""
    torch.manual_seed(seed)
    segmenter = Segmenter(SmallFCN(3, 2, width), 3, 1).eval().requires_grad_(False)
    segmenter.set_normalisation([0.4] * 3, [0.2] * 3)
    segmenter.decision = Decision(1.5, 0.4)
    images = torch.rand(2, 3, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    logits = segmenter.deployed()(images)
    segmenter.network[-1].bias.data[1] -= (logits[:, 1] - logits[:, 0]).median()
    return segmenter, images


def test_no_exposure_within_the_bounds_changes_a_certified_pixel():
    segmenter, images = given()
    deployed, gain, offset = segmenter.deployed(), 0.02, 0.01
    certified = exposure_classes(segmenter, images, gain, offset, 4)
    assert all((certified == kind).any() for kind in (ABSTAIN, 0, 1))
    random = torch.Generator().manual_seed(0)
    for _ in range(300):
        g = 1 + gain * (2 * torch.randint(0, 2, (2, 3, 1, 1), generator=random) - 1)
        o = offset * (2 * torch.rand(2, 3, 1, 1, generator=random) - 1)
        drawn = deployed((g * images + o).clamp(0, 1)).argmax(1)
        assert ((certified == ABSTAIN) | (certified == drawn)).all()


def test_more_cells_certify_no_less_and_no_change_certifies_all():
    segmenter, images = given(1)
    shares = [
        float((exposure_classes(segmenter, images, 0.06, 0.03, n) != ABSTAIN).float().mean())
        for n in (1, 8, 64)
    ]
    assert shares[0] <= shares[1] <= shares[2] and shares[2] > shares[0]
    nothing = exposure_classes(segmenter, images, 0.0, 0.0, 16)
    drawn = segmenter.deployed()(images).argmax(1)
    assert (nothing == drawn).float().mean() > 0.9 and (
        (nothing == ABSTAIN) | (nothing == drawn)
    ).all()


def test_of_a_linear_network_it_is_exact():
    """z₁ − z₀ = 10 · (mean of the bands − ½): within gain ± g and offset ± o the least is at
    the least exposure.
    """
    network = nn.Conv2d(3, 2, 1).eval().requires_grad_(False)
    network.weight[:] = torch.tensor([[0.0] * 3, [10 / 3] * 3])[..., None, None]
    network.bias[:] = torch.tensor([0.0, -5])
    segmenter = Segmenter(network, 3, 1).eval()
    grey = torch.linspace(0.1, 0.9, 400).view(1, 1, 20, 20)
    found = exposure_classes(segmenter, grey.expand(-1, 3, -1, -1), 0.1, 0.05, 1)
    building, ground = grey[:, 0] * 0.9 - 0.05 > 0.5 + 1e-4, grey[:, 0] * 1.1 + 0.05 < 0.5 - 1e-4
    assert (found[building] == 1).all() and (found[ground] == 0).all()
    assert (
        found[
            ~building
            & ~ground
            & ((grey[:, 0] * 0.9 - 0.05) < 0.5 - 1e-4)
            & (grey[:, 0] * 1.1 > 0.46)
        ]
        < 0
    ).all()


def test_where_the_sensor_saturates_it_stays_sound():
    segmenter, images = given(2)
    images = images * 0.3 + 0.7
    certified = exposure_classes(segmenter, images, 0.3, 0.1, 4)
    for gain, offset in ((1.3, 0.1), (1.3, -0.1), (0.7, 0.1), (0.7, -0.1)):
        drawn = segmenter.deployed()((gain * images + offset).clamp(0, 1)).argmax(1)
        assert ((certified == ABSTAIN) | (certified == drawn)).all()
