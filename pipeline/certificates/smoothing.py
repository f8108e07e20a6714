"""Randomised smoothing of a segmenter, ℓ2: SegCertify (Fischer, Baader, Vechev, ICML 2021,
"Scalable Certified Segmentation via Randomized Smoothing").

The smoothed segmenter g gives each pixel the class that f, any segmenter, most often gives it under
Gaussian noise σ. n0 samples choose a class a pixel, n fresh samples test "its probability is at
most τ"; a pixel whose hypothesis is rejected keeps its class within ℓ2 distance σ·Φ⁻¹(τ) (Cohen et
al. 2019). All rejected pixels of an image are right together with probability ≥ 1 − α.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.certificates.bounds import ABSTAIN
from pipeline.certificates.samples import check_samples
from pipeline.networks.decision import leading
from pipeline.networks.precision import autocast


def radius(sigma: float, tau: float) -> float:
    """Certified ℓ2 radius, pixel range [0,1]."""
    return sigma * float(ndtri(tau))


@torch.inference_mode()
def votes(
    segmenter: nn.Module,
    images: Tensor,
    sigma: float,
    samples: int,
    *,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    precision: str = "auto",
) -> Tensor:
    """How often f gives each class under noise: images (N, C, H, W) to counts (N, K, H, W) int32.

    `batch_size` noisy images are held at once. `precision` as in pipeline.networks.precision: f is
    what runs in that number format, so that the certificate is about it.
    """
    counts = torch.zeros(0)
    for i, image in enumerate(images):
        for start in range(0, samples, batch_size):
            size = min(batch_size, samples - start), *image.shape
            noise = torch.randn(size, device=image.device, generator=generator)
            with autocast(image.device, precision):
                logits = segmenter(torch.add(image, noise, alpha=sigma))
            if not len(counts):  # the logits tell the number of classes
                counts = torch.zeros(
                    len(images), *logits.shape[1:], dtype=torch.int32, device=image.device
                )
            winner = leading(logits).unsqueeze(1)
            classes = torch.arange(logits.shape[1], device=image.device)[:, None, None]
            counts[i] += (winner == classes).sum(0, dtype=torch.int32)
    return counts


def p_values(successes: np.ndarray, n: int, tau: float) -> np.ndarray:
    """One-sided binomial test: P[Bin(n, τ) ≥ successes], any shape."""
    from scipy.stats import binom

    return binom.sf(np.arange(n + 1) - 1, n, tau)[successes]


def bonferroni(p: np.ndarray, alpha: float) -> np.ndarray:
    """Rejected hypotheses, any shape: p ≤ α / m."""
    return p <= alpha / p.size


def holm(p: np.ndarray, alpha: float) -> np.ndarray:
    """Rejected hypotheses, any shape: in rising order while p₍ᵢ₎ ≤ α / (m − i) (Holm 1979); all
    that Bonferroni rejects, at the same family-wise error and under any dependence of the pixels.
    """
    order = np.argsort(p, axis=None)
    passed = p.ravel()[order] <= alpha / (p.size - np.arange(p.size))
    rejected = np.zeros(p.size, bool)
    rejected[order[: passed.size if passed.all() else np.argmin(passed)]] = True
    return rejected.reshape(p.shape)


Correction = Literal["holm", "bonferroni"]
CORRECTIONS = {"holm": holm, "bonferroni": bonferroni}


@dataclass(frozen=True)
class Smoothed:
    """What n0 + n noise samples said of images."""

    chosen: Tensor  # (N, H, W) int64, the class the n0 samples chose
    successes: Tensor  # (N, H, W) int32, how many of the n samples gave it
    majority: Tensor  # (N, H, W) int64, the class of most of the n samples: the smoothed prediction
    n: int

    def certified(self, tau: float, alpha: float, correction: Correction = "holm") -> Tensor:
        """(N, H, W): the chosen class where its test rejects, else ABSTAIN;
        family-wise error α an image.
        """
        test = CORRECTIONS[correction]
        kept = np.stack(
            [test(p_values(s, self.n, tau), alpha) for s in self.successes.cpu().numpy()]
        )
        return torch.where(torch.from_numpy(kept).to(self.chosen.device), self.chosen, ABSTAIN)


def smooth(
    segmenter: nn.Module, images: Tensor, sigma: float, n0: int, n: int, **options
) -> Smoothed:
    """Sample the smoothed segmenter at images (N, C, H, W) in [0,1]; options as in `votes`."""
    chosen = leading(votes(segmenter, images, sigma, n0, **options))
    counts = votes(segmenter, images, sigma, n, **options)
    return Smoothed(chosen, counts.gather(1, chosen[:, None])[:, 0], leading(counts), n)


def certify_scene(
    segmenter: nn.Module,
    image: np.ndarray,
    sigma: float,
    n0: int,
    n: int,
    tau: float,
    alpha: float,
    *,
    window: int = 512,
    margin: int = 64,
    correction: Correction = "holm",
    device: torch.device | str = "cpu",
    **options,
) -> np.ndarray:
    """Certified classes (H, W) int16 of a whole scene (H, W, C) uint8, at
    family-wise error α over the scene.

    f sees one window at a time with `margin` pixels of context, so memory does not grow with the
    scene; a window's part of a perturbation is never longer than the whole. Options as in `votes`.
    """
    height, width = image.shape[:2]
    check_samples(n, height * width, tau, alpha)
    chosen, p = np.zeros((height, width), np.int16), np.ones((height, width), np.float64)
    for top in range(0, height, window):
        for left in range(0, width, window):
            bottom, right = min(top + window, height), min(left + window, width)
            y, x = max(top - margin, 0), max(left - margin, 0)
            patch = np.ascontiguousarray(image[y : bottom + margin, x : right + margin])
            patch = torch.from_numpy(patch).to(device).permute(2, 0, 1)[None] / 255
            seen = smooth(segmenter, patch, sigma, n0, n, **options)
            core = 0, slice(top - y, bottom - y), slice(left - x, right - x)
            chosen[top:bottom, left:right] = seen.chosen[core].cpu().numpy()
            p[top:bottom, left:right] = p_values(seen.successes[core].cpu().numpy(), n, tau)
    return np.where(CORRECTIONS[correction](p, alpha), chosen, np.int16(ABSTAIN))


class ExpectedSegmenter(nn.Module):
    """A differentiable stand-in for the smoothed segmenter: log of the mean softmax over fixed
    noise (expectation over transformations, Athalye et al. 2018; Salman et al. 2019), for attacks.
    One draw is held at a time.
    """

    def __init__(self, segmenter: nn.Module, noise: Tensor, precision: str = "auto"):
        super().__init__()
        self.segmenter, self.noise = segmenter, noise  # (draws, C, H, W), σ included
        self.precision = precision  # as in `votes`

    def forward(self, images: Tensor) -> Tensor:
        def share(draw: Tensor) -> Tensor:
            with autocast(images.device, self.precision):
                logits = self.segmenter(images + draw)
            return logits.float().softmax(1)

        total = sum(checkpoint(share, draw, use_reentrant=False) for draw in self.noise)
        return (total / len(self.noise)).clamp_min(1e-12).log()
