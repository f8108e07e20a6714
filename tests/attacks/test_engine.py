import functools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline import params
from pipeline.attacks import engine
from pipeline.attacks import losses as attack_losses
from pipeline.attacks.engine import Target
from pipeline.attacks.methods import methods
from pipeline.attacks.patch import receptive_radius
from pipeline.attacks.protocol import Campaign, excess, smallest_budget
from pipeline.attacks.worst_case import worst_case
from pipeline.course import tint
from pipeline.errors import InputError
from pipeline.labels import IGNORE
from pipeline.params import Adversarial
from pipeline.report import colours
from pipeline.training.perturb import ball, length, project, valid_mean

LOSSES = [
    attack_losses.cross_entropy,
    attack_losses.tempered(1),
    attack_losses.soft_iou(0.5),
    attack_losses.segpgd,
    attack_losses.cospgd,
    attack_losses.masked_cross_entropy,
    attack_losses.balanced(torch.tensor([900, 100, 50])),
    attack_losses.jensen_shannon,
    attack_losses.erase,
    attack_losses.invent,
]


def linear(classes: int = 1, channels: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, classes + 1, 1)


def batch(count: int = 3, size: int = 8, classes: int = 1):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, size, size, generator=generator)
    labels = torch.randint(0, classes + 1, (count, size, size), generator=generator)
    labels[:, 0] = IGNORE
    return images, labels


def every_attack(target: Target) -> dict[str, torch.Tensor]:
    generator, settings = (
        torch.Generator().manual_seed(0),
        params.Attack(steps=4, apgd_steps=10, soft_iou_steps=4),
    )
    every = methods(settings, torch.arange(1, target.segmenter.out_channels + 1), generator)
    return {
        "noise": engine.noise(target, generator),
        **{name: attack(target) for name, attack in every.items()},
    }


def test_every_method_is_a_parameter_and_has_a_colour_of_its_own():
    every = list(
        dict.fromkeys(
            name.split()[0] for name in methods(params.Attack(), torch.ones(2), torch.Generator())
        )
    )
    assert every == list(get_args(params.AttackMethod)) == list(colours.METHODS)
    assert len(set(colours.ATTACKS.values())) == len(every) + 2


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("norm,epsilon", [("linf", 8 / 255), ("l2", 0.5)])
def test_every_attack_stays_within_budget_and_beats_noise(norm, epsilon, classes):
    images, labels = batch(classes=classes)
    target = Target(linear(classes), images, labels, norm, epsilon)
    found = every_attack(target)
    for attacked in found.values():
        assert float(length(attacked - images, norm).max()) <= epsilon + 1e-6
        assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1
    harm = {name: engine.harm(target.segmenter(x), labels)[0].sum() for name, x in found.items()}
    assert all(value >= harm["noise"] for value in harm.values())


