"""certified IoU ≤ attacked IoU ≤ clean IoU, for three roads to a certificate, on the same images.

Each road answers, for every radius, with a row {"clean", "attacked", "certified", ...}, all of the
map that the model deploys: its decision is part of what is proven and of what is attacked. The
attack knows the model it attacks, its norm and its radius; what it finds at a smaller radius stays
a candidate at a larger one. A row in which the order fails, or a pixel that changes class within
its certified radius, is a proof that a certificate is wrong: SandwichBroken names it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.attacks import losses
from pipeline.attacks.engine import Target, in_batches, pgd
from pipeline.attacks.worst_case import pooled_iou, worst_case
from pipeline.certificates import smoothing
from pipeline.certificates.bounds import (
    ABSTAIN,
    Bounds,
    certified_classes,
    image_box,
    interval_margins,
)
from pipeline.certificates.crown import crown_ibp_margins
from pipeline.certificates.lipschitz import (
    at_radius,
    certified_iou,
    collective_counts,
    lipschitz_radii,
    literature_iou,
    overspent,
    refuted,
)
from pipeline.errors import InputError
from pipeline.labels import IGNORE
from pipeline.networks.decision import leading
from pipeline.networks.lipschitz import watch_values
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import without_cudnn
from pipeline.params import Convex, LipschitzNet, Smoothing
from pipeline.scoring.bootstrap import tile_interval
from pipeline.scoring.metrics import buildings, counts
from pipeline.training.perturb import length

Pair = tuple[Tensor, Tensor]  # images (N, C, H, W) in [0,1], labels (N, H, W)
DRAWS = 8  # of noise, in each gradient of an attack on the smoothed model
BATCH = 8  # images attacked, or passed forward, at once
IMAGE_PASSES = 16  # backward passes that take the memory of one image's intervals
LOSSES = (losses.cross_entropy, losses.masked_cross_entropy)


class SandwichBroken(InputError):
    """A certificate that an attack or an ordering refutes: its numbers must not be published."""


@dataclass
class Attempts:
    """Successful or not, what was tried on the images: predictions (N, H, W) and the
    perturbations' norms (N,).
    """

    labels: Tensor
    predictions: list[Tensor]
    norms: list[Tensor] = field(default_factory=list)

    def iou(self) -> float | None:
        """The exact worst pooled IoU over one attempt an image; None where the
        labels know no building.
        """
        if not buildings(self.labels).any():
            return None
        found = [torch.stack(counts(p, self.labels)) for p in self.predictions]
        return worst_case(*torch.stack(found, dim=1).cpu().numpy())[0]


def certified(found: tuple[Tensor, Tensor] | np.ndarray, labels: Tensor) -> dict[str, float | None]:
    """The certified IoU of images by their I and U (N,), and its 95 % interval over them; None
    where the labels know no building.
    """
    if not buildings(labels).any():
        return dict.fromkeys(("certified", "certified_low", "certified_high"))
    intersections, unions = (np.asarray(torch.as_tensor(n).cpu()) for n in found)
    low, high = tile_interval(intersections, unions)
    return {
        "certified": pooled_iou(intersections, unions),
        "certified_low": low,
        "certified_high": high,
    }


def rising(where: str, row: dict[str, Any], *names: str) -> None:
    """Raise SandwichBroken unless the named entries of a row stand in rising
    order; all are None, or none.
    """
    for low, high in zip(names[:-1], names[1:], strict=True):
        if row[low] is not None and row[low] > row[high] + 1e-9:
            raise SandwichBroken(
                f"certify: {where}: {low} IoU {row[low]:.4f} is above {high} IoU {row[high]:.4f}, "
                f"so that a "
                "certificate is unsound; no metrics are written; please report it with params.yaml"
            )


def key(radius: float) -> str:
    """A radius to five places, rounded down: what is published must have been proven."""
    return f"{math.floor(radius * 1e5) / 1e5:.5f}".rstrip("0").rstrip(".")


def unrefuted(where: str, broken: Tensor | np.ndarray) -> None:
    """Raise SandwichBroken if an attack changed any pixels within their certified radius."""
    if broken.any():
        raise SandwichBroken(
            f"certify: {where}: an attack changes {int(broken.sum())} pixels inside their "
            f"certified radius, "
            "so that the certificate is unsound; no metrics are written; please report it with "
            "params.yaml"
        )


@torch.no_grad()
def logits_of(deployed: nn.Module, images: Tensor, batch: int = BATCH) -> Tensor:
    return torch.cat([deployed(part) for part in images.split(batch)])


def attack(
    target: Target, steps: int, generator: torch.Generator, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (N, C, H, W) within ε for each of LOSSES, `batch` at once, and the norms (N,) of
    their perturbations.
    """
    for loss in LOSSES:

        def run(part: Target, loss=loss) -> Tensor:
            return pgd(part, steps, loss=loss, generator=generator)

        found = in_batches(target, batch, run)
        yield found, length(found - target.images, target.norm).flatten()


