"""Footprints of buildings as polygons: read from any format and CRS, repaired, laid
over an image's CRS.

Polygons are a shapely array, labels a uint8 array beside it: the file's `label` column (1..k a
class, 255 ignore), 1 where it says nothing. Of an OpenStreetMap extract only what is tagged
`building` is read.
"""

import hashlib
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from pyproj.transformer import AreaOfInterest, TransformerGroup

from pipeline.errors import InputError, nearest
from pipeline.imagery.vector_file import SUFFIXES, open_layer  # noqa: F401  SUFFIXES is this module's to give

Bounds = tuple[float, float, float, float]  # left, bottom, right, top
HALF_TURN = 180 + 1e-6  # degrees; a scene that ends at the antimeridian does so but for rounding
POLYGON, MULTIPOLYGON = shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON
LINES = [
    shapely.GeometryType.LINESTRING,
    shapely.GeometryType.LINEARRING,
    shapely.GeometryType.MULTILINESTRING,
]
OSM_NAMES = {
    "osm_id",
    "osm_way_id",
    "osmid",
    "@id",
    "full_id",
    "osm_type",
    "element_type",
    "other_tags",
}
OSM_KEYS = {"landuse", "highway", "natural", "leisure", "amenity", "waterway"}
# what the column `building` of such an extract says of the rest
NO_BUILDING = {"", "no", "none", "false", "0", "nan"}


@dataclass(frozen=True)
class Footprints:
    polygons: np.ndarray  # (N,) shapely Polygon or MultiPolygon: valid, finite, not empty
    labels: np.ndarray  # (N,) uint8: 1..k, or 255 ignore
    repaired: int = 0  # invalid rings made valid
    # nothing with an area was left: points, open lines, empty or collapsed polygons
    dropped: int = 0
    outlines: int = 0  # closed lines, read as the polygons they run round
    others: int = 0  # features of OpenStreetMap that are no building, left out
    source: CRS | None = None  # of the file
    # (N,) words of a column that was asked for, None where it is empty
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.polygons)

    @property
    def bounds(self) -> Bounds:
        left, bottom, right, top = shapely.total_bounds(self.polygons).tolist()
        return left, bottom, right, top

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of what they draw, in whatever order and whatever file it lies."""
        words = (
            [b""] * len(self)
            if self.groups is None
            else [str(word).encode() for word in self.groups]
        )
        drawn = zip(shapely.to_wkb(self.polygons), self.labels.tobytes(), words, strict=True)
        parts = sorted(wkb + bytes([label]) + word for wkb, label, word in drawn)
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def some(self, which: np.ndarray) -> "Footprints":
        """Some of them, by number; the counts stay those of the file."""
        groups = None if self.groups is None else self.groups[which]
        return replace(
            self, polygons=self.polygons[which], labels=self.labels[which], groups=groups
        )


def repair(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Valid polygons (N,) from any geometries, None where no area is left, and
    which were invalid (N,) bool.

    The structure method keeps what the rings enclose, as a person who drew them meant it.
    """
    invalid = ~shapely.is_valid(geometries) & ~shapely.is_missing(geometries)
    polygons = np.array(geometries, dtype=object)
    polygons[invalid] = shapely.make_valid(
        polygons[invalid], method="structure", keep_collapsed=False
    )
    mixed = shapely.get_type_id(polygons) == shapely.GeometryType.GEOMETRYCOLLECTION
    polygons[mixed] = [_polygonal(collection) for collection in polygons[mixed]]
    flat = np.isin(shapely.get_type_id(polygons), [POLYGON, MULTIPOLYGON]) & (
        shapely.area(polygons) > 0
    )
    polygons[~flat] = None
    return polygons, invalid


def _polygonal(collection):
    parts = shapely.get_parts(collection)
    parts = parts[np.isin(shapely.get_type_id(parts), [POLYGON, MULTIPOLYGON])]
    return shapely.union_all(parts) if len(parts) else None


