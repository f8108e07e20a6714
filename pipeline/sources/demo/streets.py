"""Streets halve the land until blocks are left (after Vanegas et al., Procedural Generation of
Parcels in Urban Modeling, 2012); then they get marks, cars and bridges.
"""

import numpy as np
import shapely
from shapely import Polygon

from pipeline.sources.demo.frame import Rect, Street
from pipeline.sources.demo.town import Town


def subdivide(town: Town, land: Rect, level: int) -> None:
    streets, rng = town.city.streets, town.rng
    longest, limit = max(land.width, land.height), rng.uniform(*streets.block)
    if longest <= limit * 1.35:
        town.blocks.append((land, False))
        return
    if longest < 2.3 * streets.block[1] and town.chance(0.45 * town.city.rural):
        town.blocks.append((land, True))
        return
    width = streets.width[1] if level < 2 else rng.uniform(streets.width[0], np.mean(streets.width))
    share = rng.uniform(0.4, 0.6)
    if land.width >= land.height:
        town.streets.append(Street(True, land.u0 + share * land.width, land.v0, land.v1, width))
    else:
        town.streets.append(Street(False, land.v0 + share * land.height, land.u0, land.u1, width))
    for half in land.split(share, width):
        subdivide(town, half, level + 1)


def stretch(town: Town, street: Street, start: float, stop: float, step: float) -> np.ndarray:
    """Places every `step` metres along a street, those near the scene."""
    along = np.arange(start, stop, step)
    x, y = town.frame.to_ground(np.stack(street.at(along, np.zeros_like(along)), 1)).T
    return along[(np.minimum(x, y) > -20) & (np.maximum(x, y) < town.plan.side + 20)]


def mark_and_park(town: Town) -> None:
    """Lane marks, and cars at the kerb and under way."""
    rng, streets = town.rng, town.city.streets
    white = town.paint("paint")
    for street in town.streets:
        start, stop, width = street.start, street.stop, street.width
        if streets.marks and width > 8.5:
            for a in stretch(town, street, start + 4, stop - 6, 9.0):
                town.area(street.rect((a, a + 3.5), (-0.13, 0.13)), white)
            for a in stretch(town, street, start + 1.5, stop, stop - start - 5.5):
                if town.chance(0.6):
                    for near in np.arange(-width / 2 + 0.6, width / 2 - 0.9, 1.1):
                        town.area(street.rect((a, a + 2.6), (near, near + 0.5)), white)
        for a in stretch(town, street, start + 7, stop - 7, 6.4):
            for side in (-1, 1):
                if town.chance(streets.cars * 0.8):
                    town.car(
                        *street.at(a + rng.uniform(-0.4, 0.4), side * (width / 2 - 1.15)),
                        street.heading,
                    )
                elif width > 7 and town.chance(0.04):
                    town.car(*street.at(a, side * width * 0.16), street.heading)


def bridges(town: Town) -> None:
    for street in town.streets[:3]:
        for name, half in (
            ("concrete", street.width / 2 + 1.2),
            (town.city.streets.surface, street.width / 2),
        ):
            deck = street.rect((street.start, street.stop), (-half, half))
            shape = Polygon(town.frame.to_ground(deck.outline())).intersection(town.water.buffer(5))
            for part in shapely.get_parts(shape):
                if part.geom_type == "Polygon":
                    town.land.append((part, town.paint(name)))
