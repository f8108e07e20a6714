"""Smoothing on linear networks, whose smoothed class and radius are known exactly."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import nn

from pipeline.attacks.engine import Target, pgd
from pipeline.certificates.lipschitz import certified_iou, literature_iou
from pipeline.certificates.samples import check_samples, samples_needed
from pipeline.certificates.smoothing import (
    ExpectedSegmenter,
    Smoothed,
    bonferroni,
    certify_scene,
    holm,
    p_values,
    radius,
    smooth,
    votes,
)
from pipeline.errors import InputError


def linear(weight=(0.6, 0.8), bias=-0.7) -> nn.Conv2d:
    """logits (0, wᵀx + b): with ‖w‖ = 1 a pixel's exact radius is |wᵀx + b|, for the network
    and its smoothing.
    """
    net = nn.Conv2d(len(weight), 2, 1)
    net.weight.data = torch.tensor([[0.0] * len(weight), weight]).view(2, -1, 1, 1)
    net.bias.data = torch.tensor([0.0, bias])
    return net.eval().requires_grad_(False)


def ramp(net, sigma, levels):
    """One image whose pixels' margin is `levels` × σ."""
    margins = torch.as_tensor(levels, dtype=torch.float32) * sigma
    w, b = net.weight[1].flatten(), net.bias[1]
    return ((margins - b)[None, :] * w[:, None])[None, :, None, :]


def test_family_wise_error_is_at_most_alpha():
    """Pixels whose class has probability exactly τ must not be certified: a false rejection
    anywhere in at most a share α of the runs. Half the pixels sit on τ, the others are sure, which
    is where Holm is less strict.
    """
    tau, alpha, sigma, runs = 0.75, 0.1, 0.1, 400
    net, edge = linear(), float(norm.ppf(tau))
    image = ramp(net, sigma, [edge - 1e-4] * 20 + [6.0] * 20)
    random, errors, certified = torch.Generator().manual_seed(0), {"holm": 0, "bonferroni": 0}, 0
    for _ in range(runs):
        seen = smooth(
            net, image, sigma, 20, 200, batch_size=200, generator=random, precision="fp32"
        )
        for correction in errors:
            kept = seen.certified(tau, alpha, correction)[0, 0]
            errors[correction] += bool((kept[:20] >= 0).any())
            certified += int((kept[20:] == 1).sum())
    assert certified == 2 * runs * 20
    allowed = binom.ppf(0.9999, runs, alpha)
    assert errors["bonferroni"] <= errors["holm"] <= allowed
    assert errors["holm"] > 0  # the pixels on τ do try


def test_without_correction_the_family_wise_error_would_be_caught():
    random, tau, alpha = np.random.default_rng(0), 0.75, 0.1
    successes = random.binomial(200, tau, (400, 20))
    single = (p_values(successes, 200, tau) <= alpha).any(1)
    assert single.sum() > binom.ppf(0.9999, 400, alpha)


def test_certified_radius_is_below_the_exact_one():
    net, sigma, tau = linear(), 0.1, 0.75
    levels = torch.linspace(-4, 4, 200)
    seen = smooth(net, ramp(net, sigma, levels), sigma, 30, 300, batch_size=64, precision="fp32",
                  generator=torch.Generator().manual_seed(1))  # fmt: skip
    certified = seen.certified(tau, 0.001)[0, 0]
    exact = levels.abs() * sigma
    kept = certified >= 0
    assert kept.any() and (~kept).any()
    assert (exact[kept] >= radius(sigma, tau)).all()
    assert (certified[kept] == (levels > 0).long()[kept]).all()


def test_radius_and_p_values_by_hand():
    assert radius(0.25, 0.75) == pytest.approx(0.25 * 0.674489750)
    assert p_values(np.array([3, 2, 0]), 3, 0.5) == pytest.approx([1 / 8, 4 / 8, 1])


def test_holm_by_hand():
    p = np.array([[0.01, 0.04], [0.03, 0.005]])
    # .005 ≤ .0125, .01 ≤ .0167, .03 > .025
    assert holm(p, 0.05).tolist() == [[True, False], [False, True]]
    assert bonferroni(p, 0.05).tolist() == [[True, False], [False, True]]
    p = np.array([0.012, 0.016, 0.024, 0.04])
    assert holm(p, 0.05).all() and bonferroni(p, 0.05).sum() == 1