def read_footprints(
    path: str | Path,
    crs=None,
    bounds: Bounds | None = None,
    where: str | None = None,
    column: str | None = None,
    layer: str | None = None,
    *,
    classes: bool = True,
) -> Footprints:
    """Read the polygons of a file, or of its layer of a name, repaired, in `crs` (anything pyproj
    reads; None = the file's own).

    With `bounds`, in units of `crs`, only polygons whose own bounding box meets that box are kept;
    `where`, a condition in SQL on the file's columns, says which features are buildings; `column`
    tells groups of them apart (see fetch.groups); without `classes` a column `label` is no label,
    and all are 1. Raises InputError where the file is unreadable, has no CRS or none that leads to
    `crs`, several polygon layers, a `label` outside 1..255, features of OpenStreetMap without a
    column `building`, or `bounds` in degrees that reach beyond the antimeridian.
    """
    path, label = Path(path), "label" if classes else None
    with open_layer(path, layer) as opened:
        source = opened.crs
        target = source if crs is None else _crs(crs)
        if bounds is not None:
            check_one_side(target, bounds)
        with _leading(path, source, target):
            box = None if bounds is None else transform_bounds(bounds, target, source)
        # across the antimeridian, or nowhere
        if box is not None and not (np.isfinite(box).all() and box[0] <= box[2]):
            box = None
        tag = None if where else _tag(path, opened.fields)
        if column and column not in opened.fields:
            meant = (
                f"; did you mean {nearest(column, opened.fields)}?"
                if len(opened.fields)
                else ", nor any other"
            )
            raise InputError(f"{path}: fetch.groups: no column {column!r} in it{meant}")
        geometries, columns = opened.read(
            {name for name in (label, tag, column) if name}, box, where
        )
    building = _is_building(tag, columns[tag]) if tag in columns else np.ones(len(geometries), bool)
    geometries, others = geometries[building], int((~building).sum())
    labels = _labels(path, columns[label][building] if label in columns else None, len(geometries))
    geometries, outline = _closed(geometries)
    polygons, invalid = repair(geometries)
    if not target.equals(source):
        with _leading(path, source, target):
            polygons = reproject(polygons, source, target)
    kept = whole = np.isfinite(shapely.bounds(polygons)).all(axis=1)
    if bounds is not None:
        kept = whole & shapely.intersects(shapely.envelope(polygons), shapely.box(*bounds))
    repaired, dropped, outlines = (int(n.sum()) for n in (invalid & kept, ~whole, outline & kept))
    groups = _words(columns[column][building])[kept] if column else None
    return Footprints(
        polygons[kept], labels[kept], repaired, dropped, outlines, others, source, groups
    )


def _words(column: np.ndarray) -> np.ndarray:
    """(N,) str or None: what a column says in words; a whole number without a point, None where
    it says nothing.
    """

    def word(value) -> str | None:
        if value is None or value != value or not str(value).strip():
            return None
        return f"{value:g}" if isinstance(value, float) else str(value).strip()

    return np.array([word(value) for value in column.tolist()], object)


def footprint_bounds(path: str | Path, crs) -> Bounds | None:
    """The box in `crs` around all that a file holds; None where that is
    nothing. Raises InputError.
    """
    with open_layer(Path(path)) as layer:
        (left, bottom, right, top), source = layer.bounds.tolist(), layer.crs
    if not np.isfinite([left, bottom, right, top]).all():
        return None
    with _leading(Path(path), source, _crs(crs)):
        return transform_bounds((left, bottom, right, top), source, crs)


@contextmanager
def _leading(path: Path, source: CRS, target: CRS) -> Generator[None]:
    try:
        yield
    except ProjError:
        raise InputError(
            f"{path}: nothing leads from its CRS {source.name} to {target.name}; bring both into "
            f"one CRS"
        ) from None


def rough_shift(source, target, bounds: Bounds) -> str | None:
    """A sentence where PROJ can only guess the datum shift between two CRSs for
    want of a grid, else None.

    `bounds` are in units of `target`. It is PROJ that knows: which grid, and how
    far its guess may be off.
    """
    source, target = _crs(source), _crs(target)
    try:
        degrees = transform_bounds(bounds, target, CRS("OGC:CRS84"))
        with warnings.catch_warnings():
            # that the best is not available, which is asked below
            warnings.simplefilter("ignore", UserWarning)
            group = TransformerGroup(
                source, target, always_xy=True, area_of_interest=AreaOfInterest(*degrees)
            )
    except ProjError:
        return None
    between = f"between {source.name} and {target.name}"
    used = group.transformers[0] if group.transformers else None
    if used and "Ballpark" in used.description and _figure(source) != _figure(target):
        return f"PROJ knows no datum shift {between}, hundreds of metres perhaps; declare both with their EPSG codes"
    better = None if group.best_available else next(iter(group.unavailable_operations), None)
    if better is None or used is None:
        return None
    grids = [grid.short_name or grid.full_name for grid in better.grids if not grid.available]
    return (
        f"the datum shift {between} lacks PROJ's grid {' and '.join(grids)}: footprints may lie "
        f"{_metres(used.accuracy)} or more beside their buildings, with it "
        f"{_metres(better.accuracy)}; "
        f"`python -m pyproj sync --file {grids[0]}` brings it"
    )


