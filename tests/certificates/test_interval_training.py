"""IBP training: its loss is a bound, its schedule ends where it says, it raises the
certificate, it sees a collapse.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.certificates.bounds import Bounds, certified_classes, image_box, interval_margins
from pipeline.certificates.interval_training import (
    Collapse,
    balanced,
    schedule,
    train_interval,
    worst_logits,
)
from pipeline.certificates.lipschitz import certified_iou
from pipeline.networks.models import Segmenter
from pipeline.networks.small_nets import SmallFCN
from pipeline.training.losses import cross_entropy


def squares(count: int, seed: int):
    """Bright squares on noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, 24, 24, dtype=torch.long)
    for label in labels:
        y, x = (int(n) for n in torch.randint(0, 12, (2,), generator=random))
        label[y : y + 10, x : x + 10] = 1
    grey = 0.4 + 0.3 * labels + 0.03 * torch.randn(labels.shape, generator=random)
    return grey[:, None].expand(-1, 3, -1, -1).clamp(0, 1).contiguous(), labels


def batches():
    seed = 0
    while True:
        yield squares(8, seed := seed + 1)


def test_training_raises_the_certificate_and_keeps_the_task():
    images, labels = squares(8, 0)
    certified = {}
    for epsilon in (0.0, 4 / 255):
        torch.manual_seed(0)
        segmenter = Segmenter(SmallFCN(3, 2, 8), 3, 1)
        trained = train_interval(segmenter, batches(), 120, epsilon)
        assert not trained.collapsed and trained.iou > 0.9
        box = image_box(segmenter, images, 4 / 255)
        certified[epsilon] = certified_iou(
            certified_classes(interval_margins(Bounds(segmenter.network), box)), labels
        )
    assert certified[4 / 255] > certified[0.0] + 0.2


def test_worst_logits_bound_the_loss_of_every_image_in_the_box():
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)
    ).requires_grad_(False)
    segmenter, images = Segmenter(network, 2, 2), torch.rand(1, 2, 6, 6)
    labels = torch.randint(0, 3, (1, 6, 6))
    labels[0, 0, 0] = 255
    bounds, epsilon = Bounds(network), 0.03
    differences = bounds.differences(bounds.intervals(image_box(segmenter, images, epsilon)))
    worst = F.cross_entropy(
        worst_logits(differences, labels), labels, ignore_index=255, reduction="none"
    )
    points = (images + epsilon * (2 * torch.rand(500, 2, 6, 6) - 1).sign()).clamp(0, 1)
    seen = F.cross_entropy(
        segmenter(points), labels.expand(500, -1, -1), ignore_index=255, reduction="none"
    )
    assert (seen <= worst + 1e-5).all() and (seen.amax(0) > 0.5 * worst).any()


def test_schedule_starts_plain_and_ends_at_its_target():
    assert schedule(0, 100, 0.1) == (0.0, 1.0) == schedule(20, 100, 0.1)
    assert schedule(70, 100, 0.1) == pytest.approx((0.1, 0.5)) == schedule(99, 100, 0.1)
    epsilons, kappas = zip(*(schedule(t, 100, 0.1) for t in range(100)), strict=True)
    assert list(epsilons) == sorted(epsilons) and list(kappas) == sorted(kappas, reverse=True)


def test_balanced_weighs_a_pixel_by_its_class():
    torch.manual_seed(2)
    logits, labels = (
        torch.randn(2, 3, 4, 4),
        torch.tensor([0, 0, 0, 2, 255]).repeat(7)[:32].view(2, 4, 4),
    )
    counts = torch.bincount(labels.flatten(), minlength=256)[:3].float()
    weight = torch.where(counts > 0, counts.clamp_min(1) ** -0.75, 0)
    ours = balanced(cross_entropy, logits, labels)
    assert torch.isclose(ours, F.cross_entropy(logits, labels, weight, ignore_index=255))
    assert torch.isclose(
        balanced(cross_entropy, logits, labels, power=0), cross_entropy(logits, labels)
    )


def test_collapse_is_one_class_everywhere_or_most_of_the_iou_lost():
    labels = torch.tensor([[[1, 1, 0, 0, 255]]])
    right, background, everything, one_in_five = (
        F.one_hot(torch.tensor([[p]]), 2).permute(0, 3, 1, 2).float()
        for p in ([1, 1, 0, 0, 0], [0] * 5, [1] * 5, [0, 1, 1, 1, 0])
    )

    def after(*maps):
        watch = Collapse(memory=0.0)
        for prediction in maps:
            watch.see(prediction, labels)
        return watch.collapsed

    assert not after(right) and not after(background, right)
    assert after(background) and after(everything) and after(right, background)
    assert not after(one_in_five)  # a bad start is no collapse
    assert after(right, F.one_hot(torch.tensor([[[0, 0, 1, 1, 0]]]), 2).permute(0, 3, 1, 2).float())
