"""Blocks without buildings, some of which look like some: parks, pitches, fields, woods."""

import numpy as np
import shapely

from pipeline.sources.demo.frame import Rect
from pipeline.sources.demo.town import Town


def park(town: Town, block: Rect) -> None:
    rng = town.rng
    town.area(block, town.paint(town.city.plants.grass))
    path, (cu, cv) = town.paint("gravel"), block.centre
    for _ in range(rng.integers(1, 3)):
        s = np.linspace(0, 1, 30)
        swing = rng.uniform(-0.22, 0.22) * np.sin(np.pi * s * rng.choice([1, 2]))
        ends = rng.uniform(0.1, 0.9, 2)
        across = (ends[0] + (ends[1] - ends[0]) * s + swing).clip(0.04, 0.96)
        s, across = (s, across) if town.chance(0.5) else (across, s)
        line = np.stack([block.u0 + s * block.width, block.v0 + across * block.height], 1)
        town.land.append((shapely.LineString(town.frame.to_ground(line)).buffer(1.2), path))
    if town.chance(0.5):
        pond = town.blob(
            cu + rng.uniform(-8, 8), cv + rng.uniform(-8, 8), min(block.width, block.height) * 0.26
        )
        town.land += [(pond.buffer(1.2), town.paint("litter")), (pond, town.paint("water"))]
        town.water = town.water.union(pond)
    town.trees(block.inset(2), block.width * block.height / 110)


def sports(town: Town, block: Rect) -> None:
    """A pitch or a few courts: rectangles with roof-like colours that are no roofs."""
    rng, white = town.rng, town.paint("paint")
    town.area(block, town.paint(town.city.plants.grass))
    courts, (cu, cv) = [], block.centre
    if town.chance(0.45):
        half = min(block.width * 0.42, 28), min(block.height * 0.42, 40)
        courts = [
            (Rect(cu - half[0], cv - half[1], cu + half[0], cv + half[1]), town.paint("lawn"), 2.0)
        ]
    else:
        hard = town.pick({"clay_court": 2, "green_court": 1, "pale_slab": 0.5})
        u0, v0 = (
            block.u0 + rng.uniform(3, max(4, block.width - 55)),
            block.v0 + rng.uniform(3, max(4, block.height - 40)),
        )
        for i in range(rng.integers(1, 4)):
            court = Rect(u0 + 19 * i, v0, u0 + 19 * i + 17, v0 + 34)
            if court.u1 < block.u1 - 1 and court.v1 < block.v1 - 1:
                courts.append((court, town.paint(hard), 4.5))
    for court, surface, inset in courts:
        town.area(court, surface)
        r = court.inset(inset)
        for a, c, d, e in [
            (r.u0, r.v0, r.u0, r.v1),
            (r.u1, r.v0, r.u1, r.v1),
            (r.u0, r.v0, r.u1, r.v0),
            (r.u0, r.v1, r.u1, r.v1),
            (r.u0, r.centre[1], r.u1, r.centre[1]),
        ]:
            town.area(Rect(a - 0.13, c - 0.13, d + 0.13, e + 0.13), white)
    town.trees(Rect(block.u0, block.v0, block.u1, block.v0 + 2), block.width / 8)
    town.trees(Rect(block.u1 - 3, block.v0, block.u1, block.v1), rng.uniform(2, 8))


def field(town: Town, block: Rect) -> None:
    """Crops in strips, hedges, sometimes a row of greenhouses."""
    rng = town.rng
    town.area(block, town.paint(town.city.plants.grass))
    land, upright = block.inset(1.5), town.chance(0.5)
    edges = np.linspace(0, 1, rng.integers(2, 5))
    for start, stop in zip(edges, edges[1:], strict=False):
        name = town.pick({"crop": 2, "stubble": 1, "ploughed": 1.3, town.city.plants.grass: 0.6})
        if upright:
            strip = Rect(
                land.u0 + start * land.width, land.v0, land.u0 + stop * land.width - 0.8, land.v1
            )
        else:
            strip = Rect(
                land.u0, land.v0 + start * land.height, land.u1, land.v0 + stop * land.height - 0.8
            )
        town.area(
            strip,
            town.paint(name, town.frame.heading(*strip.centre, np.pi / 2 if upright else 0.0)),
        )
        if town.chance(0.14):
            for u in np.arange(strip.u0 + 6, min(strip.u1 - 6, strip.u0 + 40), 9.5):
                long = min(strip.height - 6, 34)
                if long > 10:
                    town.solid(
                        u,
                        strip.v0 + 3 + long / 2,
                        np.pi / 2,
                        7.5,
                        long,
                        "vault",
                        1.6,
                        0.55,
                        town.paint("glass"),
                    )
    for side in (block.v0 + 0.5, block.v1 - 0.5):
        for u in np.arange(block.u0, block.u1, 2.1):
            if town.chance(0.55):
                town.tree(
                    u + rng.uniform(-0.5, 0.5),
                    side + rng.uniform(-0.4, 0.4),
                    rng.uniform(0.45, 0.9),
                )


def forest(town: Town, block: Rect) -> None:
    town.area(block, town.paint("litter"))
    town.trees(block, block.width * block.height / 16)
