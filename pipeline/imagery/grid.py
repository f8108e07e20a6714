"""Pixel grids on the ground: true ground sample distance, windows under a pixel budget, and
disjoint splits.

A grid is a shape, an affine transform and a CRS. A scene's target grid is its own grid scaled: same
CRS, same orientation (rotated and south-up ones too), same outline on the ground. Reading never
leaves pixel space.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Any, NamedTuple, get_args

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError

from pipeline.errors import InputError
from pipeline.labels import Split

SPLITS: tuple[Split, ...] = get_args(Split)
# a ground sample distance within 1 % of the wanted one is kept: UTM alone stretches by 0.1 %
SNAP = 0.01
BLOCK = 256  # rows and columns windows align to, the usual GeoTIFF block
# transforms of a raster that lies nowhere, as GDAL and QGIS write them
PIXELS = Affine.identity(), Affine.scale(1, -1)
APART = 0.5  # pixels of an image by which labels of its size may lie beside it
LEAST_STRIP = 32  # pixels across the thinnest block worth a split, the smallest tile there is


class Window(NamedTuple):
    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def shifted(self, top: int, left: int) -> "Window":
        return self._replace(top=self.top + top, left=self.left + left)


@dataclass(frozen=True)
class Grid:
    height: int
    width: int
    transform: Affine  # pixel (column, row), whole numbers at the pixels' corners, to CRS units
    crs: Any = None  # anything pyproj reads; None where the image carries none

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def window(self, window: Window) -> "Grid":
        moved = self.transform @ Affine.translation(window.left, window.top)
        return Grid(window.height, window.width, moved, self.crs)

    def resized(self, height: int, width: int) -> "Grid":
        """The same outline in another number of pixels."""
        scale = Affine.scale(self.width / width, self.height / height)
        return Grid(height, width, self.transform @ scale, self.crs)

    def corners(self, windows: list[Window] | None = None) -> np.ndarray:
        """(N, 4, 2) the corners of windows (default: the grid's own) in CRS
        units, in ring order.
        """
        w = np.array(windows or [Window(0, 0, self.height, self.width)], float)
        rows = np.stack([w[:, 0], w[:, 0], w[:, 0] + w[:, 2], w[:, 0] + w[:, 2]], axis=1)
        columns = np.stack([w[:, 1], w[:, 1] + w[:, 3], w[:, 1] + w[:, 3], w[:, 1]], axis=1)
        return np.stack(self.transform @ (columns, rows), axis=-1)

    def degrees(self, windows: list[Window] | None = None) -> np.ndarray:
        """(N, 4, 2) the same corners as longitude and latitude (EPSG:4326, x first)."""
        x, y = np.moveaxis(self.corners(windows), -1, 0)
        return np.stack(to_degrees(self.crs).transform(x, y), axis=-1)

    def outlines(self, windows: list[Window] | None = None) -> np.ndarray:
        """(N,) polygons of the same corners; one across the antimeridian is cut there in two
        (RFC 7946, 3.1.9).
        """
        degrees = self.degrees(windows)
        # PROJ leaves that of an image in degrees as it stands, 180.01 too
        longitude = degrees[..., 0]
        across = (np.ptp(longitude, axis=1) > 180) | (np.abs(longitude) > 180).any(axis=1)
        degrees[across, :, 0] %= 360
        outlines = shapely.polygons(degrees)
        for i in np.flatnonzero(across):
            east, west = (
                shapely.intersection(outlines[i], shapely.box(x, -90, x + 180, 90))
                for x in (0, 180)
            )
            outlines[i] = shapely.union(east, shapely.transform(west, lambda xy: xy - [360, 0]))
        return outlines

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in CRS units, of a rotated grid the box around it."""
        xy = self.corners()[0]
        return (*xy.min(axis=0).tolist(), *xy.max(axis=0).tolist())


def to_degrees(crs) -> Transformer:
    """From a CRS to longitude and latitude (EPSG:4326, x first)."""
    return _transformer(_text(crs), "EPSG:4326")


@lru_cache(maxsize=64)  # PROJ takes milliseconds to build one, and a city's scenes share it
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def _text(crs) -> str:
    return crs if isinstance(crs, str) else crs.to_wkt()


def ground_sample_distance(grid: Grid) -> tuple[float, float]:
    """Metres on the ground of one pixel step along (a row, a column), at the grid's centre.

    The length of the geodesic between the step's ends, so that any CRS gives its true scale:
    degrees, feet, or EPSG:3857, which stretches the ground by 1/cos(latitude). Raises InputError
    without a CRS or off the Earth.
    """
    if grid.crs is None:
        raise InputError("the image carries no CRS")
    column, row = grid.width / 2, grid.height / 2
    steps = np.array(
        [[column - 0.5, row], [column + 0.5, row], [column, row - 0.5], [column, row + 0.5]]
    )
    try:
        x, y = to_degrees(grid.crs).transform(*(grid.transform @ steps.T), errcheck=True)
        _, _, metres = Geod(ellps="WGS84").inv(x[::2], y[::2], x[1::2], y[1::2])
        if not (np.isfinite(metres).all() and min(metres) > 0):
            raise ValueError("a pixel has no length")
    except (ProjError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"its CRS {CRS.from_user_input(grid.crs).name} does not place it on Earth ({reason})"
        ) from None
    return float(metres[0]), float(metres[1])


def check_place(labels: Grid, image: Grid) -> bool:
    """Raise InputError where a label raster of an image's size lies elsewhere;
    False where nothing tells.
    """
    apart = pixels_apart(labels, image)
    if apart is not None and not apart <= APART:
        raise InputError(
            f"lies elsewhere on the ground than its image ({apart:,.1f} of the image's pixels "
            f"beside it); bring the "
            "image's own labels, or warp these onto it: rio warp LABELS NEW --like IMAGE"
        )
    return apart is not None


def pixels_apart(grid: Grid, image: Grid) -> float | None:
    """The longest way, in pixels of `image`, from its corners to those of a grid of its size; None
    where nothing tells.

    Two CRSs are compared through PROJ; it is infinite where PROJ knows no way from one to the
    other. Where one grid has no place on Earth only its numbers are left: nearer to the image's
    than to the origin they are the image's coordinates (a CRS that lost its name), else its own (0
    to its width, say).
    """
    if grid.transform in PIXELS or image.transform in PIXELS:
        return None
    corners, there = grid.corners()[0], image.corners()[0]
    if grid.crs is None or image.crs is None:
        middle = corners.mean(axis=0)
        if np.hypot(*(middle - there.mean(axis=0))) >= np.hypot(*middle):
            return None
    elif grid.crs != image.crs:
        try:
            move = _transformer(_text(grid.crs), _text(image.crs))
            corners = np.stack(move.transform(*corners.T, errcheck=True), axis=-1)
        except ProjError:
            return np.inf
    apart = np.stack(~image.transform @ corners.T) - np.stack(~image.transform @ there.T)
    return float(np.abs(apart).max())


def target_grid(grid: Grid, native: tuple[float, float], gsd: float) -> Grid:
    """`grid` in pixels of `gsd` metres, given the metres (along a row, along a
    column) of its own pixels.

    The outline is kept exactly, the number of pixels rounded; within SNAP of `gsd`
    the grid stays as it is.
    """
    if all(abs(metres / gsd - 1) <= SNAP for metres in native):
        return grid
    along_row, along_column = native
    height, width = round(grid.height * along_column / gsd), round(grid.width * along_row / gsd)
    return grid.resized(max(1, height), max(1, width))


def windows(height: int, width: int, pixels: int) -> Iterator[Window]:
    """Cover a grid once by windows of at most `pixels` pixels: whole rows where
    BLOCK of them fit.
    """
    columns = width if pixels >= width * min(height, BLOCK) else _aligned(min(width, isqrt(pixels)))
    rows = height if pixels >= height * columns else _aligned(min(height, pixels // columns))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield Window(top, left, min(rows, height - top), min(columns, width - left))


def _aligned(length: int) -> int:
    return length // BLOCK * BLOCK or max(1, length)


def draw_splits(
    given: list[Split | None], validation: float, test: float, seed: int
) -> list[Split | None]:
    """A split for every scene: the one it came with, else one drawn so that every
    split has a scene.

    Shares are of all scenes. None is left where the free scenes are fewer than the splits still
    without a scene: those scenes are to be cut into blocks of `missing_splits(given)`.
    """
    missing = missing_splits(given)
    free = [i for i, split in enumerate(given) if split is None]
    if len(free) < len(missing):
        return list(given)
    shares = {"validation": validation, "test": test}
    counts = {name: max(1, round(shares[name] * len(given))) for name in shares if name in missing}
    while sum(counts.values()) > len(free) - ("train" in missing):
        counts[max(counts, key=counts.__getitem__)] -= 1
    splits: list[Split | None] = [split or "train" for split in given]
    drawn = iter(np.random.default_rng(seed).permutation(free))
    for name, count in counts.items():
        for _ in range(count):
            splits[next(drawn)] = name
    return splits


def missing_splits(given: list[Split | None]) -> list[Split]:
    return [split for split in SPLITS if split not in given]


def strips(
    grid: Grid,
    splits: list[Split],
    validation: float,
    test: float,
    margin: int,
    span: tuple[int, int],
) -> dict[Split, Window] | None:
    """Cut one large scene across its longer side into a block a split, `margin`
    pixels between two dropped.

    `span` is from where to where on that side there is data: beyond it nothing is cut. Shares are
    of what the margins leave; the largest block takes the rounding. None where a block would be
    thinner than LEAST_STRIP pixels.
    """
    usable = span[1] - span[0] - margin * (len(splits) - 1)
    weights = {"train": max(0.1, 1 - validation - test), "validation": validation, "test": test}
    total = sum(weights[split] for split in splits)
    sizes = [max(LEAST_STRIP, round(usable * weights[split] / total)) for split in splits]
    sizes[sizes.index(max(sizes))] += usable - sum(sizes)
    if min(sizes) < LEAST_STRIP:
        return None
    blocks, start = {}, span[0]
    for split, size in zip(splits, sizes, strict=True):
        along = (
            {"top": start, "height": size}
            if grid.height >= grid.width
            else {"left": start, "width": size}
        )
        blocks[split] = Window(0, 0, grid.height, grid.width)._replace(**along)
        start += size + margin
    return blocks
