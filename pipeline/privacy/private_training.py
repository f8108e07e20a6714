"""Training that bounds what any one record can teach: DP-SGD (Abadi et al., "Deep Learning with Differential Privacy",
CCS 2016), by Opacus.

Every step draws each record with chance q (Poisson), clips its gradient to ℓ2 norm C, adds noise N(0, (σC)²) to their
sum. The accountant composes the steps as a subsampled Gaussian mechanism in Rényi divergence (Mironov, Talwar, Zhang
2019). Then for any set of models S and any two sets of records that differ in one

    Pr[trained ∈ S] ≤ e^ε Pr[trained' ∈ S] + δ.

A record is a whole scene, of which a step sees one random crop, or a single tile: whose privacy it is that is
bounded. A scene of k tiles has only the k-fold ε of its tiles. Nothing else may look at the records: the
normalisation is fixed, and no epoch is chosen.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.console import progress
from pipeline.labels import IGNORE
from pipeline.tiles.store import CityTiles, Region
from pipeline.training.augment import augment
from pipeline.tiles.tensors import to_tensors
from pipeline.training.crops import read_crop

ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [80, 96, 128, 256, 512]  # of Rényi


@dataclass(frozen=True)
class Record:
    """Ground that is trained on or not as a whole: a scene's region, or one tile of it."""

    city: CityTiles
    region: Region
    top: int
    left: int
    height: int
    width: int

    def crop(self, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random crop, turned and flipped: image (S, S, C) and label (S, S); 0 and 255 beyond the region."""
        top, left = (
            start + int(random.integers(max(0, side - size) + 1))
            for start, side in ((self.top, self.height), (self.left, self.width))
        )
        return augment("flips", *read_crop(self.city, self.region, top, left, size), int(random.integers(2**31)))


def records(cities: Sequence[CityTiles], split: str, unit: str) -> list[Record]:
    """The records of a split, of whole scenes or of tiles, those without a labelled pixel left out."""
    found = []
    for city in cities:
        for region in city.of_split(split):
            size = max(region.height, region.width) if unit == "scene" else city.size
            for window in region.windows(size):
                high, wide = min(size, region.height - window.top), min(size, region.width - window.left)
                label = city.label(region)[window.top : window.top + high, window.left : window.left + wide]
                if (label != IGNORE).any():
                    found.append(Record(city, region, window.top, window.left, high, wide))
    return found


def crop_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and Dice (N,) of each crop over its own valid pixels: no crop's loss depends on another's."""
    valid = labels != IGNORE
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))
    found, truth = logits.softmax(1)[:, 1:].sum(1) * valid, (labels > 0) & valid
    dice = (2 * (found * truth).sum((1, 2)) + 1) / ((found + truth).sum((1, 2)) + 1)
    return entropy / valid.sum((1, 2)).clamp_min(1) + 1 - dice


@dataclass(frozen=True)
class Privacy:
    """What DP-SGD is run with: σ, C, q and the number of steps."""

    noise: float
    clip: float
    rate: float
    steps: int

    def epsilon(self, delta: float) -> float:
        """ε at δ of all the steps together."""
        from opacus.accountants.analysis import rdp

        spent = rdp.compute_rdp(q=self.rate, noise_multiplier=self.noise, steps=self.steps, orders=ORDERS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the best order is the first or last: still a bound
            return float(rdp.get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)[0])


def noise_for(epsilon: float, delta: float, clip: float, rate: float, steps: int) -> Privacy:
    """The least noise (to 1 %, rounded up) whose ε at δ is no more than asked for."""
    low, high = 0.1, 0.2
    while Privacy(high, clip, rate, steps).epsilon(delta) > epsilon:
        low, high = high, 2 * high
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        if Privacy(middle, clip, rate, steps).epsilon(delta) > epsilon:
            low = middle
        else:
            high = middle
    return Privacy(high, clip, rate, steps)


def worst_roc(epsilon: float, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners (false, true positives) of the best ROC that any attack on an (ε, δ)-private record can have.

    TPR ≤ δ + e^ε FPR and TPR ≤ 1 − e^−ε (1 − δ − FPR) (Kairouz, Oh, Viswanath 2015, theorem 2.1).
    """
    knee = (1 - delta) / (1 + math.exp(epsilon))
    return np.array([0, knee, 1 - delta, 1]), np.array([delta, 1 - knee, 1, 1])


def auc_bound(epsilon: float, delta: float) -> float:
    """No attack's AUC on a record is more: the area under `worst_roc`."""
    false, true = worst_roc(epsilon, delta)
    return float(np.trapezoid(true, false))


def tpr_bound(epsilon: float, delta: float, fpr: float) -> float:
    """No attack finds more of the records at this share of false accusations."""
    return float(np.interp(fpr, *worst_roc(epsilon, delta)))


def train(
    model: nn.Module,
    of: list[Record],
    privacy: Privacy,
    *,
    crop: int,
    learning_rate: float,
    seed: int,
    private: bool,
    on: torch.device | str = "cpu",
) -> nn.Module:
    """Train a network without batch norm, by DP-SGD or, with the same draws, without clipping and noise.

    Adam takes the gradient: what is done to it after the noise costs no privacy. The noise comes from a seed, so that a
    run can be repeated: who publishes the model must not publish the seed.
    """
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    torch.manual_seed(seed)
    expected = privacy.rate * len(of)
    network, optimizer = model, torch.optim.Adam(model.parameters(), learning_rate)
    if private:
        network = GradSampleModule(model, loss_reduction="sum")
        optimizer = DPOptimizer(
            optimizer, noise_multiplier=privacy.noise, max_grad_norm=privacy.clip, expected_batch_size=expected,
            generator=torch.Generator(on).manual_seed(seed),
        )  # fmt: skip
    random = np.random.default_rng(seed)
    for _ in progress(range(privacy.steps), "privacy: training" + " with DP-SGD" * private):
        drawn = [record for record, chance in zip(of, random.random(len(of)), strict=True) if chance < privacy.rate]
        optimizer.zero_grad()
        if drawn:
            crops = [record.crop(crop, random) for record in drawn]
            images, labels = to_tensors(tuple(np.stack(side) for side in zip(*crops, strict=True)), on)
            loss = crop_loss(network(images), labels).sum()
            (loss if private else loss / expected).backward()
        elif private:  # the noise must not tell that nobody was drawn
            for weight in model.parameters():
                weight.grad_sample = weight.new_zeros(0, *weight.shape)
        optimizer.step()
    if private:
        network.remove_hooks()
    return model.eval().requires_grad_(False)
