"""DP-SGD against its definition, its accountant against published values, and
the bound on any attack.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy import toy_scene, write_city

from pipeline.networks.models import Segmenter
from pipeline.networks.small_nets import SmallFCN
from pipeline.privacy.private_training import (
    Mechanism,
    _streams,
    auc_bound,
    crop_loss,
    noise_for,
    records,
    train,
)
from pipeline.tiles.store import CityTiles

MNIST = 60_000  # images that the published examples train on, in batches of 256


@pytest.fixture
def city(tmp_path):
    scenes = [("train", *toy_scene(i)) for i in range(2)] + [("test", *toy_scene(9))]
    return CityTiles(write_city(tmp_path, scenes))


def network() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SmallFCN(3, 2, 4), 3, 1)


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta", "published"),
    [
        # Abadi et al. 2016, section 3.2: "(1.26, 1e-5)", strong composition 9.34
        (4.0, 0.01, 10_000, 1e-5, 1.26),
        (1.3, 256 / MNIST, 15 * MNIST // 256, 1e-5, 1.19),  # TensorFlow Privacy's tutorial on MNIST
        (1.1, 256 / MNIST, 60 * MNIST // 256, 1e-5, 3.01),
        (0.7, 256 / MNIST, 45 * MNIST // 256, 1e-5, 7.10),
    ],
)
def test_the_accountant_beats_what_was_published_by_no_more_than_its_newer_conversion(
    noise, rate, steps, delta, published
):
    """Those take Mironov's (2017) way from Rényi to (ε, δ), Opacus that of Balle et al. (2020),
    which is tighter.
    """
    assert 0.78 * published < Mechanism(noise, 1.0, rate, steps).epsilon(delta) < published


def test_one_plain_step_is_the_gaussian_mechanism():
    """q = 1, one step: Rényi's ε(α) = α / 2σ² (Mironov 2017, proposition 7); more noise or
    fewer steps tell less.
    """
    sigma, delta = 5.0, 1e-5
    orders = np.linspace(1.5, 500, 5000)
    bound = orders / (2 * sigma**2) + np.log(1 / delta) / (orders - 1)  # proposition 3
    once = Mechanism(sigma, 1.0, 1.0, 1).epsilon(delta)
    assert 0.7 * bound.min() < once <= bound.min()
    assert (
        once
        < Mechanism(sigma, 1.0, 1.0, 4).epsilon(delta)
        < Mechanism(sigma / 2, 1.0, 1.0, 4).epsilon(delta)
    )


def test_the_noise_is_the_least_that_keeps_epsilon():
    found = noise_for(3.0, 1e-3, clip=1.0, rate=0.2, steps=50)
    assert found.epsilon(1e-3) <= 3 < Mechanism(found.noise / 1.02, 1.0, 0.2, 50).epsilon(1e-3)


def test_no_attack_is_the_better_for_privacy_and_none_is_bounded_without():
    assert auc_bound(0, 0) == 0.5
    assert auc_bound(0.1, 0) == pytest.approx(1 / (1 + np.exp(-0.2)))
    assert 0.5 < auc_bound(0.5, 1e-3) < auc_bound(1, 1e-3) < auc_bound(1, 1e-2) <= 1
    assert auc_bound(1000, 1e-3) == 1 and auc_bound(0, 1) == 1


def test_randomised_response_reaches_the_bound():
    """Of a pair, a mechanism that answers each scene's bit truly with odds e^ε: what it tells
    is what is allowed.
    """
    epsilon = 0.7
    true = np.exp(epsilon) / (1 + np.exp(epsilon))  # a bit of one record, ε-private
    # the one in says 1 and the one out 0, or they tie
    within = true**2 + 0.5 * 2 * true * (1 - true)
    assert within <= auc_bound(epsilon, 0)


def test_a_crops_loss_is_its_own():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 2, 6, 6), torch.randint(0, 2, (4, 6, 6))
    labels[:, 0] = 255
    together = crop_loss(logits, labels)
    alone = torch.cat([crop_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone)
    # nothing to learn, no NaN
    assert crop_loss(logits, torch.full_like(labels, 255)).tolist() == [0, 0, 0, 0]


def test_records_are_scenes_or_tiles_and_their_crops_stay_inside(city):
    assert (
        len(records([city], "train", "scene")) == 2 and len(records([city], "train", "tile")) == 8
    )
    tile = records([city], "train", "tile")[5]
    image, label = tile.crop(32, np.random.default_rng(0))
    assert image.shape == (32, 32, 3) and label.shape == (32, 32) and (label != 255).all()
    whole = city.image(tile.region)[tile.top : tile.top + 64, tile.left : tile.left + 64]
    windows = np.lib.stride_tricks.sliding_window_view(whole, (32, 32), axis=(0, 1)).transpose(
        0, 1, 3, 4, 2
    )
    turned = [np.rot90(side, k) for side in (image, image[:, ::-1]) for k in range(4)]
    assert any((windows == one).all((2, 3, 4)).any() for one in turned)


def test_a_crop_larger_than_its_record_shows_no_other(city):
    tile = records([city], "train", "tile")[0]
    image, label = tile.crop(96, np.random.default_rng(0))
    assert (label != 255).sum() == tile.height * tile.width < 96**2
    assert not image[label == 255].any()


def test_noise_is_its_own_whatever_else_comes_from_the_seed():
    """Neither that of the weights (one generator has one stream) nor that of another ε."""
    mechanisms = Mechanism(1.0, 1.0, 0.2, 10), Mechanism(2.0, 1.0, 0.2, 10)
    noises = [_streams(mechanism, seed)[1] for mechanism in mechanisms for seed in (0, 1)]
    assert len({0, 1, *noises}) == 6
    assert _streams(mechanisms[0], 0)[1] == noises[0]


def test_a_step_is_the_sum_of_clipped_gradients_and_noise_over_the_batch(city, monkeypatch):
    """By definition, record by record (Abadi et al. 2016, algorithm 1), with
    SGD of rate 1 in Adam's place.
    """
    of, clip = records([city], "train", "tile"), 0.05
    monkeypatch.setattr(torch.optim, "Adam", lambda weights, rate: torch.optim.SGD(weights, 1.0))
    monkeypatch.setattr(
        "pipeline.privacy.private_training.Record.crop", lambda self, size, random: plain(self)
    )

    def plain(record):
        top, left = record.top, record.left
        window = np.s_[top : top + 64, left : left + 64]
        return np.array(city.image(record.region)[window]), np.array(
            city.label(record.region)[window]
        )

    before = network()
    after = train(network(), of, Mechanism(1e-9, clip, 1.0, 1), crop=64, learning_rate=1.0, seed=0)
    step = [torch.zeros_like(p) for p in before.parameters()]
    for record in of:
        image, label = plain(record)
        logits = before(torch.from_numpy(image).movedim(-1, 0)[None] / 255)
        gradient = torch.autograd.grad(
            crop_loss(logits, torch.from_numpy(label)[None].long()).sum(), before.parameters()
        )
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        assert norm > clip
        step = [s + g * clip / norm / len(of) for s, g in zip(step, gradient, strict=True)]
    for old, new, moved in zip(before.parameters(), after.parameters(), step, strict=True):
        assert torch.allclose(old - new, moved, atol=1e-6)


def test_a_step_nobody_is_drawn_for_is_noise_alone(city, monkeypatch):
    monkeypatch.setattr(torch.optim, "Adam", lambda weights, rate: torch.optim.SGD(weights, 1.0))
    of, before = records([city], "train", "scene"), network()
    after = train(network(), of, Mechanism(3.0, 0.5, 1e-12, 1), crop=64, learning_rate=1.0, seed=1)
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    )
    expected = 3.0 * 0.5 / (1e-12 * len(of))
    assert (
        moved.std().item() == pytest.approx(expected, rel=0.15)
        and abs(moved.mean()) < 0.2 * expected
    )


def test_without_noise_it_is_plain_training(city):
    before = network()
    after = train(network(), records([city], "train", "tile"), Mechanism(0.0, 1.0, 1.0, 3), crop=64,
                  learning_rate=1e-2, seed=0)  # fmt: skip
    images = torch.from_numpy(city.sample("train", 4)[0]).movedim(-1, 1) / 255
    labels = torch.from_numpy(city.sample("train", 4)[1]).long()
    assert isinstance(after, nn.Module) and not after.training
    assert F.cross_entropy(after(images), labels) < F.cross_entropy(before(images), labels)
