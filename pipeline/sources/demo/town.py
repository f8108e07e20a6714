"""A town being drawn: what has been laid down so far, and the words to lay down more.

Places are given in the street frame (u, v); `Frame` turns and bends it onto the ground.
"""

import numpy as np
from shapely import Polygon

from pipeline.sources.demo.frame import Frame, Rect, Street
from pipeline.sources.demo.plan import Plan, Solid, Surface
from pipeline.sources.demo.schema import DemoCity, Material

CAR_PAINTS = [
    (196, 198, 200), (44, 46, 50), (120, 124, 128), (150, 154, 158), (48, 58, 80),
    (104, 48, 44), (158, 150, 134), (222, 222, 220), (70, 74, 78), (60, 72, 66),
]  # fmt: skip


class Town:
    """One scene's plan in the making, its materials, and the random numbers it is drawn with."""

    def __init__(
        self, city: DemoCity, materials: dict[str, Material], side: float, rng: np.random.Generator
    ):
        self.city, self.materials, self.rng = city, materials, rng
        self.plan = Plan(side)
        self.frame = Frame(side / 2, city.streets.curve, rng)
        # outlines in the frame, shapes on the ground
        self.land: list[tuple[np.ndarray | Polygon, Surface]] = []
        self.roots: list[tuple[float, float, float]] = []  # of trees: u, v, scale
        self.water = Polygon()
        self.blocks: list[tuple[Rect, bool]] = []  # and whether it is open country
        self.streets: list[Street] = []

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
        wobble = sum(
            self.rng.normal(0, 0.16 / k) * np.cos(k * turn + self.rng.uniform(0, 6))
            for k in (2, 3, 4)
        )
        points = np.stack([np.cos(turn), 0.75 * np.sin(turn)], 1) * (radius * (1 + wobble))[:, None]
        return Polygon(self.frame.to_ground(points + (u, v)))

    def solid(
        self,
        u: float,
        v: float,
        ridge: float,
        width: float,
        length: float,
        form: str,
        eaves: float,
        slope: float,
        surface: Surface,
        **more,
    ) -> None:
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
        body, glass = (
            Surface(colour, colour, 0.02),
            Surface(0.3 * colour + 0.1, 0.3 * colour + 0.14, 0.02),
        )
        back = rng.choice([-0.3, 0.3])
        u1, v1 = u - back * np.cos(heading), v - back * np.sin(heading)
        self.solid(u, v, heading, width, length, "flat", 0.9, 0, body)
        self.solid(u1, v1, heading, width * 0.84, length * 0.58, "flat", 1.3, 0, glass, layer=1)
        self.solid(u1, v1, heading, width * 0.8, length * 0.4, "flat", 1.45, 0, body, layer=2)
