"""Halls, parking and yards of containers."""

import numpy as np

from pipeline.sources.demo.buildings import building
from pipeline.sources.demo.frame import Rect
from pipeline.sources.demo.plan import Surface
from pipeline.sources.demo.town import Town


def commercial(town: Town, block: Rect) -> None:
    """One or two halls, their parking, a yard of containers."""
    rng, b = town.rng, town.city.buildings
    town.area(block, town.paint(town.pick({"old_asphalt": 3, "concrete": 2, "gravel": 1})))
    one, two = block.split(rng.uniform(0.45, 0.62))
    if town.chance(0.5):
        one, two = two, one
    hall = one.inset(rng.uniform(3, 5))
    length, depth = min(hall.width, rng.uniform(*b.hall)), min(hall.height, rng.uniform(*b.hall))
    building(town, *hall.centre, 0.0, length, depth, b.halls, height=(6, 10), compound=0)
    if town.chance(0.65):
        parking(town, two.inset(2.5))
    else:
        spot = two.inset(4)
        town.area(spot, town.paint(town.pick(town.city.yards)))
        containers(town, spot)
    edge = town.paint(town.city.plants.grass)
    town.area(Rect(block.u0, block.v0, block.u1, block.v0 + 2.2), edge)
    town.trees(Rect(block.u0, block.v0 + 0.5, block.u1, block.v0 + 1.7), block.width / 11, 0.8)


def parking(town: Town, rect: Rect) -> None:
    """Bays in rows, some taken."""
    if rect.width < 9 or rect.height < 7:
        return
    town.area(rect, town.paint(town.pick({"asphalt": 2, "old_asphalt": 1})))
    white, busy = town.paint("paint"), town.rng.uniform(0.15, 0.75)
    # two rows nose to nose, then an aisle
    for double in np.arange(rect.v0 + 0.8, rect.v1 - 5, 16.0):
        for v in (double, double + 5):
            for u in np.arange(rect.u0 + 1, rect.u1 - 3.2, 2.6) if v + 5 < rect.v1 else ():
                town.area(Rect(u - 0.1, v, u + 0.1, v + 4.8), white)
                if town.chance(busy):
                    town.car(u + 1.3, v + 2.4 + town.rng.uniform(-0.3, 0.3), np.pi / 2)


def containers(town: Town, spot: Rect) -> None:
    rng = town.rng
    for u in np.arange(spot.u0 + 2, spot.u1 - 2, 3.2):
        for v in np.arange(spot.v0 + 4, spot.v1 - 4, 7.0):
            if town.chance(0.28):
                tint = (
                    np.array(
                        [(150, 80, 60), (70, 100, 130), (90, 120, 96), (190, 186, 178)][
                            rng.integers(4)
                        ]
                    )
                    / 255
                )
                base = town.paint("container")
                surface = Surface(tint, tint * 0.92, base.grain, base.pattern, base.period)
                town.solid(u, v, np.pi / 2, 2.45, 6.1, "flat", 2.6, 0, surface)
