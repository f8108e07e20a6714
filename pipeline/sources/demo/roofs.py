"""Roofs, pixel by pixel: how high, how steep, how bright."""

import math

import numpy as np

from pipeline.sources.demo.noise import mix
from pipeline.sources.demo.plan import FORMS, PATTERNS, Solid


class RoofPixels:
    """The shape of roofs where they are: (N,) arrays, pixel i on
    solids[which[i]] at ground x[i], y[i].
    """

    def __init__(self, solids: list[Solid], which: np.ndarray, x: np.ndarray, y: np.ndarray):
        def column(values, dtype=np.float32) -> np.ndarray:
            return np.array(list(values), dtype)[which]

        cos, sin = (
            column(math.cos(s.angle) for s in solids),
            column(math.sin(s.angle) for s in solids),
        )
        dx, dy = x - column(s.x for s in solids), y - column(s.y for s in solids)
        # metres from the centre, across and along
        self.u, self.v = dy * cos - dx * sin, dx * cos + dy * sin
        half_width = column(s.half_width for s in solids)
        form = column((FORMS.index(s.form) for s in solids), np.int8)
        flat, shed, gable, hip, vault, self.decal = (form == i for i in range(len(FORMS)))
        self.building = column((s.building for s in solids), bool)
        self.pattern = column((PATTERNS.index(s.surface.pattern) for s in solids), np.int8)
        self.period = column(s.surface.period for s in solids)
        self.key = column((int(s.x * 977 + s.y * 7919) & 0xFFFFFFFF for s in solids), np.uint32)

        du = half_width - np.abs(self.u)  # metres from the eaves
        dv = column(s.half_length for s in solids) - np.abs(self.v)
        self.edge = np.minimum(du, dv)
        end = hip & (dv < du)  # a hip's two triangles
        self.down = np.where(end, dv, du)
        self.parapet = flat & self.building & (self.edge < 0.45)
        run = np.select(
            [shed, gable | hip, vault], [self.u + half_width, self.down, du * (2 - du / half_width)]
        )
        slope = column(s.slope for s in solids)
        self.height = column(s.eaves for s in solids) + slope * run + np.float32(0.5) * self.parapet

        bend = np.select(
            [shed, gable | hip, vault], [1, -np.sign(self.u), -2 * self.u / half_width]
        )
        along_u = np.where(end, 0, slope * bend)
        along_v = np.where(end, -slope * np.sign(self.v), 0)
        self.slope_x, self.slope_y = along_v * cos - along_u * sin, along_v * sin + along_u * cos

        ridge = (np.abs(self.u) < 0.28) & (gable | (hip & ~end))
        self.crest = ridge | (hip & (np.abs(du - dv) < 0.3) & (dv < half_width))
        self.gutter = (gable | hip) & (self.edge < 0.3)
        self.worn = flat & self.building

    def tone(self) -> np.ndarray:
        """(N,) float32 relative brightness of courses, sheets, crest, gutter and parapet."""
        tone = 1 + 0.16 * self.crest - 0.14 * self.gutter + 0.28 * self.parapet
        tone -= self.worn * 0.10 * np.exp(-np.square(self.edge - 1.2))
        tone += (
            (self.pattern == PATTERNS.index("courses"))
            * 0.07
            * np.sin(2 * np.pi * self.down / self.period)
        )
        sheet = (
            np.floor(self.v / self.period).astype(np.int32),
            np.floor(self.u / 3.1).astype(np.int32),
        )
        # each sheet has its own shade
        own = (mix(sheet[0], sheet[1], self.key) >> np.uint32(16)) / 65536 - 0.5
        ribs = 0.05 * np.sin(2 * np.pi * self.v / self.period)
        tone += (self.pattern == PATTERNS.index("sheets")) * (0.16 * own + ribs)
        return tone.astype(np.float32)
