"""What is new against the footprints that one has: each building new, matched or changed; of the
known, the missing.

First how far the image lies beside the footprints is estimated, from pairs that surely are one
building (an IoU above one half): the shift is the median of their centres' offsets, the
registration error what scatters about it. Then, with the shift taken away:

    new       shares less than SAME of the smaller one's area with every known footprint
    matched   lies on one, and their outlines differ by no more than the registration error and the raster's steps
    changed   lies on one, and beyond that band some ground, of the least area mapped, is built in one alone
    missing   a known footprint, where the image has data, on which no building lies

Both sides are read strip by strip, as they were mapped: of the known file only what a strip needs,
by its spatial index; what is kept of it is 8 bytes a footprint found.
"""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import rasterio
import shapely
from pyproj import Geod
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid, Window
from pipeline.imagery.vector import Footprints, check_one_side, footprint_bounds, read_footprints
from pipeline.imagery.writer import BATCH, HERE, WriteFootprints
from pipeline.labels import IGNORE
from pipeline.mapping.polygons import longitude_latitude
from pipeline.mapping.regular import RASTER_STEPS

SAME = 0.3  # of the smaller one's area that two outlines of one building share at least
FEW = 10  # pairs below which no shift is believed
REACH = 10.0  # metres, the largest shift looked for
ROWS = 4096  # of the scene, whose known footprints are read at a time
SCATTER = 2.0  # standard deviations of the offsets that are still registration
# columns of a compared map
STATUS = {"status": pa.string(), "known_iou": pa.float64(), "offset_m": pa.float64()}
MISSING = {"status": pa.string(), "area_m2": pa.float64()}  # of what was not found


@dataclass(frozen=True)
class Known:
    """The footprints of a file, laid on a scene. Raises InputError where they
    cannot be, or lie elsewhere.
    """

    path: Path
    scene: Grid
    native: tuple[float, float]  # metres of the scene's pixels (along a row, along a column)

    def __post_init__(self):
        if self.scene.crs is None:
            raise InputError(
                f"--known {self.path}: cannot be laid on a scene without a CRS; give the scene one"
            )
        check_one_side(self.scene.crs, self.scene.bounds)
        bounds = footprint_bounds(self.path, self.scene.crs)
        if bounds is None:
            raise InputError(f"--known {self.path}: holds no polygon; name a file of footprints")
        if not shapely.box(*bounds).intersects(shapely.box(*self.scene.bounds)):
            raise InputError(
                f"--known {self.path}: lies elsewhere, from {_place(bounds)}, and the scene from "
                f"{_place(self.scene.bounds)} in {self.scene.crs}; name the footprints of this "
                f"place"
            )
        self._check_areas()

    def _check_areas(self) -> None:
        """Refuse, before the work, a file that is damaged or locked, or that holds here nothing but
        points and open lines. Reads no further than the first strip with a polygon.
        """
        height, width = self.scene.shape
        flat = 0
        for top in range(0, height, ROWS):
            rows = self.scene.window(Window(top, 0, min(ROWS, height - top), width))
            found = self._read(rows)
            if len(found):
                return
            flat += found.dropped
        if flat:
            raise InputError(
                f"--known {self.path}: none of its {flat} features on the scene has an area, they "
                f"are points or open lines; name a file of polygons or of closed outlines"
            )

    def _read(self, rows: Grid) -> Footprints:
        """Whatever a register's column `label` says (house numbers, say): it is no class here."""
        return read_footprints(self.path, self.scene.crs, rows.bounds, classes=False)

    def within(self, top: float, bottom: float) -> tuple[np.ndarray, np.ndarray]:
        """Footprints (m,) that may meet these rows, in metres and cut at the scene's border,
        and their marks (m,).
        """
        height, width = self.scene.shape
        top, bottom = max(0, int(top)), min(height, int(np.ceil(bottom)))
        if bottom <= top:
            return np.empty(0, object), np.empty(0, np.uint64)
        rows = self.scene.window(Window(top, 0, bottom - top, width))
        polygons = self._read(rows).polygons
        marks = np.array([_mark(wkb) for wkb in shapely.to_wkb(polygons)], np.uint64)
        polygons = shapely.intersection(
            self.to_metres(polygons), shapely.box(0, 0, *np.multiply((width, height), self.native))
        )
        kept = shapely.area(polygons) > 0
        return polygons[kept], marks[kept]

    def to_metres(self, polygons: np.ndarray) -> np.ndarray:
        """From the scene's CRS to metres from its first corner, along its rows and columns."""
        place = ~self.scene.transform
        return shapely.transform(
            polygons, lambda xy: np.stack(place @ (xy[:, 0], xy[:, 1]), 1) * self.native
        )

    def to_crs(self, polygons: np.ndarray) -> np.ndarray:
        place = self.scene.transform
        return shapely.transform(
            polygons, lambda xy: np.stack(place @ tuple((xy / self.native).T), 1)
        )

    def east_north(self, metres: np.ndarray) -> tuple[float, float]:
        """A step along rows and columns as metres east and north, in the middle of the scene."""
        middle = np.array([self.scene.width / 2, self.scene.height / 2])
        longitude, latitude = longitude_latitude(
            self.scene, np.array([middle, middle + metres / self.native])
        )
        azimuth, _, length = Geod(ellps="WGS84").inv(
            longitude[0], latitude[0], longitude[1], latitude[1]
        )
        return float(length * np.sin(np.radians(azimuth))), float(
            length * np.cos(np.radians(azimuth))
        )


