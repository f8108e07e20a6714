"""Attacks on a segmenter: one engine, `ascend`, and the attacks as its settings.

    fgsm, pgd       Goodfellow et al. 2015; Madry et al. 2018: cross-entropy
    segpgd, cospgd  Gu et al. 2022; Agnihotri et al. 2023: the same steps, pixels weighted
    red_epsilon     Croce, Singh & Hein 2024 (SEA): shrinking radii with each of their three losses and the soft IoU
    soft_iou        the IoU itself made smooth, at the logits' own scale: MI-FGSM (Dong et al. 2018), steps annealed
    universal       Moosavi-Dezfooli et al. 2017: one perturbation for many images

Erasing and inventing buildings, and patches, are `pgd` with another loss, score or mask. Every
attack returns images (N, C, H, W) inside the ball and [0, 1], of the iterates the one with the
highest score: the best, not the last.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import torch

from pipeline.attacks import losses
from pipeline.attacks.losses import AttackLoss
from pipeline.labels import IGNORE
from pipeline.networks.decision import leading
from pipeline.scoring.metrics import buildings, counts
from pipeline.training.perturb import (
    ball,
    pixel_gradient,
    project,
    random_direction,
    steepest,
    valid_mean,
)

# iterations between looks at which images are finished: each look waits for the device
STOP_EVERY = 3
ROOMY = 100  # steps from which APGD's checkpoints are more than a few steps apart
SMALL = 0.25  # λ of the ensemble's soft IoU, where an attack bites
LEAST = 0.02  # share of an annealed step that is left at the end
Score = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def harm(
    logits: torch.Tensor, labels: torch.Tensor, weight: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much an image loses, and whether nothing is left to lose: missed building pixels, and
    invented ones at λ = `weight`, per building pixel.

    At the pooled worst case λ = ΣI/ΣU a tile minimises I − λU, that is, misses + λ·inventions; ½
    stands for it where nothing is known. So a tile without any building left goes on: what it
    invents lowers the pooled IoU.
    """
    (intersection, union), truth = counts(leading(logits), labels), buildings(labels)
    return (
        (truth - intersection + weight * (union - truth)) / truth.clamp_min(1),
        (intersection == 0) & (union == (labels != IGNORE).sum((1, 2))),
    )