def test_pgd_reaches_the_known_worst_point_of_a_linear_model():
    """The CE of a pixel-wise linear model is greatest where every channel moves by ε against
    the margin's gradient.
    """
    images, labels = batch()
    images = 0.3 + 0.4 * images
    model, epsilon = linear(), 4 / 255
    towards_building = (model.weight[1] - model.weight[0]).sign().view(1, 3, 1, 1)
    side = torch.where(labels == 1, -1.0, 1.0).unsqueeze(1) * (labels != IGNORE).unsqueeze(1)
    expected = images + epsilon * side * towards_building
    target = Target(model, images, labels, "linf", epsilon)
    found = engine.ascend(target, attack_losses.cross_entropy, images, steps=1, step=epsilon).top
    valid = (labels != IGNORE).unsqueeze(1).expand_as(images)
    assert torch.allclose(found[valid], expected[valid], atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_ignored_pixels_never_count(loss):
    """Whatever stands on ignored pixels of the logits, gradient and value are
    those of the other pixels.
    """
    images, labels = batch(classes=2)
    values = []
    for noise in (0, 100):
        logits = linear(2)(images) + noise * torch.randn(3, 3, 8, 8) * (labels == IGNORE).unsqueeze(
            1
        )
        logits = logits.detach().requires_grad_()
        value = valid_mean(loss(logits, labels), labels)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert torch.isfinite(gradient).all()
        assert (gradient.movedim(1, -1)[labels == IGNORE] == 0).all()
        values.append(value.detach())
    assert torch.allclose(*values)


def test_losses_are_the_papers():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(0, 3, (2, 4, 4))
    p, e = logits.softmax(1), F.one_hot(labels, 3).movedim(-1, 1).double()
    m = (p + e) / 2
    js = 0.5 * (p * (p / m).log()).sum(1) + 0.5 * torch.xlogy(e, e / m).sum(1)
    assert torch.allclose(attack_losses.jensen_shannon(logits, labels), js)
    ce = F.cross_entropy(logits, labels, reduction="none")
    right = logits.argmax(1) == labels
    assert torch.allclose(
        attack_losses.segpgd(logits, labels, 0.5), torch.where(right, 0.75 * ce, 0.25 * ce)
    )
    assert torch.allclose(
        attack_losses.cospgd(logits, labels), F.cosine_similarity(p, e, dim=1) * ce
    )
    assert torch.equal(attack_losses.masked_cross_entropy(logits, labels), ce * right)
    mce_bal = attack_losses.balanced(torch.tensor([10, 20, 40]))(logits, labels)
    expected = ce * right / torch.tensor([10.0, 20, 40], dtype=torch.float64)[labels]
    ratio = mce_bal[right] / expected[right]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-6)
    assert torch.allclose(
        attack_losses.invent(logits, labels), torch.where(labels == 0, (1 - p[:, 0]).log(), 0)
    )


@pytest.mark.parametrize(
    "loss", [attack_losses.tempered(1), attack_losses.tempered(8), attack_losses.soft_iou(0.5)]
)
def test_a_factor_on_the_logits_is_nothing_to_a_scale_free_loss(loss):
    images, labels = batch()
    gradients = []
    for factor in (1e-6, 1, 1e6):
        leaf = images.clone().requires_grad_()
        value = valid_mean(loss(factor * linear()(leaf), labels), labels)
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
    assert gradients[1].any()
    assert all(torch.allclose(g, gradients[1], rtol=1e-3, atol=1e-7) for g in gradients)


def test_cooled_logits_let_a_sure_pixel_pull_harder_than_cross_entropy_does():
    """Margins 12, 4 and −2: mean 6. CE's gradient on a margin m is σ(−m), on
    the cooled one σ(−m/6).
    """
    margins, labels = (
        torch.tensor([12.0, 4.0, -2.0], dtype=torch.float64),
        torch.ones(1, 1, 3, dtype=torch.long),
    )

    def pull(loss) -> torch.Tensor:
        logits = torch.stack([-margins / 2, margins / 2])[None, :, None].requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits, labels).sum(), logits)
        return -gradient[0, 1, 0]

    assert torch.allclose(pull(attack_losses.cross_entropy), torch.sigmoid(-margins), rtol=1e-4)
    assert torch.allclose(
        pull(attack_losses.tempered(1)), torch.sigmoid(-margins / 6) / 6, rtol=1e-4
    )


def test_at_last_the_soft_iou_is_the_harm_an_image_takes():
    """Cold and sure, a sigmoid is a count: misses + λ·inventions, of which `harm` is the share
    of the buildings.
    """
    labels = torch.tensor([[[0, 0, 1, 1, 255]], [[0, 0, 0, 1, 255]]])
    sure = (
        50
        * F.one_hot(torch.tensor([[[1, 0, 0, 1, 0]], [[1, 1, 0, 1, 1]]]), 2).movedim(-1, 1).float()
    )
    soft = valid_mean(attack_losses.soft_iou(0.5)(sure, labels, 1), labels) * 4
    assert torch.allclose(soft, torch.tensor([1.5, 1.0]), atol=0.15)
    assert torch.equal(engine.harm(sure, labels)[0], torch.tensor([1.5 / 2, 1.0]))


