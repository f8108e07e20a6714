"""What a demo scene's plan is made of: surfaces, solids and trees.

Ground coordinates (x, y) count metres from the scene's upper left corner, x to the
east, y to the south.
"""

from dataclasses import dataclass, field

import numpy as np
import shapely
from shapely import Polygon

PATTERNS = ("none", "courses", "sheets", "furrows")
FORMS = ("flat", "shed", "gable", "hip", "vault", "decal")


@dataclass(frozen=True)
class Surface:
    """How something is painted: a material as one object has it."""

    colour: np.ndarray  # (3,) as displayed, 0-1
    alt: np.ndarray
    grain: float = 0.05
    pattern: str = "none"
    period: float = 1.0  # metres
    angle: float = 0.0  # radians, direction of ground patterns


@dataclass(frozen=True)
class Solid:
    """A box with a roof: a building's wing, a car, a container. The ridge runs
    along its own second axis.
    """

    x: float
    y: float
    angle: float  # radians from x to the ridge
    half_width: float  # metres across the ridge
    half_length: float  # metres along it
    form: str  # flat, shed, gable, hip, vault, or decal: painted on what lies below
    eaves: float  # metres above the ground
    slope: float  # rise over run
    surface: Surface
    layer: int = 0  # later layers may overlap earlier ones; the higher roof is seen
    building: bool = False

    @property
    def corners(self) -> np.ndarray:
        """(4, 2) ground metres."""
        ridge = np.array([np.cos(self.angle), np.sin(self.angle)])
        across = np.array([-ridge[1], ridge[0]])
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return (
            (self.x, self.y)
            + signs[:, :1] * self.half_width * across
            + signs[:, 1:] * self.half_length * ridge
        )


@dataclass(frozen=True)
class Tree:
    x: float
    y: float
    radius: float
    height: float
    conifer: bool
    colour: np.ndarray  # (3,) as displayed, 0-1


@dataclass
class Plan:
    side: float  # metres
    ground: list[tuple[Polygon, Surface]] = field(default_factory=list)  # later ones on top
    solids: list[Solid] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    footprints: list[Polygon] = field(default_factory=list)  # of buildings, cut at the scene's edge
    blocks: list[Polygon] = field(default_factory=list)  # between the streets, kerbs and all
    water: Polygon = field(default_factory=Polygon)

    @property
    def streets(self) -> list[Polygon]:
        """What neither block nor building nor water is, cut at the scene's
        edge; bridges are water.
        """
        scene = shapely.box(0, 0, self.side, self.side)
        taken = shapely.union_all(
            [*map(shapely.make_valid, self.blocks), *self.footprints, self.water]
        )
        parts = shapely.get_parts(shapely.difference(scene, taken))
        return [part for part in parts if part.geom_type == "Polygon" and part.area > 1]
