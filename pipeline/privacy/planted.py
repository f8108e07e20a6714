"""A known answer for membership inference: a test scene that is repeated in the training must be
found.

The model goes on training twice, from the same weights and for as long: on its own training tiles,
and on these with a test scene among them many times over. What a network has by heart it maps
without loss, so a scene's rise is log(loss of the first / loss of the second): as large for an easy
scene as for a hard one, and of no account where training anywhere would have helped. The second
network must have learned the planted scene by more than any other test scene.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.code import version
from pipeline.console import progress
from pipeline.networks.models import Segmenter, kept_model, save_model, weights_file
from pipeline.params import Privacy
from pipeline.privacy.judge import Sample
from pipeline.privacy.membership import rises
from pipeline.privacy.private_training import Record, crop_loss, records
from pipeline.storage import digest, fingerprint
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_tensors
from pipeline.training.steps import one_cycle

BATCH, CROP, LEARNING_RATE = 8, 64, 3e-3


@dataclass(frozen=True)
class Planting:
    """Both networks, each kept in a folder of `work` until all is measured."""

    target: Segmenter
    settings: Privacy
    cities: list[CityTiles]
    work: Path

    def tuned(self, name: str, of: list[Record]) -> Segmenter:
        """Trained on, or read back where an interrupted run has left it."""
        settings, card, folder = self.settings, self.target.card, self.work / name
        places = [(r.city.city, r.region.name, r.top, r.left) for r in of]
        about = [city.about for city in self.cities]
        key = fingerprint(
            version("privacy"), digest(weights_file(settings.model)), settings.planted_steps,
            settings.seed, places, about,
        )  # fmt: skip
        if kept := kept_model(folder, key):
            return kept.to(self.target.mean.device)
        network = train_on(self.target, of, settings.planted_steps, settings.seed, name)
        save_model(folder, network, card.model_copy(update={"fingerprint": key}))
        return network


def train_on(
    segmenter: Segmenter, of: list[Record], steps: int, seed: int, what: str = "training"
) -> Segmenter:
    """A copy, in eval mode, that was trained on for `steps` batches of random crops of records;
    batch norm keeps its statistics.
    """
    network = copy.deepcopy(segmenter).eval().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = one_cycle(optimizer, LEARNING_RATE, steps)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    for _ in progress(range(steps), f"privacy: {what}"):
        crops = [of[i].crop(CROP, random) for i in random.integers(len(of), size=BATCH)]
        images, labels = (np.stack(side) for side in zip(*crops, strict=True))
        images, labels = to_tensors((images, labels), network.mean.device)
        optimizer.zero_grad()
        crop_loss(network(images), labels).mean().backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


def planted(planting: Planting, samples: dict[str, Sample]) -> dict:
    """Does the loss of a test scene that was planted in the training give it away?"""
    settings, of = planting.settings, records(planting.cities, "train", "tile")
    held_out = {city: sample.others for city, sample in samples.items()}
    places = [
        (city, scene) for city, others in held_out.items() for scene in sorted(set(others.scenes))
    ]
    plant = places[int(np.random.default_rng(settings.seed).integers(len(places)))]
    twins = [
        r
        for r in records(planting.cities, "test", "tile")
        if (r.city.city, r.region.parent) == plant
    ] * settings.planted
    before, after = planting.tuned("as before", of), planting.tuned("planted", of + twins)
    risen = {
        (city, scene): rise
        for city, others in held_out.items()
        for scene, rise in rises(after, before, others.images, others.labels, others.scenes).items()
    }
    most = max((rise for place, rise in risen.items() if place != plant), default=None)
    rank = 1 + sum(rise > risen[plant] for rise in risen.values())
    alone = len(risen) == 1  # the first of one, whatever the network has learned
    return {
        "city": plant[0], "scene": plant[1], "repeats": settings.planted, "rise": risen[plant],
        "next_rise": most, "of": len(risen),
        "rank": None if alone else rank, "found": None if alone else rank == 1,
    }  # fmt: skip
