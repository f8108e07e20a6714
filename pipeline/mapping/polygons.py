"""Buildings from a mask that arrives band of rows by band of rows: a building on a
seam stays one polygon.

Each band is labelled and traced on its own. A component that reaches the band's last row stays open
and is matched, pixel against pixel, with the components of the next band's first row; when nothing
below continues it, its pieces are united. Memory is that of one band and of the open components,
never of the scene, and the polygons do not depend on where the bands were cut.
"""

import hashlib
from dataclasses import dataclass, field

import cv2
import numpy as np
import shapely
from pyproj import Geod
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.imagery.grid import Grid, to_degrees
from pipeline.labels import IGNORE
from pipeline.mapping.tracing import outlines


@dataclass
class Buildings:
    """n polygons: geometry, class, area in pixels and mean confidence over
    those pixels, (n,) each.
    """

    geometry: np.ndarray
    label: np.ndarray
    pixels: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.geometry)

    def where(self, keep: np.ndarray) -> "Buildings":
        return Buildings(
            self.geometry[keep], self.label[keep], self.pixels[keep], self.confidence[keep]
        )


@dataclass
class _Component:
    label: int
    pieces: list[shapely.Polygon] = field(default_factory=list)
    pixels: int = 0
    total: float = 0.0  # sum of confidences

    def absorb(self, other: "_Component") -> None:
        self.pieces += other.pieces
        self.pixels += other.pixels
        self.total += other.total


class Polygoniser:
    """Polygons, in pixel coordinates (x right, y down), of the 4-connected
    components of classes 1..254.

    Those of fewer than `least` pixels are left out; most of them are never traced.

    >>> for mask, confidence in bands:
    ...     buildings = polygoniser.add(mask, confidence)  # those that ended above the band's last row
    >>> buildings = polygoniser.finish()
    """

    def __init__(self, width: int, least: int = 1):
        self.row, self.least = 0, least
        self.open: list[_Component] = []
        # 1 + index into `open` under each column, 0 where there is none
        self.seam = np.zeros(width, np.int32)

    def add(self, mask: np.ndarray, confidence: np.ndarray) -> Buildings:
        """The next rows: mask (rows, W) uint8, 0 and 255 being no building;
        confidence (rows, W).
        """
        labels, components = _trace(mask, confidence, self.row, self.least)
        self.row += len(mask)
        return self._join(labels[0], labels[-1], components)

    @property
    def opened(self) -> np.ndarray:
        """Bounding boxes (m, 4) of what has begun and not ended."""
        return np.array([shapely.total_bounds(c.pieces) for c in self.open]).reshape(-1, 4)

    def finish(self) -> Buildings:
        none = np.zeros_like(self.seam)
        return self._join(none, none, [])

    def _join(self, first: np.ndarray, last: np.ndarray, components: list[_Component]) -> Buildings:
        """Unite open components with new ones that continue them; those not in
        the row `last` are done.
        """
        nodes, count = self.open + components, len(self.open)
        touching = (self.seam > 0) & (first > 0)
        above, below = np.unique(
            np.stack([self.seam[touching] - 1, first[touching] - 1 + count]), axis=1
        )
        same = np.array(
            [nodes[a].label == nodes[b].label for a, b in zip(above, below, strict=True)], bool
        )
        edges = coo_array(
            (np.ones(same.sum()), (above[same], below[same])), shape=(len(nodes), len(nodes))
        )
        groups, group = (
            connected_components(edges, directed=False) if nodes else (0, np.zeros(0, int))
        )

        merged: dict[int, _Component] = {}
        for node, g in zip(nodes, group, strict=True):
            if g in merged:
                merged[g].absorb(node)
            else:
                merged[g] = node
        still_open = np.zeros(groups, np.int32)
        present = np.unique(group[last[last > 0] - 1 + count])
        still_open[present] = np.arange(1, len(present) + 1)
        self.seam = (
            np.where(last > 0, still_open[group[last - 1 + count]], 0)
            if nodes
            else np.zeros_like(last)
        )
        self.open = [merged[g] for g in present]
        done = [
            merged[g] for g in np.flatnonzero(still_open == 0) if merged[g].pixels >= self.least
        ]
        return _buildings(done)


