"""Results on disk, written while they arrive: cloud-optimised GeoTIFFs by rows,
footprints by batches.

Rows go to a tiled GeoTIFF, batches to GeoParquet; both become the asked format at the end,
streaming, so that memory never grows with the scene. Everything is written to the path given;
giving it its final name is the caller's.
"""

import json
import os
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pyogrio
import rasterio
import rasterio.shutil
import shapely
from pyarrow.fs import LocalFileSystem
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import InputError, cause, refusal
from pipeline.imagery.grid import Grid
from pipeline.imagery.style import write_style
from pipeline.labels import IGNORE

BLOCK = 512  # pixels along a tile's side
# the same in every file, whatever the file is called: a style or a query fits them all
LAYER = "buildings"
DRIVERS = {"gpkg": "GPKG", "fgb": "FlatGeobuf", "parquet": None, "geojson": "GeoJSON",
           "pmtiles": "PMTiles"}  # fmt: skip  # by extension
HERE = LocalFileSystem()  # stated, so that Arrow takes no path for a URI
REFUSALS = (
    RasterioError, CPLE_BaseError, DataSourceError, DataLayerError, pa.ArrowException,
    sqlite3.Error, OSError,
)  # fmt: skip
BATCH, SORTED = 4096, 65536  # footprints converted at a time; sorted in space at a time
# of PMTiles: from a part of town to a 4096th of a tile, 15 cm at the equator
ZOOMS = {"MINZOOM": 12, "MAXZOOM": 16}
FIELDS = {  # of a map's polygons
    "id": pa.string(),
    "class": pa.string(),
    "label": pa.int32(),
    "confidence": pa.float64(),
    "area_m2": pa.float64(),
    "regularised": pa.bool_(),
    "source": pa.string(),
    "captured": pa.string(),
    "model": pa.string(),
    "model_version": pa.string(),
}
WriteRows = Callable[[int, np.ndarray], None]  # (first row, pixels (bands, rows, W) uint8)
# (columns (n,), polygons (n,) in the CRS)
WriteFootprints = Callable[[dict[str, Any], np.ndarray], None]


@contextmanager
def cloud_optimised(
    path: Path,
    grid: Grid,
    bands: list[str],
    scale: float = 1,
    colours: dict[int, tuple] | None = None,
) -> Generator[WriteRows]:
    """Yield a function that writes rows of uint8; afterwards PATH is a COG with
    overviews, 255 being no data.

    bands: their descriptions; scale: what a stored step is worth; colours: of a mask's values.
    Raises InputError where the disk does not take it.
    """
    rows = path.with_suffix(".rows.tif")
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": len(bands), "height": grid.height,
        "width": grid.width, "crs": grid.crs, "transform": grid.transform, "nodata": IGNORE,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "zstd",
        "zstd_level": 1, "bigtiff": "if_safer", "interleave": "band",
    }  # fmt: skip

    def write(row: int, pixels: np.ndarray) -> None:
        with onto_disk(path):
            dataset.write(pixels, window=Window(0, row, grid.width, pixels.shape[1]))

    with onto_disk(path):
        dataset = rasterio.open(rows, "w", **profile)
    try:
        for band, text in enumerate(bands, start=1):
            dataset.set_band_description(band, text)
        dataset.scales = [scale] * len(bands)
        if colours:
            dataset.write_colormap(1, colours)
        yield write
    finally:
        dataset.close()
    with onto_disk(path):
        refuse_holes(rows)
        rasterio.shutil.copy(
            rows, path, driver="COG", compress="deflate", level=4, blocksize=BLOCK,
            num_threads="all_cpus", bigtiff="if_safer", overview_resampling="nearest",
        )  # fmt: skip
        refuse_holes(path)
        rows.unlink()


