"""Certified IoU against every prediction it allows; the collective certificate
against brute force.
"""

import itertools
import math

import pytest
import torch

from pipeline.attacks.engine import Target, pgd
from pipeline.certificates.bounds import ABSTAIN
from pipeline.certificates.lipschitz import (
    at_radius,
    certified_iou,
    collective_iou,
    lipschitz_radii,
    literature_iou,
    refuted,
)
from pipeline.networks.lipschitz import LipschitzNet, NonExpansiveConv, OrthogonalConv, watch_values
from pipeline.scoring.metrics import counts


def iou(prediction, labels) -> float:
    """By sets of pixels: any building against background."""
    valid = labels != 255
    truth, found = (labels > 0) & valid, (prediction > 0) & valid
    return (truth & found).sum().item() / (truth | found).sum().item()


@pytest.mark.parametrize("classes", [1, 2])
def test_sound_iou_is_the_least_over_all_that_abstention_allows(classes):
    random = torch.Generator().manual_seed(0)
    for _ in range(30):
        labels = torch.randint(0, classes + 1, (1, 2, 4), generator=random)
        labels[0, 0, 0], labels[0, 0, 1] = 255, 1
        prediction = torch.randint(0, classes + 1, (1, 2, 4), generator=random)
        open_pixels = torch.rand(1, 2, 4, generator=random) < 0.5
        certified = torch.where(open_pixels, ABSTAIN, prediction)
        worst = 2.0
        for choice in itertools.product(range(classes + 1), repeat=int(open_pixels.sum())):
            possible = prediction.clone()
            possible[open_pixels] = torch.tensor(choice, dtype=possible.dtype)
            worst = min(worst, iou(possible, labels))
        assert certified_iou(certified, labels) == pytest.approx(worst)
        assert literature_iou(certified, labels) >= certified_iou(certified, labels)
        assert certified_iou(prediction, labels) == pytest.approx(iou(prediction, labels))


def test_literature_is_not_a_lower_bound():
    labels, certified = torch.tensor([[[1, 0, 0]]]), torch.tensor([[[1, -1, -1]]])
    assert literature_iou(certified, labels) == 1
    assert certified_iou(certified, labels) == pytest.approx(1 / 3)


def test_a_certificate_of_several_classes_is_of_buildings_as_every_other_iou():
    """Taken for another kind of building it is still found; what may be
    anything may be background.
    """
    labels = torch.tensor([[[1, 2, 2, 0, 255]]], dtype=torch.uint8)
    certified = torch.tensor([[[1, 1, ABSTAIN, ABSTAIN, 2]]])
    assert [int(n) for n in counts(certified, labels)] == [2, 4]


def test_where_there_is_no_building_nothing_is_proven():
    labels, certified = (
        torch.zeros(1, 4, 4, dtype=torch.long),
        torch.zeros(1, 4, 4, dtype=torch.long),
    )
    labels[0, 0] = 255
    for found in (certified, certified + 1):  # nor where one was invented
        assert certified_iou(found, labels) is None and literature_iou(found, labels) is None
        assert collective_iou(torch.ones(1, 4, 4), found, labels, 0.5) is None


def test_collective_equals_brute_force_on_a_dozen_pixels():
    random, flips = (
        torch.Generator().manual_seed(1),
        torch.cartesian_prod(*[torch.arange(2)] * 12).bool().view(-1, 3, 4),
    )
    below = 0
    for trial in range(20):
        labels = torch.randint(0, 2, (1, 3, 4), generator=random)
        prediction = torch.where(torch.rand(1, 3, 4, generator=random) < 0.8, labels, 1 - labels)
        labels[0, 0, 0] = 255
        radius = torch.rand(1, 3, 4, generator=random) * 0.5
        epsilon = 0.1 + 0.05 * trial
        allowed = flips[(radius.double().square() * flips).sum((1, 2)) <= epsilon**2]
        worst = min(
            iou(map_, labels[0])
            for map_ in torch.where(allowed, 1 - prediction, prediction).unique(dim=0)
        )
        together = collective_iou(radius, prediction, labels, epsilon)
        assert together == pytest.approx(worst, abs=1e-9)
        single = certified_iou(at_radius(prediction, radius * (1 - 1e-6), epsilon), labels)
        assert single <= together <= iou(prediction, labels)
        below += together < iou(prediction, labels)
    assert below > 10


def test_collective_over_tiles_gives_each_tile_its_own_budget():
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 2, (2, 2, 3), generator=random)
    radius = torch.rand(2, 2, 3, generator=random)
    worst = 2.0
    choices = list(itertools.product((False, True), repeat=6))
    allowed = [
        [f for f in choices if r.flatten()[torch.tensor(f)].double().square().sum() <= 0.36]
        for r in radius
    ]
    for flips in itertools.product(*allowed):
        flipped = torch.tensor(flips).view(2, 2, 3)
        worst = min(worst, iou(torch.where(flipped, 1 - labels, labels), labels))
    assert collective_iou(radius, labels, labels, 0.6) == pytest.approx(worst, abs=1e-9)