def _trace(
    mask: np.ndarray, confidence: np.ndarray, row: int, least: int
) -> tuple[np.ndarray, list[_Component]]:
    """Label a band's components (rows, W) int32 from 1 on, and trace each of them into one polygon.

    Specks of fewer than `least` pixels are background, unless they may go on above or below.
    """
    labels, classes = np.zeros(mask.shape, np.int32), [0]
    for k in np.unique(mask[(mask > 0) & (mask != IGNORE)]).tolist():
        found, own = cv2.connectedComponents((mask == k).view(np.uint8), connectivity=4)
        labels = own if len(classes) == 1 else np.where(own > 0, own + len(classes) - 1, labels)
        classes += [k] * (found - 1)
    inside = labels > 0
    owner, count = labels[inside], len(classes)
    pixels = np.bincount(owner, minlength=count)
    totals = np.bincount(owner, confidence[inside], count)
    kept = pixels >= least
    kept[labels[0]] = kept[labels[-1]] = kept[0] = True
    if not kept.all():
        labels = np.where(kept, np.cumsum(kept) - 1, 0).astype(np.int32)[labels]
    traced = zip(
        np.array(classes)[kept][1:].tolist(),
        outlines(labels, row),
        pixels[kept][1:].tolist(),
        totals[kept][1:].tolist(),
        strict=True,
    )
    return labels, [_Component(k, [shape], area, total) for k, shape, area, total in traced]


def _buildings(components: list[_Component]) -> Buildings:
    geometry = np.array([_united(c.pieces) for c in components], object)
    # the same building, the same bytes, wherever the bands were cut
    geometry = shapely.normalize(geometry)
    pixels = np.array([c.pixels for c in components], np.int64)
    total = np.array([c.total for c in components], float)
    labels = np.array([c.label for c in components], np.uint8)
    return Buildings(geometry, labels, pixels, total / np.maximum(pixels, 1))


def _united(pieces: list[shapely.Polygon]) -> shapely.Polygon:
    if len(pieces) == 1:
        return pieces[0]
    whole = shapely.union_all(pieces)  # exact: the coordinates are integers
    return shapely.Polygon(_corners(whole.exterior), [_corners(hole) for hole in whole.interiors])


def _corners(ring: shapely.LinearRing) -> np.ndarray:
    """A ring's points without those on a straight edge, which the seams left there."""
    points = shapely.get_coordinates(ring)[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def pixel_areas(grid: Grid, points: np.ndarray, native: tuple[float, float]) -> np.ndarray:
    """(n,) m² on the ground of a pixel at each of `points` (n, 2), in pixel coordinates.

    From geodesics along a row and along a column, so right in degrees, in feet and in EPSG:3857,
    and from north to south of a scene. Without a CRS it is `native`'s: the stated metres (along a
    row, along a column).
    """
    if grid.crs is None:
        return np.full(len(points), native[0] * native[1])
    half = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])[:, None]
    longitude, latitude = longitude_latitude(grid, points + half)
    azimuth, _, metres = Geod(ellps="WGS84").inv(
        longitude[::2], latitude[::2], longitude[1::2], latitude[1::2]
    )
    return metres[0] * metres[1] * np.abs(np.sin(np.radians(azimuth[0] - azimuth[1])))


def longitude_latitude(grid: Grid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude (…) of pixel coordinates (…, 2)."""
    return to_degrees(grid.crs).transform(*(grid.transform @ (points[..., 0], points[..., 1])))


def identifiers(buildings: Buildings, grid: Grid, name: str) -> list[str]:
    """12 hexadecimal digits a building, from where its first pixel lies on the ground (without a
    CRS: in `name`).

    The same building has the same id whatever the windows, shards or polygon options.
    """
    ring, index = shapely.get_coordinates(
        shapely.get_exterior_ring(buildings.geometry), return_index=True
    )
    order = np.lexsort((ring[:, 0], ring[:, 1], index))
    first = ring[order][np.searchsorted(index, np.arange(len(buildings)))] + 0.5
    if grid.crs is None:
        where = [f"{name} {x:.1f} {y:.1f}" for x, y in first]
    else:
        where = [
            f"{x:.7f} {y:.7f}" for x, y in np.transpose(longitude_latitude(grid, first))
        ]  # 7 digits are a centimetre
    keys = [f"{place} {label}" for place, label in zip(where, buildings.label, strict=True)]
    return [hashlib.sha256(key.encode()).hexdigest()[:12] for key in keys]
