"""Training for the worst city: group DRO (Sagawa et al., ICLR 2020, algorithm 1).

    q_g ← q_g · exp(η · loss_g), normalised;  the step is on Σ_g q_g · loss_g

The weights q rise where the loss stays high, so that the mean over crops becomes the worst city's.
A city without a crop in a batch keeps its weight, up to the normalisation.
"""

import torch
from torch import Tensor, distributed

from pipeline.training.losses import Loss


class GroupWeights:
    """q over groups, uniform at first; `step` is η."""

    def __init__(self, groups: int, step: float):
        self.q, self.step = torch.full((groups,), 1 / groups), step

    def loss(self, loss: Loss, logits: Tensor, labels: Tensor, group: Tensor) -> Tensor:
        """Σ q_g · loss_g of logits (N, K, H, W), labels (N, H, W) and the groups (N,) of the
        crops, q being updated.
        """
        self.q = self.q.to(logits.device)
        # Of every group in every process, also where it has no crop: losses count
        # pixels over all processes.
        each = [loss(logits[group == g], labels[group == g]) for g in range(len(self.q))]
        present = torch.bincount(group, minlength=len(self.q)) > 0
        losses = torch.stack(
            [value if here else 0 * value for value, here in zip(each, present, strict=True)]
        )
        self.update(losses.detach())
        return self.q @ losses

    def update(self, losses: Tensor) -> None:
        """q ∝ q · exp(η · loss), the losses being the mean over the processes
        that train together.
        """
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(losses)
            losses = losses / distributed.get_world_size()
        self.q = (self.q.log() + self.step * losses).softmax(0)
