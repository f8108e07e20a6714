"""What teaches a glance (networks/glance.py), and the threshold it may skip by."""

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.console import progress
from pipeline.labels import IGNORE
from pipeline.networks.glance import Glance, built
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import autocast
from pipeline.params import Train
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_float
from pipeline.training.crops import RandomCrops, WindowGrid
from pipeline.training.steps import one_cycle

LOST = 0.002  # of the area that the full network maps of validation scenes
RATE = 3e-3
WINDOWS = 256  # of validation, at most


def train_glance(cities: list[CityTiles], train: Train, on: torch.device) -> Glance:
    """Cross-entropy of each cell with whether it holds building, train.glance batches.
    Deterministic for a seed.
    """
    torch.manual_seed(train.seed)
    glance = Glance(cities[0].channels).to(on)
    crops = RandomCrops(cities, train.crop, train.seed + 1, train.augment, train.city_weighting)
    optimizer = torch.optim.AdamW(glance.parameters(), RATE)
    schedule = one_cycle(optimizer, RATE, train.glance)
    for step in progress(range(train.glance), "a glance"):
        first = step * train.batch_size
        pairs = [crops[first + i] for i in range(train.batch_size)]
        images, labels = (torch.stack(part).to(on) for part in zip(*pairs, strict=True))
        known = built(labels != IGNORE) > 0
        holds = built((labels > 0) & (labels != IGNORE)) > 0
        loss = F.binary_cross_entropy_with_logits(
            glance(to_float(images))[known], holds[known].float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return glance.eval().requires_grad_(False)


@torch.inference_mode()
def threshold_glance(
    glance: Glance, segmenter: Segmenter, cities: list[CityTiles], size: int
) -> dict | None:
    """Set the glance's threshold by the map that `segmenter` draws of validation
    windows of `size` pixels.

    A larger window is skipped only where each of these within it would be; a smaller one never is.
    Returns the card's `glance`: threshold, the share of the built area that is lost in windows
    below it, the share of windows that are, their side; None where the map shows no building, and
    nothing can be said.
    """
    windows, on = WindowGrid(cities, "validation", size), next(segmenter.buffers()).device
    scores, areas = [], []
    for index in np.random.default_rng(0).permutation(len(windows))[:WINDOWS]:
        image, label = windows[index]
        image = to_float(image[None]).to(on)
        with autocast(on):
            logits = segmenter(image).float()
        drawn = (segmenter.decide(logits) > 0) & (label != IGNORE).to(on)
        scores.append(float(glance(image).max()))
        areas.append(float(drawn.sum()))
    found = skippable(np.array(scores), np.array(areas))
    if not found:
        return None
    glance.threshold.fill_(found["threshold"])
    glance.side.fill_(size)
    return found | {"side": size}


def skippable(scores: np.ndarray, areas: np.ndarray, lost: float = LOST) -> dict | None:
    """The highest threshold under which windows of these scores (N,) hold at most `lost` of the
    area (N,) of all.
    """
    order = np.argsort(scores, kind="stable")
    held = areas[order].cumsum()
    if not held[-1]:
        return None
    # the first that must be looked at
    first = int(np.searchsorted(held, lost * held[-1], side="right"))
    threshold = float(scores[order[first]])
    below = scores < threshold
    return {
        "threshold": threshold,
        "lost": float(areas[below].sum() / held[-1]),
        "skipped": float(below.mean()),
    }
