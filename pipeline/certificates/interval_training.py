"""Training for a certificate: interval bound propagation (Gowal et al. 2018), the same by other
bounds, and the hinge of Lipschitz segmenters.

The IBP loss is κ · CE(logits) + (1 − κ) · CE(worst logits in the ℓ∞ ball of radius ε). After a
plain start, ε grows from 0 to its target while κ falls from 1 to ½. On a low-contrast task the
bound can swallow the signal and the network then predicts one class everywhere, which is perfectly
certified and worthless: that is a collapse, and it is reported.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.certificates.bounds import Bounds, Box, image_box
from pipeline.certificates.outer_polytope import Cauchy, dual_differences
from pipeline.labels import IGNORE
from pipeline.networks.decision import leading
from pipeline.networks.models import Segmenter
from pipeline.scoring.metrics import counts
from pipeline.training.losses import Loss, cross_entropy, hinge

Batches = Iterator[tuple[Tensor, Tensor]]  # images (N, C, H, W) in [0,1], labels (N, H, W)
# lower bounds (N, K, K, H, W) of logit k − logit j over a box of images
Bound = Callable[[Bounds, Box], Tensor]


@contextmanager
def flush_denormals():
    """Denormal numbers count as zero: IBP's vanishing gradients are full of them, and a CPU
    computes them slowly.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@dataclass(frozen=True)
class Trained:
    iou: float  # clean, over the last tenth of the steps
    collapsed: bool


@dataclass
class Collapse:
    """Watches training: a collapsed network gives (nearly) every pixel one class, or finds under
    `floor` of what it once found.
    """

    floor: float = 0.25  # of the best IoU
    memory: float = 0.9  # of the running averages
    best: float = 0.0
    intersection: float = 0.0
    union: float = 0.0
    predicted: float = 0.0
    valid: float = 0.0

    def see(self, logits: Tensor, labels: Tensor) -> None:
        prediction, valid = leading(logits), labels != IGNORE
        intersection, union = (float(n.sum()) for n in counts(prediction, labels))
        news = intersection, union, float((valid & (prediction > 0)).sum()), float(valid.sum())
        for name, new in zip(("intersection", "union", "predicted", "valid"), news, strict=True):
            setattr(self, name, self.memory * getattr(self, name) + new)
        self.best = max(self.best, self.iou)

    @property
    def iou(self) -> float:
        return self.intersection / self.union if self.union else 0.0

    @property
    def collapsed(self) -> bool:
        one_class = not 1e-3 < self.predicted / max(self.valid, 1) < 1 - 1e-3
        return one_class or self.iou < self.floor * self.best


def balanced(loss: Loss, logits: Tensor, labels: Tensor, power: float = 0.75) -> Tensor:
    """A loss in which a pixel of a class with N pixels in the batch weighs N^−power: rare buildings
    are what a certified network gives up first.
    """
    classes = [c for c in range(logits.shape[1]) if (labels == c).any()]
    share = torch.stack([(labels == c).sum() for c in classes]).float() ** (1 - power)
    each = [loss(logits, torch.where(labels == c, labels, IGNORE)) for c in classes]
    return sum(s * value for s, value in zip(share / share.sum(), each, strict=True))


def schedule(step: int, steps: int, epsilon: float, kappa: float = 0.5) -> tuple[float, float]:
    """(ε, κ) at a step: plain for the first fifth, linear until 70 % of the steps, then
    (epsilon, kappa).
    """
    ramp = min(max((step / steps - 0.2) / 0.5, 0.0), 1.0)
    return epsilon * ramp, 1 - (1 - kappa) * ramp


def worst_logits(differences: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, K, H, W) whose cross-entropy bounds that of every image of the box: minus the
    lower bounds (N, K, K, H, W) of true − other, 0 for the true class.
    """
    index = torch.where(labels == IGNORE, 0, labels).long()[:, None, None]
    index = index.expand(-1, 1, differences.shape[2], -1, -1)
    return -differences.gather(1, index)[:, 0]


def _optimise(
    network: nn.Module, batches: Batches, steps: int, rate: float, loss: Callable
) -> Trained:
    """Adam, its rate rising over a twentieth of the steps and falling along a cosine. `loss(step,
    images, labels)` returns the loss and the clean logits.
    """
    optimiser = torch.optim.Adam(network.parameters(), rate)
    watch = Collapse()
    network.train()
    with flush_denormals():
        for step in range(steps):
            share = step / steps
            for group in optimiser.param_groups:
                group["lr"] = rate * min(share / 0.05 + 1e-2, 0.5 + 0.5 * math.cos(math.pi * share))
            images, labels = next(batches)
            value, logits = loss(step, images, labels)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10)
            optimiser.step()
            watch.see(logits.detach(), labels)
    network.eval().requires_grad_(False)
    return Trained(watch.iou, watch.collapsed)


def interval_bound(bounds: Bounds, box: Box) -> Tensor:
    return bounds.differences(bounds.intervals(box))


# of certify.convex.objective
OBJECTIVES = {"ibp": interval_bound, "dual": partial(dual_differences, errors=Cauchy())}


def train_interval(
    segmenter: Segmenter, batches: Batches, steps: int, epsilon: float, *,
    bound: Bound = interval_bound, rate: float = 1e-2,
) -> Trained:  # fmt: skip
    """Training of a Segmenter, of layers that Bounds knows, by a bound at ℓ∞
    budget ε (pixel range [0,1]).
    """
    bounds = Bounds(segmenter.network)

    def loss(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        now, kappa = schedule(step, steps, epsilon)
        logits = segmenter(images)
        value = kappa * balanced(cross_entropy, logits, labels)
        if kappa < 1:
            differences = bound(bounds, image_box(segmenter, images, now))
            value = value + (1 - kappa) * balanced(
                cross_entropy, worst_logits(differences, labels), labels
            )
        return value, logits

    return _optimise(segmenter, batches, steps, rate, loss)


def train_margin(
    segmenter: nn.Module, batches: Batches, steps: int, margin: float, *, rate: float = 2e-2
) -> Trained:
    """Hinge training of a 1-Lipschitz Segmenter: each pixel is pushed until its
    certified ℓ2 radius is `margin`.

    The difference of two logits is √2 times a radius. It stops asking beyond, so that the capacity
    goes to the pixels that lack it (Béthune et al. 2022, "Pay attention to your loss").
    """

    pixel_hinge = partial(hinge, margin=math.sqrt(2) * margin)

    def loss(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = segmenter(images)
        return balanced(pixel_hinge, logits, labels, power=1) / margin, logits

    return _optimise(segmenter, batches, steps, rate, loss)
