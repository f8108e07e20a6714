"""Blocks that people live in, each function named like its use in data/sources/demo.yaml."""

import numpy as np

from pipeline.sources.demo.buildings import building, pick_roof, raise_wings
from pipeline.sources.demo.commerce import parking
from pipeline.sources.demo.frame import Lot, Rect, lots
from pipeline.sources.demo.town import Town


def yard(town: Town, lot: Lot, behind: float) -> None:
    """A paved or bare rectangle behind the house that is no building."""
    room = lot.depth - behind - 2
    if room > 6 and lot.width > 7.5:
        w, d = town.rng.uniform(5, min(lot.width - 2, 13)), town.rng.uniform(4, min(room, 11))
        along = town.rng.uniform(-1, 1) * (lot.width - w) / 2
        inward = behind + 1 + town.rng.uniform(0, room - d)
        town.area(
            lot.rect((along - w / 2, along + w / 2), (inward, inward + d)),
            town.paint(town.pick(town.city.yards)),
        )


def detached(town: Town, block: Rect) -> None:
    rng, b, plants = town.rng, town.city.buildings, town.city.plants
    town.area(block, town.paint(plants.grass))
    for lot in lots(block, b.frontage, rng):
        half, own = lot.width / 2, lot.rect((-lot.width / 2, lot.width / 2), (0, lot.depth))
        town.area(own, town.paint(plants.grass))
        if town.chance(0.06):
            town.trees(own, plants.trees * 2)
            continue
        length = min(rng.uniform(*b.length), lot.width - 3)
        depth = min(rng.uniform(*b.depth), lot.depth - 6)
        setback = min(rng.uniform(*b.setback), lot.depth - depth - 1)
        slide = rng.uniform(-1, 1) * max(lot.width - length - 3, 0) / 2
        drive = slide + rng.choice([-1, 1]) * (length / 2 - 1.8)
        paved = town.paint(town.pick({"concrete": 2, "gravel": 1, "paving": 2}))
        town.area(lot.rect((drive - 1.6, drive + 1.6), (-2, setback + 1)), paved)
        if town.chance(town.city.decoys):
            yard(town, lot, setback + depth)
        if depth < 5 or length < 6:
            continue
        u, v = lot.at(slide, setback + depth / 2)
        building(town, u, v, lot.along, length, depth, b.houses)
        if town.chance(town.city.streets.cars * 1.2):
            town.car(*lot.at(drive, setback / 2 - 0.5), lot.along + np.pi / 2)
        behind = setback + depth + 1
        if town.chance(0.5):
            town.area(
                lot.rect((slide - 3, slide + 3), (behind - 1, behind + 2.2)), town.paint("paving")
            )
        if lot.depth - behind > 8 and town.chance(b.pools):
            pool = lot.at(rng.uniform(-0.4, 0.4) * half, behind + 5.5)
            rim, water = town.paint("concrete"), town.paint("pool")
            town.area(
                Rect(pool[0] - 3.4, pool[1] - 3.4, pool[0] + 3.4, pool[1] + 3.4).inset(0.6), rim
            )
            town.area(Rect(pool[0] - 2.3, pool[1] - 2.3, pool[0] + 2.3, pool[1] + 2.3), water)
        town.trees(
            lot.rect((-half, half), (min(behind, lot.depth - 1), lot.depth)), plants.trees * 0.75
        )
        town.trees(lot.rect((-half, half), (0.5, max(setback, 1))), plants.trees * 0.25, 0.8)
        if town.chance(0.5):
            for inward in np.arange(setback + 1, lot.depth, 1.3):
                town.tree(*lot.at(half, inward + rng.uniform(-0.3, 0.3)), 0.36)


def terrace(town: Town, block: Rect) -> None:
    """Rows of houses wall to wall, gardens behind."""
    rng, b, plants = town.rng, town.city.buildings, town.city.plants
    town.area(block, town.paint(plants.grass))
    depth, setback = rng.uniform(*b.depth), rng.uniform(*b.setback) * 0.6
    gable = [r for r in b.houses if r.form != "hip"]
    for lot in lots(block, (7, 11), rng):
        own = lot.rect((-lot.width / 2, lot.width / 2), (setback + depth, lot.depth))
        town.area(lot.rect((-lot.width / 2, lot.width / 2), (0, setback)), town.paint("paving"))
        town.area(own, town.paint(town.pick({plants.grass: 4, "paving": 0.4, "dirt": 0.2})))
        if town.chance(0.07):
            continue
        eaves = rng.uniform(*b.height)
        u, v = lot.at(0, setback + depth / 2)
        wings = [(0.0, 0.0, lot.along, depth, lot.width + 0.05)]
        if town.chance(0.3):
            wings.append(
                (
                    lot.width * 0.22,
                    depth * 0.45,
                    lot.along + np.pi / 2,
                    lot.width * 0.5,
                    depth * 0.9,
                )
            )
        raise_wings(town, u, v, lot.along, wings, pick_roof(town, gable), eaves)
        if town.chance(town.city.decoys):
            yard(town, lot, setback + depth)
        town.trees(own, plants.trees * 0.7)


