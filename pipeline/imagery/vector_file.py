"""One layer of footprints in a file of any format: its CRS, its columns, and its
geometries as GEOS knows them.

GeoParquet is read by pyarrow, every other format by GDAL (pyogrio). No name of the user's reaches
GDAL, whose readers take `!`, `;` and `?` for parts of an address: they open a link of a plain name,
and a layer by its number.
"""

import json
import os
import sqlite3
import struct
import zipfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import GeometryError
from pyproj import CRS
from pyproj.exceptions import CRSError

from pipeline.errors import InputError
from pipeline.imagery.formats import check_footprints

Box = tuple[float, float, float, float]  # left, bottom, right, top
SUFFIXES = frozenset({
    ".geojson", ".json", ".geojsonl", ".geojsons", ".topojson", ".gpkg", ".shp", ".fgb", ".parquet",
    ".geoparquet", ".gdb", ".kml", ".kmz", ".gml", ".tab", ".mif", ".sqlite", ".zip",
})  # fmt: skip  # what a file of footprints may be called
PARQUET = frozenset({".parquet", ".geoparquet"})
# first first
LAYERS = (
    ("Polygon", "Surface", "TIN", "Triangle", "Unknown"),
    ("Geometry",),
    ("Line", "String", "Curve"),
)
# without files beside them
ALONE = frozenset(SUFFIXES - {".gpkg", ".sqlite", ".shp", ".tab", ".mif", ".gml"})
# polyhedral surface, TIN, triangle → the kind of the same layout that GEOS knows
LIKE = {15: 6, 16: 6, 17: 3}


@contextmanager
def open_layer(path: Path, name: str | None = None) -> Generator["OgrLayer | ParquetLayer"]:
    """The one layer of footprints in a file, or the layer of a name. Raises InputError: unreadable,
    no CRS, no such layer, or several.
    """
    if path.suffix.lower() in PARQUET:
        yield ParquetLayer(path)
        return
    if path.is_dir() and path.suffix.lower() != ".gdb":
        raise InputError(
            f"{path}: is a folder where a file of footprints is expected; name the file in it"
        )
    with TemporaryDirectory(prefix="footprints-") as folder:
        yield OgrLayer(path, Path(folder), name)


