"""Which surface, how high and how steep at every pixel: the land, then roofs
layer by layer, then trees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import shapely

from pipeline.sources.demo.noise import Grid, noise
from pipeline.sources.demo.plan import Plan, Surface, Tree
from pipeline.sources.demo.roofs import RoofPixels
from pipeline.sources.demo.schema import DemoCity

LAYERS = 3  # of solids
SHADES = 32  # steps between a material's colour and its alternative


def linear(colour: np.ndarray | float) -> np.ndarray:
    return np.square(np.clip(colour, 0, 1)).astype(np.float32)  # gamma 2


@dataclass
class Scenery:
    """What the light falls on, pixel by pixel (rows, cols)."""

    height: np.ndarray  # float32, metres
    slope_x: np.ndarray  # float32, rise over run
    slope_y: np.ndarray
    albedo: np.ndarray  # float32 (3, rows, cols), linear
    building: np.ndarray  # bool: a building's roof, trees above it or not
    canopy: np.ndarray  # bool: a tree is what one sees


class Painter:
    """Fills a window's scenery: the land, then roofs layer by layer, then trees."""

    def __init__(self, plan: Plan, city: DemoCity, seed: int, grid: Grid):
        self.plan, self.city, self.seed, self.grid = plan, city, seed, grid
        self.fine = 0.75 * noise(grid, grid.pixel, seed) + 0.55 * noise(grid, 0.7, seed + 1)
        octaves = (0.5, 2.3), (0.8, 7), (0.7, 26)  # amplitude, metres
        patches = sum(
            a * noise(grid, metres, seed + 2 + i) for i, (a, metres) in enumerate(octaves)
        )
        self.patches = np.clip(0.5 + 0.42 * patches, 0, 1)
        self.shade = np.rint(self.patches * (SHADES - 1)).astype(np.int32)

    def textured(self, at, surfaces: list[Surface], which: np.ndarray) -> np.ndarray:
        """(3, ...) linear colours at `at` (an index of the grid) of surfaces[which]."""
        blend = np.linspace(0, 1, SHADES, dtype=np.float32)[:, None]
        colour, alt = (
            linear(np.array([getattr(s, k) for s in surfaces]))[:, None] for k in ("colour", "alt")
        )
        shades = (colour + (alt - colour) * blend).reshape(-1, 3)
        # twice: linear light is the square
        grain = np.array([2 * s.grain for s in surfaces], np.float32)
        texture = 1 + grain[which] * self.fine[at]
        index = which * SHADES + self.shade[at]
        return np.stack([np.take(band, index) * texture for band in np.ascontiguousarray(shades.T)])

    def ground(self) -> np.ndarray:
        """(3, rows, cols) linear colour of the land."""
        surfaces = [s for _, s in self.plan.ground]
        which = np.maximum(self.grid.rasterize(np.array([p for p, _ in self.plan.ground])) - 1, 0)
        albedo = self.textured(np.s_[:, :], surfaces, which)
        row, col = np.nonzero(np.array([s.pattern == "furrows" for s in surfaces])[which])
        if len(row):
            x, y = self.grid.xy()
            angle = np.array([s.angle for s in surfaces], np.float32)[which[row, col]]
            period = np.array([s.period for s in surfaces], np.float32)[which[row, col]]
            across = (y[row, 0] * np.cos(angle) - x[0, col] * np.sin(angle)) / period
            across += 0.25 * self.patches[row, col]
            albedo[:, row, col] *= 1 + 0.13 * np.sin(2 * np.pi * across)
        return albedo

    def roofs(self, scenery: Scenery) -> None:
        """Lay every solid's roof over what is there; where two overlap the higher one is seen."""
        x, y = self.grid.xy()
        for layer in range(LAYERS):
            solids = [s for s in self.plan.solids if s.layer == layer]
            outlines = shapely.polygons(np.array([s.corners for s in solids]).reshape(-1, 4, 2))
            ids = self.grid.rasterize(outlines)
            row, col = np.nonzero(ids)
            which = ids[row, col] - 1
            roof = RoofPixels(solids, which, x[0, col], y[row, 0])
            albedo = self.textured((row, col), [s.surface for s in solids], which) * roof.tone()
            scenery.building[row, col] |= roof.building

            seen = roof.decal | (roof.height > scenery.height[row, col])
            scenery.albedo[:, row[seen], col[seen]] = albedo[:, seen]
            raised = seen & ~roof.decal
            row, col = row[raised], col[raised]
            scenery.height[row, col] = roof.height[raised]
            scenery.slope_x[row, col] = roof.slope_x[raised]
            scenery.slope_y[row, col] = roof.slope_y[raised]

    def trees(self, scenery: Scenery) -> None:
        """Crowns with ragged outlines and lumps of leaves, over whatever stands below."""
        grid, near = self.grid, list(_near(self.plan.trees, self.grid))
        if not near:
            return
        x, y = grid.xy()
        ragged = noise(grid, 1.1, self.seed + 7) + 0.6 * noise(grid, 0.45, self.seed + 8)
        crown, tree = (
            np.zeros((grid.rows, grid.cols), np.float32),
            np.zeros((grid.rows, grid.cols), np.int32),
        )
        for number, (t, part) in enumerate(near):
            away = np.square((x[:, part[1]] - t.x) / t.radius) + np.square(
                (y[part[0]] - t.y) / t.radius
            )
            inside = 1 - away + 0.22 * ragged[part]
            if t.conifer:
                z = t.height * (0.3 + 0.7 * np.clip(1 - np.sqrt(away), 0, 1)) + 0.25 * ragged[part]
            else:
                z = t.height - t.radius * (1 - np.sqrt(np.clip(inside, 0, 1)))
                z += 0.42 * min(t.radius / 2.5, 1) * ragged[part]
            taller = (inside > 0) & (z > crown[part])
            crown[part][taller] = z[taller]
            tree[part][taller] = number
        canopy = (crown > 0.3) & (crown > scenery.height)
        row, col = np.nonzero(canopy)
        scenery.canopy[:] = canopy
        scenery.height[row, col] = crown[row, col]
        slope_x = np.clip(cv2.Sobel(crown, cv2.CV_32F, 1, 0, scale=1 / (8 * grid.pixel)), -1.6, 1.6)
        slope_y = np.clip(cv2.Sobel(crown, cv2.CV_32F, 0, 1, scale=1 / (8 * grid.pixel)), -1.6, 1.6)
        scenery.slope_x[row, col], scenery.slope_y[row, col] = slope_x[row, col], slope_y[row, col]
        leaf = linear(np.array([t.colour for t, _ in near]))[tree[row, col]].T
        scenery.albedo[:, row, col] = leaf * (
            1 + 0.22 * self.fine[row, col] + 0.12 * ragged[row, col]
        )

    def scenery(self) -> Scenery:
        shape = (self.grid.rows, self.grid.cols)
        flat = [np.zeros(shape, np.float32) for _ in range(3)]
        scenery = Scenery(*flat, self.ground(), np.zeros(shape, bool), np.zeros(shape, bool))
        self.roofs(scenery)
        self.trees(scenery)
        return scenery


def _near(trees: list[Tree], grid: Grid) -> Iterator[tuple[Tree, tuple[slice, slice]]]:
    """The trees whose crowns touch the grid, each with the part of the grid it may cover."""
    for t in trees:
        r = t.radius * 1.25 / grid.pixel
        row, col = t.y / grid.pixel - grid.row, t.x / grid.pixel - grid.col
        if -r < row < grid.rows + r and -r < col < grid.cols + r:
            yield (
                t,
                np.s_[
                    max(0, int(row - r)) : int(row + r) + 2, max(0, int(col - r)) : int(col + r) + 2
                ],
            )