def test_jensen_shannon_survives_certainty():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).T.reshape(1, 2, 1, 2).requires_grad_()
    value = attack_losses.jensen_shannon(logits, torch.zeros(1, 1, 2, dtype=torch.long))
    value.sum().backward()
    assert torch.allclose(value.detach().flatten(), torch.tensor([0, math.log(2)]), atol=1e-6)
    assert torch.isfinite(logits.grad).all()


def test_projection_is_idempotent_and_keeps_masked_pixels():
    images, _ = batch()
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    for norm, epsilon in (("linf", 0.1), ("l2", 0.7)):
        moved = project(images + torch.randn_like(images), images, norm, epsilon, mask)
        assert torch.equal(moved[..., 4:], images[..., 4:]) and not torch.equal(moved, images)
        assert torch.allclose(project(moved, images, norm, epsilon, mask), moved, atol=1e-6)


def test_rounding_does_not_leave_a_large_ball():
    delta = torch.randn(8, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for epsilon in (0.5, 8.0, 64.0):
        assert float(length(ball(delta, "l2", epsilon).double(), "l2").max()) <= epsilon


def test_checkpoints_of_apgd():
    """Croce & Hein (2020): p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93,
    0.99 of the iterations.
    """
    assert sorted(engine.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_best_iterate_is_kept_not_the_last():
    """A step far beyond the ball's centre overshoots: harm goes up, then down;
    the answer is its maximum.
    """
    images, labels = batch(count=2, size=16)
    target = Target(linear(), images, labels, "linf", 8 / 255)
    seen = []

    def score(logits, labels):
        value, done = engine.harm(logits, labels)
        seen.append(value)
        return value, done

    found = engine.ascend(
        replace(target, score=score),
        attack_losses.segpgd,
        images,
        steps=6,
        step=0.2,
        early_stop=False,
    )
    assert torch.equal(found.score, torch.stack(seen).amax(0))
    assert torch.equal(engine.harm(target.segmenter(found.images), labels)[0], found.score)


@pytest.mark.parametrize("restarts", [1, 2])
def test_early_stop_changes_only_the_work(restarts):
    """Only a tile with no pixel right is finished: one that has lost its buildings may still gain
    false ones, which lower the pooled IoU. So both ways find the same.
    """
    images, labels = tint.tiles(6, 3)
    labels[0] = 1 - labels[0] % 2  # a tile of mostly buildings
    labels[1], labels[2, :, :16] = 0, IGNORE
    for epsilon, steps in ((6, 20), (32, 20)):
        target = Target(standard(), images, labels, "linf", epsilon / 255)
        found = {
            stop: engine.pgd(
                target,
                steps,
                restarts=restarts,
                early_stop=stop,
                generator=torch.Generator().manual_seed(0),
            )
            for stop in (False, True)
        }
        assert tint.pooled(standard(), found[True], labels) == tint.pooled(
            standard(), found[False], labels
        )
        gone = engine.harm(standard()(found[False]), labels)[1]
        assert torch.equal(found[True][~gone], found[False][~gone])


def test_a_tile_without_buildings_left_is_not_finished():
    """Its intersection is 0, but what it invents still counts against the pooled IoU."""
    labels = torch.tensor([[[0, 1, 1, 255]]])
    wrong = {"missed": [0, 0, 0, 0], "all wrong": [1, 0, 0, 0], "right": [0, 1, 1, 1]}
    logits = {
        name: F.one_hot(torch.tensor([[row]]), 2).movedim(-1, 1).float()
        for name, row in wrong.items()
    }
    assert {name: bool(engine.harm(u, labels)[1]) for name, u in logits.items()} == {
        "missed": False, "all wrong": True, "right": False,
    }  # fmt: skip


class Failing(nn.Module):
    """A network that answers NaN to every image but the one it knows."""

    def __init__(self, network: nn.Module, image: torch.Tensor):
        super().__init__()
        self.network, self.image = network, image

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        moved = (images - self.image).abs().amax((1, 2, 3), keepdim=True) > 1e-9
        return self.network(images) + torch.where(moved, torch.nan, 0)


def test_a_model_that_fails_has_not_been_fooled():
    images, labels = batch(count=1)
    target = Target(Failing(linear(), images), images, labels, "linf", 4 / 255)
    # the step leads to NaN: the image itself is the best known
    assert torch.equal(engine.fgsm(target), images)
    assert excess(torch.full_like(images, torch.nan), target) > 1e-6
    campaign = Campaign(target.segmenter, target.segmenter, params.Attack(), torch.ones(2), [50.0])
    assert campaign.predict(images).shape == labels.shape
    with pytest.raises(InputError, match="NaN"):
        campaign.predict(images + 1e-3)


def test_restarts_keep_the_best():
    images, labels = tint.tiles(12, 8)
    target = Target(standard(), images, labels, "linf", 2 / 255)
    js = engine.sea_losses(torch.tensor([800, 200]))["js"]
    for attack in (
        functools.partial(engine.pgd, target, 3),
        functools.partial(engine.red_epsilon, target, js, 4),
    ):
        generator = torch.Generator().manual_seed(0)
        single = [engine.harm(standard()(attack(generator=generator)), labels)[0] for _ in range(3)]
        best = attack(restarts=3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(engine.harm(standard()(best), labels)[0], torch.stack(single).amax(0))
        assert not torch.equal(single[0], torch.stack(single).amax(0))


def test_batches_make_no_difference():
    images, labels = tint.tiles(5, 4)
    target = Target(standard(), images, labels, "linf", 2 / 255)
    whole = engine.fgsm(target)
    assert torch.allclose(engine.in_batches(target, 2, engine.fgsm), whole, atol=1e-6)


def test_counts_of_known_maps():
    label = torch.tensor([[[0, 1, 1, 255], [0, 2, 1, 255]]])
    prediction = torch.tensor([[[1, 1, 2, 1], [0, 0, 1, 0]]])
    intersection, union = engine.counts(prediction, label)
    assert (int(intersection), int(union)) == (3, 5)


def test_universal_harms_images_it_has_not_seen():
    model = standard()
    images, labels = tint.tiles(16, 5)
    delta = engine.universal(model, [(images[:8], labels[:8])], "linf", 8 / 255, 10)
    assert float(delta.abs().max()) <= 8 / 255 + 1e-6 and delta.shape == (1, 3, 32, 32)
    attacked = tint.pooled(model, engine.apply_universal(images[8:], delta), labels[8:])
    noise = engine.noise(
        Target(model, images[8:], labels[8:], "linf", 8 / 255), torch.Generator().manual_seed(0)
    )
    assert attacked < tint.pooled(model, noise, labels[8:])


def test_receptive_field_is_measured():
    """3×3 kernels of dilation 1, 2 and 4: seven pixels to each side, whatever the tile's side."""
    for size in (16, 32):
        images, _ = tint.tiles(2, 6, size=size) if size > 16 else (torch.rand(2, 3, 16, 16), None)
        effective, support = receptive_radius(standard(), images)
        assert support == 7 and 1 <= effective <= 7


def test_a_receptive_field_that_is_not_seen_whole_is_not_told():
    class Mean(nn.Module):
        def forward(self, images):
            return self.factor * images.mean((2, 3), keepdim=True)[:, :2].expand(
                -1, -1, *images.shape[2:]
            )

    wide, dead = Mean(), Mean()
    wide.factor, dead.factor = 1, 0
    for segmenter in (wide, dead):
        assert receptive_radius(segmenter, torch.rand(1, 3, 16, 16)) == (None, None)


def test_bisection_finds_a_known_budget():
    found = smallest_budget(lambda budget: 1 - budget / 10, 0.5, 4.0, 8.0, 20)
    assert 5 <= found < 5 + 1e-4
    assert smallest_budget(lambda budget: 1 - budget / 10, 0.5, 0.0, 8.0, 20) == pytest.approx(
        5, rel=1e-3
    )


# The planted tint: two networks with a known answer.


@functools.cache
def standard() -> nn.Module:
    return tint.train(Adversarial(), 200, batch=8)


@functools.cache
def adversarial() -> nn.Module:
    return tint.train(Adversarial(method="pgd", epsilon=8, steps=3), 200, batch=8)


def worst(
    model: nn.Module, epsilon: float, steps: int = 10, names: tuple = ("mce", "mce_bal", "js")
) -> float:
    images, labels = tint.tiles(48, 99)
    generator = torch.Generator().manual_seed(0)
    target = Target(model, images, labels, "linf", epsilon / 255)
    losses = engine.sea_losses(torch.tensor([800, 200]))
    found = [engine.red_epsilon(target, losses[name], steps, generator=generator) for name in names]
    return _worst(model, found, labels)


def _worst(model: nn.Module, found: list[torch.Tensor], labels: torch.Tensor) -> float:
    measured = [[c.numpy() for c in engine.counts(model(x).argmax(1), labels)] for x in found]
    return worst_case(*map(list, zip(*measured, strict=True)))[0]


@pytest.mark.slow
def test_planted_tint_standard_training_uses_it_and_adversarial_training_does_not():
    planted, removed, flipped = (
        [tint.pooled(model(), *tint.tiles(48, 99, sign)) for model in (standard, adversarial)]
        for sign in (1, 0, -1)
    )
    assert planted[0] > planted[1] > 0.7  # robustness costs clean IoU
    assert removed[0] < removed[1] - 0.2  # the cue was used
    assert flipped[0] < 0.2 and flipped[1] > 0.6
    assert worst(adversarial(), 8) >= worst(standard(), 8) + 0.2


@pytest.mark.parametrize("model", [standard, pytest.param(adversarial, marks=pytest.mark.slow)])
def test_planted_tint_the_ensemble_is_no_weaker_than_pgd_of_as_many_gradients(model):
    images, labels = tint.tiles(48, 99)
    pgd = engine.pgd(
        Target(model(), images, labels, "linf", 8 / 255),
        30,
        generator=torch.Generator().manual_seed(0),
    )
    assert worst(model(), 8) <= tint.pooled(model(), pgd, labels) + 1e-9


@pytest.mark.slow
def test_mixed_precision_finds_no_weaker_attacks():
    """Crafted in bfloat16, measured in float32: at no budget is PGD, or the ensemble's worst case,
    more than a point weaker than crafted in float32.
    """
    images, labels = tint.tiles(12, 99)  # few: many processors only emulate bfloat16, for minutes
    pixels = torch.tensor([800, 200])
    for epsilon in (2, 8):
        target = Target(standard(), images, labels, "linf", epsilon / 255)
        iou = {}
        for precise in (True, False):
            generator = torch.Generator().manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
                pgd = engine.pgd(target, 6, generator=generator)
                ensemble = [
                    engine.red_epsilon(target, loss, 6, generator=generator)
                    for loss in engine.sea_losses(pixels).values()
                ]
            iou[precise] = (
                tint.pooled(standard(), pgd, labels),
                _worst(standard(), ensemble, labels),
            )
        assert all(b <= a + 0.01 for a, b in zip(iou[True], iou[False], strict=True)), (
            epsilon,
            iou,
        )


def test_erase_and_invent_change_only_what_is_not_scored():
    images, labels = tint.tiles(16, 7)
    model = standard()
    generator = torch.Generator().manual_seed(0)
    for loss, score, mask in (
        (attack_losses.erase, engine.erased, labels == 0),
        (attack_losses.invent, engine.invented, labels == 1),
    ):
        target = Target(model, images, labels, "linf", 8 / 255, mask.unsqueeze(1), score)
        found = engine.pgd(target, 10, loss=loss, generator=generator)
        still = ~mask.unsqueeze(1).expand_as(images)
        assert torch.equal(found[still], images[still])
        assert score(model(found), labels)[0].mean() > score(model(images), labels)[0].mean()