def test_holm_certifies_all_that_bonferroni_does():
    random = np.random.default_rng(0)
    for _ in range(200):
        p = random.random(30) ** random.integers(1, 9)
        alpha = random.random()
        assert (holm(p, alpha) >= bonferroni(p, alpha)).all()
        assert not (holm(p, alpha) & (p > alpha)).any()


@pytest.mark.parametrize(
    ("pixels", "tau", "alpha"), [(1024, 0.9, 1e-4), (4096, 0.75, 1e-3), (1, 0.51, 0.5)]
)
def test_settings_that_can_never_certify_are_refused_with_the_n_that_would(pixels, tau, alpha):
    need = samples_needed(pixels, tau, alpha)
    assert tau**need <= alpha / pixels < tau ** (need - 1)
    check_samples(need, pixels, tau, alpha)
    with pytest.raises(InputError, match=f"at least {need}"):
        check_samples(need - 1, pixels, tau, alpha)
    for n in (need, need - 1):  # unanimous pixels
        unanimous = Smoothed(
            torch.zeros(1, 1, pixels).long(), torch.full((1, 1, pixels), n), None, n
        )
        assert bool((unanimous.certified(tau, alpha, "bonferroni") == 0).all()) == (n == need)


def test_n_of_the_notes_is_refused():
    with pytest.raises(InputError, match="n = 100"):
        check_samples(100, 1024, 0.9, 1e-4)


def test_votes_count_every_sample_whatever_the_batch():
    net, image = linear(), torch.rand(2, 2, 5, 7)
    for batch_size in (1, 3, 100):
        counts = votes(net, image, 0.1, 10, batch_size=batch_size)
        assert counts.shape == (2, 2, 5, 7) and (counts.sum(1) == 10).all()


def test_sound_below_literature_and_below_the_attacked_smoothed_model():
    torch.manual_seed(3)
    net, sigma, tau = linear(), 0.1, 0.75
    labels = (torch.rand(1, 32, 32) < 0.4).long()
    image = (0.45 + 0.1 * (labels - 0.5)[:, None] + 0.1 * torch.randn(1, 2, 32, 32)).clamp(0, 1)
    random = torch.Generator().manual_seed(4)
    options = {"batch_size": 100, "generator": random, "precision": "fp32"}
    seen = smooth(net, image, sigma, 20, 200, **options)
    certified = seen.certified(tau, 0.01)
    sound = certified_iou(certified, labels)
    assert 0 < sound < literature_iou(certified, labels)

    noise = sigma * torch.randn(16, 2, 32, 32, generator=random)
    target = Target(ExpectedSegmenter(net, noise), image, labels, "l2", radius(sigma, tau))
    found = pgd(target, 20, generator=random)
    assert (found - image).norm() <= radius(sigma, tau) * (1 + 1e-5)
    # smoothed, a linear network answers what it does without noise
    clean, attacked = (certified_iou(net(x).argmax(1), labels) for x in (image, found))
    assert sound <= attacked < clean


def test_expected_segmenter_is_the_mean_probability():
    net, image, noise = linear(), torch.rand(2, 2, 4, 4), 0.3 * torch.randn(5, 2, 4, 4)
    mean = torch.stack([net(image + draw).softmax(1) for draw in noise]).mean(0)
    assert torch.allclose(ExpectedSegmenter(net, noise, "fp32")(image).exp(), mean, atol=1e-6)
    assert torch.allclose(ExpectedSegmenter(net, noise, "bf16")(image).exp(), mean, atol=0.02)


def test_a_scene_is_certified_window_by_window_at_one_error():
    net = linear(weight=(0.0, 0.0, 1.0), bias=-0.5)
    random = np.random.default_rng(0)
    scene = random.integers(0, 256, (37, 50, 3), dtype=np.uint8)
    windows = {"window": 16, "margin": 2, "batch_size": 30, "precision": "fp32"}
    certified = certify_scene(net, scene, 0.05, 5, 60, 0.75, 0.01, **windows)
    assert certified.shape == (37, 50)
    kept, margin = certified >= 0, scene[..., 2] / 255 - 0.5
    assert kept.mean() > 0.5
    assert (certified[kept] == (margin > 0)[kept]).all()
    assert (np.abs(margin)[kept] >= radius(0.05, 0.75)).all()
    with pytest.raises(
        InputError, match=str(math.ceil(math.log(0.01 / (37 * 50)) / math.log(0.75)))
    ):
        certify_scene(net, scene, 0.05, 5, 20, 0.75, 0.01)
