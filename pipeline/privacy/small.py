"""What privacy costs: small networks trained without it and with it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.code import version
from pipeline.networks.card import Card
from pipeline.networks.models import Segmenter, build_model, kept_model, read_model, save_model
from pipeline.params import Model, Privacy
from pipeline.privacy.judge import Sample, judge, mean_iou
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

    def records(self) -> list[Record]:
        return records(self.cities, "train", self.settings.private.unit)

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