def erased(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of building pixels predicted as background."""
    building = (labels > 0) & (labels != IGNORE)
    share = (building & (leading(logits) == 0)).sum((1, 2)) / building.sum((1, 2)).clamp_min(1)
    return share, share == 1


def invented(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of background pixels predicted as building."""
    share = ((labels == 0) & (leading(logits) > 0)).sum((1, 2)) / (labels == 0).sum(
        (1, 2)
    ).clamp_min(1)
    return share, share == 1


@dataclass(frozen=True)
class Target:
    """What is attacked, how far pixels may move, and what counts as success."""

    segmenter: torch.nn.Module
    images: torch.Tensor  # (N, C, H, W) in [0, 1]
    labels: torch.Tensor  # (N, H, W), 255 ignored
    norm: str  # linf or l2
    epsilon: float  # in the unit of the images
    mask: torch.Tensor | None = None  # (N, 1, H, W), true where pixels may change
    score: Score = harm
    # λ, the pooled IoU about to be reached: what `soft_iou` lets an invention count
    weight: float = 0.5


def in_batches(target: Target, size: int, attack: Callable[[Target], torch.Tensor]) -> torch.Tensor:
    """The attack on `size` images at a time, put together again."""
    slices = [slice(start, start + size) for start in range(0, len(target.images), size)]
    masks = [None if target.mask is None else target.mask[s] for s in slices]
    return torch.cat(
        [
            attack(replace(target, images=target.images[s], labels=target.labels[s], mask=mask))
            for s, mask in zip(slices, masks, strict=True)
        ]
    )


class Found(NamedTuple):
    images: torch.Tensor  # the iterate with the highest score
    score: torch.Tensor  # (N,)
    top: torch.Tensor  # the iterate with the highest loss: where a next phase starts


def checkpoints(steps: int) -> set[int]:
    """Where APGD looks back (Croce & Hein 2020, section 3.2, with its code's constants): first
    after 0.22 T steps, then at intervals shrinking by 0.03 T down to 0.06 T.
    """
    first, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    marks, mark, interval = set(), first, first
    while mark < steps:
        marks.add(mark)
        interval = max(interval - shrink, least)
        mark += interval
    return marks


def _where(condition: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """`new` for the images (N,) that fulfil the condition, `old` for the others."""
    return torch.where(condition.view(-1, *[1] * (new.ndim - 1)), new, old)


@dataclass
class Climb:
    """The images still attacked, one along the first axis of every field, and
    where each of them stands.
    """

    index: torch.Tensor  # its place in the batch
    images: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    point: torch.Tensor
    previous: torch.Tensor
    gradient: torch.Tensor  # of the loss at `point`
    velocity: torch.Tensor  # of the gradients so far, fading
    step: torch.Tensor
    found: torch.Tensor
    score: torch.Tensor
    done: torch.Tensor
    top: torch.Tensor
    top_loss: torch.Tensor
    top_gradient: torch.Tensor
    last_loss: torch.Tensor
    rises: torch.Tensor  # of the loss, since the last checkpoint
    marked_loss: torch.Tensor  # the highest at the last checkpoint
    halved: torch.Tensor  # at the last checkpoint

    @classmethod
    def at(cls, start: torch.Tensor, target: Target, step: float) -> "Climb":
        count, on = len(start), start.device
        every, zero = torch.ones(count, 1, 1, 1, device=on), torch.zeros_like(start)
        low = torch.full((count,), -torch.inf, device=on)
        return cls(
            index=torch.arange(count, device=on), images=target.images, labels=target.labels,
            mask=every if target.mask is None else target.mask,
            point=start, previous=start, gradient=zero, velocity=zero, step=every * step,
            found=start, score=low, done=torch.zeros(count, dtype=torch.bool, device=on),
            top=start, top_loss=low, top_gradient=zero, last_loss=-low,
            rises=torch.zeros(count, device=on), marked_loss=low,
            halved=torch.ones(count, dtype=torch.bool, device=on),
        )  # fmt: skip

    def keep(self, chosen: torch.Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[chosen])

    def look(
        self, score: Score, logits: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor | None
    ) -> None:
        """Take the point in: is it the best so far, by score and by loss? A model that fails there,
        with NaN or infinity among its logits, has not been fooled.
        """
        sound = logits.isfinite().flatten(1).all(1)
        value = torch.where(sound, value, -torch.inf)
        harmed, done = score(logits, self.labels)
        better = sound & (harmed > self.score)
        self.found, self.score = (
            _where(better, self.point, self.found),
            torch.where(better, harmed, self.score),
        )
        self.done = self.done | (done & sound)
        better = value > self.top_loss
        self.top, self.top_loss = (
            _where(better, self.point, self.top),
            torch.where(better, value, self.top_loss),
        )
        self.rises, self.last_loss = self.rises + (value > self.last_loss), value
        if gradient is not None:
            self.gradient = gradient.nan_to_num(0, 0, 0)
            self.top_gradient = _where(better, self.gradient, self.top_gradient)

    def look_back(self, steps: int) -> None:
        """APGD's checkpoint: where fewer than 75 % of the last `steps` raised the loss, or nothing
        changed since the last checkpoint, halve the step and return to the highest point.
        """
        stuck = ~self.halved & (self.top_loss <= self.marked_loss)
        self.halved = (self.rises <= 0.75 * steps) | stuck
        self.marked_loss, self.rises = self.top_loss, torch.zeros_like(self.rises)
        self.step = _where(self.halved, self.step / 2, self.step)
        self.point = _where(self.halved, self.top, self.point)
        self.previous = _where(self.halved, self.top, self.previous)
        self.gradient = _where(self.halved, self.top_gradient, self.gradient)

    def move(self, norm: str, epsilon: float, inertia: float, memory: float, share: float) -> None:
        pull = self.gradient * self.mask
        self.velocity = memory * self.velocity + pull / pull.abs().mean(
            (1, 2, 3), keepdim=True
        ).clamp_min(1e-30)
        ahead = self.point + share * self.step * steepest(self.velocity, norm)
        ahead = project(ahead, self.images, norm, epsilon, self.mask)
        if inertia:
            ahead = (
                self.point
                + (1 - inertia) * (ahead - self.point)
                + inertia * (self.point - self.previous)
            )
            ahead = project(ahead, self.images, norm, epsilon, self.mask)
        self.previous, self.point = self.point, ahead


def ascend(
    target: Target,
    loss: AttackLoss,
    start: torch.Tensor,
    *,
    steps: int,
    step: float,
    inertia: float = 0,
    memory: float = 0,
    anneal: bool = False,
    span: tuple[float, float] = (0, 1),
    adaptive: bool = False,
    early_stop: bool = True,
) -> Found:
    """Projected steepest ascent of the loss: `steps` gradients, and one last look.

    inertia     share of the last move kept in the next; APGD's momentum, 0.75 on the new point, is 0.25 here
    memory      share of the gradients so far, each of mean size 1, kept in the next: MI-FGSM's momentum
    anneal      from `step` to nearly nothing along a cosine
    span        the part of the whole attack that this is, as the loss is told its progress
    adaptive    APGD's checkpoints: see `Climb.look_back`
    early_stop  leave the images out that have nothing left to lose
    """
    start = project(start, target.images, target.norm, target.epsilon, target.mask)
    climb = Climb.at(start, target, step)
    answer = Found(start.clone(), climb.score.clone(), start.clone())

    def settle() -> None:
        answer.images[climb.index], answer.score[climb.index] = climb.found, climb.score
        answer.top[climb.index] = climb.top

    marks, mark = checkpoints(steps) if adaptive else set(), 0
    for t in range(steps):
        gradient, value, logits = pixel_gradient(
            target.segmenter,
            climb.point,
            climb.labels,
            lambda u, y, now=span[0] + t / steps * (span[1] - span[0]): loss(u, y, now),
        )
        climb.look(target.score, logits, value, gradient)
        if t in marks:
            climb.look_back(t - mark)
            mark = t
        if early_stop and t % STOP_EVERY == STOP_EVERY - 1 and bool(climb.done.any()):
            settle()
            climb.keep(~climb.done)
            if not len(climb.index):
                return answer
        share = LEAST + (1 + math.cos(math.pi * t / steps)) / 2 if anneal else 1
        climb.move(target.norm, target.epsilon, inertia if t else 0, memory, share)
    with torch.no_grad():
        logits = target.segmenter(climb.point).float()
        climb.look(
            target.score,
            logits,
            valid_mean(loss(logits, climb.labels, span[1]), climb.labels),
            None,
        )
    settle()
    return answer


def best_of(restarts: int, attack: Callable[[], Found]) -> Found:
    """Of each image the highest score of all runs of an attack that starts at random."""
    best = attack()
    for _ in range(restarts - 1):
        found = attack()
        better = found.score > best.score
        best = Found(*(_where(better, new, old) for new, old in zip(found, best, strict=True)))
    return best


def noise(target: Target, generator: torch.Generator | None = None) -> torch.Tensor:
    """The baseline that knows nothing: one uniform draw of the ℓ∞ ball, or of the ℓ2 sphere."""
    draw = target.epsilon * random_direction(target.images, target.norm, generator)
    return project(target.images + draw, target.images, target.norm, target.epsilon, target.mask)


def fgsm(target: Target, loss: AttackLoss = losses.cross_entropy) -> torch.Tensor:
    """One step of the whole budget from the image itself."""
    return ascend(target, loss, target.images, steps=1, step=target.epsilon).images


def pgd(
    target: Target,
    steps: int,
    *,
    loss: AttackLoss = losses.cross_entropy,
    restarts: int = 1,
    step: float | None = None,
    early_stop: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """`steps` gradients from a random point of the ball, the best of all restarts. `step` is by
    default 2.5 ε / steps (Madry et al. 2018): any point of the ball is within reach.
    """
    step = 2.5 * target.epsilon / steps if step is None else step

    def once() -> Found:
        return ascend(
            target, loss, noise(target, generator), steps=steps, step=step, early_stop=early_stop
        )

    return best_of(restarts, once).images


def segpgd(target: Target, steps: int, **options) -> torch.Tensor:
    return pgd(target, steps, loss=losses.segpgd, **options)


def cospgd(target: Target, steps: int, **options) -> torch.Tensor:
    return pgd(target, steps, loss=losses.cospgd, **options)


def soft_iou(
    target: Target, steps: int, *, restarts: int = 1, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The IoU itself, smooth (`losses.soft_iou`), by MI-FGSM (Dong et al. 2018): momentum over
    gradients of mean size 1, and steps annealed from 2ε to nearly nothing.

    For networks so sure of themselves that cross-entropy's gradient has vanished.
    """
    loss = losses.soft_iou(target.weight)
    target = replace(target, score=partial(harm, weight=target.weight))

    def once() -> Found:
        return annealed(target, loss, steps, noise(target, generator), reach=2)

    return best_of(restarts, once).images


def apgd(target: Target, loss: AttackLoss, steps: int, start: torch.Tensor) -> Found:
    """Auto-PGD (Croce & Hein 2020): step 2ε, momentum 0.75, halved at checkpoints."""
    return ascend(
        target, loss, start, steps=steps, step=2 * target.epsilon, inertia=0.25, adaptive=True
    )


def annealed(
    target: Target, loss: AttackLoss, steps: int, start: torch.Tensor, span=(0, 1), reach: float = 1
) -> Found:
    """Steps from `reach` · ε to nearly nothing, along MI-FGSM's momentum (Dong et al. 2018); a few
    steps must not reach far.
    """
    return ascend(
        target, loss, start, steps=steps, step=reach * target.epsilon, memory=0.5, anneal=True,
        span=span,
    )  # fmt: skip


def red_epsilon(
    target: Target,
    loss: AttackLoss,
    steps: int,
    *,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """A radius of 2ε, 1.5ε and ε over 3 : 3 : 4 of the steps, each phase from the projected best of
    the one before (Croce, Singh & Hein 2024, section 3.2). Only the last radius is an answer: the
    best of all restarts.

    By APGD from ROOMY steps on. Fewer leave its checkpoints a step or two apart, and annealed steps
    find far more: of a real network's IoU of .87, MCE-Bal in 32 steps .02 instead of .19.
    """
    shares = [round(0.3 * steps), round(0.3 * steps), steps - 2 * round(0.3 * steps)]

    def once() -> Found:
        point, done = noise(replace(target, epsilon=2 * target.epsilon), generator), 0
        for radius, share in zip((2, 1.5, 1), shares, strict=True):
            wide = replace(target, epsilon=radius * target.epsilon)
            if steps >= ROOMY:
                found = apgd(wide, loss, share, point)
                point = found.top
            else:
                found = annealed(wide, loss, share, point, (done / steps, (done + share) / steps))
                point = found.images
            done += share
        return found

    return best_of(restarts, once).images


def sea_losses(pixels: torch.Tensor) -> dict[str, AttackLoss]:
    """The three losses of the Segmentation Ensemble Attack (Croce, Singh & Hein 2024), and the soft
    IoU for networks too sure of themselves for those, each to be given to `red_epsilon`; `pixels`
    (K,) counts the training set's pixels of each class. Their worst case is `worst_case`."""
    return {
        "mce": losses.masked_cross_entropy,
        "mce_bal": losses.balanced(pixels),
        "js": losses.jensen_shannon,
        "soft_iou": losses.soft_iou(SMALL),
    }


def universal(segmenter, batches, norm: str, epsilon: float, steps: int) -> torch.Tensor:
    """One perturbation (1, C, H, W) for all images of `batches`, a list of (images, labels):
    projected steepest ascent of their summed cross-entropy. Add it with `apply_universal`. The
    iterate that harms most is returned.
    """
    delta = torch.zeros_like(batches[0][0][:1])
    best, best_score = delta, -torch.inf
    for t in range(steps + 1):
        total, score = torch.zeros_like(delta), 0.0
        for images, labels in batches:
            seen = apply_universal(images, delta)
            gradient, _, logits = pixel_gradient(segmenter, seen, labels, losses.cross_entropy)
            total = total + gradient.sum(0, keepdim=True)
            score = score + harm(logits, labels)[0].sum()
        if score > best_score:
            best, best_score = delta, score
        if t < steps:
            delta = ball(delta + 2.5 * epsilon / steps * steepest(total, norm), norm, epsilon)
    return best


def apply_universal(images: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return (images + delta).clamp(0, 1)
