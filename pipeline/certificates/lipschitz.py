"""What certified classes are worth as an IoU, and what a successful attack says about them.

A certificate is a class map (N, H, W) in which ABSTAIN (−1) stands where nothing is proven. With
that, the IoU of a prediction, of a certificate and of an attack are one formula; an ignored pixel
(label 255) is in none of them.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.attacks.worst_case import pooled_iou, worst_case
from pipeline.certificates.bounds import ABSTAIN
from pipeline.labels import IGNORE
from pipeline.networks.lipschitz import radii
from pipeline.scoring.metrics import buildings, counts, iou

ROUNDING = 1e-4  # share of a Lipschitz radius given up: the layers' kernels are float32
LOGIT_ROUNDING = 1e-5  # and so are the logits: a share of the largest value that any layer adds up


def certified_iou(certified: Tensor, labels: Tensor) -> float | None:
    """The sound certified IoU: no perturbation within the radius leaves less. A
    prediction's IoU likewise.

    An abstaining pixel counts against us on either side. None where the labels know no building:
    nothing is proven.
    """
    return iou(certified, labels)


def literature_iou(certified: Tensor, labels: Tensor) -> float | None:
    """The certified IoU as SegCertify counts it (Fischer, Baader, Vechev 2021): abstaining is a
    class of its own, so background pixels that abstain are outside the union. Not a lower bound: it
    can exceed an attacked IoU.
    """
    return iou(torch.where(certified == ABSTAIN, 0, certified), labels)


def at_radius(prediction: Tensor, certified_radius: Tensor, radius: float) -> Tensor:
    """The certificate at `radius`: the prediction where its certified radius (N, H, W) reaches
    it, else ABSTAIN.
    """
    return torch.where(certified_radius >= radius, prediction, ABSTAIN)


def lipschitz_radii(logits: Tensor, constant: float = 1.0, largest: float = 1.0) -> Tensor:
    """Certified ℓ2 radius (N, H, W) of each pixel, for logits whose map is
    `constant`-Lipschitz over the image.

    largest: |value| of any layer on the images; the logits' own is known here.
    Roundings grow with it, biases with them: LOGIT_ROUNDING is fifty times what was
    ever seen, not the worst that float32 allows.

    The difference of two logits moves √2 as fast as the pair: radius = (top − next)
    / (√2 · constant), Tsuzuku et al. 2018. A network that divides its input by a
    standard deviation σ has constant 1/σ.
    """
    size = logits.abs().amax((1, 2, 3)).clamp_min(max(1.0, largest))[:, None, None]
    return (radii(logits) * (1 - ROUNDING) - LOGIT_ROUNDING * size).clamp_min(0) / constant


def collective_frontier(
    radius: Tensor, prediction: Tensor, labels: Tensor, epsilon: float
) -> np.ndarray:
    """(2, a + 1): I and U when a building pixels are lost and as many others invented as one
    perturbation still can.

    One image's certified radii r (H, W). The whole map of logits is Lipschitz, so
    pixels flipped together satisfy Σ r² ≤ ε²: to lose the a cheapest leaves ε² −
    Σr² for the cheapest of the others. Pixels already wrong are no loss. Two sorted
    prefix sums hold every choice that can be the worst.
    """
    building = (labels > 0) & (labels != IGNORE)
    right, budget = (prediction > 0) == building, epsilon**2 * (1 + 1e-9)
    intersection, union = (int(n) for n in counts(prediction, labels))

    def prices(where: Tensor) -> np.ndarray:
        return np.concatenate(
            [[0.0], np.cumsum(np.sort(radius[where].double().cpu().numpy() ** 2))]
        )

    lost, invented = prices(building & right), prices((labels == 0) & right)
    a = np.arange(np.searchsorted(lost, budget, side="right"))
    b = np.searchsorted(invented, budget - lost[a], side="right") - 1
    return np.stack([intersection - a, union + b])


def collective_counts(
    radius: Tensor, prediction: Tensor, labels: Tensor, epsilon: float
) -> np.ndarray:
    """The collective certificate: I and U (2, N) of images (N, H, W), each perturbed within ℓ2
    radius ε, whose pooled IoU is the exact least that Lipschitz logits allow. Never below the
    per-pixel certified IoU, which lets every pixel spend ε by itself.
    """
    images = zip(radius, prediction, labels, strict=True)
    choices = [collective_frontier(*image, epsilon) for image in images]
    longest = max(c.shape[1] for c in choices)
    choices = [np.pad(c, ((0, 0), (0, longest - c.shape[1])), mode="edge") for c in choices]
    choices = np.stack(choices, axis=-1)
    choice = worst_case(*choices)[1]
    return choices[:, choice, np.arange(len(choice))]


def collective_iou(
    radius: Tensor, prediction: Tensor, labels: Tensor, epsilon: float
) -> float | None:
    """ΣI/ΣU of the collective certificate; None where the labels know no building."""
    if not buildings(labels).any():
        return None
    return pooled_iou(*collective_counts(radius, prediction, labels, epsilon))


def refuted(
    certified: Tensor, certified_radius: Tensor, attacked: Tensor, norms: Tensor, labels: Tensor
) -> Tensor:
    """Where an attack proves a certificate wrong (N, H, W): a class other than the certified one,
    at a perturbation whose norm (N,) is below the certified radius. True anywhere means that the
    certificate is unsound.
    """
    changed = (attacked != certified) & (certified != ABSTAIN) & (labels != IGNORE)
    return changed & (norms[:, None, None] < certified_radius)


def overspent(radius: Tensor, prediction: Tensor, attacked: Tensor, norms: Tensor) -> Tensor:
    """Where an attack proves the collective certificate wrong (N, H, W): the pixels that it
    changed, of images in which their certified radii r (N, H, W) satisfy Σ r² > ‖δ‖², the attack's
    norm (N,). Ignored pixels count: they cost too.
    """
    changed = attacked != prediction
    spent = (radius.double().square() * changed).sum((1, 2))
    return changed & (spent > norms.double().square() * (1 + 1e-4))[:, None, None]
