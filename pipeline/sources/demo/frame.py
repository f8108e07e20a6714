"""The street frame: where blocks and lots are upright rectangles, and how it lies on the ground."""

import math
from dataclasses import dataclass, replace

import numpy as np


class Frame:
    """The street frame (u, v) laid onto the ground: turned by an angle and bent by two waves."""

    def __init__(self, centre: float, curve: float, rng: np.random.Generator):
        self.centre = centre
        self.turn = rng.uniform(-np.pi / 4, np.pi / 4)
        self.length = rng.uniform(240, 380, 2).tolist()  # metres
        self.phase = rng.uniform(0, 2 * np.pi, 2).tolist()
        self.swing = (curve * rng.uniform(0.6, 1.0, 2)).tolist()  # metres

    def to_ground(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) street frame to (N, 2) ground."""
        u, v = np.asarray(points, float).reshape(-1, 2).T
        bent_u = u + self.swing[0] * np.sin(2 * np.pi * v / self.length[0] + self.phase[0])
        bent_v = v + self.swing[1] * np.sin(2 * np.pi * u / self.length[1] + self.phase[1])
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.stack([cos * bent_u - sin * bent_v, sin * bent_u + cos * bent_v], 1) + self.centre

    def point(self, u: float, v: float) -> tuple[float, float]:
        """`to_ground` of one point."""
        bent_u = u + self.swing[0] * math.sin(2 * math.pi * v / self.length[0] + self.phase[0])
        bent_v = v + self.swing[1] * math.sin(2 * math.pi * u / self.length[1] + self.phase[1])
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return self.centre + cos * bent_u - sin * bent_v, self.centre + sin * bent_u + cos * bent_v

    def heading(self, u: float, v: float, angle: float) -> float:
        """The ground direction, at (u, v), of a direction in the frame;
        radians. The Jacobian of `point`.
        """
        cos, sin = math.cos(angle), math.sin(angle)
        wave_v, wave_u = (2 * math.pi / length for length in self.length)
        bent_u = cos + self.swing[0] * wave_v * math.cos(wave_v * v + self.phase[0]) * sin
        bent_v = sin + self.swing[1] * wave_u * math.cos(wave_u * u + self.phase[1]) * cos
        return self.turn + math.atan2(bent_v, bent_u)


@dataclass(frozen=True)
class Rect:
    """An upright rectangle of the street frame."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def width(self) -> float:
        return self.u1 - self.u0

    @property
    def height(self) -> float:
        return self.v1 - self.v0

    @property
    def centre(self) -> tuple[float, float]:
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2

    @property
    def heading(self) -> float:
        """The frame direction of the longer side, radians."""
        return math.pi / 2 if self.height > self.width else 0.0

    @property
    def length(self) -> float:
        return max(self.width, self.height)

    @property
    def breadth(self) -> float:
        return min(self.width, self.height)

    def at(self, along: float, across: float = 0.0) -> tuple[float, float]:
        """A place counted in metres from the centre, along the longer side and
        a quarter turn from it.
        """
        u, v = self.centre
        return (u - across, v + along) if self.heading else (u + along, v + across)

    def inset(self, d: float) -> "Rect":
        return Rect(self.u0 + d, self.v0 + d, self.u1 - d, self.v1 - d)

    def split(self, share: float, gap: float = 0.0) -> tuple["Rect", "Rect"]:
        """Two parts of the longer side, with a gap between them."""
        if self.width >= self.height:
            cut = self.u0 + share * self.width
            return replace(self, u1=cut - gap / 2), replace(self, u0=cut + gap / 2)
        cut = self.v0 + share * self.height
        return replace(self, v1=cut - gap / 2), replace(self, v0=cut + gap / 2)

    def outline(self, step: float = 6.0) -> np.ndarray:
        """(N, 2) points along the border, close enough to follow a bend."""
        corners = np.array(
            [(self.u0, self.v0), (self.u1, self.v0), (self.u1, self.v1), (self.u0, self.v1)]
        )
        count = int(self.length / step) + 1
        if count == 1:
            return corners
        share = np.arange(count)[None, :, None] / count
        return (corners[:, None] * (1 - share) + np.roll(corners, -1, 0)[:, None] * share).reshape(
            -1, 2
        )


@dataclass(frozen=True)
class Lot:
    """A piece of a block with a front on a street; `at` counts metres from the
    middle of that front.
    """

    front: tuple[float, float]
    along: float  # radians, frame direction of the front
    width: float
    depth: float

    def at(self, along: float, inward: float) -> tuple[float, float]:
        cos, sin = math.cos(self.along), math.sin(self.along)
        return self.front[0] + along * cos - inward * sin, self.front[
            1
        ] + along * sin + inward * cos

    def rect(self, along: tuple[float, float], inward: tuple[float, float]) -> Rect:
        (u0, v0), (u1, v1) = self.at(along[0], inward[0]), self.at(along[1], inward[1])
        return Rect(min(u0, u1), min(v0, v1), max(u0, u1), max(v0, v1))


@dataclass(frozen=True)
class Street:
    """A straight cut through the land of the frame."""

    upright: bool  # along v
    where: float  # of its axis, the other coordinate
    start: float
    stop: float
    width: float

    @property
    def heading(self) -> float:
        return math.pi / 2 if self.upright else 0.0

    def at(self, along, across):
        """A place, or arrays of them, counted along the street's own
        coordinate, and in metres from its axis.
        """
        return (self.where + across, along) if self.upright else (along, self.where + across)

    def rect(self, along: tuple[float, float], across: tuple[float, float]) -> Rect:
        (u0, v0), (u1, v1) = self.at(along[0], across[0]), self.at(along[1], across[1])
        return Rect(u0, v0, u1, v1)


def lots(block: Rect, frontage: tuple[float, float], rng: np.random.Generator) -> list[Lot]:
    """Two rows of lots back to back along the block's long sides; one row where it is too
    shallow for two.
    """
    rows = 2 if block.breadth > 34 else 1
    found = []
    for row in range(rows):
        count = max(1, round(block.length / rng.uniform(*frontage)))
        shares = rng.uniform(0.85, 1.15, count)
        edges = (np.concatenate([[0], np.cumsum(shares / shares.sum())]) - 0.5) * block.length
        along, across = block.heading + row * math.pi, (row - 0.5) * block.breadth
        for start, stop in zip(edges, edges[1:], strict=False):
            front = block.at((start + stop) / 2, across)
            found.append(Lot(front, along, stop - start, block.breadth / rows))
    return found