def smoothing_rows(
    segmenter: Segmenter, data: Pair, settings: Smoothing, steps: int, seed: int, where: str
) -> dict[str, dict]:
    """Rows by certified ℓ2 radius, one a σ. Clean and attacked are the smoothed model's, by
    majority vote of n.

    A vote is a sample too: an attack refutes a pixel only where the votes reject, at α over all
    pixels, that the certified class keeps a probability of ½.
    """
    (images, labels), deployed = data, segmenter.deployed()
    noise = torch.Generator(images.device).manual_seed(seed)
    start = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"batch_size": settings.batch_size, "generator": noise}
    batch = min(BATCH, settings.batch_size)
    base = certified_iou(leading(logits_of(deployed, images, batch)), labels)
    rows = {}
    for sigma in sorted(settings.sigma):
        radius = smoothing.radius(sigma, settings.tau)
        place = f"{where}, σ {sigma:g}"
        seen = smoothing.smooth(deployed, images, sigma, settings.n0, settings.n, **options)
        chosen, strict = (
            seen.certified(settings.tau, settings.alpha, c)
            for c in (settings.correction, "bonferroni")
        )
        attempts = Attempts(labels, [seen.majority])
        draws = sigma * torch.randn(DRAWS, *images.shape[1:], generator=noise, device=images.device)
        smoothed = smoothing.ExpectedSegmenter(deployed, draws)
        for found, norms in attack(Target(smoothed, *data, "l2", radius), steps, start, batch):
            votes = smoothing.votes(deployed, found, sigma, settings.n, **options)
            attempts.predictions.append(leading(votes))
            against = settings.n - votes.gather(1, chosen.clamp_min(0)[:, None])[:, 0]
            p = smoothing.p_values(against.cpu().numpy(), settings.n, 0.5)
            lost = smoothing.bonferroni(p, settings.alpha)
            changed = torch.where(torch.from_numpy(lost).to(labels.device), leading(votes), chosen)
            reach = torch.full_like(chosen, radius * (1 + 1e-6), dtype=torch.float32)
            unrefuted(place, refuted(chosen, reach, changed, norms, labels))
        valid = labels != IGNORE
        row = {
            "clean": certified_iou(seen.majority, labels),
            "attacked": attempts.iou(),
            **certified(counts(chosen, labels), labels),
            "bonferroni": certified_iou(strict, labels),
            "literature": literature_iou(chosen, labels),
            "abstained": int(((chosen == ABSTAIN) & valid).sum()) / max(1, int(valid.sum())),
            "base_clean": base,
        }
        rising(place, row, "bonferroni", "certified", "attacked", "clean")
        rising(place, row, "certified", "literature")
        rows[key(radius)] = row
    return rows


