"""From logits to the map that is drawn: one rule, which is deployed, judged,
attacked and certified.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.networks.card import Card


def leading(logits: Tensor) -> Tensor:
    """The class (N, H, W) int64 of the largest logit (N, K, H, W), of equal ones the first: argmax,
    which takes up to thirty times as long along the channels of a contiguous tensor.
    """
    return logits.max(1).indices


@dataclass(frozen=True)
class Decision:
    """A pixel is a building where its probability 1 − softmax(z/T)₀ exceeds `threshold`, then of
    the likeliest kind.

    In logits: where T·log Σ_{j ≥ 1} exp(z_j/T) > z₀ + shift. With a single kind of building that is
    z₁ > z₀ + shift, a shift of the margin, so that what attacks and certificates say of a margin
    they say of the map.
    """

    temperature: float = 1.0
    threshold: float = 0.5

    @classmethod
    def of(cls, card: Card) -> "Decision":
        """What a model's card says, from validation."""
        return cls(card.temperature, card.threshold)

    @property
    def odds(self) -> float:
        """θ / (1 − θ) of the threshold θ."""
        return self.threshold / (1 - self.threshold) if self.threshold < 1 else math.inf

    @property
    def shift(self) -> float:
        """By how much a building's logit must exceed background's: T·log(θ / (1
        − θ)); infinite at θ = 0 and 1.
        """
        if self.threshold in (0, 1):
            return math.inf if self.threshold else -math.inf
        return self.temperature * math.log(self.odds)

    def logits(self, z: Tensor) -> Tensor:
        """Logits (N, K, H, W) whose largest is the class drawn, for the network's z (N, K, H,
        W); as Lipschitz as z.
        """
        background, kinds = z[:, :1] + self.shift, z[:, 1:]
        if kinds.shape[1] == 1:
            return torch.cat([background, kinds], 1)
        building = self.temperature * (kinds / self.temperature).logsumexp(1, keepdim=True)
        return torch.cat([background, kinds + (building - kinds.amax(1, keepdim=True))], 1)

    def __call__(self, z: Tensor) -> Tensor:
        """The classes drawn, (N, H, W) int64, of the network's logits (N, K, H, W)."""
        return leading(self.logits(z))

    def of_probabilities(self, kinds: np.ndarray) -> np.ndarray:
        """The classes drawn, (…) uint8, of tempered probabilities (…, k) of the kinds of building:
        the same rule where windows or turns have been averaged.
        """
        if kinds.shape[-1] == 1:
            return (kinds[..., 0] > self.threshold).astype(np.uint8)
        return np.where(kinds.sum(-1) > self.threshold, kinds.argmax(-1) + 1, 0).astype(np.uint8)


class Deployed(nn.Module):
    """A segmenter that answers with its decision's logits (N, K, H, W): what is
    attacked and voted on.
    """

    decision: Decision
    segmenter: nn.Module

    def __init__(self, segmenter):
        super().__init__()
        self.segmenter, self.decision = segmenter, segmenter.decision
        self.classes, self.stride = segmenter.classes, segmenter.stride

    def forward(self, images: Tensor) -> Tensor:
        return self.decision.logits(self.segmenter(images))