class OgrLayer:
    def __init__(self, path: Path, folder: Path, name: str | None = None):
        self.path = path
        # GDAL would leave out what it holds
        if _beside(path, "-wal") and (hindered := _hindered(path)):
            raise self._half_saved(hindered)
        try:
            check_footprints(path)
            self.plain = _linked(path, folder)
            self.layer = self._only_layer() if name is None else self._named(name)
            about = pyogrio.read_info(self.plain, layer=self.layer)
        except InputError:
            raise
        except Exception as error:  # pyogrio raises several kinds, all with GDAL's own words
            raise self._unreadable(error) from None
        self.fields = list(about["fields"])
        self.crs = _understood(path, about["crs"])

    def _only_layer(self) -> int:
        """The number of the layer of polygons or, where there is none, of
        collections or of lines.
        """
        layers = pyogrio.list_layers(self.plain).tolist()
        ranks = [
            [
                i
                for i, (_, kind) in enumerate(layers)
                if kind is not None and any(word in kind for word in words)
            ]
            for words in LAYERS
        ]
        found = next(filter(None, ranks), [])
        if len(found) != 1:
            names = ", ".join(layers[i][0] for i in found)
            what = f"{len(found)} layers of polygons ({names})" if found else "no layer of polygons"
            raise InputError(f"{self.path}: holds {what}; keep exactly one layer of footprints")
        return found[0]

    @property
    def bounds(self) -> np.ndarray:
        """(4,) of all it holds, not finite where that is nothing. Raises InputError."""
        try:
            about = pyogrio.read_info(self.plain, layer=self.layer, force_total_bounds=True)
        except Exception as error:
            raise self._unreadable(error) from None
        return np.array(about["total_bounds"] or [np.nan] * 4)

    def _named(self, name: str) -> int:
        names = [known for known, _ in pyogrio.list_layers(self.plain)]
        if name not in names:
            raise InputError(
                f"{self.path}: holds no layer {name}, only {', '.join(names)}; bring it back"
            )
        return names.index(name)

    def read(
        self, columns: set[str], box: Box | None, where: str | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Geometries (N,) in two dimensions that may meet a box, and those of the
        columns named that there are.

        `where` is a condition in SQL that they meet. Raises InputError.
        """
        # it may ask for any
        names = [name for name in self.fields if name in columns] if where is None else None
        try:
            about, _, wkb, data = pyogrio.raw.read(
                self.plain, layer=self.layer, columns=names, bbox=box, where=where, force_2d=True
            )
        except Exception as error:
            if where is not None:
                raise _misunderstood(self.path, where, self.fields, error) from None
            raise self._unreadable(error) from None
        return _from_wkb(wkb), dict(zip(about["fields"], data, strict=True))

    def _unreadable(self, error: Exception) -> InputError:
        if _beside(self.path, "-journal") or _beside(self.path, "-wal"):
            return self._half_saved(_words(error))
        if isinstance(error, GeometryError):  # a layer of solids by its declaration
            return InputError(
                f"{self.path}: holds solids ({_words(error)}); save it anew, as multipolygons"
            )
        if self.path.suffix.lower() == ".shp" and ".shx" in str(error):
            return InputError(
                f"{self.path}: {self.path.stem}.shx is missing beside it; copy all "
                f"files of that name"
            )
        plain = getattr(self, "plain", self.path.name)  # GDAL's name for it
        return unreadable(
            self.path, str(error).replace(plain, self.path.name).partition("; It might help")[0]
        )

    def _half_saved(self, reason: str) -> InputError:
        return InputError(
            f"{self.path}: its last changes lie in a file beside it, where an editor left them, "
            f"and cannot be read "
            f"({reason}); open it in QGIS, save and close it"
        )


class ParquetLayer:
    def __init__(self, path: Path):
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException

        self.path = path
        try:
            self.file = parquet.ParquetFile(path)
            self.fields = self.file.schema_arrow.names
            geo = json.loads(self.file.schema_arrow.metadata[b"geo"])
            self.geometry = geo["primary_column"]
            about = geo["columns"][self.geometry]
            # GeoParquet 1.1: absent is CRS84, null is unknown
            declared = about.get("crs", "OGC:CRS84")
            encoding = about["encoding"]
            self.fields.index(self.geometry)
        except (OSError, ArrowException) as error:
            raise unreadable(path, error) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise unreadable(path, f"its metadata are not GeoParquet's: {error!r}") from None
        if encoding != "WKB":
            raise InputError(
                f"{path}: its geometry is encoded as {encoding}; write the file "
                f"again, encoded as WKB"
            )
        self.crs = _understood(path, declared)

    @property
    def bounds(self) -> np.ndarray:
        """As `OgrLayer.bounds`, of what is no point."""
        geometries = self.read(set(), None, None)[0]
        spread = geometries[shapely.get_dimensions(geometries) > 0]
        return shapely.total_bounds(spread) if len(spread) else np.full(4, np.nan)

    def read(
        self, columns: set[str], box: Box | None, where: str | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `OgrLayer.read`; SQLite answers `where`."""
        from pyarrow import ArrowException

        names = [name for name in self.fields if name in columns]
        try:
            table = self.file.read(columns=[self.geometry, *names])
            rows = slice(None) if where is None else self._rows(where)
            geometries = _from_wkb(table[self.geometry].to_numpy()[rows])
            data = {name: table[name].to_numpy()[rows] for name in names}
        except (OSError, ArrowException, TypeError) as error:
            raise unreadable(self.path, error) from None
        if box is not None:
            near = shapely.is_missing(geometries) | shapely.intersects(
                shapely.envelope(geometries), shapely.box(*box)
            )
            geometries, data = (
                geometries[near],
                {name: column[near] for name, column in data.items()},
            )
        return geometries, data

    def _rows(self, where: str) -> np.ndarray:
        """The rows for which a condition holds."""
        from pyarrow import types

        plain = [
            f.name
            for f in self.file.schema_arrow
            if not (types.is_nested(f.type) or types.is_binary(f.type))
        ]
        with closing(sqlite3.connect(":memory:")) as database:
            self.file.read(columns=plain).to_pandas().to_sql(
                "footprints", database, index_label="row of the file"
            )
            try:
                found = database.execute(
                    f'SELECT "row of the file" FROM footprints WHERE ({where}) ORDER BY 1'
                )
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise _misunderstood(self.path, where, plain, error) from None
            return np.array([row for (row,) in found], int)


def _linked(path: Path, folder: Path) -> str:
    """A path without a meaning, in `folder`, to a file and to what stands beside it; of a zip,
    to what is in it.
    """
    suffix = path.suffix.lower()
    for beside in [path] if suffix in ALONE else path.parent.iterdir():
        if beside.name.startswith(f"{path.stem}."):
            link = folder / f"footprints{beside.name.removeprefix(path.stem).lower()}"
            link.unlink(missing_ok=True)
            link.symlink_to(beside.absolute())
    plain = f"{folder}/footprints{suffix}"
    if suffix != ".zip":
        return plain
    with zipfile.ZipFile(path) as archive:
        held = set(filter(None, (_held(PurePosixPath(name)) for name in archive.namelist())))
    if len(held) != 1:
        names = ", ".join(sorted(held)[:3]) or "of any format known"
        raise InputError(
            f"{path}: holds {len(held)} files of footprints, {names}; pack exactly one"
        )
    return f"/vsizip/{{{plain}}}/{held.pop()}"


def _beside(path: Path, ending: str) -> bool:
    """Whether SQLite keeps what is not yet in a file beside it: a write-ahead
    log, or a journal to roll back.
    """
    beside = path.with_name(path.name + ending)
    return beside.is_file() and beside.stat().st_size > 0


def _hindered(path: Path) -> str | None:
    """Why a write-ahead log cannot be read with its file: GDAL would say nothing."""
    if not os.access(path.parent, os.W_OK):
        return "the folder is read-only"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", 1, uri=True)) as file:
            file.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError as error:
        return str(error)
    except sqlite3.DatabaseError:  # damaged, which GDAL says itself
        pass
    return None


def _held(member: PurePosixPath) -> str | None:
    """The file of footprints that a zip's member is, or is a part of; not what macOS adds."""
    if member.parts[:1] == ("__MACOSX",) or member.name.startswith("."):
        return None
    found = (
        part
        for part in (*reversed(member.parents), member)
        if part.suffix.lower() in SUFFIXES - PARQUET
    )
    return str(next(found, "")) or None


def _understood(path: Path, declared: object) -> CRS:
    if not declared:
        raise InputError(f"{path}: the footprints carry no CRS; add one, as a .prj beside a .shp")
    try:
        return CRS.from_user_input(declared)
    except CRSError as error:
        raise InputError(
            f"{path}: its CRS is not understood ({_words(error)}); assign another"
        ) from None


def _from_wkb(wkb: np.ndarray) -> np.ndarray:
    """Geometries (N,) in two dimensions; a solid is what its faces cover, seen from above. None
    where it is no WKB.
    """
    geometries = shapely.from_wkb(wkb, on_invalid="fix")
    for i in np.flatnonzero(shapely.is_missing(geometries)):
        if (
            wkb[i] is not None
            and (solid := shapely.from_wkb(_known(wkb[i]), on_invalid="fix")) is not None
        ):
            geometries[i] = shapely.make_valid(
                shapely.force_2d(solid), method="structure", keep_collapsed=False
            )
    return shapely.force_2d(geometries)


def _known(wkb: bytes) -> bytes:
    """WKB with the faces of solids as multipolygons: they are laid out alike,
    and GEOS reads only these.
    """
    known = bytearray(wkb)

    def walk(at: int) -> int:
        """Rewrite the geometry that begins at a byte; returns where it ends. ISO: 1000 is z,
        2000 m, 3000 both.
        """
        order = "<" if known[at] else ">"
        code, count = struct.unpack_from(f"{order}II", known, at + 1)
        kind, width = code % 1000, 8 * (2, 3, 3, 4)[code // 1000]
        struct.pack_into(f"{order}I", known, at + 1, code - kind + LIKE.get(kind, kind))
        if kind == 1:  # a point has no count
            return at + 5 + width
        at += 9
        if kind == 2:
            return at + count * width
        for _ in range(count):
            at = (
                at + 4 + width * struct.unpack_from(f"{order}I", known, at)[0]
                if kind in {3, 17}
                else walk(at)
            )
        return at

    try:
        walk(0)
    except (struct.error, IndexError, RecursionError):  # cut short, or of a kind unknown
        return b""
    return bytes(known)


def _misunderstood(path: Path, where: str, fields: list[str], error: Exception) -> InputError:
    return InputError(
        f"{path}: where {where!r} is not understood ({_words(error)}); write a condition in SQL on "
        f"its columns "
        f"{', '.join(fields)}"
    )


def unreadable(path: Path, reason: object) -> InputError:
    return InputError(
        f"{path}: cannot be read as footprints ({_words(reason)}); see it opens in QGIS"
    )


def _words(error: object) -> str:
    return " ".join(str(error).split())