@dataclass(frozen=True)
class Registration:
    shift: np.ndarray  # (2,) metres from the known footprints to the image, along rows and columns
    error: float  # metres, the standard deviation of one building's offset about it
    pairs: int


def conflate(
    outlines: Path,
    known: Known,
    mask: Path,
    least: float,
    write: WriteFootprints,
    write_missing: WriteFootprints,
) -> dict:
    """Write a map's outlines (GeoParquet) with their status, and what is missing; returns the
    counts for its record.

    mask: the map's raster, which tells where there are data; least: m², the least
    area that is a change.
    """
    registration = register(outlines, known)
    counts, found = (
        dict.fromkeys(("new", "matched", "changed", "missing"), 0),
        [np.empty(0, np.uint64)],
    )
    for table, polygons, footprints, marks in _strips(outlines, known):
        columns, seen = compare(
            known.to_metres(polygons), footprints, registration, _band(registration, known), least
        )
        found.append(marks[seen])
        values, times = np.unique(columns["status"], return_counts=True)
        counts |= {value: counts[value] + int(n) for value, n in zip(values, times, strict=True)}
        write(
            {name: table[name].to_numpy(zero_copy_only=False) for name in table.schema.names}
            # what has no IoU is null: GeoJSON knows no NaN
            | {name: pa.array(column, from_pandas=True) for name, column in columns.items()},
            polygons,
        )
    counts["missing"] = _write_missing(known, np.unique(np.concatenate(found)), mask, write_missing)
    east, north = known.east_north(registration.shift)
    return counts | {
        "known": str(known.path),
        "shift_m": [round(east, 2), round(north, 2)],
        "registration_m": round(registration.error, 2),
        "registration_pairs": registration.pairs,
    }


def register(outlines: Path, known: Known) -> Registration:
    """How far the image lies beside the footprints, and how surely that is
    known; no shift of FEW pairs.
    """
    offsets = [np.empty((0, 2))]
    for _, polygons, footprints, _ in _strips(outlines, known):
        metres = known.to_metres(polygons)
        i, j, shared = _meeting(metres, footprints)
        iou = shared / (shapely.area(metres[i]) + shapely.area(footprints[j]) - shared)
        i, j = i[iou > 0.5], j[iou > 0.5]
        offsets.append(_centres(metres[i]) - _centres(footprints[j]))
    offsets = np.concatenate(offsets)
    if len(offsets) < FEW:
        return Registration(np.zeros(2), 0.0, len(offsets))
    shift = np.median(offsets, axis=0)
    # of a normal distribution, its deviation
    spread = 1.4826 * np.median(np.abs(offsets - shift), axis=0)
    return Registration(shift, float(np.hypot(*spread) / np.sqrt(2)), len(offsets))


