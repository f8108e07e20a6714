"""Another model to transfer attacks from, where none is given."""

import copy

import torch
from torch.nn import functional as F

from pipeline.labels import IGNORE
from pipeline.networks.models import Segmenter


def surrogate(
    segmenter: Segmenter,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int = 8,
    batch_size: int = 4,
    noise: float = 0.05,
    seed: int = 0,
) -> Segmenter:
    """A relative of the model: its weights moved by `noise` of each tensor's own
    deviation, then fine-tuned.

    It is nearer to the model than one trained from another seed, so its attacks transfer better:
    the harder, more cautious comparison for the audit's white-box ≤ transfer. images: (N, C, H, W)
    in [0, 1], labels: (N, H, W), of the training split. Batch statistics stay the model's.
    """
    generator = torch.Generator().manual_seed(seed)
    relative = copy.deepcopy(segmenter).eval().requires_grad_(True)
    with torch.no_grad():
        for weights in relative.parameters():
            if weights.ndim > 1:
                weights += (
                    noise
                    * weights.std()
                    * torch.randn(weights.shape, generator=generator).to(weights)
                )
    optimizer = torch.optim.Adam(relative.parameters(), 1e-4)
    for _ in range(steps):
        pick = torch.randint(len(images), (batch_size,), generator=generator).to(images.device)
        with torch.enable_grad():
            logits = relative(images[pick]).float()
            loss = F.cross_entropy(
                logits, labels[pick].long(), ignore_index=IGNORE, reduction="sum"
            )
            (loss / (labels[pick] != IGNORE).sum().clamp_min(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return relative.requires_grad_(False)
