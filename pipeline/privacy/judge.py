"""Both attacks on a model: tiles of the scenes that it was trained on against tiles of its
cities' test scenes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.console import progress
from pipeline.privacy.membership import (
    FPR,
    Side,
    auc,
    city_iou,
    likelihood_ratio,
    tile_scores,
    true_positives,
)
from pipeline.scoring.bootstrap import Estimate, mean_of
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_tensors

ATTACKS = ("loss", "likelihood_ratio")


@dataclass(frozen=True)
class Sample:
    """Tiles of one city, (N, C, H, W) and (N, H, W), the scene (N,) of each and whether that
    was trained on (N,).
    """

    images: torch.Tensor
    labels: torch.Tensor
    scenes: np.ndarray
    member: np.ndarray
    known: np.ndarray | None = None  # (R, N) confidences of reference models

    @property
    def others(self) -> "Sample":
        """The tiles of test scenes."""
        rows = torch.from_numpy(~self.member).to(self.images.device)
        return Sample(
            self.images[rows],
            self.labels[rows],
            self.scenes[~self.member],
            self.member[~self.member],
        )

    def counted(self) -> dict:
        scenes = {side: len(set(self.scenes[rows])) for side, rows in self.rows.items()}
        return {**{side: int(rows.sum()) for side, rows in self.rows.items()}, "scenes": scenes}

    @property
    def rows(self) -> dict[str, np.ndarray]:
        return {"members": self.member, "others": ~self.member}

    def split(self, scores: np.ndarray) -> tuple[Side, Side]:
        """Members and others, with scores (N,)."""
        members, others = (Side(scores[rows], self.scenes[rows]) for rows in self.rows.values())
        return members, others


def sample(
    city: CityTiles, count: int, seed: int, references: list[nn.Module], on: torch.device
) -> Sample | None:
    """`count` tiles of training and of test scenes each, and what the references say; None of a
    city without one.
    """
    rows = [city.chosen(split, count, seed=seed) for split in ("train", "test")]
    if not all(map(len, rows)):
        return None
    member, every = np.arange(sum(map(len, rows))) < len(rows[0]), np.concatenate(rows)
    images, labels = to_tensors(city.read(every), on)
    known = [tile_scores(model, images, labels)["confidence"] for model in references]
    return Sample(images, labels, city.scenes(every), member, np.array(known) if known else None)


def scores(model: nn.Module, of: Sample) -> dict[str, np.ndarray]:
    """What each attack that can be made gives the tiles (N,)."""
    said = tile_scores(model, of.images, of.labels)
    ratio = (
        {}
        if of.known is None
        else {"likelihood_ratio": likelihood_ratio(said["confidence"], of.known)}
    )
    return {"loss": said["loss"], **ratio}


def judge(model: nn.Module, samples: dict[str, Sample], draws: int, seed: int) -> dict:
    """What the attacks find of a model: their AUC, a city and on average, and
    true positives over all tiles.
    """
    found = {
        city: scores(model, of)
        for city, of in progress(samples.items(), "privacy: membership", len(samples))
    }
    pooled_row: dict = {"fpr": FPR}
    result: dict = {"city": {city: {} for city in samples}, "mean_city": {}, "pooled": pooled_row}
    for attack in ATTACKS:
        sides = {
            city: samples[city].split(given[attack])
            for city, given in found.items()
            if attack in given
        }
        estimates = {city: auc(*pair, draws, seed) for city, pair in sides.items()}
        for city in samples:
            result["city"][city][attack] = row("auc", estimates.get(city))
        result["mean_city"][attack] = row("auc", mean_of(estimates.values()) if estimates else None)
        pooled = [Side.of_all(side) for side in zip(*sides.values(), strict=True)]
        result["pooled"][attack] = row(
            "tpr", true_positives(*pooled, draws, seed) if pooled else None
        )
    return result


def mean_iou(model: nn.Module, samples: dict[str, Sample], draws: int) -> dict | None:
    """IoU on the tiles of test scenes, the mean over the cities that have a building there."""
    each = [
        city_iou(model, o.images, o.labels, o.scenes, draws)
        for o in (of.others for of in samples.values())
    ]
    known = [iou for iou in each if iou is not None]
    return row("iou", mean_of(known) if known else None)


def row(name: str, estimate: Estimate | None) -> dict | None:
    if estimate is None:
        return None
    low, high = estimate.shown()
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