def compare(
    polygons: np.ndarray,
    footprints: np.ndarray,
    registration: Registration,
    band: float,
    least: float,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """STATUS columns (n,) of outlines, and which footprints (m,) bool are found; all in metres.

    band: metres by which outlines of one building may differ.
    """
    at_home = shapely.transform(footprints, lambda xy: xy + registration.shift)
    i, j, shared = _meeting(polygons, at_home)
    areas = shapely.area(polygons), shapely.area(at_home)
    same = shared >= SAME * np.minimum(areas[0][i], areas[1][j])
    i, j, shared = i[same], j[same], shared[same]
    iou = shared / (areas[0][i] + areas[1][j] - shared)
    best = np.lexsort((-iou, i))
    best = best[np.diff(i[best], prepend=-1) > 0]  # the first of each building
    partner, own = at_home[j[best]], polygons[i[best]]
    beyond = _only(own, partner, band) + _only(partner, own, band)
    status = np.full(len(polygons), "new", object)
    status[i[best]] = np.where(beyond >= least, "changed", "matched")
    columns = {"status": status} | {
        name: np.full(len(polygons), np.nan) for name in ("known_iou", "offset_m")
    }
    columns["known_iou"][i[best]] = np.round(iou[best], 3)
    columns["offset_m"][i[best]] = np.round(
        np.hypot(*(_centres(own) - _centres(footprints[j[best]])).T), 2
    )
    return columns, np.isin(np.arange(len(footprints)), j)


def _band(registration: Registration, known: Known) -> float:
    return SCATTER * registration.error + RASTER_STEPS * max(known.native)


def _only(one: np.ndarray, other: np.ndarray, band: float) -> np.ndarray:
    """(n,) m² of one that lie further than `band` from the other."""
    return shapely.area(shapely.difference(one, shapely.buffer(other, band, quad_segs=2)))


def _meeting(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (k,), (k,) of pairs and the area that they share (k,)."""
    i, j = shapely.STRtree(other).query(one, predicate="intersects")
    return i, j, shapely.area(shapely.intersection(one[i], other[j]))


def _strips(
    outlines: Path, known: Known
) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray, np.ndarray]]:
    """Columns and outlines (n,) of a map, and the footprints (m,) near them with their marks
    (m,), strip by strip.
    """
    with closing(parquet.ParquetFile(outlines, filesystem=HERE)) as file:
        for batch in file.iter_batches(BATCH):
            if not batch.num_rows:
                continue
            polygons = shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False))
            _, top, _, bottom = shapely.total_bounds(known.to_metres(polygons)) / known.native[1]
            reach = REACH / known.native[1]
            yield (
                batch.drop_columns(["geometry"]),
                polygons,
                *known.within(top - reach, bottom + reach),
            )


def _write_missing(known: Known, found: np.ndarray, mask: Path, write: WriteFootprints) -> int:
    """Write the footprints that are not in `found` and lie where the map has
    data, by a point inside each.
    """
    count = 0
    with rasterio.open(mask) as dataset:
        for top in range(0, known.scene.height, ROWS):
            rows = min(ROWS, known.scene.height - top)
            footprints, marks = known.within(top, top + rows)
            column, row = (
                (shapely.get_coordinates(shapely.point_on_surface(footprints)) / known.native)
                .astype(int)
                .T
            )
            here = (row >= top) & (row < top + rows) & ~np.isin(marks, found)  # each in one strip
            here &= (column >= 0) & (column < known.scene.width)
            if not here.any():
                continue
            strip = dataset.read(1, window=RasterioWindow(0, top, known.scene.width, rows))
            here[here] = strip[row[here] - top, column[here]] != IGNORE
            missing = footprints[here]
            columns = {
                "status": np.full(len(missing), "missing", object),
                "area_m2": np.round(shapely.area(missing), 3),
            }
            parts, owner = shapely.get_parts(known.to_crs(missing), return_index=True)
            write({name: column[owner] for name, column in columns.items()}, parts)
            count += len(missing)
    return count


def _mark(wkb: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(wkb, digest_size=8).digest())


def _centres(polygons: np.ndarray) -> np.ndarray:
    return shapely.get_coordinates(shapely.centroid(polygons)).reshape(-1, 2)


def _place(bounds: tuple) -> str:
    left, bottom, right, top = (f"{v:.6g}" for v in bounds)
    return f"{left}, {bottom} to {right}, {top}"
