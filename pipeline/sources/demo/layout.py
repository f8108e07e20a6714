"""How a demo town is laid out: land into blocks by streets, blocks into lots, lots
into what their use asks.

All of that happens in the street frame, where a block is an upright rectangle; `Frame` turns and
bends it onto the ground, while buildings stay rigid.
"""

import numpy as np
import shapely
from shapely import Polygon

from pipeline.sources.demo import commerce, greens, homes
from pipeline.sources.demo.frame import Rect
from pipeline.sources.demo.plan import Plan, Tree
from pipeline.sources.demo.schema import DemoCity, Material
from pipeline.sources.demo.streets import bridges, mark_and_park, subdivide
from pipeline.sources.demo.town import Town

MARGIN = 60.0  # metres of land planned beyond the scene, so that nothing stops at its edge
BUILT = (0.14, 0.34)  # least and most share of a scene that buildings may cover
USES = {
    use.__name__: use
    for use in (
        homes.detached, homes.terrace, homes.courtyard, homes.slabs, homes.informal,
        commerce.commercial, greens.park, greens.sports, greens.field, greens.forest,
    )
}  # fmt: skip  # what a block may be used for


def draw_plan(
    city: DemoCity, materials: dict[str, Material], side: float, entropy: list[int]
) -> Plan:
    """The plan of a square scene of `side` metres, redrawn until buildings
    cover a fair share of it.
    """
    best: tuple[float, Plan] | None = None
    for attempt in range(4):
        plan = draw(Town(city, materials, side, np.random.default_rng([*entropy, attempt])))
        share = shapely.union_all(plan.footprints).area / side**2
        miss = max(BUILT[0] - share, share - BUILT[1], 0.0)
        if best is None or miss < best[0]:
            best = miss, plan
        if miss == 0:
            break
    return best[1]


def draw(town: Town) -> Plan:
    plan, city = town.plan, town.city
    reach = plan.side * 0.72 + MARGIN
    everything = Rect(-reach, -reach, reach, reach)
    subdivide(town, everything, 0)
    if town.chance(city.river):
        town.water = river(town, reach)
    town.area(everything, town.paint(city.streets.surface))
    for block, rural in town.blocks:
        x, y = town.frame.point(*block.centre)
        away = (
            max(abs(x - plan.side / 2), abs(y - plan.side / 2))
            - max(block.width, block.height) * 0.75
        )
        if away < plan.side / 2 + 25:
            fill(town, block, rural)
    mark_and_park(town)
    if not town.water.is_empty:
        town.land.append(
            (town.water.buffer(3), town.paint("sand" if town.chance(0.3) else "litter"))
        )
        town.land.append((town.water, town.paint("water")))
        bridges(town)
    tidy(town)
    return plan


def fill(town: Town, block: Rect, rural: bool) -> None:
    uses = town.city.uses
    open_land = {"field": 1.0, "forest": uses.get("forest", 0.3), "park": 0.4, "commercial": 0.15}
    built = {use: w for use, w in uses.items() if use != "field"}
    use = town.pick(open_land if rural else built)
    if town.city.streets.kerb:
        town.area(block, town.paint(town.city.streets.kerb))
        block = block.inset(town.rng.uniform(1.4, 2.2))
    USES[use](town, block)


def river(town: Town, reach: float) -> Polygon:
    rng = town.rng
    s = np.linspace(-reach * 1.5, reach * 1.5, 60)
    bend = sum(rng.uniform(8, 22) / k * np.sin(k * s / 60 + rng.uniform(0, 6)) for k in (1, 2))
    turn, off = rng.uniform(0, np.pi), rng.uniform(-0.35, 0.35) * town.plan.side
    line = np.stack(
        [
            np.cos(turn) * s - np.sin(turn) * (bend + off),
            np.sin(turn) * s + np.cos(turn) * (bend + off),
        ],
        1,
    )
    return shapely.LineString(line + town.plan.side / 2).buffer(rng.uniform(7, 15))


def tidy(town: Town) -> None:
    """Lay the land on the ground, plant trees, clear the water, end footprints
    at the scene's edge.
    """
    plan = town.plan
    bent = [i for i, (shape, _) in enumerate(town.land) if isinstance(shape, np.ndarray)]
    points = town.frame.to_ground(np.concatenate([town.land[i][0] for i in bent]))
    owner = np.repeat(np.arange(len(bent)), [len(town.land[i][0]) for i in bent])
    shapes = np.array(
        [None if isinstance(shape, np.ndarray) else shape for shape, _ in town.land], dtype=object
    )
    shapes[bent] = shapely.polygons(shapely.linearrings(points, indices=owner))
    plan.ground = [(shape, surface) for shape, (_, surface) in zip(shapes, town.land, strict=True)]
    plant(town)
    if not town.water.is_empty:
        wet = town.water.buffer(2.5)
        shapely.prepare(wet)
        plan.solids = [
            s for s in plan.solids if s.building or not shapely.intersects_xy(wet, s.x, s.y)
        ]
    plan.water = town.water
    plan.blocks = [Polygon(town.frame.to_ground(block.outline())) for block, _ in town.blocks]
    scene = shapely.box(0, 0, plan.side, plan.side)
    cut = shapely.intersection(np.array(plan.footprints, dtype=object), scene)
    plan.footprints = [
        part for part in shapely.get_parts(cut) if part.geom_type == "Polygon" and part.area > 1
    ]


def plant(town: Town) -> None:
    """Grow trees from their roots: none inside a house, none in the water."""
    rng, plants, roots = town.rng, town.city.plants, np.array(town.roots).reshape(-1, 3)
    x, y = town.frame.to_ground(roots[:, :2]).T
    conifer = rng.random(len(roots)) < plants.conifers
    radius = roots[:, 2] * rng.uniform(*plants.crown, len(roots)) * np.where(conifer, 0.75, 1.0)
    height = radius * np.where(
        conifer, rng.uniform(3.4, 4.6, len(roots)), rng.uniform(1.9, 2.6, len(roots))
    )
    leaf = np.array(plants.leaf)[rng.integers(len(plants.leaf), size=len(roots))] / 255
    leaf *= np.exp(
        0.08 * rng.standard_normal((len(roots), 1)) + 0.04 * rng.standard_normal((len(roots), 3))
    )
    leaf *= np.where(conifer[:, None], (0.8, 0.86, 0.9), 1.0)
    near = (np.minimum(x, y) > -12) & (np.maximum(x, y) < town.plan.side + 12)
    trunks = shapely.buffer(shapely.points(x, y), 0.62 * radius, quad_segs=2)
    near[shapely.STRtree(town.plan.footprints).query(trunks, predicate="intersects")[0]] = False
    near &= ~shapely.intersects_xy(town.water, x, y)
    for i in np.flatnonzero(near):
        size = float(radius[i]), float(height[i])
        town.plan.trees.append(Tree(float(x[i]), float(y[i]), *size, bool(conifer[i]), leaf[i]))
