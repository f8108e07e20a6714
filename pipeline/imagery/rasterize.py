"""Footprints onto a pixel grid: polygons (N,) shapely with labels (N,) uint8
become label pixels.
"""

from itertools import pairwise

import numpy as np
import shapely
from rasterio import features

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid, Window
from pipeline.labels import IGNORE


def rasterize(
    polygons: np.ndarray, labels: np.ndarray, grid: Grid, all_touched: bool = False
) -> np.ndarray:
    """(height, width) uint8 labels of polygons in the grid's CRS: 0 outside, else their label.

    A pixel belongs to a polygon when its centre does (with `all_touched`, when any of it does);
    holes stay holes. Where polygons overlap, higher classes win, and any class wins over ignore: a
    doubtful footprint does not take a certain one away.
    """
    return _draw(polygons, labels, labels, grid, all_touched)


def _draw(
    polygons: np.ndarray, labels: np.ndarray, values: np.ndarray, grid: Grid, all_touched: bool
) -> np.ndarray:
    """(height, width) of the values' type: 0, or the value (N,) of the polygon that a pixel belongs
    to, as `rasterize` says.
    """
    out = np.zeros(grid.shape, values.dtype)
    order = np.argsort(np.where(labels == IGNORE, 0, labels), kind="stable")
    if len(order):
        shapes = _mappings(polygons[order], values[order])
        features.rasterize(shapes, out=out, transform=grid.transform, all_touched=all_touched)
    return out


def _mappings(polygons: np.ndarray, values: np.ndarray) -> list[tuple[dict, int]]:
    """(polygon as rasterio takes it, value) pairs, multipolygons in parts; all
    at once, for one by one is slow.
    """
    parts, owner = shapely.get_parts(polygons, return_index=True)
    _, xy, (vertices, rings) = shapely.to_ragged_array(parts, include_z=False)
    xy, vertices, rings = xy.tolist(), vertices.tolist(), rings.tolist()
    lines = [xy[a:b] for a, b in pairwise(vertices)]
    outlines = [{"type": "Polygon", "coordinates": lines[a:b]} for a, b in pairwise(rings)]
    return list(zip(outlines, values[owner].tolist(), strict=True))


class VectorLabels:
    """Footprints on an image's target grid, rasterised window by window without seams.

    Polygons are kept whole, so one that enters a window from outside is drawn like any other.
    numbers: of each polygon (see tiles/instances.py), None = 0.
    """

    def __init__(
        self,
        polygons: np.ndarray,
        labels: np.ndarray,
        grid: Grid,
        classes: int,
        all_touched: bool = False,
        numbers: np.ndarray | None = None,
    ):
        wrong = labels[(labels > classes) & (labels != IGNORE)]
        if len(wrong):
            raise InputError(
                f"footprints hold label {wrong[0]}, but train.model.classes is {classes}; raise it"
            )
        self.polygons, self.labels, self.grid, self.all_touched = (
            polygons,
            labels,
            grid,
            all_touched,
        )
        self.numbers = np.zeros(len(polygons), np.uint8) if numbers is None else numbers
        self._tree = shapely.STRtree(polygons)

    def read(self, window: Window) -> np.ndarray:
        """(h, w) uint8."""
        return self.read_numbered(window)[0]

    def read_numbered(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Labels and numbers, (h, w) uint8 both; a number is 0 where there is no building."""
        part = self.grid.window(window)
        near = np.sort(
            self._tree.query(shapely.polygons(part.corners()[0]), predicate="intersects")
        )
        labels = self.labels[near].astype(np.uint8)
        numbers = np.where(labels == IGNORE, 0, self.numbers[near]).astype(np.uint16)
        both = numbers << 8 | labels  # drawn at once
        drawn = _draw(self.polygons[near], labels, both, part, self.all_touched)
        return drawn.astype(np.uint8), (drawn >> 8).astype(np.uint8)