@contextmanager
def onto_disk(path: Path) -> Generator[None]:
    """What a disk does to GDAL and Arrow, as a sentence: the cause and its own remedy."""
    try:
        yield
    except REFUSALS as error:
        if code := cause(error) or _refused(path.parent):
            raise InputError(refusal(path.name, code)) from None
        detail = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"{path.name}: cannot be written ({detail}); it is not the disk: try another format"
        ) from None


def _refused(folder: Path) -> int | None:
    """Ask the disk, as GDAL seldom says: the errno of taking four times what
    lies in `folder`, None if it can.
    """
    try:
        need = 4 * sum(file.stat().st_size for file in folder.iterdir()) + BLOCK**2
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, need)
    except OSError as error:
        return cause(error)


def check_driver(suffix: str) -> None:
    """Raise InputError where this GDAL cannot write files of such a suffix."""
    driver = DRIVERS[suffix]
    if driver and driver not in pyogrio.list_drivers(write=True):
        raise InputError(
            f"--polygons {suffix}: the GDAL of this machine has no driver {driver} that writes; "
            f"choose gpkg or "
            "parquet, or install pyogrio's own wheel, whose GDAL has it"
        )


@contextmanager
def plain_name(path: Path) -> Generator[Path]:
    """Yield another name for `path`, of plain letters: pyogrio takes a path for a URI and cuts
    it at `!` and `;`.
    """
    if re.fullmatch(r"[\w/.-]+", str(path), re.ASCII):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / "out"
        alias.symlink_to(path.parent.absolute(), target_is_directory=True)
        plain = alias / f"{LAYER}{path.suffix}"
        yield plain
        plain.rename(path)


def refuse_holes(path: Path) -> None:
    """GDAL closes a file that a full disk cut short without a word: check that
    every block lies inside it.
    """
    size = path.stat().st_size
    with rasterio.open(path, driver="GTiff") as dataset:
        for band in dataset.indexes:
            levels = [None, *range(len(dataset.overviews(band)))]
            for level in levels:
                shrink = 1 if level is None else dataset.overviews(band)[level]
                blocks = zip(dataset.shape, dataset.block_shapes[band - 1], strict=True)
                down, across = (
                    int(np.ceil(np.ceil(side / shrink) / block)) for side, block in blocks
                )
                for block in np.ndindex(across, down):
                    start, length = (
                        dataset.get_tag_item(
                            f"BLOCK_{what}_{block[0]}_{block[1]}", "TIFF", band, level
                        )
                        for what in ("OFFSET", "SIZE")
                    )
                    if start is None or int(start) + int(length) > size:
                        raise OSError("GDAL closed it before it was whole")


@contextmanager
def footprints(
    path: Path, crs, fields: dict[str, pa.DataType] = FIELDS, layer: str = LAYER
) -> Generator[WriteFootprints]:
    """Yield a function that writes batches of footprints; afterwards PATH holds them, in its
    suffix's format.

    Columns: `fields`. GeoJSON is in longitude and latitude (RFC 7946), the others
    in `crs`; None (an image without a CRS) leaves coordinates as they are. Raises
    InputError where the disk does not take it.
    """
    if crs is None and path.suffix == ".pmtiles":
        raise InputError(
            f"{path.name}: a scene without a CRS has no place on a web map; choose --polygons gpkg"
        )
    rows = path.with_suffix(".rows.parquet")
    with footprint_rows(rows, crs, fields, path) as write:
        yield write
    with onto_disk(path):
        _convert(rows, path, None if crs is None else CRS.from_user_input(crs), layer)
        rows.unlink()


@contextmanager
def footprint_rows(
    path: Path, crs, fields: dict[str, pa.DataType] = FIELDS, named: Path | None = None
):
    """As `footprints`, into GeoParquet, in the order they come; `named`: what an error is about."""
    crs = None if crs is None else CRS.from_user_input(crs)
    schema = pa.schema([*fields.items(), ("geometry", pa.binary())], metadata=geo_metadata(crs))

    def write(columns: dict[str, np.ndarray], polygons: np.ndarray) -> None:
        with onto_disk(named or path):
            table = {name: columns[name] for name in fields}
            writer.write_table(
                pa.table({**table, "geometry": shapely.to_wkb(polygons)}, schema=schema)
            )

    with onto_disk(named or path):
        writer = parquet.ParquetWriter(path, schema, filesystem=HERE, compression="zstd")
    try:
        yield write
    finally:
        with onto_disk(named or path):
            writer.close()


