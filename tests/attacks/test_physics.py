"""What sun, air and camera do to a picture, by hand; and that a search never
ends above the clean IoU.
"""

import math

import pytest
import torch

from pipeline.attacks import losses
from pipeline.attacks.engine import harm
from pipeline.attacks.physics import families, grid, search
from pipeline.params import Physics

ALL = families(Physics(), 3)
SIDE = 32


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def numbers(name: str, **changed) -> torch.Tensor:
    family = ALL[name]
    values = [
        changed.get(n.replace(" ", "_"), float(v))
        for n, v in zip(family.names, family.neutral, strict=True)
    ]
    return torch.tensor([values, values])


@pytest.mark.parametrize("name", ALL)
def test_the_neutral_point_changes_nothing(name, images):
    assert torch.allclose(ALL[name].view(images, numbers(name)), images, atol=1e-5)
    labels = torch.randint(0, 2, (2, SIDE, SIDE))
    assert (ALL[name].truth(labels, numbers(name)) == labels).all()
    assert ((ALL[name].low <= ALL[name].neutral) & (ALL[name].neutral <= ALL[name].high)).all()


@pytest.mark.parametrize("name", ALL)
def test_every_view_is_a_picture_with_a_gradient(name, images):
    unit = torch.rand(
        2, len(ALL[name].low), generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    seen = ALL[name].view(images, ALL[name].numbers(unit))
    assert seen.shape == images.shape and seen.min() >= 0 and seen.max() <= 1
    (slope,) = torch.autograd.grad((seen * torch.rand_like(seen)).sum(), unit)
    assert slope.isfinite().all() and slope.abs().sum() > 0


def test_koschmieder_and_exposure_by_hand(images):
    hazy = ALL["haze"].view(images, numbers("haze", depth=0.3, airlight=0.9))
    assert torch.allclose(hazy, images * math.exp(-0.3) + 0.9 * (1 - math.exp(-0.3)))
    seen = ALL["gain"].view(images, numbers("gain", gain_1=1.1, offset_2=-0.02))
    assert torch.allclose(seen[:, 0], images[:, 0]) and torch.allclose(
        seen[:, 1], 1.1 * images[:, 1]
    )
    assert torch.allclose(seen[:, 2], images[:, 2] - 0.02)


def test_a_warmer_light_is_redder_and_less_blue(images):
    """At a higher mired the light is nearer to a lamp's: Planck's ratio of 610 to 465 nm, at
    5500 K and at 4721 K.
    """
    warm = ALL["colour"].view(images, numbers("colour", mired=30)) / images

    def planck(wave, kelvin):
        return 1 / math.expm1(1.4388e-2 / (wave * kelvin))

    kelvin = 1e6 / (1e6 / 5500 + 30)
    red, blue = (planck(w, kelvin) / planck(w, 5500) for w in (610e-9, 465e-9))
    assert float(warm[0, 0, 0, 0] / warm[0, 2, 0, 0]) == pytest.approx(
        (red / blue) ** (1 / 2.2), rel=1e-4
    )
    assert (
        torch.allclose(warm[:, 1], torch.ones(()), atol=1e-5)
        and warm[0, 0, 0, 0] > 1 > warm[0, 2, 0, 0]
    )


def test_a_blur_keeps_light_and_spreads_a_point():
    point = torch.zeros(1, 3, SIDE, SIDE)
    point[:, :, 16, 16] = 1
    seen = ALL["blur"].view(point, torch.tensor([[1.2]]))
    assert float(seen[0, 0].sum()) == pytest.approx(1, abs=1e-5)
    away = torch.arange(SIDE) - 16.0
    assert float((seen[0, 0].sum(0) * away**2).sum()) == pytest.approx(1.2**2, rel=0.01)


def test_a_whole_pixel_shift_and_a_quarter_turn_are_exact(images):
    labels = torch.randint(0, 2, (2, SIDE, SIDE))
    family = families(Physics(shift=2, rotation=45), 3)
    one = torch.tensor([[1.0, 0.0]] * 2)
    assert torch.allclose(family["shift"].view(images, one)[..., 1:], images[..., :-1], atol=1e-5)
    moved = family["shift"].truth(labels, one)
    assert (moved[..., 1:] == labels[..., :-1]).all() and (moved[..., 0] == 255).all()
    quarter = torch.tensor([[90.0, 1.0]] * 2)
    turned, truth = family["turn"].view(images, quarter), family["turn"].truth(labels, quarter)
    ways = [torch.allclose(turned, images.rot90(k, (2, 3)), atol=1e-4) for k in (1, 3)]
    assert sum(ways) == 1 and (truth == labels.rot90((1, 3)[ways.index(True)], (1, 2))).all()


def test_a_shadow_takes_its_share_inside_and_nothing_far_outside():
    light = torch.ones(1, 3, 64, 64)
    dark = ALL["shadow"].view(light, torch.tensor([[0.0, 0.0, 0.5, 0.4, 2.0]]))[0, 0]
    assert float(dark[0, 0]) == pytest.approx(0.6, abs=1e-4) and float(
        dark[-1, -1]
    ) == pytest.approx(1, abs=1e-4)


def test_families_that_cannot_be_are_left_out():
    assert "colour" not in families(Physics(), 4) and len(families(Physics(), 4)["gain"].low) == 8
    assert {*families(Physics(haze=0, families=["haze", "blur"]), 3)} == {"blur"}


def test_a_grid_is_regular_where_it_can_be():
    assert grid(ALL["colour"], 9).flatten().tolist() == pytest.approx([i / 8 for i in range(9)])
    assert len(grid(ALL["turn"], 9)) == 9 and len(grid(ALL["gain"], 9)) == 9
    assert [0.5, 0.5] in grid(ALL["turn"], 9).tolist()


class Bright(torch.nn.Module):
    """A building is where the grey value exceeds ½: what it sees of an exposure is known."""

    def forward(self, images):
        lead = 20 * (images.mean(1, keepdim=True) - 0.5)
        return torch.cat([-lead, lead], 1)


def test_gradients_go_on_where_the_grid_ends():
    """Roofs of 0.53 on ground of 0.42: 0.93 · 0.53 is below ½, and no point of
    a coarse grid is a tile's worst.
    """
    labels = torch.zeros(2, SIDE, SIDE, dtype=torch.long)
    labels[:, 8:20, 8:20] = 1
    images = torch.where(labels == 1, 0.53, 0.42)[:, None].expand(
        -1, 3, -1, -1
    ) + 0.004 * torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    family = families(Physics(gain=0.1, offset=0), 3)["gain"]
    loss, judge = losses.soft_iou(0.5), lambda z, y: harm(z, y)[0]
    seen = list(search(family, Bright(), images, labels, loss, judge, 5, 6))
    assert [s.by for s in seen] == ["grid"] * 5 + ["gradient"] * 6
    damage = [judge(s.logits, s.labels).max() for s in seen]
    assert max(damage[5:]) >= max(damage[:5]) and max(damage) >= 1  # every roof is lost, or more
    for point in seen:
        assert ((point.numbers >= family.low - 1e-6) & (point.numbers <= family.high + 1e-6)).all()
