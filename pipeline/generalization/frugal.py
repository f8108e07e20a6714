"""Frugal learning: what a share of a new city's training scenes buys, and what the start of training is worth.

Subsets are nested (1 % ⊂ 2 % ⊂ … ⊂ 100 %), so that a curve moves by the scenes added, not by a new draw.
"""

import copy
import math
from pathlib import Path

import numpy as np

from pipeline.console import progress
from pipeline.geo.tiles import Cities, CityTiles
from pipeline.learning.evaluation import evaluate_city
from pipeline.learning.models import load_model
from pipeline.learning.precision import device
from pipeline.learning.training import fit
from pipeline.params import Params
from pipeline.storage import WORK


def nested_scenes(city: CityTiles, split: str, fractions: list[float], seed: int) -> dict[float, list[str]]:
    """Names of the first ⌈fraction · n⌉ of a split's regions, in one random order a seed; at least one."""
    names = sorted(r.name for r in city.of_split(split))
    order = np.random.default_rng(seed).permutation(len(names))
    return {
        fraction: sorted(names[i] for i in order[: math.ceil(round(fraction * len(names), 9))])
        for fraction in fractions
    }


def share_of(city: CityTiles, fraction: float, seed: int) -> CityTiles:
    """The city as if only `fraction` of its training and of its validation scenes had been labelled.

    Its test scenes stay. The table of tiles is rebuilt to match, and `about` (what a training's cache is
    keyed by) lists the regions that are left.
    """
    kept = {
        name for split in ("train", "validation") for name in nested_scenes(city, split, [fraction], seed)[fraction]
    }
    indices = [i for i, r in enumerate(city.regions) if r.split == "test" or r.name in kept]
    smaller = copy.copy(city)
    smaller.regions = [city.regions[i] for i in indices]
    smaller.about = {**city.about, "regions": [city.about["regions"][i] for i in indices]}
    position = np.full(len(city.regions), -1)
    position[indices] = np.arange(len(indices))
    rows = position[city.table["region"]] >= 0
    smaller.__dict__["table"] = {name: column[rows] for name, column in city.table.items()}
    smaller.table["region"] = position[smaller.table["region"]]
    return smaller


def frugal(params: Params, cities: Cities, models: Path) -> dict:
    """IoU of each city after training on a nested share of its own scenes, from each initialisation.

    A share limits validation scenes too: early stopping must not see more labels than training.
    """
    g = params.generalize
    epochs = g.epochs or params.train.epochs
    found: dict = {start: {f"{share:g}": {} for share in g.fractions} for start in g.initialisations}
    scenes: dict = {f"{share:g}": {} for share in g.fractions}
    jobs = [(start, share, city) for start in g.initialisations for share in g.fractions for city in sorted(cities)]
    for start, share, city in progress(jobs, "frugal learning"):
        init, weights = start_of(params, cities, models, start, city)
        model = params.train.model.model_copy(update={"encoder_weights": weights})
        changed = {"epochs": epochs, "init": init, "model": model}
        fair = params.model_copy(update={"train": params.train.model_copy(update=changed)})
        smaller = share_of(cities[city], share, g.seed)
        name = f"frugal-{start}-{share:g}-{city}"
        folder = WORK / "generalize" / name
        fit(fair, [smaller], folder, work=WORK, name=name)
        found[start][f"{share:g}"][city] = evaluate_city(load_model(folder, device()), smaller, params.evaluate).iou
        scenes[f"{share:g}"][city] = len(nested_scenes(cities[city], "train", [share], g.seed)[share])
    first = next(iter(found.values()))
    return {"frugal": first, "frugal_by_initialisation": found, "frugal_scenes": scenes}


def start_of(params: Params, cities: Cities, models: Path, start: str, city: str) -> tuple[str | None, str | None]:
    """(train.init, train.model.encoder_weights) of an initialisation."""
    match start:
        case "imagenet":
            return None, "imagenet"
        case "other_cities":
            return str(models / f"without-{city}"), params.train.model.encoder_weights
        case "self_supervised":
            from pipeline.learning.pretraining import pretrain

            folder = WORK / "generalize" / "self-supervised"
            pretrain(params, [cities[c] for c in sorted(cities)], folder)
            return str(folder), params.train.model.encoder_weights
    return None, None