def geo_metadata(crs: CRS | None, **column) -> dict[str, str]:
    """GeoParquet 1.1's metadata of one column of polygons."""
    about = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": crs and crs.to_json_dict(),
        **column,
    }
    return {
        "geo": json.dumps(
            {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": about}}
        )
    }


def _convert(rows: Path, path: Path, crs: CRS | None, layer: str) -> None:
    driver = DRIVERS[path.suffix[1:]]
    with parquet.ParquetFile(rows, filesystem=HERE) as file:
        if driver is None:
            _write_parquet(file, path, crs)
        else:
            _write_ogr(file, path, driver, crs, layer)
    if driver == "GPKG":
        write_style(path, layer, file.schema_arrow.names)


def _near_together(file: parquet.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches of a file, those of SORTED rows in the order of a Z curve (Morton
    1966) through their middles.
    """
    for batch in file.iter_batches(SORTED):
        middles = shapely.get_coordinates(
            shapely.centroid(shapely.from_wkb(batch["geometry"].to_numpy(False)))
        )
        spread = np.maximum(np.ptp(middles, axis=0), 1e-12) if len(middles) else 1
        cells = ((middles - middles.min(axis=0, initial=np.inf)) / spread * 1023).astype(np.uint32)
        places = sum(
            (cells >> bit & 1) << np.array([2 * bit, 2 * bit + 1], np.uint32) for bit in range(10)
        )
        yield batch.take(pa.array(np.argsort(places.sum(axis=1), kind="stable")))


def _write_parquet(file: parquet.ParquetFile, path: Path, crs: CRS | None) -> None:
    """GeoParquet whose row groups are small places, with the boxes that readers
    choose them by (`covering`).
    """
    sides = ("xmin", "ymin", "xmax", "ymax")
    box = pa.struct([(side, pa.float64()) for side in sides])
    metadata = geo_metadata(crs, covering={"bbox": {side: ["bbox", side] for side in sides}})
    schema = pa.schema([*file.schema_arrow, ("bbox", box)], metadata=metadata)
    with parquet.ParquetWriter(path, schema, filesystem=HERE, compression="zstd") as writer:
        for batch in _near_together(file):
            bounds = shapely.bounds(shapely.from_wkb(batch["geometry"].to_numpy(False)))
            boxes = pa.StructArray.from_arrays(
                [pa.array(side) for side in bounds.T], fields=list(box)
            )
            table = pa.Table.from_arrays([*batch.columns, boxes], schema=schema)
            writer.write_table(table, row_group_size=BATCH)


def _write_ogr(
    file: parquet.ParquetFile, path: Path, driver: str, crs: CRS | None, layer: str
) -> None:
    # the same run, the same bytes
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z"})
    options = {}
    if driver == "GeoJSON":
        options = {"RFC7946": crs is not None, "COORDINATE_PRECISION": 8}
    if driver == "PMTiles":
        options = {"dataset_options": ZOOMS}
    with warnings.catch_warnings(), plain_name(path) as plain:
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pieces = (
            piece
            for batch in _near_together(file)
            for piece in pa.Table.from_batches([batch]).to_batches(BATCH)
        )
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(file.schema_arrow, pieces), plain, layer=layer,
            driver=driver, geometry_name="geometry", geometry_type="Polygon",
            crs=crs and crs.to_wkt(), **options,
        )  # fmt: skip
        found = pyogrio.read_info(plain, force_feature_count=True)["features"]
        if driver != "PMTiles" and found != file.metadata.num_rows:
            raise OSError("GDAL closed it before it was whole")
