"""What an attack on a segmenter maximises, per pixel: logits (N, K, H, W), labels
(N, H, W) to (N, H, W).

p is the softmax of the logits, y the label, CE = −log p_y. Ignored pixels (255) get a finite value
that never counts: the engine leaves them out of every sum. `progress` is the share of the
iterations already done; only SegPGD looks at it.
"""

import math
from collections.abc import Callable

import torch

from pipeline.labels import IGNORE
from pipeline.networks.decision import leading
from pipeline.training.perturb import valid_mean

# temperatures of the soft IoU, in mean margins, of the first step and the last
WARM, COLD = 1.0, 0.05
AttackLoss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def _truth(labels: torch.Tensor) -> torch.Tensor:
    return torch.where(labels == IGNORE, 0, labels).long()


def _log_p(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p_y, (N, H, W)."""
    return logits.log_softmax(1).gather(1, _truth(labels).unsqueeze(1))[:, 0]


def _correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return leading(logits) == _truth(labels)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, progress: float = 0) -> torch.Tensor:
    """CE: FGSM (Goodfellow et al. 2015), PGD (Madry et al. 2018)."""
    return -_log_p(logits, labels)


def _margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """By how much each pixel is rightly building, or rightly not, (N, H, W);
    negative where it is wrong.
    """
    building = logits[:, 1:].amax(1) - logits[:, 0]
    return torch.where(_truth(labels) > 0, building, -building)


def _spread(margin: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each image's mean |margin|, (N, 1, 1): the natural temperature of its
    logits, held constant.
    """
    return valid_mean(margin.detach().abs(), labels).clamp_min(1e-30).view(-1, 1, 1)


def tempered(sharpness: float) -> AttackLoss:
    """CE of the logits divided by the temperature that makes an image's mean |margin| `sharpness`.

    A factor on the logits, under which CE saturates and its gradient underflows, changes nothing
    here (the idea of the DLR loss, Croce & Hein 2020, section 4, for maps): at sharpness 1 no pixel
    is so sure that it does not pull.
    """

    def tempered_cross_entropy(logits, labels, progress: float = 0) -> torch.Tensor:
        temperature = _spread(_margin(logits, labels), labels) / sharpness
        return cross_entropy(logits / temperature.unsqueeze(1), labels)

    return tempered_cross_entropy


scale_free = tempered(1)


def soft_iou(weight: float) -> AttackLoss:
    """Misses + λ·inventions, λ = `weight`, each a sigmoid of how wrong its pixel is: a smooth
    λU − I, what Dinkelbach's step maximises where pooled IoU is about λ (see `attacks.harm`).

    The sigmoid's temperature is the image's own mean |margin| at first, when every pixel pulls
    however sure it is, and falls geometrically until only those at the brink do.
    """

    def smooth(logits, labels, progress: float = 0) -> torch.Tensor:
        margin = _margin(logits, labels)
        temperature = _spread(margin, labels) * WARM * (COLD / WARM) ** progress
        return torch.where(_truth(labels) > 0, 1, weight) * torch.sigmoid(-margin / temperature)

    return smooth


def segpgd(logits: torch.Tensor, labels: torch.Tensor, progress: float = 0) -> torch.Tensor:
    """(1 − λ)·CE on right pixels, λ·CE on wrong ones, λ = t/2T = progress/2 (Gu
    et al. 2022, eq. 6).
    """
    weight = progress / 2
    return cross_entropy(logits, labels) * torch.where(_correct(logits, labels), 1 - weight, weight)


def cospgd(logits: torch.Tensor, labels: torch.Tensor, progress: float = 0) -> torch.Tensor:
    """cos(softmax(u), onehot(y))·CE, the cosine held constant (Agnihotri et al. 2023, eq. 6)."""
    p = logits.detach().softmax(1)
    cosine = p.gather(1, _truth(labels).unsqueeze(1))[:, 0] / p.square().sum(1).sqrt()
    return cosine * cross_entropy(logits, labels)


def masked_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, progress: float = 0
) -> torch.Tensor:
    """MCE: CE on the pixels still right, nothing on the others (Croce et al. 2024)."""
    return cross_entropy(logits, labels) * _correct(logits, labels)


def balanced(pixels: torch.Tensor) -> AttackLoss:
    """MCE-Bal: MCE / N_y, where `pixels` (K,) counts the training set's pixels of
    each class (Croce et al. 2024).

    The weights are scaled to mean 1, which changes no attack direction.
    """
    weights = 1 / pixels.double().clamp_min(1)
    weights = (weights / weights.mean()).float()

    def masked_balanced_cross_entropy(logits, labels, progress: float = 0) -> torch.Tensor:
        return weights.to(logits)[_truth(labels)] * masked_cross_entropy(logits, labels)

    return masked_balanced_cross_entropy


def jensen_shannon(logits: torch.Tensor, labels: torch.Tensor, progress: float = 0) -> torch.Tensor:
    """JS: ½KL(p‖m) + ½KL(e_y‖m) with m = (p + e_y)/2; only p_y is left of it (Croce et al. 2024):
    log 2 + ½(p_y·log p_y − (1 + p_y)·log(1 + p_y)), from 0 at p_y = 1 to log 2 at p_y = 0."""
    log_p = _log_p(logits, labels)
    p = log_p.exp()
    return math.log(2) + 0.5 * (p * log_p - (1 + p) * torch.log1p(p))


def erase(logits: torch.Tensor, labels: torch.Tensor, progress: float = 0) -> torch.Tensor:
    """log p_background on building pixels: a targeted attack that removes buildings."""
    return logits.log_softmax(1)[:, 0] * ((labels > 0) & (labels != IGNORE))


def invent(logits: torch.Tensor, labels: torch.Tensor, progress: float = 0) -> torch.Tensor:
    """log(1 − p_background) on background pixels: buildings where there are
    none, of whatever class.
    """
    return logits.log_softmax(1)[:, 1:].logsumexp(1) * (labels == 0)
