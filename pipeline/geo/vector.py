"""Footprints of buildings as polygons: read from any format and CRS, repaired, laid over an image's CRS.

Polygons are a shapely array, labels a uint8 array beside it: the file's `label` column (1..k a class, 255
ignore), 1 where it says nothing. GeoParquet is read by pyarrow, every other format by pyogrio.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from pyproj import CRS, Transformer

from pipeline.errors import InputError
from pipeline.geo.formats import check_footprints

Bounds = tuple[float, float, float, float]  # left, bottom, right, top
SUFFIXES = frozenset({
    ".geojson", ".json", ".geojsonl", ".geojsons", ".topojson", ".gpkg", ".shp", ".fgb", ".parquet",
    ".geoparquet", ".gdb", ".kml", ".kmz", ".gml", ".tab", ".mif", ".sqlite", ".zip",
})  # fmt: skip  # what a file of footprints may be called
PARQUET = frozenset({".parquet", ".geoparquet"})
POLYGON, MULTIPOLYGON = shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON


@dataclass(frozen=True)
class Footprints:
    polygons: np.ndarray  # (N,) shapely Polygon or MultiPolygon: valid, finite, not empty
    labels: np.ndarray  # (N,) uint8: 1..k, or 255 ignore
    repaired: int = 0  # invalid rings made valid
    dropped: int = 0  # nothing with an area was left: points, lines, empty or collapsed polygons

    def __len__(self) -> int:
        return len(self.polygons)

    @property
    def bounds(self) -> Bounds:
        return tuple(float(v) for v in shapely.total_bounds(self.polygons))


def repair(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Valid polygons (N,) from any geometries, None where no area is left, and which were invalid (N,) bool.

    The structure method keeps what the rings enclose, as a person who drew them meant it.
    """
    invalid = ~shapely.is_valid(geometries) & ~shapely.is_missing(geometries)
    polygons = np.array(geometries, dtype=object)
    polygons[invalid] = shapely.make_valid(polygons[invalid], method="structure", keep_collapsed=False)
    mixed = shapely.get_type_id(polygons) == shapely.GeometryType.GEOMETRYCOLLECTION
    polygons[mixed] = [_polygonal(collection) for collection in polygons[mixed]]
    flat = np.isin(shapely.get_type_id(polygons), [POLYGON, MULTIPOLYGON]) & (shapely.area(polygons) > 0)
    polygons[~flat] = None
    return polygons, invalid


def _polygonal(collection):
    parts = shapely.get_parts(collection)
    parts = parts[np.isin(shapely.get_type_id(parts), [POLYGON, MULTIPOLYGON])]
    return shapely.union_all(parts) if len(parts) else None


def vector_crs(path: str | Path) -> CRS:
    """The CRS a file of footprints is in. Raises InputError where it cannot be read or has none."""
    path = Path(path)
    if path.suffix.lower() in PARQUET:
        return _parquet_geo(path)[1]
    layer = _polygon_layer(path)
    crs = pyogrio.read_info(path, layer=layer)["crs"]
    if not crs:
        raise InputError(f"{path}: the footprints carry no CRS; add one, as a .prj beside a .shp")
    return CRS.from_user_input(crs)


def read_footprints(path: str | Path, crs=None, bounds: Bounds | None = None) -> Footprints:
    """Read the polygons of a file, repaired, in `crs` (anything pyproj reads; None = the file's own).

    With `bounds`, in units of `crs`, only polygons whose own bounding box meets that box are kept. Raises
    InputError where the file is unreadable, has no CRS, several polygon layers or a `label` outside 1..255.
    """
    path = Path(path)
    source = vector_crs(path)
    target = source if crs is None else _crs(crs)
    box = None if bounds is None else transform_bounds(bounds, target, source)
    if box is not None and box[0] > box[2]:  # across the antimeridian: no single box holds it
        box = None
    read = _read_parquet if path.suffix.lower() in PARQUET else _read_pyogrio
    geometries, column = read(path, box)
    if box is not None:
        near = shapely.intersects(shapely.envelope(geometries), shapely.box(*box))
        geometries, column = geometries[near], None if column is None else column[near]
    labels = _labels(path, column, len(geometries))
    polygons, invalid = repair(geometries)
    if not target.equals(source):
        polygons = reproject(polygons, source, target)
    kept = whole = np.isfinite(shapely.bounds(polygons)).all(axis=1)
    if bounds is not None:
        kept = whole & shapely.intersects(shapely.envelope(polygons), shapely.box(*bounds))
    return Footprints(polygons[kept], labels[kept], int((invalid & kept).sum()), int((~whole).sum()))


