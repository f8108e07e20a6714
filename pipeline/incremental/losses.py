"""What keeps a network from forgetting, each as its paper has it. Logits (N, K, H, W), labels
(N, H, W), 255 none.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.labels import IGNORE

Weights = dict[str, Tensor]


def mean_over_valid(values: Tensor, labels: Tensor) -> Tensor:
    """Of values (N, H, W), where there is a label."""
    valid = labels != IGNORE
    return (values * valid).sum() / valid.sum().clamp_min(1)


def distillation(
    logits: Tensor, taught: Tensor, labels: Tensor, temperature: float = 2.0
) -> Tensor:
    """T² KL(p_old ‖ p_new) of the softened answers of the network before, `taught`,
    and of this one.

    Learning without Forgetting (Li and Hoiem, ECCV 2016, equation 2, with the
    temperature of Hinton et al. 2015); the entropy of p_old, which has no gradient,
    is taken off: it is 0 where nothing is forgotten.
    """
    old, new = (taught / temperature).log_softmax(1), (logits / temperature).log_softmax(1)
    return temperature**2 * mean_over_valid((old.exp() * (old - new)).sum(1), labels)


def fisher(network: nn.Module, batches: Iterable[Tensor]) -> Weights:
    """The diagonal of the Fisher information of each weight, over images (1, C, H,
    W) one at a time.

    E[(∂ log p(y | x) / ∂θ)²] with y drawn from the network's own answer, pixel by
    pixel (Kirkpatrick et al., PNAS 2017; Kunstner et al. 2019 on why not from the
    labels), log p the mean over pixels.
    """
    found = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}
    count = 0
    for image in batches:
        log_p = network(image).log_softmax(1)
        classes = (
            log_p.detach()
            .exp()
            .movedim(1, -1)
            .flatten(0, -2)
            .multinomial(1)
            .view(log_p[:, 0].shape)
        )
        network.zero_grad()
        F.nll_loss(log_p, classes).backward()
        for name, weight in network.named_parameters():
            if weight.grad is not None:
                found[name] += weight.grad**2
        count += 1
    network.zero_grad()
    return {name: total / max(count, 1) for name, total in found.items()}


def ewc(network: nn.Module, kept: list[tuple[Weights, Weights]]) -> Tensor:
    """½ Σ F (θ − θ*)² over each task's (F, θ*) (Kirkpatrick et al. 2017,
    equation 3, without its λ).
    """
    now = dict(network.named_parameters())
    terms = (
        0.5 * (information[name] * (now[name] - value) ** 2).sum()
        for information, then in kept
        for name, value in then.items()
    )
    return sum(terms, torch.zeros(()))


def unbiased_cross_entropy(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Cross-entropy where background may be any of the `old` first classes, background among them.

    MiB (Cermelli et al., "Modeling the Background for Incremental Learning in Semantic
    Segmentation", CVPR 2020, equation 5): what was labelled before is labelled background now, and
    its probability counts as background's.
    """
    log_p = logits.log_softmax(1)
    background = log_p[:, :old].logsumexp(1, keepdim=True)
    known = torch.cat([background, log_p[:, 1:]], 1)
    return F.nll_loss(known, labels, ignore_index=IGNORE, reduction="sum") / (
        labels != IGNORE
    ).sum().clamp_min(1)


def unbiased_distillation(logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """KL(p_old ‖ p̂_new), the new classes' probability given to background, where the network
    before has seen them.

    MiB, equation 7; `taught` are the logits (N, old, H, W) of the network before. As above without
    p_old's entropy.
    """
    old, new = taught.log_softmax(1), logits.log_softmax(1)
    added = [0, *range(taught.shape[1], logits.shape[1])]
    seen = torch.cat([new[:, added].logsumexp(1, keepdim=True), new[:, 1 : taught.shape[1]]], 1)
    return mean_over_valid((old.exp() * (old - seen)).sum(1), labels)


@torch.no_grad()
def grow(layer: nn.Conv2d, classes: int) -> nn.Conv2d:
    """A last layer with `classes` new outputs, which share what background had
    (MiB, equations 8 and 9).

    The answer over the old classes, the new ones counted as background, is the one before.
    """
    shape: Any = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    grown = nn.Conv2d(layer.in_channels, layer.out_channels + classes, *shape).to(layer.weight)
    grown.weight.copy_(torch.cat([layer.weight, layer.weight[:1].expand(classes, -1, -1, -1)]))
    bias = layer.get_parameter("bias").clone()
    bias[0] -= torch.log(torch.tensor(classes + 1.0))
    grown.get_parameter("bias").copy_(torch.cat([bias, bias[:1].expand(classes)]))
    return grown