@without_cudnn()  # whose convolutions may be no direct sums
def convex_rows(
    segmenter: Segmenter, data: Pair, settings: Convex, steps: int, seed: int, where: str
) -> dict[str, dict]:
    """Rows by ℓ∞ radius in 1/255: IBP, and IBP improved by CROWN-IBP ("certified")."""
    (images, labels), deployed = data, segmenter.deployed()
    start = torch.Generator().manual_seed(seed)
    bounds = Bounds(segmenter.network, segmenter.decision)
    prediction = leading(logits_of(deployed, images))
    with torch.no_grad():
        reached, classes, single = torch.zeros(labels.shape, device=labels.device), {}, {}
        proven = torch.full_like(prediction, ABSTAIN)
        # what holds at a radius holds at every smaller one
        for r in sorted(settings.radii, reverse=True):
            box = image_box(segmenter, images, r / 255)
            single[r] = certified_classes(
                interval_margins(bounds, box, chunk=max(1, settings.chunk // IMAGE_PASSES))
            )
            now = certified_classes(crown_ibp_margins(bounds, box, chunk=settings.chunk))
            proven = torch.where(proven == ABSTAIN, now, proven)
            classes[r] = proven.clone()
            reached = torch.where((reached == 0) & (now != ABSTAIN), r / 255, reached)
    attempts, rows = Attempts(labels, [prediction]), {}
    for r in sorted(settings.radii):
        place = f"{where}, ℓ∞ {r:g}/255"
        for found, norms in attack(Target(deployed, *data, "linf", r / 255), steps, start):
            attempts.predictions.append(leading(logits_of(deployed, found)))
            attempts.norms.append(norms)
        for answer, norms in zip(attempts.predictions[1:], attempts.norms, strict=True):
            unrefuted(place, refuted(classes[r], reached + 1e-6, answer, norms, labels))
        row = {
            "clean": certified_iou(prediction, labels),
            "attacked": attempts.iou(),
            **certified(counts(classes[r], labels), labels),
            "ibp": certified_iou(single[r], labels),
        }
        rising(place, row, "ibp", "certified", "attacked", "clean")
        rows[f"{r:g}"] = row
    return rows


@without_cudnn()
def lipschitz_rows(
    segmenter: Segmenter, data: Pair, settings: LipschitzNet, steps: int, seed: int, where: str
) -> dict[str, dict]:
    """Rows by ℓ2 radius, pixel range [0,1]: per pixel, and collective ("certified")."""
    (images, labels), deployed = data, segmenter.deployed()
    start = torch.Generator().manual_seed(seed)
    prediction, radius = lipschitz_certificate(segmenter, images)
    attempts, rows = Attempts(labels, [prediction]), {}
    for r in sorted(settings.radii):
        place = f"{where}, ℓ2 {r:g}"
        for found, norms in attack(Target(deployed, *data, "l2", r), steps, start):
            answer = leading(logits_of(deployed, found))
            attempts.predictions.append(answer)
            unrefuted(place, refuted(prediction, radius, answer, norms, labels))
            unrefuted(place, overspent(radius, prediction, answer, norms))
        row = {
            "clean": certified_iou(prediction, labels),
            "attacked": attempts.iou(),
            **certified(collective_counts(radius, prediction, labels, r), labels),
            "per_pixel": certified_iou(at_radius(prediction, radius, r), labels),
        }
        rising(place, row, "per_pixel", "certified", "attacked", "clean")
        rows[f"{r:g}"] = row
    return rows


@torch.no_grad()
def lipschitz_certificate(segmenter: Segmenter, images: Tensor) -> Pair:
    """The classes drawn and their certified ℓ2 radii, both (N, H, W), of a 1-Lipschitz network past
    its normalisation.

    The decision's logits are as Lipschitz as the network's.
    """
    largest = []
    with watch_values(segmenter.network, largest):
        logits = logits_of(segmenter.deployed(), images)
    constant = float(1 / segmenter.std.min())
    return leading(logits), lipschitz_radii(logits, constant, max(largest, default=1.0))


ROWS = {"smoothing": smoothing_rows, "convex": convex_rows, "lipschitz": lipschitz_rows}