def _figure(crs: CRS) -> tuple[float, float] | None:
    figure = crs.ellipsoid
    return (figure.semi_major_metre, figure.inverse_flattening) if figure else None


def _metres(accuracy: float) -> str:
    return f"{accuracy:g} m" if accuracy >= 0 else "an unknown distance"


def _tag(path: Path, fields: list[str]) -> str | None:
    """The column that tells buildings from the rest of an OpenStreetMap
    extract; None where the file is none.
    """
    names = set(fields)
    if not names & (OSM_NAMES | OSM_KEYS):
        return None
    if tag := next((name for name in ("building", "fclass") if name in names), None):
        return tag
    if names & OSM_NAMES and (keys := sorted(names & OSM_KEYS)):
        raise InputError(
            f"{path}: holds OpenStreetMap's {', '.join(keys)} and no column building; export the "
            f"buildings, or state "
            "fetch.overrides.CITY.where"
        )
    return None


def _is_building(tag: str, column: np.ndarray) -> np.ndarray:
    """(N,) bool: what is tagged building=anything but no; with Geofabrik's `fclass`, what is of
    the class building.
    """
    words = [None if value is None else str(value).strip().lower() for value in column]
    if tag == "fclass":
        return np.array([word == "building" for word in words], bool)
    return np.array([word is not None and word not in NO_BUILDING for word in words], bool)


def _closed(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometries (N,) with closed lines as the polygons they run round, and
    which those were (N,) bool.
    """
    areas = np.array(geometries, dtype=object)
    lines = np.isin(shapely.get_type_id(areas), LINES)
    areas[lines] = [_enclosed(line) for line in areas[lines]]
    return areas, lines & np.isin(shapely.get_type_id(areas), [POLYGON, MULTIPOLYGON])


def _enclosed(line):
    """What a closed line runs round, its second part a hole in the first; a
    line that is open as it is.
    """
    parts = shapely.get_parts(line)
    if (
        not len(parts)
        or not shapely.is_closed(parts).all()
        or shapely.get_num_points(parts).min() < 4
    ):
        return line
    rings = [
        shapely.make_valid(shapely.polygons(shapely.get_coordinates(part)), method="structure")
        for part in parts
    ]
    return reduce(shapely.symmetric_difference, rings)


def reproject(geometries: np.ndarray, source, target) -> np.ndarray:
    """Geometries (N,) from one CRS to another, x before y in both."""
    move = Transformer.from_crs(source, target, always_xy=True)
    return shapely.transform(
        geometries, lambda xy: np.column_stack(move.transform(xy[:, 0], xy[:, 1]))
    )


def transform_bounds(bounds: Bounds, source, target) -> Bounds:
    """The box in `target` that holds a box in `source`, its edges followed at 21 points each."""
    source, target = _crs(source), _crs(target)
    if source.equals(target):
        return bounds
    return Transformer.from_crs(source, target, always_xy=True).transform_bounds(
        *bounds, densify_pts=21
    )


def check_one_side(crs, bounds: Bounds) -> None:
    """Raise InputError where a scene's box in degrees goes on beyond the antimeridian: there
    footprints count from the other side of the world, and none would be found.
    """
    left, _, right, _ = bounds
    if max(-left, right) > HALF_TURN and _crs(crs).is_geographic:
        raise InputError(
            f"a scene from {left:g}° to {right:g}° reaches beyond the antimeridian, and footprints "
            f"there would be lost; warp it to a CRS of its place, such as its UTM zone: "
            f"gdalwarp -t_srs CRS IN OUT"
        )


def _crs(crs) -> CRS:
    """Rasterio's CRS, or anything pyproj reads."""
    return CRS.from_user_input(crs.to_wkt() if hasattr(crs, "to_wkt") else crs)


def _labels(path: Path, column: np.ndarray | None, count: int) -> np.ndarray:
    # words in a column of that name are not classes
    if column is None or column.dtype.kind not in "iuf":
        return np.ones(count, np.uint8)
    column = np.where(np.isnan(column), 1, column)
    wrong = column[~((column >= 1) & (column <= 255) & (column == np.round(column)))]
    if len(wrong):
        raise InputError(
            f"{path}: column label holds {wrong[0]:g}; a label is a class 1..k, or 255 (ignore)"
        )
    return column.astype(np.uint8)
