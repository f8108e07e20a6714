"""How far a segmenter contradicts itself when the image is turned: a sign of
where its map is unsure.
"""

import torch
from torch import nn

from pipeline.networks.models import Segmenter
from pipeline.scoring.inference import probabilities, symmetries


class Disagreement(nn.Module):
    """A segmenter's mean over the eight symmetries of the square, and their
    deviation as one class more.

    It has the interface of a Segmenter of k + 1 classes, so that windows are blended as ever. Its
    logits are the logarithms of (rest, p₁/2, …, p_k/2, s/2), which softmax leaves as they are: p is
    the mean probability of a class, s ≤ 1/2 the deviation of the building probability. `split`
    undoes the halving.
    """

    def __init__(self, segmenter: Segmenter, temperature: float):
        super().__init__()
        self.segmenter, self.temperature, self.contacts = segmenter, temperature, segmenter.contacts
        self.classes, self.stride = segmenter.classes + 1, segmenter.stride

    def forward(self, images: torch.Tensor, contacts: bool = False) -> torch.Tensor:
        views = [upright(self._answer(view, contacts)) for view, upright in symmetries(images)]
        p = torch.stack(views)
        p, contact = p[:, :, : self.segmenter.classes], p[:, :, self.segmenter.classes :].mean(0)
        deviation = p.sum(2, keepdim=True).std(0, correction=0)
        halves = torch.cat([p.mean(0), deviation], 1) / 2
        answer = torch.cat([1 - halves.sum(1, keepdim=True), halves], 1).clamp_min(1e-12).log()
        return torch.cat([answer, contact.logit(1e-6)], 1)

    def _answer(self, images: torch.Tensor, contacts: bool) -> torch.Tensor:
        """The classes' probabilities (N, k, H, W), and a contact's where it is asked for."""
        return probabilities(self.segmenter, images, self.temperature, False, contacts)[:, 1:]

    @staticmethod
    def split(probabilities):
        """Blended (…, k + 1) halves to class probabilities and, last, the deviation."""
        return 2 * probabilities
