"""Adversarial training: the loss of a batch whose images an attacker has moved first.

    pgd     cross-entropy ascent of `steps` gradients from a random point (Madry et al. 2018), every image of
            every batch: mixing clean images in undoes the effect (Croce, Singh & Hein 2024)
    trades  loss(clean) + β·KL(clean ‖ moved) per pixel, the image moved to raise that KL (Zhang et al. 2019)
    fast    one step of 1.25 ε from a random point (Wong, Rice & Kolter 2020)
    free    no extra gradient: each batch is replayed `steps` times, and the pixel gradient of one weight
            update moves the images of the next (Shafahi et al. 2019)

Images are moved in evaluation mode: batch statistics see only the batch the weights are updated on.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F

from pipeline import params
from pipeline.labels import IGNORE
from pipeline.networks.decision import leading
from pipeline.scoring.metrics import counts
from pipeline.training.perturb import (
    pixel_gradient,
    project,
    random_direction,
    steepest,
    valid_mean,
)

BatchLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Replay:
    """Free training's memory between two weight updates."""

    images: torch.Tensor
    labels: torch.Tensor
    delta: torch.Tensor
    left: int


_replays: WeakKeyDictionary = WeakKeyDictionary()  # segmenter: Replay


def replay(segmenter) -> dict | None:
    """What a checkpoint must hold so that free training goes on in the middle
    of a replayed batch.
    """
    return vars(_replays[segmenter]).copy() if segmenter in _replays else None


def resume_replay(segmenter, state: dict | None) -> None:
    if state:
        _replays[segmenter] = Replay(**state)


def epsilon_at(config: params.Adversarial, progress: float) -> float:
    """ε in the unit of the images: it grows linearly from 0 over the share `warmup`
    of training. As in the attack stage, ℓ∞ budgets are written in 1/255 and ℓ2
    budgets in units of the pixel range [0, 1].
    """
    share = 1.0 if config.warmup == 0 else min(1.0, progress / config.warmup)
    return share * config.epsilon / (255 if config.norm == "linf" else 1)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")


def _divergence(clean: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(clean ‖ moved) per pixel, (N, H, W)."""
    return F.kl_div(
        logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


@contextmanager
def _evaluating(segmenter):
    training = segmenter.training
    segmenter.eval()
    try:
        yield
    finally:
        segmenter.train(training)


def move(
    segmenter,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    epsilon: float,
    steps: int,
    step: float | None = None,
    random_start: bool = True,
    pixel_loss=_cross_entropy,
) -> torch.Tensor:
    """Images (N, C, H, W) after `steps` of ascent from a random point of the ball, or from
    themselves: the last point, as training wants it, where `robustness.attacks.pgd` keeps the best.
    `step` is by default 2.5 ε / steps.
    """
    step = 2.5 * epsilon / steps if step is None else step
    moved = images
    if random_start:
        moved = project(images + epsilon * random_direction(images, norm), images, norm, epsilon)
    with _evaluating(segmenter):
        for _ in range(steps):
            gradient, _, _ = pixel_gradient(segmenter, moved, labels, pixel_loss)
            moved = project(moved + step * steepest(gradient, norm), images, norm, epsilon)
    return moved


def adversarial_loss(
    segmenter,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: BatchLoss,
    config: params.Adversarial,
    progress: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss to step on for images (N, C, H, W) in [0, 1] and labels (N, H, W), and what to log.

    `loss` is the training loss on logits and labels; `progress` the share of
    training done, which sets ε.
    """
    epsilon = epsilon_at(config, progress)
    logs = {"epsilon": 255 * epsilon if config.norm == "linf" else epsilon}
    if config.method == "none" or epsilon == 0:
        return loss(segmenter(images).float(), labels), logs
    attack = partial(move, segmenter, images, labels, norm=config.norm, epsilon=epsilon)
    match config.method:
        case "pgd":
            return loss(segmenter(attack(steps=config.steps)).float(), labels), logs
        case "fast":
            return loss(segmenter(attack(steps=1, step=1.25 * epsilon)).float(), labels), logs
        case "trades":
            return _trades(segmenter, images, labels, loss, config, attack, logs)
        case "free":
            return _free(segmenter, images, labels, loss, config, epsilon), logs
    raise AssertionError(config.method)


def _trades(segmenter, images, labels, loss, config, attack, logs):
    with _evaluating(segmenter), torch.no_grad():
        still = segmenter(images).float()
    moved = attack(steps=config.steps, pixel_loss=lambda u, y: _divergence(still, u))
    clean, hurt = segmenter(torch.cat([images, moved])).float().chunk(2)
    divergence = valid_mean(_divergence(clean, hurt), labels).mean()
    natural = loss(clean, labels)
    return natural + config.beta * divergence, {
        **logs,
        "clean": natural.detach(),
        "divergence": divergence.detach(),
    }


def _free(segmenter, images, labels, loss, config, epsilon):
    """The batches that arrive while one is replayed are dropped, so any trainer's loop will do."""
    now = _replays.get(segmenter)
    if now is not None:  # a checkpoint's tensors come back on the CPU
        now.images, now.labels, now.delta = (
            now.images.to(images),
            now.labels.to(labels),
            now.delta.to(images),
        )
    if now is None or now.left == 0 or now.delta.shape[1:] != images.shape[1:]:
        fits = now is not None and now.delta.shape == images.shape
        # the paper carries δ over to the next batch
        delta = now.delta if fits else torch.zeros_like(images)
        now = _replays[segmenter] = Replay(images, labels, delta, config.steps)
    now.left -= 1
    moved = (
        project(now.images + now.delta, now.images, config.norm, epsilon).detach().requires_grad_()
    )

    def remember(gradient: torch.Tensor) -> None:
        further = moved.detach() + epsilon * steepest(gradient, config.norm)
        now.delta = project(further, now.images, config.norm, epsilon) - now.images

    moved.register_hook(remember)
    return loss(segmenter(moved).float(), now.labels)


@torch.no_grad()
def overfitting_gap(
    segmenter,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: params.Adversarial,
    steps: int = 10,
) -> dict[str, float]:
    """IoU of the buildings under FGSM, under PGD of `steps` steps, and the difference: a large one
    means that training has learned to fool the one-step attack (catastrophic overfitting; Wong,
    Rice & Kolter 2020).
    """
    epsilon = epsilon_at(config, 1)
    attack = partial(move, segmenter, images, labels, norm=config.norm, epsilon=epsilon)

    def iou(moved: torch.Tensor) -> float:
        with _evaluating(segmenter):
            found = leading(segmenter(moved))
        intersection, union = counts(found, labels)
        return float(intersection.sum() / union.sum().clamp_min(1))

    fgsm, pgd = iou(attack(steps=1, step=epsilon, random_start=False)), iou(attack(steps=steps))
    return {"fgsm_iou": fgsm, "pgd_iou": pgd, "overfitting_gap": fgsm - pgd}