def courtyard(town: Town, block: Rect) -> None:
    """Perimeter wings around a court."""
    rng, b = town.rng, town.city.buildings
    town.area(block, town.paint(town.pick({"paving": 1, town.city.plants.grass: 1})))
    count, along = max(1, round(block.length / rng.uniform(34, 52))), block.heading
    for i in range(count):
        deep = rng.uniform(10, 13)
        u, v = block.at(((i + 0.5) / count - 0.5) * block.length)
        wide, tall = block.length / count - 0.6, block.breadth - 1.0
        ends = (wide - deep) / 2, (tall - deep) / 2
        wings = [
            (0, -ends[1], along, deep, wide),
            (-ends[0], 0, along + np.pi / 2, deep, tall),
            (0, ends[1], along, deep, wide),
            (ends[0], 0, along + np.pi / 2, deep, tall),
        ]
        if min(wide, tall) < 2.6 * deep:
            wings = [wings[0], wings[1]]
        elif town.chance(0.35):
            wings.pop(rng.integers(4))
        roofs = [r for r in b.halls + b.houses if r.form in ("hip", "flat", "gable")]
        raise_wings(town, u, v, along, wings, pick_roof(town, roofs), rng.uniform(9, 14))
        half = (tall / 2, wide / 2) if block.heading else (wide / 2, tall / 2)
        inner = Rect(u - half[0], v - half[1], u + half[0], v + half[1]).inset(deep + 2)
        if inner.width > 0 and inner.height > 0:
            town.trees(inner, 2.5)


def slabs(town: Town, block: Rect) -> None:
    """Blocks of flats on grass, with parking between."""
    rng, b = town.rng, town.city.buildings
    town.area(block, town.paint(town.city.plants.grass))
    depth, pitch = rng.uniform(11, 15), rng.uniform(27, 36)
    count = max(1, int(block.length / pitch))
    step, roofs = block.length / count, [pick_roof(town, b.halls)]  # an estate has one kind
    for i in range(count):
        middle = (i + 0.5) * step - block.length / 2
        long = min(block.breadth - 6, rng.uniform(26, 44))
        if long > 12:
            across = block.heading + np.pi / 2
            building(
                town, *block.at(middle), across, long, depth, roofs, height=(8, 15), compound=0.2
            )
        if i < count - 1:
            (u0, v0), (u1, v1) = (
                block.at(middle + step / 2 + 6 * s, s * (block.breadth - 10) / 2) for s in (-1, 1)
            )
            gap = Rect(min(u0, u1), min(v0, v1), max(u0, u1), max(v0, v1))
            if town.chance(0.5):
                parking(town, gap)
            else:
                town.trees(gap, 5)


def informal(town: Town, block: Rect) -> None:
    """Homes packed at all angles around footpaths."""
    rng, b = town.rng, town.city.buildings
    town.area(block, town.paint(town.pick({"dirt": 3, "red_dirt": 2, town.city.plants.grass: 1})))
    for lot in lots(block, b.frontage, rng):
        for inward in np.arange(b.setback[0], lot.depth - 5, 11.5):
            if town.chance(0.2):
                spot = lot.rect((-lot.width / 2, lot.width / 2), (inward, inward + 9))
                if town.chance(town.city.decoys):
                    town.area(spot.inset(1.5), town.paint(town.pick(town.city.yards)))
                town.trees(spot, town.city.plants.trees * 1.6)
                continue
            length, depth = (
                min(rng.uniform(*b.length), lot.width - 1.2),
                min(rng.uniform(*b.depth), 9.8),
            )
            u, v = lot.at(rng.uniform(-0.5, 0.5), inward + 5 + rng.uniform(-0.4, 0.4))
            building(town, u, v, lot.along + rng.normal(0, 0.06), length, depth, b.houses)
            town.trees(
                lot.rect((-lot.width / 2, lot.width / 2), (inward, inward + 11)),
                town.city.plants.trees * 0.3,
            )
