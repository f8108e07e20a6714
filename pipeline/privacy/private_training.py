"""Training that bounds what any one record can teach: DP-SGD (Abadi et al., "Deep Learning with
Differential Privacy", CCS 2016), by Opacus.

Every step draws each record with chance q (Poisson), clips its gradient to ℓ2 norm C, adds noise
N(0, (σC)²) to their sum. The accountant composes the steps as a subsampled Gaussian mechanism in
Rényi divergence (Mironov, Talwar, Zhang 2019). Then for any set of models S and any two sets of
records that differ in one

    Pr[trained ∈ S] ≤ e^ε Pr[trained' ∈ S] + δ.

A record is a whole scene, of which a step sees one random crop, or a single tile: that is whose
privacy is bounded. A scene of k tiles has only k times the ε of one. Nothing else may look at the
records: the normalisation is fixed, and no epoch is chosen.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.console import progress
from pipeline.labels import IGNORE, Split
from pipeline.tiles.store import CityTiles, Region
from pipeline.tiles.tensors import to_tensors
from pipeline.training.augment import augment
from pipeline.training.crops import read_crop

# of Rényi
ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [80, 96, 128, 256, 512]


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
        """A random crop, turned and flipped: image (S, S, C) and label (S, S);
        0 and 255 beyond the record, whatever lies there.
        """
        top, left = (
            start + int(random.integers(max(0, side - size) + 1))
            for start, side in ((self.top, self.height), (self.left, self.width))
        )
        image, label = read_crop(self.city, self.region, top, left, size)
        for part, nothing in ((image, 0), (label, IGNORE)):
            part[self.height :], part[:, self.width :] = nothing, nothing
        return augment("flips", image, label, int(random.integers(2**31)))


def records(cities: Sequence[CityTiles], split: Split, unit: str) -> list[Record]:
    """The records of a split, of whole scenes or of tiles, those without a
    labelled pixel left out.
    """
    found = []
    for city in cities:
        for region in city.of_split(split):
            size = max(region.height, region.width) if unit == "scene" else city.size
            for window in region.windows(size):
                high, wide = (
                    min(size, region.height - window.top),
                    min(size, region.width - window.left),
                )
                label = city.label(region)[
                    window.top : window.top + high, window.left : window.left + wide
                ]
                if (label != IGNORE).any():
                    found.append(Record(city, region, window.top, window.left, high, wide))
    return found


def crop_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and Dice (N,) of each crop over its own valid pixels: no crop's loss
    depends on another's.
    """
    valid = labels != IGNORE
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))
    found, truth = logits.softmax(1)[:, 1:].sum(1) * valid, (labels > 0) & valid
    dice = (2 * (found * truth).sum((1, 2)) + 1) / ((found + truth).sum((1, 2)) + 1)
    return entropy / valid.sum((1, 2)).clamp_min(1) + 1 - dice


@dataclass(frozen=True)
class Mechanism:
    """A subsampled Gaussian mechanism, composed: σ, C, q and the number of steps."""

    noise: float
    clip: float
    rate: float
    steps: int

    def epsilon(self, delta: float) -> float:
        """ε at δ of all the steps together."""
        from opacus.accountants.analysis import rdp

        spent = rdp.compute_rdp(
            q=self.rate, noise_multiplier=self.noise, steps=self.steps, orders=ORDERS
        )
        with warnings.catch_warnings():
            # that the best order is the first or last: still a bound
            warnings.simplefilter("ignore", UserWarning)
            return float(rdp.get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)[0])


def noise_for(epsilon: float, delta: float, clip: float, rate: float, steps: int) -> Mechanism:
    """The least noise (to 1 %, rounded up) whose ε at δ is no more than asked for."""
    low, high = 0.1, 0.2
    while Mechanism(high, clip, rate, steps).epsilon(delta) > epsilon:
        low, high = high, 2 * high
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        if Mechanism(middle, clip, rate, steps).epsilon(delta) > epsilon:
            low = middle
        else:
            high = middle
    return Mechanism(high, clip, rate, steps)


def auc_bound(epsilon: float, delta: float) -> float:
    """No attack has a greater AUC on the scenes of a model, in expectation over
    which of them it was trained on.

    Of a pair of scenes, one in and one out, let A be the chance that the one within scores higher.
    To swap them is to remove a record and to add one: A ≤ e^2ε (1 − A) + (1 + e^ε) δ, for the
    swapped pair is as likely a draw.
    """
    odds = math.exp(min(2 * epsilon, 700.0))
    return min(1.0, (odds + (1 + math.exp(min(epsilon, 350.0))) * delta) / (1 + odds))


def _streams(mechanism: Mechanism, seed: int) -> tuple[np.random.Generator, int]:
    """What draws records and crops, and the seed of the noise."""
    draws, noise = np.random.SeedSequence([seed, *repr(mechanism).encode()]).spawn(2)
    return np.random.default_rng(draws), int(noise.generate_state(1, np.uint64)[0])


def train(
    model: nn.Module,
    of: list[Record],
    mechanism: Mechanism,
    *,
    crop: int,
    learning_rate: float,
    seed: int,
    on: torch.device | str = "cpu",
) -> nn.Module:
    """Train a network without batch norm, by DP-SGD or, where the noise is 0, with
    neither noise nor clipping.

    Adam takes the gradient: what is done to it after the noise costs no privacy. The noise comes
    from a seed, so that a run can be repeated: who publishes the model must not publish the seed.
    It shares no stream with the weights that training starts from, nor with another mechanism.
    """
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    private = mechanism.noise > 0
    random, noise = _streams(mechanism, seed)
    expected: Any = mechanism.rate * len(of)  # a mean, where Opacus declares a whole number
    network, optimizer = model, torch.optim.Adam(model.parameters(), learning_rate)
    if private:
        network = GradSampleModule(model, loss_reduction="sum")
        optimizer = DPOptimizer(
            optimizer, noise_multiplier=mechanism.noise, max_grad_norm=mechanism.clip,
            expected_batch_size=expected, generator=torch.Generator(on).manual_seed(noise),
        )  # fmt: skip
    for _ in progress(range(mechanism.steps), "privacy: training" + " with DP-SGD" * private):
        drawn = [
            record
            for record, chance in zip(of, random.random(len(of)), strict=True)
            if chance < mechanism.rate
        ]
        optimizer.zero_grad()
        if drawn:
            crops = [record.crop(crop, random) for record in drawn]
            images, labels = (np.stack(side) for side in zip(*crops, strict=True))
            images, labels = to_tensors((images, labels), on)
            # Opacus misreads channels last: its gradients of one record would be parts of others'
            loss = crop_loss(network(images.contiguous()), labels).sum()
            with warnings.catch_warnings():
                # images need no gradient, and have none
                warnings.filterwarnings("ignore", "Full backward hook")
                (loss if private else loss / expected).backward()
        elif private:  # the noise must not tell that nobody was drawn
            for weight in model.parameters():
                weight.grad_sample = weight.new_zeros(0, *weight.shape)  # ty: ignore[missing-attribute]  # Opacus's
        optimizer.step()
    if isinstance(network, GradSampleModule):
        network.remove_hooks()
    return model.eval().requires_grad_(False)
