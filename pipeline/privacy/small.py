"""What privacy costs, and what its lack shows: small networks trained without it, with it, and
on a scene repeated.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.code import version
from pipeline.labels import Split
from pipeline.networks.card import Card
from pipeline.networks.models import Segmenter, build_model, kept_model, read_model, save_model
from pipeline.params import Model, Privacy
from pipeline.privacy.judge import Sample, judge, mean_iou
from pipeline.privacy.membership import rises
from pipeline.privacy.private_training import (
    Mechanism,
    Record,
    auc_bound,
    noise_for,
    records,
    train,
)
from pipeline.storage import fingerprint
from pipeline.tiles.store import CityTiles


@dataclass(frozen=True)
class SmallNetworks:
    """Networks of privacy.private on cities' tiles, each kept in a folder of
    `work` until all is measured.
    """

    settings: Privacy
    cities: list[CityTiles]
    work: Path
    on: torch.device

    def records(self, split: Split = "train") -> list[Record]:
        return records(self.cities, split, self.settings.private.unit)

    @property
    def without_noise(self) -> Mechanism:
        p = self.settings.private
        return Mechanism(0.0, p.clip, p.rate, p.steps)

    def trained(self, name: str, of: list[Record], mechanism: Mechanism) -> Segmenter:
        """Trained on records, or read back where an interrupted run has left it."""
        p, seed, first, folder = (
            self.settings.private,
            self.settings.seed,
            self.cities[0],
            self.work / name,
        )
        places = [(r.city.city, r.region.name, r.top, r.left) for r in of]
        about = [city.about for city in self.cities]
        key = fingerprint(version("privacy"), p.model_dump(), seed, repr(mechanism), places, about)
        if kept := kept_model(folder, key):
            return kept.to(self.on)
        torch.manual_seed(seed)
        model = Model(architecture=p.architecture, width=p.width, classes=first.classes)
        segmenter = build_model(model, first.channels).to(self.on)
        # of no image: it would be told
        segmenter.set_normalisation([0.5] * first.channels, [0.25] * first.channels)
        train(
            segmenter,
            of,
            mechanism,
            crop=p.crop,
            learning_rate=p.learning_rate,
            seed=seed,
            on=self.on,
        )
        card = Card(
            model=model, channels=first.channels, classes=first.classes, gsd=first.gsd,
            cities=[city.city for city in self.cities], fingerprint=key,
        )  # fmt: skip
        save_model(folder, segmenter, card)
        return read_model(folder, self.on)


def private(small: SmallNetworks, samples: dict[str, Sample]) -> dict:
    """Without privacy and at each ε: the IoU it costs, the AUC it leaves, and
    the AUC that it cannot pass.
    """
    settings, p = small.settings, small.settings.private
    of = small.records()
    delta = p.delta or 0.1 / len(of)

    def measured(segmenter: Segmenter) -> dict:
        found = judge(segmenter, samples, settings.bootstrap, settings.seed)
        iou = mean_iou(segmenter, samples, settings.bootstrap) or {"iou": None}
        return {**iou, **found["mean_city"]}

    plain = small.trained("plain", of, small.without_noise)
    networks = {"plain": {"epsilon": None, "noise": 0.0, **measured(plain), "auc_bound": None}}
    for epsilon in p.epsilon:
        mechanism = noise_for(epsilon, delta, p.clip, p.rate, p.steps)
        spent = mechanism.epsilon(delta)
        networks[f"{epsilon:g}"] = {
            "epsilon": spent,
            "noise": mechanism.noise,
            **measured(small.trained(f"epsilon-{epsilon:g}", of, mechanism)),
            "auc_bound": auc_bound(spent, delta) if p.unit == "scene" else None,
        }
    about = {
        "unit": p.unit,
        "records": len(of),
        "rate": p.rate,
        "steps": p.steps,
        "clip": p.clip,
        "delta": delta,
    }
    return {**about, "network": networks}


def planted(small: SmallNetworks, samples: dict[str, Sample]) -> dict:
    """Train once more with a test scene among the records, many times over:
    does its confidence give it away?
    """
    settings, of = small.settings, small.records()
    held_out = {city: sample.others for city, sample in samples.items()}
    places = [
        (city, scene) for city, others in held_out.items() for scene in sorted(set(others.scenes))
    ]
    plant = places[int(np.random.default_rng(settings.seed).integers(len(places)))]
    twins = [
        r for r in small.records("test") if (r.city.city, r.region.parent) == plant
    ] * settings.planted
    # a batch
    as_large = replace(
        small.without_noise, rate=small.without_noise.rate * len(of) / len(of + twins)
    )
    before = small.trained("plain", of, small.without_noise)
    after = small.trained("planted", of + twins, as_large)
    risen = {
        (city, scene): rise
        for city, others in held_out.items()
        for scene, rise in rises(after, before, others.images, others.labels, others.scenes).items()
    }
    most = max((rise for place, rise in risen.items() if place != plant), default=None)
    rank = 1 + sum(rise > risen[plant] for rise in risen.values())
    return {
        "city": plant[0], "scene": plant[1], "repeats": settings.planted, "rise": risen[plant],
        "next_rise": most, "rank": rank, "of": len(risen), "found": rank == 1,
    }  # fmt: skip