def test_lipschitz_radius_is_the_distance_to_a_linear_boundary():
    """Logits W x of one pixel: ‖W‖ = 1 bounds the radius; with two opposite
    rows of norm 1/√2 it is exact.
    """
    x = torch.tensor([0.3, -0.4])
    w = torch.tensor([[0.6, 0.8], [-0.6, -0.8]]) / math.sqrt(2)
    assert torch.linalg.matrix_norm(w, 2) == pytest.approx(1)
    exact = abs(0.6 * 0.3 - 0.8 * 0.4)
    certified = lipschitz_radii((w @ x).view(1, 2, 1, 1)).item()
    assert exact * (1 - 1e-3) <= certified <= exact
    assert lipschitz_radii((w @ x).view(1, 2, 1, 1), 4.4).item() == pytest.approx(certified / 4.4)


def test_per_pixel_below_collective_below_pgd_below_clean():
    torch.manual_seed(0)
    net = LipschitzNet(3, 2, 8).eval().requires_grad_(False)
    images = torch.rand(3, 3, 16, 16)
    logits = net(images)
    radius, prediction = lipschitz_radii(logits), logits.argmax(1)
    labels = torch.where(torch.rand(3, 16, 16) < 0.9, prediction, 1 - prediction)
    clean, moved = certified_iou(prediction, labels), False
    for epsilon in (0.02, 0.1, 0.5):
        found = pgd(Target(net, images, labels, "l2", epsilon), 30)
        answer = net(found).argmax(1)
        single = certified_iou(at_radius(prediction, radius, epsilon), labels)
        together = collective_iou(radius, prediction, labels, epsilon)
        assert single <= together <= certified_iou(answer, labels) <= clean
        norms = (found - images).flatten(1).norm(dim=1)
        assert not refuted(prediction, radius, answer, norms, labels).any()
        # Σ r² of the flipped pixels is what the collective certificate stands on
        flipped = (answer != prediction).float()
        assert ((radius.square() * flipped).sum((1, 2)) <= norms.square() * (1 + 1e-4)).all()
        moved |= bool(flipped.any())
    assert moved


def test_an_unsound_radius_is_refuted():
    """Per-pixel radii a hundred times too long are found out by the same attack."""
    torch.manual_seed(0)
    net = LipschitzNet(3, 2, 8).eval().requires_grad_(False)
    images = torch.rand(3, 3, 16, 16)
    logits = net(images)
    radius, prediction = lipschitz_radii(logits), logits.argmax(1)
    weakest = radius.flatten(1).argsort(1)[:, :20]
    labels = torch.full_like(prediction, 255)
    labels.flatten(1).scatter_(1, weakest, prediction.flatten(1).gather(1, weakest))
    found = pgd(Target(net, images, labels, "l2", 0.02), 100)
    answer, norms = net(found).argmax(1), (found - images).flatten(1).norm(dim=1)
    assert not refuted(prediction, radius, answer, norms, labels).any()
    assert refuted(prediction, 100 * radius, answer, norms, labels).any()


def test_refuted_needs_a_change_of_a_certified_pixel_within_its_radius():
    certified = torch.tensor([[[1, 1, -1, 1, 1]]])
    attacked = torch.tensor([[[0, 0, 0, 1, 0]]])
    radius = torch.tensor([[[0.5, 0.1, 0.5, 0.5, 0.5]]])
    labels = torch.tensor([[[1, 1, 1, 1, 255]]])
    seen = refuted(certified, radius, attacked, torch.tensor([0.2]), labels)
    assert seen.flatten().tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("bias", [3.0, 300.0, 3000.0])
def test_a_radius_gives_up_its_share_of_large_logits(bias):
    """Biases of any size: no float32 radius exceeds that of the same network in float64."""
    torch.manual_seed(0)
    net = LipschitzNet(3, 2, 8).eval().requires_grad_(False)
    convs = [m for m in net.modules() if isinstance(m, NonExpansiveConv)]
    for m in convs:
        m.bias.data = bias * torch.randn_like(m.bias)
    x = torch.rand(4, 3, 16, 16)
    certified = lipschitz_radii(net(x)).double()
    for m in convs:
        kernel, b = m.kernel().double(), m.bias.double()
        m.forward = lambda x, k=kernel, b=b: torch.nn.functional.conv2d(
            x, k, b, padding=k.shape[-1] // 2
        )
    exact = net.double()(x.double())
    assert (certified <= (exact[:, 1] - exact[:, 0]).abs() / math.sqrt(2)).all()


def test_biases_that_cancel_before_the_logits_are_seen():
    layers = [OrthogonalConv(2, 2, 1).eval() for _ in range(2)]
    net, seen = torch.nn.Sequential(*layers), []
    layers[0].bias.data = torch.tensor([1e4, 0.0])
    layers[1].bias.data = -(layers[1].kernel()[:, :, 0, 0] @ layers[0].bias.data)
    with watch_values(net, seen), torch.no_grad():
        answer = net(torch.rand(1, 2, 4, 4))
    assert answer.abs().max() < 10 and max(seen) > 5e3
