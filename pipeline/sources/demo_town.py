"""How a demo town is laid out: land into blocks by streets, blocks into lots, lots into what their use asks.

Streets halve the land recursively (after Vanegas et al., Procedural Generation of Parcels in Urban Modeling,
2012). All of that happens in the street frame, where a block is an upright rectangle; `Frame` turns and bends
it onto the ground, while buildings stay rigid.
"""

import numpy as np
import shapely
from shapely import Polygon

from pipeline.sources.demo_city import DemoCity, Material, Roof
from pipeline.sources.demo_plan import Frame, Lot, Plan, Rect, Solid, Surface, Tree, lots

MARGIN = 60.0  # metres of land planned beyond the scene, so that nothing stops at its edge
BUILT = (0.14, 0.34)  # least and most share of a scene that buildings may cover
CAR_PAINTS = [
    (196, 198, 200), (44, 46, 50), (120, 124, 128), (150, 154, 158), (48, 58, 80),
    (104, 48, 44), (158, 150, 134), (222, 222, 220), (70, 74, 78), (60, 72, 66),
]  # fmt: skip


class Planner:
    """Draws one scene's plan. Every method named like a use in demo.yaml fills one block."""

    def __init__(self, city: DemoCity, materials: dict[str, Material], side: float, rng: np.random.Generator):
        self.city, self.materials, self.rng = city, materials, rng
        self.plan = Plan(side)
        self.frame = Frame(side / 2, city.streets.curve, rng)
        self.land: list[tuple[np.ndarray | Polygon, Surface]] = []  # outlines in the frame, shapes on the ground
        self.roots: list[tuple[float, float, float]] = []  # of trees: u, v, scale
        self.water: Polygon = Polygon()
        self.blocks: list[tuple[Rect, bool]] = []
        self.cuts: list[tuple[str, float, float, float, float]] = []  # axis, where, from, to, width

    # Small drawing vocabulary

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, weights: dict[str, float]) -> str:
        shares = np.array(list(weights.values()), float)
        return str(self.rng.choice(list(weights), p=shares / shares.sum()))

    def paint(self, name: str, angle: float = 0.0) -> Surface:
        material, rng = self.materials[name], self.rng
        tone = np.exp(material.spread * rng.standard_normal() + 0.012 * rng.standard_normal(3))
        colour = np.array(material.colour) / 255 * tone
        alt = np.array(material.alt or material.colour) / 255 * tone
        return Surface(colour, alt, material.grain, material.pattern, material.period, angle)

    def area(self, rect: Rect, surface: Surface) -> None:
        if rect.width > 0 and rect.height > 0:
            self.land.append((rect.outline(), surface))

    def blob(self, u: float, v: float, radius: float) -> Polygon:
        """An uneven round shape on the ground."""
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        wobble = sum(self.rng.normal(0, 0.16 / k) * np.cos(k * turn + self.rng.uniform(0, 6)) for k in (2, 3, 4))
        points = np.stack([np.cos(turn), 0.75 * np.sin(turn)], 1) * (radius * (1 + wobble))[:, None]
        return Polygon(self.frame.to_ground(points + (u, v)))

    def solid(self, u: float, v: float, ridge: float, width: float, length: float, form: str, eaves: float,
              slope: float, surface: Surface, **more) -> None:  # fmt: skip
        x, y = self.frame.point(u, v)
        heading = self.frame.heading(u, v, ridge)
        half = width / 2, length / 2
        self.plan.solids.append(Solid(x, y, heading, *half, form, eaves, slope, surface, **more))

    def tree(self, u: float, v: float, scale: float = 1.0) -> None:
        self.roots.append((u, v, scale))

    def trees(self, rect: Rect, count: float, scale: float = 1.0) -> None:
        count = self.rng.poisson(max(count, 0))
        places = self.rng.uniform((rect.u0, rect.v0), (rect.u1, rect.v1), (count, 2))
        self.roots += [(u, v, scale) for u, v in places.tolist()]

    def car(self, u: float, v: float, heading: float) -> None:
        rng = self.rng
        length, width = rng.uniform(4.0, 4.9), rng.uniform(1.75, 1.95)
        colour = np.array(CAR_PAINTS[rng.integers(len(CAR_PAINTS))]) / 255 * rng.uniform(0.8, 1.1)
        body, glass = Surface(colour, colour, 0.02), Surface(0.3 * colour + 0.1, 0.3 * colour + 0.14, 0.02)
        back = rng.choice([-0.3, 0.3])
        u1, v1 = u - back * np.cos(heading), v - back * np.sin(heading)
        self.solid(u, v, heading, width, length, "flat", 0.9, 0, body)
        self.solid(u1, v1, heading, width * 0.84, length * 0.58, "flat", 1.3, 0, glass, layer=1)
        self.solid(u1, v1, heading, width * 0.8, length * 0.4, "flat", 1.45, 0, body, layer=2)

    # Buildings

    def roof(self, roofs: list[Roof]) -> Roof:
        shares = np.array([roof.weight for roof in roofs])
        return roofs[self.rng.choice(len(roofs), p=shares / shares.sum())]

    def building(self, u: float, v: float, along: float, length: float, depth: float, roofs: list[Roof], *,
                 height: tuple[float, float] | None = None, compound: float | None = None):  # fmt: skip
        """A rectangle, L or T, its longer side `along` (or across, where it is deeper than long)."""
        rng, roof = self.rng, self.roof(roofs)
        if depth > length:
            length, depth, along = depth, length, along + np.pi / 2
        wings = [(0.0, 0.0, along, depth, length)]  # offset along, offset across, ridge, width, length
        if self.chance(self.city.buildings.compound if compound is None else compound) and length > 1.15 * depth:
            width = rng.uniform(0.42, 0.6) * length
            out = rng.uniform(0.35, 0.7) * depth
            side = rng.choice([-1, 1])
            slide = 0.0 if self.chance(0.3) else rng.choice([-1, 1]) * (length - width) / 2
            wings.append((slide, side * (depth / 2 + out) / 2, along + np.pi / 2, width, depth / 2 + out))
        self.raise_wings(u, v, along, wings, roof, rng.uniform(*(height or self.city.buildings.height)))

    def raise_wings(self, u: float, v: float, along: float, wings: list, roof: Roof, eaves: float) -> None:
        """Put up a building's wings under one roof; where they would meet water, nothing is built."""
        rng = self.rng
        x, y = self.frame.point(u, v)
        heading = self.frame.heading(u, v, along)
        ahead = np.array([np.cos(heading), np.sin(heading)])
        across = np.array([-ahead[1], ahead[0]])
        surface, slope = self.paint(roof.material), np.tan(np.radians(rng.uniform(*roof.pitch)))
        solids = []
        for du, dv, ridge, width, length in wings:
            cx, cy = (x, y) + du * ahead + dv * across
            turn, half = heading + ridge - along, (width / 2, length / 2)
            layer = int(ridge != along)  # only wings at right angles overlap
            solids.append(Solid(cx, cy, turn, *half, roof.form, eaves, slope, surface, layer, building=True))
        outline = shapely.union_all([Polygon(s.corners) for s in solids])
        if not self.water.is_empty and outline.distance(self.water) < 3:
            return
        self.plan.footprints.append(outline)
        self.plan.solids += solids
        self.furnish(solids[0], eaves)

    def furnish(self, wing: Solid, eaves: float) -> None:
        """Chimneys, skylights and panels on a pitched roof; machines and hatches on a flat one."""
        rng, hw, hl = self.rng, wing.half_width, wing.half_length
        ridge = np.array([np.cos(wing.angle), np.sin(wing.angle)])
        across = np.array([-ridge[1], ridge[0]])

        def put(a: float, b: float, width: float, length: float, form: str, top: float, name: str) -> None:
            x, y = (wing.x, wing.y) + a * across + b * ridge
            half, surface = (width / 2, length / 2), self.paint(name)
            self.plan.solids.append(Solid(x, y, wing.angle, *half, form, top, 0, surface, layer=2))

        if wing.form == "flat":
            for _ in range(rng.poisson(min(hw * hl / 45, 9))):
                a, b = rng.uniform(-0.75, 0.75, 2) * (hw, hl)
                size = rng.uniform(1.2, 3.0, 2)
                put(a, b, *size, "flat", eaves + rng.uniform(0.7, 2.0), "machine")
            return
        if wing.surface.pattern != "sheets" and self.chance(0.6):
            b = rng.uniform(-0.6, 0.6) * hl
            put(rng.uniform(-0.25, 0.25) * hw, b, 0.8, 1.1, "flat", eaves + wing.slope * hw + 0.9, "brick")
        side = rng.choice([-1, 1])
        if wing.form in ("gable", "hip") and hl > 4 and self.chance(0.16):
            b = rng.uniform(-0.25, 0.25) * hl
            put(side * hw * 0.5, b, hw * 0.55, min(hl * 0.8, 6.5), "decal", 0, "panel")
        elif wing.form == "gable" and wing.surface.pattern == "courses" and self.chance(0.3):
            for b in rng.uniform(-0.7, 0.7, rng.integers(1, 4)) * hl:
                put(side * hw * rng.uniform(0.35, 0.6), b, 1.1, 0.9, "decal", 0, "glass")

    # Land

    def subdivide(self, land: Rect, level: int) -> None:
        streets, rng = self.city.streets, self.rng
        longest, limit = max(land.width, land.height), rng.uniform(*streets.block)
        if longest <= limit * 1.35:
            self.blocks.append((land, False))
            return
        if longest < 2.3 * streets.block[1] and self.chance(0.45 * self.city.rural):
            self.blocks.append((land, True))
            return
        width = streets.width[1] if level < 2 else rng.uniform(streets.width[0], np.mean(streets.width))
        share = rng.uniform(0.4, 0.6)
        if land.width >= land.height:
            self.cuts.append(("v", land.u0 + share * land.width, land.v0, land.v1, width))
        else:
            self.cuts.append(("u", land.v0 + share * land.height, land.u0, land.u1, width))
        for half in land.split(share, width):
            self.subdivide(half, level + 1)

    def draw(self) -> Plan:
        plan, city = self.plan, self.city
        reach = plan.side * 0.72 + MARGIN
        everything = Rect(-reach, -reach, reach, reach)
        self.subdivide(everything, 0)
        if self.chance(city.river):
            self.water = self.river(reach)
        self.area(everything, self.paint(city.streets.surface))
        for block, rural in self.blocks:
            x, y = self.frame.point(*block.centre)
            away = max(abs(x - plan.side / 2), abs(y - plan.side / 2)) - max(block.width, block.height) * 0.75
            if away < plan.side / 2 + 25:
                self.fill(block, rural)
        self.streets()
        if not self.water.is_empty:
            self.land.append((self.water.buffer(3), self.paint("sand" if self.chance(0.3) else "litter")))
            self.land.append((self.water, self.paint("water")))
            self.bridges()
        self.tidy()
        return plan

    def fill(self, block: Rect, rural: bool) -> None:
        uses = self.city.uses
        open_land = {"field": 1.0, "forest": uses.get("forest", 0.3), "park": 0.4, "commercial": 0.15}
        built = {use: w for use, w in uses.items() if use != "field"}
        use = self.pick(open_land if rural else built)
        if self.city.streets.kerb:
            self.area(block, self.paint(self.city.streets.kerb))
            block = block.inset(self.rng.uniform(1.4, 2.2))
        getattr(self, use)(block)

    def river(self, reach: float) -> Polygon:
        rng = self.rng
        s = np.linspace(-reach * 1.5, reach * 1.5, 60)
        bend = sum(rng.uniform(8, 22) / k * np.sin(k * s / 60 + rng.uniform(0, 6)) for k in (1, 2))
        turn, off = rng.uniform(0, np.pi), rng.uniform(-0.35, 0.35) * self.plan.side
        line = np.stack(
            [np.cos(turn) * s - np.sin(turn) * (bend + off), np.sin(turn) * s + np.cos(turn) * (bend + off)], 1
        )
        return shapely.LineString(line + self.plan.side / 2).buffer(rng.uniform(7, 15))

    def stretch(self, axis: str, where: float, start: float, stop: float, step: float) -> np.ndarray:
        """Places every `step` metres along a street, those near the scene."""
        along = np.arange(start, stop, step)
        across = np.full_like(along, where)
        x, y = self.frame.to_ground(np.stack([across, along] if axis == "v" else [along, across], 1)).T
        return along[(np.minimum(x, y) > -20) & (np.maximum(x, y) < self.plan.side + 20)]

    def streets(self) -> None:
        """Lane marks, and cars at the kerb and under way."""
        rng, streets = self.rng, self.city.streets
        white = self.paint("paint")
        for axis, where, start, stop, width in self.cuts:

            def rect(near: float, far: float, a: float, b: float, axis=axis, where=where) -> Rect:
                lo, hi = where + near, where + far
                return Rect(lo, a, hi, b) if axis == "v" else Rect(a, lo, b, hi)

            if streets.marks and width > 8.5:
                for a in self.stretch(axis, where, start + 4, stop - 6, 9.0):
                    self.area(rect(-0.13, 0.13, a, a + 3.5), white)
                for a in self.stretch(axis, where, start + 1.5, stop, stop - start - 5.5):
                    if self.chance(0.6):
                        for near in np.arange(-width / 2 + 0.6, width / 2 - 0.9, 1.1):
                            self.area(rect(near, near + 0.5, a, a + 2.6), white)
            heading = np.pi / 2 if axis == "v" else 0.0
            for a in self.stretch(axis, where, start + 7, stop - 7, 6.4):
                for side in (-1, 1):
                    if self.chance(streets.cars * 0.8):
                        across = where + side * (width / 2 - 1.15)
                        at = a + rng.uniform(-0.4, 0.4)
                        self.car(*((across, at) if axis == "v" else (at, across)), heading)
                    elif width > 7 and self.chance(0.04):
                        across = where + side * width * 0.16
                        self.car(*((across, a) if axis == "v" else (a, across)), heading)

    def bridges(self) -> None:
        for axis, where, start, stop, width in self.cuts[:3]:
            for name, half in (("concrete", width / 2 + 1.2), (self.city.streets.surface, width / 2)):
                lo, hi = where - half, where + half
                deck = Rect(lo, start, hi, stop) if axis == "v" else Rect(start, lo, stop, hi)
                shape = Polygon(self.frame.to_ground(deck.outline())).intersection(self.water.buffer(5))
                for part in shapely.get_parts(shape):
                    if part.geom_type == "Polygon":
                        self.land.append((part, self.paint(name)))

    def tidy(self) -> None:
        """Lay the land on the ground, plant trees, clear the water, end footprints at the scene's edge."""
        plan = self.plan
        bent = [i for i, (shape, _) in enumerate(self.land) if isinstance(shape, np.ndarray)]
        points = self.frame.to_ground(np.concatenate([self.land[i][0] for i in bent]))
        owner = np.repeat(np.arange(len(bent)), [len(self.land[i][0]) for i in bent])
        shapes = np.array([None if isinstance(shape, np.ndarray) else shape for shape, _ in self.land], dtype=object)
        shapes[bent] = shapely.polygons(shapely.linearrings(points, indices=owner))
        plan.ground = [(shape, surface) for shape, (_, surface) in zip(shapes, self.land, strict=True)]
        self.plant()
        if not self.water.is_empty:
            wet = self.water.buffer(2.5)
            shapely.prepare(wet)
            plan.solids = [s for s in plan.solids if s.building or not shapely.intersects_xy(wet, s.x, s.y)]
        scene = shapely.box(0, 0, plan.side, plan.side)
        cut = shapely.intersection(np.array(plan.footprints, dtype=object), scene)
        plan.footprints = [part for part in shapely.get_parts(cut) if part.geom_type == "Polygon" and part.area > 1]

    def plant(self) -> None:
        """Grow trees from their roots: none inside a house, none in the water."""
        rng, plants, roots = self.rng, self.city.plants, np.array(self.roots).reshape(-1, 3)
        x, y = self.frame.to_ground(roots[:, :2]).T
        conifer = rng.random(len(roots)) < plants.conifers
        radius = roots[:, 2] * rng.uniform(*plants.crown, len(roots)) * np.where(conifer, 0.75, 1.0)
        height = radius * np.where(conifer, rng.uniform(3.4, 4.6, len(roots)), rng.uniform(1.9, 2.6, len(roots)))
        leaf = np.array(plants.leaf)[rng.integers(len(plants.leaf), size=len(roots))] / 255
        leaf *= np.exp(0.08 * rng.standard_normal((len(roots), 1)) + 0.04 * rng.standard_normal((len(roots), 3)))
        leaf *= np.where(conifer[:, None], (0.8, 0.86, 0.9), 1.0)
        near = (np.minimum(x, y) > -12) & (np.maximum(x, y) < self.plan.side + 12)
        trunks = shapely.buffer(shapely.points(x, y), 0.62 * radius, quad_segs=2)
        near[shapely.STRtree(self.plan.footprints).query(trunks, predicate="intersects")[0]] = False
        near &= ~shapely.intersects_xy(self.water, x, y)
        for i in np.flatnonzero(near):
            size = float(radius[i]), float(height[i])
            self.plan.trees.append(Tree(float(x[i]), float(y[i]), *size, bool(conifer[i]), leaf[i]))

    # Uses of a block

    def yard(self, lot: Lot, behind: float) -> None:
        """A paved or bare rectangle behind the house that is no building."""
        room = lot.depth - behind - 2
        if room > 6 and lot.width > 7.5:
            w, d = self.rng.uniform(5, min(lot.width - 2, 13)), self.rng.uniform(4, min(room, 11))
            along = self.rng.uniform(-1, 1) * (lot.width - w) / 2
            inward = behind + 1 + self.rng.uniform(0, room - d)
            self.area(
                lot.rect((along - w / 2, along + w / 2), (inward, inward + d)), self.paint(self.pick(self.city.yards))
            )

    def detached(self, block: Rect) -> None:
        rng, b, plants = self.rng, self.city.buildings, self.city.plants
        self.area(block, self.paint(plants.grass))
        for lot in lots(block, b.frontage, rng):
            half, own = lot.width / 2, lot.rect((-lot.width / 2, lot.width / 2), (0, lot.depth))
            self.area(own, self.paint(plants.grass))
            if self.chance(0.06):
                self.trees(own, plants.trees * 2)
                continue
            length = min(rng.uniform(*b.length), lot.width - 3)
            depth = min(rng.uniform(*b.depth), lot.depth - 6)
            setback = min(rng.uniform(*b.setback), lot.depth - depth - 1)
            slide = rng.uniform(-1, 1) * max(lot.width - length - 3, 0) / 2
            drive = slide + rng.choice([-1, 1]) * (length / 2 - 1.8)
            paved = self.paint(self.pick({"concrete": 2, "gravel": 1, "paving": 2}))
            self.area(lot.rect((drive - 1.6, drive + 1.6), (-2, setback + 1)), paved)
            if self.chance(self.city.decoys):
                self.yard(lot, setback + depth)
            if depth < 5 or length < 6:
                continue
            u, v = lot.at(slide, setback + depth / 2)
            self.building(u, v, lot.along, length, depth, b.houses)
            if self.chance(self.city.streets.cars * 1.2):
                self.car(*lot.at(drive, setback / 2 - 0.5), lot.along + np.pi / 2)
            behind = setback + depth + 1
            if self.chance(0.5):
                self.area(lot.rect((slide - 3, slide + 3), (behind - 1, behind + 2.2)), self.paint("paving"))
            if lot.depth - behind > 8 and self.chance(b.pools):
                pool = lot.at(rng.uniform(-0.4, 0.4) * half, behind + 5.5)
                rim, water = self.paint("concrete"), self.paint("pool")
                self.area(Rect(pool[0] - 3.4, pool[1] - 3.4, pool[0] + 3.4, pool[1] + 3.4).inset(0.6), rim)
                self.area(Rect(pool[0] - 2.3, pool[1] - 2.3, pool[0] + 2.3, pool[1] + 2.3), water)
            self.trees(lot.rect((-half, half), (min(behind, lot.depth - 1), lot.depth)), plants.trees * 0.75)
            self.trees(lot.rect((-half, half), (0.5, max(setback, 1))), plants.trees * 0.25, 0.8)
            if self.chance(0.5):
                for inward in np.arange(setback + 1, lot.depth, 1.3):
                    self.tree(*lot.at(half, inward + rng.uniform(-0.3, 0.3)), 0.36)

    def terrace(self, block: Rect) -> None:
        """Rows of houses wall to wall, gardens behind."""
        rng, b, plants = self.rng, self.city.buildings, self.city.plants
        self.area(block, self.paint(plants.grass))
        depth, setback = rng.uniform(*b.depth), rng.uniform(*b.setback) * 0.6
        gable = [r for r in b.houses if r.form != "hip"]
        for lot in lots(block, (7, 11), rng):
            own = lot.rect((-lot.width / 2, lot.width / 2), (setback + depth, lot.depth))
            self.area(lot.rect((-lot.width / 2, lot.width / 2), (0, setback)), self.paint("paving"))
            self.area(own, self.paint(self.pick({plants.grass: 4, "paving": 0.4, "dirt": 0.2})))
            if self.chance(0.07):
                continue
            eaves = rng.uniform(*b.height)
            u, v = lot.at(0, setback + depth / 2)
            wings = [(0.0, 0.0, lot.along, depth, lot.width + 0.05)]
            if self.chance(0.3):
                wings.append((lot.width * 0.22, depth * 0.45, lot.along + np.pi / 2, lot.width * 0.5, depth * 0.9))
            self.raise_wings(u, v, lot.along, wings, self.roof(gable), eaves)
            if self.chance(self.city.decoys):
                self.yard(lot, setback + depth)
            self.trees(own, plants.trees * 0.7)

    def courtyard(self, block: Rect) -> None:
        """Perimeter wings around a court."""
        rng, b = self.rng, self.city.buildings
        self.area(block, self.paint(self.pick({"paving": 1, self.city.plants.grass: 1})))
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
            elif self.chance(0.35):
                wings.pop(rng.integers(4))
            roofs = [r for r in b.halls + b.houses if r.form in ("hip", "flat", "gable")]
            self.raise_wings(u, v, along, wings, self.roof(roofs), rng.uniform(9, 14))
            half = (tall / 2, wide / 2) if block.heading else (wide / 2, tall / 2)
            inner = Rect(u - half[0], v - half[1], u + half[0], v + half[1]).inset(deep + 2)
            if inner.width > 0 and inner.height > 0:
                self.trees(inner, 2.5)

    def parking(self, rect: Rect) -> None:
        """Bays in rows, some taken."""
        if rect.width < 9 or rect.height < 7:
            return
        self.area(rect, self.paint(self.pick({"asphalt": 2, "old_asphalt": 1})))
        white, busy = self.paint("paint"), self.rng.uniform(0.15, 0.75)
        for double in np.arange(rect.v0 + 0.8, rect.v1 - 5, 16.0):  # two rows nose to nose, then an aisle
            for v in (double, double + 5):
                for u in np.arange(rect.u0 + 1, rect.u1 - 3.2, 2.6) if v + 5 < rect.v1 else ():
                    self.area(Rect(u - 0.1, v, u + 0.1, v + 4.8), white)
                    if self.chance(busy):
                        self.car(u + 1.3, v + 2.4 + self.rng.uniform(-0.3, 0.3), np.pi / 2)

    def slabs(self, block: Rect) -> None:
        """Blocks of flats on grass, with parking between."""
        rng, b = self.rng, self.city.buildings
        self.area(block, self.paint(self.city.plants.grass))
        depth, pitch = rng.uniform(11, 15), rng.uniform(27, 36)
        count = max(1, int(block.length / pitch))
        step, roofs = block.length / count, [self.roof(b.halls)]  # an estate has one kind
        for i in range(count):
            middle = (i + 0.5) * step - block.length / 2
            long = min(block.breadth - 6, rng.uniform(26, 44))
            if long > 12:
                across = block.heading + np.pi / 2
                self.building(*block.at(middle), across, long, depth, roofs, height=(8, 15), compound=0.2)
            if i < count - 1:
                (u0, v0), (u1, v1) = (
                    block.at(middle + step / 2 + 6 * s, s * (block.breadth - 10) / 2) for s in (-1, 1)
                )
                gap = Rect(min(u0, u1), min(v0, v1), max(u0, u1), max(v0, v1))
                if self.chance(0.5):
                    self.parking(gap)
                else:
                    self.trees(gap, 5)

    def commercial(self, block: Rect) -> None:
        """One or two halls, their parking, a yard of containers."""
        rng, b = self.rng, self.city.buildings
        self.area(block, self.paint(self.pick({"old_asphalt": 3, "concrete": 2, "gravel": 1})))
        one, two = block.split(rng.uniform(0.45, 0.62))
        if self.chance(0.5):
            one, two = two, one
        hall = one.inset(rng.uniform(3, 5))
        length, depth = min(hall.width, rng.uniform(*b.hall)), min(hall.height, rng.uniform(*b.hall))
        self.building(*hall.centre, 0.0, length, depth, b.halls, height=(6, 10), compound=0)
        if self.chance(0.65):
            self.parking(two.inset(2.5))
        else:
            spot = two.inset(4)
            self.area(spot, self.paint(self.pick(self.city.yards)))
            self.containers(spot)
        edge = self.paint(self.city.plants.grass)
        self.area(Rect(block.u0, block.v0, block.u1, block.v0 + 2.2), edge)
        self.trees(Rect(block.u0, block.v0 + 0.5, block.u1, block.v0 + 1.7), block.width / 11, 0.8)

    def containers(self, spot: Rect) -> None:
        rng = self.rng
        for u in np.arange(spot.u0 + 2, spot.u1 - 2, 3.2):
            for v in np.arange(spot.v0 + 4, spot.v1 - 4, 7.0):
                if self.chance(0.28):
                    tint = (
                        np.array([(150, 80, 60), (70, 100, 130), (90, 120, 96), (190, 186, 178)][rng.integers(4)]) / 255
                    )
                    base = self.paint("container")
                    surface = Surface(tint, tint * 0.92, base.grain, base.pattern, base.period)
                    self.solid(u, v, np.pi / 2, 2.45, 6.1, "flat", 2.6, 0, surface)

    def informal(self, block: Rect) -> None:
        """Homes packed at all angles around footpaths."""
        rng, b = self.rng, self.city.buildings
        self.area(block, self.paint(self.pick({"dirt": 3, "red_dirt": 2, self.city.plants.grass: 1})))
        for lot in lots(block, b.frontage, rng):
            for inward in np.arange(b.setback[0], lot.depth - 5, 11.5):
                if self.chance(0.2):
                    spot = lot.rect((-lot.width / 2, lot.width / 2), (inward, inward + 9))
                    if self.chance(self.city.decoys):
                        self.area(spot.inset(1.5), self.paint(self.pick(self.city.yards)))
                    self.trees(spot, self.city.plants.trees * 1.6)
                    continue
                length, depth = min(rng.uniform(*b.length), lot.width - 1.2), min(rng.uniform(*b.depth), 9.8)
                u, v = lot.at(rng.uniform(-0.5, 0.5), inward + 5 + rng.uniform(-0.4, 0.4))
                self.building(u, v, lot.along + rng.normal(0, 0.06), length, depth, b.houses)
                self.trees(
                    lot.rect((-lot.width / 2, lot.width / 2), (inward, inward + 11)), self.city.plants.trees * 0.3
                )

    def park(self, block: Rect) -> None:
        rng = self.rng
        self.area(block, self.paint(self.city.plants.grass))
        path, (cu, cv) = self.paint("gravel"), block.centre
        for _ in range(rng.integers(1, 3)):
            s = np.linspace(0, 1, 30)
            swing = rng.uniform(-0.22, 0.22) * np.sin(np.pi * s * rng.choice([1, 2]))
            ends = rng.uniform(0.1, 0.9, 2)
            across = (ends[0] + (ends[1] - ends[0]) * s + swing).clip(0.04, 0.96)
            s, across = (s, across) if self.chance(0.5) else (across, s)
            line = np.stack([block.u0 + s * block.width, block.v0 + across * block.height], 1)
            self.land.append((shapely.LineString(self.frame.to_ground(line)).buffer(1.2), path))
        if self.chance(0.5):
            pond = self.blob(cu + rng.uniform(-8, 8), cv + rng.uniform(-8, 8), min(block.width, block.height) * 0.26)
            self.land += [(pond.buffer(1.2), self.paint("litter")), (pond, self.paint("water"))]
            self.water = self.water.union(pond)
        self.trees(block.inset(2), block.width * block.height / 110)

    def sports(self, block: Rect) -> None:
        """A pitch or a few courts: rectangles with roof-like colours that are no roofs."""
        rng, white = self.rng, self.paint("paint")
        self.area(block, self.paint(self.city.plants.grass))
        courts, (cu, cv) = [], block.centre
        if self.chance(0.45):
            half = min(block.width * 0.42, 28), min(block.height * 0.42, 40)
            courts = [(Rect(cu - half[0], cv - half[1], cu + half[0], cv + half[1]), self.paint("lawn"), 2.0)]
        else:
            hard = self.pick({"clay_court": 2, "green_court": 1, "pale_slab": 0.5})
            u0, v0 = (
                block.u0 + rng.uniform(3, max(4, block.width - 55)),
                block.v0 + rng.uniform(3, max(4, block.height - 40)),
            )
            for i in range(rng.integers(1, 4)):
                court = Rect(u0 + 19 * i, v0, u0 + 19 * i + 17, v0 + 34)
                if court.u1 < block.u1 - 1 and court.v1 < block.v1 - 1:
                    courts.append((court, self.paint(hard), 4.5))
        for court, surface, inset in courts:
            self.area(court, surface)
            r = court.inset(inset)
            for a, c, d, e in [(r.u0, r.v0, r.u0, r.v1), (r.u1, r.v0, r.u1, r.v1), (r.u0, r.v0, r.u1, r.v0),
                               (r.u0, r.v1, r.u1, r.v1), (r.u0, r.centre[1], r.u1, r.centre[1])]:  # fmt: skip
                self.area(Rect(a - 0.13, c - 0.13, d + 0.13, e + 0.13), white)
        self.trees(Rect(block.u0, block.v0, block.u1, block.v0 + 2), block.width / 8)
        self.trees(Rect(block.u1 - 3, block.v0, block.u1, block.v1), rng.uniform(2, 8))

    def field(self, block: Rect) -> None:
        """Crops in strips, hedges, sometimes a row of greenhouses."""
        rng = self.rng
        self.area(block, self.paint(self.city.plants.grass))
        land, upright = block.inset(1.5), self.chance(0.5)
        edges = np.linspace(0, 1, rng.integers(2, 5))
        for start, stop in zip(edges, edges[1:], strict=False):
            name = self.pick({"crop": 2, "stubble": 1, "ploughed": 1.3, self.city.plants.grass: 0.6})
            if upright:
                strip = Rect(land.u0 + start * land.width, land.v0, land.u0 + stop * land.width - 0.8, land.v1)
            else:
                strip = Rect(land.u0, land.v0 + start * land.height, land.u1, land.v0 + stop * land.height - 0.8)
            self.area(strip, self.paint(name, self.frame.heading(*strip.centre, np.pi / 2 if upright else 0.0)))
            if self.chance(0.14):
                for u in np.arange(strip.u0 + 6, min(strip.u1 - 6, strip.u0 + 40), 9.5):
                    long = min(strip.height - 6, 34)
                    if long > 10:
                        self.solid(
                            u, strip.v0 + 3 + long / 2, np.pi / 2, 7.5, long, "vault", 1.6, 0.55, self.paint("glass")
                        )
        for side in (block.v0 + 0.5, block.v1 - 0.5):
            for u in np.arange(block.u0, block.u1, 2.1):
                if self.chance(0.55):
                    self.tree(u + rng.uniform(-0.5, 0.5), side + rng.uniform(-0.4, 0.4), rng.uniform(0.45, 0.9))

    def forest(self, block: Rect) -> None:
        self.area(block, self.paint("litter"))
        self.trees(block, block.width * block.height / 16)


def draw_plan(city: DemoCity, materials: dict[str, Material], side: float, entropy: list[int]) -> Plan:
    """The plan of a square scene of `side` metres, redrawn until buildings cover a fair share of it."""
    best: tuple[float, Plan] | None = None
    for attempt in range(4):
        plan = Planner(city, materials, side, np.random.default_rng([*entropy, attempt])).draw()
        share = shapely.union_all(plan.footprints).area / side**2
        miss = max(BUILT[0] - share, share - BUILT[1], 0.0)
        if best is None or miss < best[0]:
            best = miss, plan
        if miss == 0:
            break
    return best[1]
