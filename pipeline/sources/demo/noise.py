"""A window of a scene's fine grid, and textures on it: value noise over hashed lattices, a
function of place alone.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine


@dataclass(frozen=True)
class Grid:
    """A window of the fine grid: first row and column (may be negative), shape,
    and a pixel's side.
    """

    row: int
    col: int
    rows: int
    cols: int
    pixel: float  # metres

    def xy(self) -> tuple[np.ndarray, np.ndarray]:
        """(1, cols) and (rows, 1) float32: metres of pixel centres."""
        x = (self.col + np.arange(self.cols) + 0.5) * self.pixel
        y = (self.row + np.arange(self.rows) + 0.5) * self.pixel
        return x.astype(np.float32)[None], y.astype(np.float32)[:, None]

    def rasterize(self, polygons: np.ndarray) -> np.ndarray:
        """(rows, cols) int32: number, from 1, of the last polygon over each
        pixel's centre; 0 = none.
        """
        here = np.array([self.col, self.row])
        polygons = shapely.transform(polygons, lambda xy: xy / self.pixel - here)
        left, top, right, bottom = shapely.bounds(polygons).reshape(-1, 4).T
        seen = np.flatnonzero(
            (right >= 0) & (bottom >= 0) & (left <= self.cols) & (top <= self.rows)
        )
        shape = (self.rows, self.cols)
        if not len(seen):
            return np.zeros(shape, np.int32)
        numbered = [(polygons[i], int(i) + 1) for i in seen]
        return rasterize(numbered, shape, transform=Affine.identity(), dtype="int32")


def mix(a: np.ndarray, b: np.ndarray, key: np.ndarray | int) -> np.ndarray:
    """uint32, shapes broadcast: well-mixed bits of integer places (Wellons's
    lowbias32 finaliser).
    """
    with np.errstate(over="ignore"):
        h = a.astype(np.uint32) * np.uint32(0x9E3779B1) ^ b.astype(np.uint32) * np.uint32(
            0x85EBCA77
        )
        h = h + np.asarray(key).astype(np.uint32) * np.uint32(0x27D4EB2F)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h ^= h >> np.uint32(shift)
            h *= np.uint32(factor)
        h ^= h >> np.uint32(16)
    return h


def white(row: int, col: int, rows: int, cols: int, seed: int) -> np.ndarray:
    """(rows, cols) float32, nearly normal: the four bytes of a hash added up (Irwin-Hall)."""
    bits = mix(np.arange(row, row + rows)[:, None], np.arange(col, col + cols), seed)
    total = (bits & 0xFF) + (bits >> 8 & 0xFF) + (bits >> 16 & 0xFF) + (bits >> 24)
    return (total.astype(np.float32) - 510) / 147.8


def noise(grid: Grid, metres: float, seed: int) -> np.ndarray:
    """(rows, cols) float32 of unit-like scale: value noise with a lattice every `metres`."""
    step = max(1, round(metres / grid.pixel))
    if step == 1:
        return white(grid.row, grid.col, grid.rows, grid.cols, seed)
    row, col = grid.row // step - 2, grid.col // step - 2
    rows, cols = -(-grid.rows // step) + 5, -(-grid.cols // step) + 5
    field = cv2.resize(
        white(row, col, rows, cols, seed), (cols * step, rows * step), interpolation=cv2.INTER_CUBIC
    )
    top, left = grid.row - row * step, grid.col - col * step
    return field[top : top + grid.rows, left : left + grid.cols]