def reproject(geometries: np.ndarray, source, target) -> np.ndarray:
    """Geometries (N,) from one CRS to another, x before y in both."""
    move = Transformer.from_crs(source, target, always_xy=True)
    return shapely.transform(geometries, lambda xy: np.column_stack(move.transform(xy[:, 0], xy[:, 1])))


def transform_bounds(bounds: Bounds, source, target) -> Bounds:
    """The box in `target` that holds a box in `source`, its edges followed at 21 points each."""
    source, target = _crs(source), _crs(target)
    if source.equals(target):
        return bounds
    return Transformer.from_crs(source, target, always_xy=True).transform_bounds(*bounds, densify_pts=21)


def _crs(crs) -> CRS:
    """Rasterio's CRS, or anything pyproj reads."""
    return CRS.from_user_input(crs.to_wkt() if hasattr(crs, "to_wkt") else crs)


def _labels(path: Path, column: np.ndarray | None, count: int) -> np.ndarray:
    if column is None or column.dtype.kind not in "iuf":  # words in a column of that name are not classes
        return np.ones(count, np.uint8)
    column = np.where(np.isnan(column), 1, column)
    wrong = column[~((column >= 1) & (column <= 255) & (column == np.round(column)))]
    if len(wrong):
        raise InputError(f"{path}: column label holds {wrong[0]:g}; a label is a class 1..k, or 255 (ignore)")
    return column.astype(np.uint8)


def _polygon_layer(path: Path) -> str:
    try:
        check_footprints(path)
        layers = pyogrio.list_layers(path)
    except InputError:
        raise
    except Exception as error:  # pyogrio raises several kinds, all with GDAL's own words
        raise _unreadable(path, error) from None
    polygonal = ("Polygon", "Surface", "Unknown", "Geometry")
    named = [name for name, kind in layers if kind is not None and any(word in kind for word in polygonal)]
    if len(named) != 1:
        found = f"{len(named)} layers of polygons ({', '.join(named)})" if named else "no layer of polygons"
        raise InputError(f"{path}: holds {found}; keep exactly one layer of footprints")
    return named[0]


def _read_pyogrio(path: Path, box: Bounds | None) -> tuple[np.ndarray, np.ndarray | None]:
    layer = _polygon_layer(path)
    fields = [name for name in pyogrio.read_info(path, layer=layer)["fields"] if name == "label"]
    try:
        _, _, wkb, data = pyogrio.raw.read(path, layer=layer, columns=fields, bbox=box, force_2d=True)
    except Exception as error:
        raise _unreadable(path, error) from None
    return shapely.from_wkb(wkb, on_invalid="fix"), data[0] if fields else None


def _parquet_geo(path: Path) -> tuple[str, CRS]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowInvalid

    try:
        geo = json.loads(parquet.read_metadata(path).metadata[b"geo"])
    except (OSError, ArrowInvalid, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None
    name = geo["primary_column"]
    declared = geo["columns"][name].get("crs", "OGC:CRS84")  # GeoParquet 1.1: absent is CRS84, null is unknown
    if declared is None:
        raise InputError(f"{path}: the footprints carry no CRS; write the file again with one")
    if (encoding := geo["columns"][name].get("encoding")) != "WKB":
        raise InputError(f"{path}: its geometry is encoded as {encoding}; write the file again, encoded as WKB")
    return name, CRS.from_user_input(declared)


def _read_parquet(path: Path, box: Bounds | None) -> tuple[np.ndarray, np.ndarray | None]:
    import pyarrow.parquet as parquet

    name, _ = _parquet_geo(path)
    names = [n for n in parquet.read_schema(path).names if n in {name, "label"}]
    table = parquet.read_table(path, columns=names)
    geometries = shapely.from_wkb(table[name].to_numpy(zero_copy_only=False), on_invalid="fix")
    labels = table["label"].to_numpy(zero_copy_only=False) if "label" in names else None
    return shapely.force_2d(geometries), labels


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read as footprints ({' '.join(str(error).split())}); see it opens in QGIS")
