"""Losses on logits (N, K, H, W) and labels (N, H, W); label 255 is ignored by every one of them.

Means over pixels (cross-entropy, focal, hinge) are over the valid pixels of all processes that
train together, so that many give the loss and gradient of one. Dice and Lovász are ratios of each
process's own share of the batch.
"""

from collections.abc import Callable

import torch
from torch import distributed
from torch.nn import functional as F

from pipeline.labels import IGNORE

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _pixels(labels: torch.Tensor) -> torch.Tensor:
    """Valid pixels of the batch; of several processes the mean, for DDP takes the mean of what
    is divided by it.
    """
    valid = (labels != IGNORE).sum()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(valid)
        valid = valid / distributed.get_world_size()
    return valid.clamp_min(1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / _pixels(labels)


def _classes(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities, one-hot labels (N, K, H, W) and valid pixels (N, 1, H, W), all float."""
    valid = (labels != IGNORE).unsqueeze(1)
    onehot = (
        F.one_hot(torch.where(valid[:, 0], labels, 0), logits.shape[1])
        .movedim(-1, 1)
        .to(logits.dtype)
    )
    return logits.softmax(1), onehot * valid, valid.to(logits.dtype)


def dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 − 2Σpy / (Σp + Σy) over the batch, mean over the foreground classes
    (Milletari et al. 2016).
    """
    p, y, valid = _classes(logits, labels)
    p = p * valid
    intersection, total = (p * y).sum((0, 2, 3))[1:], (p + y).sum((0, 2, 3))[1:]
    return (1 - (2 * intersection + 1) / (total + 1)).mean()


def focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """(1 − p)^γ · CE (Lin et al. 2017)."""
    ce = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return ((1 - torch.exp(-ce)) ** gamma * ce).sum() / _pixels(labels)


def lovasz(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The Lovász extension of the Jaccard loss on softmax errors (Berman et al. 2018), over
    foreground classes.
    """
    p, y, valid = _classes(logits, labels)
    keep = valid[:, 0].bool().flatten()
    losses = []
    for k in range(1, logits.shape[1]):
        truth = y[:, k].flatten()[keep]
        errors, order = (truth - p[:, k].flatten()[keep]).abs().sort(descending=True)
        truth = truth[order]
        missed = truth.sum() - truth.cumsum(0)
        jaccard = 1 - missed / (missed + truth.cumsum(0) + (1 - truth).cumsum(0)).clamp_min(1e-6)
        losses.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean()


def hinge(logits: torch.Tensor, labels: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """max(0, margin − (z_y − max other z)) (Crammer & Singer 2001): for two classes, the hinge
    loss of a linear SVM.
    """
    valid = labels != IGNORE
    truth = torch.where(valid, labels, 0).unsqueeze(1)
    own = logits.gather(1, truth)
    best_other = logits.scatter(1, truth, float("-inf")).amax(1, keepdim=True)
    return (F.relu(margin - (own - best_other))[:, 0] * valid).sum() / _pixels(labels)


def contact_loss(loss: Loss, logits: torch.Tensor, contacts: torch.Tensor) -> torch.Tensor:
    """The same loss of another question, is this close to two buildings: logits (N, 1, H, W),
    contacts (N, H, W).
    """
    return loss(torch.cat([torch.zeros_like(logits), logits], 1), contacts)


LOSSES = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "hinge": hinge,
}


def build_loss(weights: dict[str, float]) -> Loss:
    """The weighted sum that train.loss names, 0 = off. Labels may be uint8 or int64; the sum is
    taken in float32.
    """
    weights = {name: weight for name, weight in weights.items() if weight}

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, labels = logits.float(), labels.long()
        return sum(
            (weight * LOSSES[name](logits, labels) for name, weight in weights.items()),
            torch.zeros(()),
        )

    return loss
