"""Buildings: wings under one roof, and what stands on it."""

import numpy as np
import shapely
from shapely import Polygon

from pipeline.sources.demo.plan import Solid
from pipeline.sources.demo.schema import Roof
from pipeline.sources.demo.town import Town


def pick_roof(town: Town, roofs: list[Roof]) -> Roof:
    shares = np.array([roof.weight for roof in roofs])
    return roofs[town.rng.choice(len(roofs), p=shares / shares.sum())]


def building(
    town: Town,
    u: float,
    v: float,
    along: float,
    length: float,
    depth: float,
    roofs: list[Roof],
    *,
    height: tuple[float, float] | None = None,
    compound: float | None = None,
):
    """A rectangle, L or T, its longer side `along` (or across, where it is deeper than long)."""
    rng, roof = town.rng, pick_roof(town, roofs)
    if depth > length:
        length, depth, along = depth, length, along + np.pi / 2
    wings = [(0.0, 0.0, along, depth, length)]  # offset along, offset across, ridge, width, length
    if (
        town.chance(town.city.buildings.compound if compound is None else compound)
        and length > 1.15 * depth
    ):
        width = rng.uniform(0.42, 0.6) * length
        out = rng.uniform(0.35, 0.7) * depth
        side = rng.choice([-1, 1])
        slide = 0.0 if town.chance(0.3) else rng.choice([-1, 1]) * (length - width) / 2
        wings.append(
            (slide, side * (depth / 2 + out) / 2, along + np.pi / 2, width, depth / 2 + out)
        )
    raise_wings(
        town, u, v, along, wings, roof, rng.uniform(*(height or town.city.buildings.height))
    )


def raise_wings(
    town: Town, u: float, v: float, along: float, wings: list, roof: Roof, eaves: float
) -> None:
    """Put up a building's wings under one roof; where they would meet water, nothing is built."""
    rng = town.rng
    x, y = town.frame.point(u, v)
    heading = town.frame.heading(u, v, along)
    ahead = np.array([np.cos(heading), np.sin(heading)])
    across = np.array([-ahead[1], ahead[0]])
    surface, slope = town.paint(roof.material), np.tan(np.radians(rng.uniform(*roof.pitch)))
    solids = []
    for du, dv, ridge, width, length in wings:
        cx, cy = (x, y) + du * ahead + dv * across
        turn, half = heading + ridge - along, (width / 2, length / 2)
        layer = int(ridge != along)  # only wings at right angles overlap
        solids.append(
            Solid(cx, cy, turn, *half, roof.form, eaves, slope, surface, layer, building=True)
        )
    outline = shapely.union_all([Polygon(s.corners) for s in solids])
    if not town.water.is_empty and outline.distance(town.water) < 3:
        return
    town.plan.footprints.append(outline)
    town.plan.solids += solids
    furnish(town, solids[0], eaves)


def furnish(town: Town, wing: Solid, eaves: float) -> None:
    """Chimneys, skylights and panels on a pitched roof; machines and hatches on a flat one."""
    rng, hw, hl = town.rng, wing.half_width, wing.half_length
    ridge = np.array([np.cos(wing.angle), np.sin(wing.angle)])
    across = np.array([-ridge[1], ridge[0]])

    def put(
        a: float, b: float, width: float, length: float, form: str, top: float, name: str
    ) -> None:
        x, y = (wing.x, wing.y) + a * across + b * ridge
        half, surface = (width / 2, length / 2), town.paint(name)
        town.plan.solids.append(Solid(x, y, wing.angle, *half, form, top, 0, surface, layer=2))

    if wing.form == "flat":
        for _ in range(rng.poisson(min(hw * hl / 45, 9))):
            a, b = rng.uniform(-0.75, 0.75, 2) * (hw, hl)
            size = rng.uniform(1.2, 3.0, 2)
            put(a, b, *size, "flat", eaves + rng.uniform(0.7, 2.0), "machine")
        return
    if wing.surface.pattern != "sheets" and town.chance(0.6):
        b = rng.uniform(-0.6, 0.6) * hl
        put(
            rng.uniform(-0.25, 0.25) * hw,
            b,
            0.8,
            1.1,
            "flat",
            eaves + wing.slope * hw + 0.9,
            "brick",
        )
    side = rng.choice([-1, 1])
    if wing.form in ("gable", "hip") and hl > 4 and town.chance(0.16):
        b = rng.uniform(-0.25, 0.25) * hl
        put(side * hw * 0.5, b, hw * 0.55, min(hl * 0.8, 6.5), "decal", 0, "panel")
    elif wing.form == "gable" and wing.surface.pattern == "courses" and town.chance(0.3):
        for b in rng.uniform(-0.7, 0.7, rng.integers(1, 4)) * hl:
            put(side * hw * rng.uniform(0.35, 0.6), b, 1.1, 0.9, "decal", 0, "glass")
