"""Frugal learning: what a share of the training scenes buys, and what the start of
training is worth.

One training a share sees that share of every city. The start "other_cities" is the question of a
new city instead: the model that has all scenes of the others goes on with the share of this one's,
one training a city.

Subsets are nested (1 % ⊂ 2 % ⊂ … ⊂ 100 %), so that a curve moves by the scenes
added, not by a new draw.
"""

import copy
import math
from pathlib import Path

import numpy as np

from pipeline.cluster import each
from pipeline.labels import Split
from pipeline.networks.models import read_model
from pipeline.networks.precision import device
from pipeline.params import Params, Train
from pipeline.scoring.evaluation import evaluate_city
from pipeline.storage import WORK
from pipeline.tiles.store import Cities, CityTiles


def nested_scenes(
    city: CityTiles, split: Split, fractions: list[float], seed: int
) -> dict[float, list[str]]:
    """Names of the first ⌈fraction · n⌉ of a split's regions, in one random
    order a seed; at least one.
    """
    names = sorted(r.name for r in city.of_split(split))
    order = np.random.default_rng(seed).permutation(len(names))
    return {
        fraction: sorted(names[i] for i in order[: math.ceil(round(fraction * len(names), 9))])
        for fraction in fractions
    }


def share_of(city: CityTiles, fraction: float, seed: int) -> CityTiles:
    """The city as if only `fraction` of its training and of its validation scenes
    had been labelled.

    Its test scenes stay. The table of tiles is rebuilt to match, and `about` (what a training's
    cache is keyed by) lists the regions that are left.
    """
    kept = {
        name
        for split in ("train", "validation")
        for name in nested_scenes(city, split, [fraction], seed)[fraction]
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


def frugal(
    params: Params, cities: Cities, models: Path, reference: Path, ray: str | None = None
) -> dict:
    """IoU of each city after training on a nested share of scenes, from each initialisation.

    A share limits validation scenes too: early stopping must not see more labels than training.
    `params.train` is that of the model on all cities in the folder `reference`, which is the whole
    share from its own start; `models` holds the folds, where "other_cities" begins. ray: where the
    trainings run, see pipeline.cluster.
    """
    g, f, names = params.generalize, sorted(params.generalize.fractions), sorted(cities)
    starts = [start for start in g.initialisations if start != "other_cities" or len(cities) > 1]
    groups = {
        start: [(city,) for city in names] if start == "other_cities" else [(*names,)]
        for start in starts
    }
    jobs = [(start, share, group) for start in starts for share in f for group in groups[start]]
    trains = {
        (s, group): start_of(params, cities, models, s, group[0])
        for s in starts
        for group in groups[s]
    }
    folders = {city: cities[city].folder for city in names}

    def learned(job: tuple) -> dict[str, float | None]:
        from pipeline.training.fit import fit

        start, share, group = job
        smaller = [share_of(CityTiles(folders[city]), share, g.seed) for city in group]
        train, folder = trains[start, group], reference
        if share != 1 or train != params.train:
            name = "-".join(["frugal", start, f"{share:g}", *group[: start == "other_cities"]])
            folder = WORK / "generalize" / name
            fit(params.model_copy(update={"train": train}), smaller, folder, work=WORK, name=name)
        segmenter = read_model(folder, device())
        return {city.city: evaluate_city(segmenter, city, params.evaluate).iou for city in smaller}

    ious, found = (
        dict(each(learned, jobs, ray)),
        {start: {f"{share:g}": {} for share in f} for start in starts},
    )
    for start, share, group in jobs:
        found[start][f"{share:g}"] |= ious[start, share, group]
    scenes = {
        f"{share:g}": {
            c: len(nested_scenes(cities[c], "train", [share], g.seed)[share]) for c in names
        }
        for share in f
    }
    return {
        "frugal": next(iter(found.values()), {}),
        "frugal_by_initialisation": found,
        "frugal_scenes": scenes,
    }


def start_of(params: Params, cities: Cities, models: Path, start: str, city: str) -> Train:
    """params.train, begun as an initialisation says."""
    init, weights = None, params.train.model.encoder_weights
    match start:
        case "random":
            weights = None
        case "imagenet":
            weights = "imagenet"
        case "other_cities":
            init = str(models / "folds" / f"without-{city}")
        case "self_supervised":
            from pipeline.training.pretraining import pretrain

            init = str(WORK / "generalize" / "self-supervised")
            pretrain(params, [cities[c] for c in sorted(cities)], Path(init))
    model = params.train.model.model_copy(update={"encoder_weights": weights})
    return params.train.model_copy(update={"init": init, "model": model})
