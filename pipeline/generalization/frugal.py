"""Frugal learning: what a share of a new city's training scenes buys, and what the start of training is worth.

Subsets are nested (1 % ⊂ 2 % ⊂ … ⊂ 100 %), so that a curve moves by the scenes added, not by a new draw.
"""

import copy
import math

import numpy as np

from pipeline.geo.tiles import CityTiles


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
