"""Source `open_buildings`: Google's polygons (v3) as labels for the user's own scenes.

The table of score thresholds says which S2 cells cover a scene and, for each cell, which confidence
gives 80, 85 or 90 % precision. A cell is one gzipped CSV of up to 1 GB: it is read once, line by
line, and what meets a scene is kept as GeoParquet. A polygon under its cell's threshold is neither
building nor background: 255 (ignore).

The polygons are predictions on other images of another date, so how far they lie beside each scene
is estimated and noted, not corrected. Manifest: data/sources/open_buildings.yaml.
"""

import csv
import glob
import io
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import geopandas
import numpy as np
import pandas
import shapely
from pyarrow import CompressedInputStream, OSFile
from pydantic import field_validator

from pipeline import bucket, params
from pipeline.bucket import is_object
from pipeline.console import progress
from pipeline.errors import InputError
from pipeline.imagery.scene import City, Scene
from pipeline.imagery.vector import (
    Bounds,
    Footprints,
    read_footprints,
    repair,
    rough_shift,
    transform_bounds,
)
from pipeline.labels import IGNORE
from pipeline.sources.download import byte_bar, download
from pipeline.sources.open_buildings.alignment import STRONG, estimate_shift
from pipeline.sources.survey import Image, stamp, survey_all
from pipeline.storage import atomic_file, fingerprint

COLUMNS = "latitude,longitude,area_in_meters,confidence,geometry,full_plus_code"
KEPT = ["geometry", "area_in_meters", "confidence"]
POLYGONAL = [shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON]
MANIFEST = "data/sources/open_buildings.yaml"
DEGREES = "EPSG:4326"
MARGIN = 0.02  # degrees, some 2 km: no building reaches farther from its centroid
CHUNK = 1 << 23  # bytes of text read at a time
OFF = 2.0  # metres of shift worth a warning
REMOTE = {"http", "https", "s3", "gs"}


class Place(params.Section):
    # globs of files, URLs of cloud-optimised GeoTIFFs, or s3://BUCKET/FOLDER/ with such
    scenes: list[str]
    rights: str = "not stated"


class Manifest(params.Section):
    thresholds: str
    cells: str  # URL with {token}
    rights: str
    attribution: str
    cities: dict[str, Place]

    @field_validator("cells")
    @classmethod
    def _names_the_cell(cls, url: str) -> str:
        if "{token}" not in url:
            raise ValueError("it must be a URL with {token} in it")
        return url


@dataclass(frozen=True)
class Cell:
    """An S2 cell: convex, its edges great circles, which are not straight in
    longitude and latitude.
    """

    token: str
    rings: list[np.ndarray]  # (K, 3) unit vectors
    threshold: float  # the least confidence of a building; infinite where the table has none

    def meets(self, box: Bounds) -> bool:
        """Whether any of 9×9 points of a box in degrees, widened by MARGIN, lies in the cell."""
        west, south, east, north = box
        x, y = np.meshgrid(
            np.linspace(west - MARGIN, east + MARGIN, 9),
            np.linspace(south - MARGIN, north + MARGIN, 9),
        )
        points = _on_sphere(np.column_stack([x.ravel(), y.ravel()]))
        for ring in self.rings:
            edges = np.cross(ring, np.roll(ring, -1, axis=0))
            side = np.sign((edges @ ring.mean(axis=0)).sum())  # rings may turn either way
            if (side * (points @ edges.T) >= 0).all(axis=1).any():
                return True
        return False


class _Other(Exception):
    """A table of other columns."""


def fetch(fetch: params.Fetch, city: str, folder: Path, work: Path) -> City:
    """Write `folder`/footprints.parquet (EPSG:4326; label, confidence,
    area_in_meters) for a city's scenes.

    Cells, and what was kept of them, stay under `work`. Raises InputError: a city or scene that is
    not there, a scene that no cell covers, a download that fails or is not what it should be.
    """
    manifest = params.load_section(Manifest, fetch.path, MANIFEST)
    place = _place(manifest, fetch.path, city)
    override = fetch.overrides.get(city, params.CityOverride())
    images, notes = survey_all(
        _scene_paths(place.scenes, city),
        city,
        fetch.path,
        gsd=None,
        over="Open Buildings' polygons",
    )
    work = work / "open_buildings"
    boxes = [transform_bounds(image.grid.bounds, image.grid.crs, DEGREES) for image in images]
    cells = covering(read_cells(_local(manifest.thresholds, work), fetch.precision), images, boxes)
    found = [footprints_of(cell, manifest, boxes, work, fetch.keep_archive) for cell in cells]
    table = geopandas.GeoDataFrame(pandas.concat(found, ignore_index=True), crs=DEGREES)
    table.to_parquet(folder / "footprints.parquet")
    notes |= {
        "cells": {cell.token: cell.threshold for cell in cells if np.isfinite(cell.threshold)},
        "footprints": len(table),
        "doubtful_footprints": int((table["label"] == IGNORE).sum()),
        "repaired_polygons": sum(part.attrs["repaired"] for part in found),
        "malformed_rows": sum(part.attrs["malformed"] for part in found),
    }
    for cell in cells:
        if not np.isfinite(cell.threshold):
            notes["warnings"].append(
                f"{city}: cell {cell.token} has no threshold, its polygons are all ignored"
            )
    if notes["malformed_rows"]:
        notes["warnings"].append(f"{city}: {notes['malformed_rows']} malformed rows were left out")
    if notes["footprints"] == notes["doubtful_footprints"]:
        notes["warnings"].append(f"{city}: no building anywhere at {fetch.precision} % precision")
    _note_shifts(folder / "footprints.parquet", images, city, override.bands, notes)
    return City(
        city=city,
        source="open_buildings",
        scenes=[Scene(i.name, i.path, "footprints.parquet", stamp=_stamp(i)) for i in images],
        bands=override.bands,
        range=override.range,
        rights=f"{manifest.rights}; images: {place.rights}",
        attribution=manifest.attribution,
        notes=notes,
    )


def read_cells(path: Path, precision: int) -> list[Cell]:
    """The cells of the table of score thresholds, with theirs for a precision
    in %. Raises InputError.
    """
    column = f"confidence_threshold_{precision}%_precision"
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"s2_token", "geometry", column} - set(reader.fieldnames or [])
        if missing:
            path.unlink()
            raise InputError(
                f"{path}: has no column {min(missing)}; check thresholds in the manifest, run again"
            )
        return [_cell(row, column, path) for row in reader]


def _cell(row: dict[str, str], column: str, path: Path) -> Cell:
    shape = shapely.from_wkt(row["geometry"], on_invalid="ignore")
    if shape is None or not re.fullmatch("[0-9a-f]{1,16}", row["s2_token"]):
        raise InputError(
            f"{path}: {row['s2_token']!r} is no S2 cell with a geometry; check the table"
        )
    rings = [
        _on_sphere(shapely.get_coordinates(part.exterior)[:-1]) for part in shapely.get_parts(shape)
    ]
    try:
        threshold = float(row[column])
    except (TypeError, ValueError):
        threshold = np.inf
    return Cell(row["s2_token"], rings, threshold if threshold >= 0 else np.inf)  # nan is neither


def _on_sphere(degrees: np.ndarray) -> np.ndarray:
    """(N, 2) longitude, latitude → (N, 3) unit vectors."""
    longitude, latitude = np.radians(degrees).T
    flat = np.cos(latitude)
    return np.column_stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)])


def covering(cells: list[Cell], images: list[Image], boxes: list[Bounds]) -> list[Cell]:
    """The cells that meet any image's box in degrees. Raises InputError where
    an image meets none.
    """
    needed = set()
    for image, box in zip(images, boxes, strict=True):
        met = {cell.token for cell in cells if cell.meets(box)}
        if not met:
            raise InputError(
                f"{image.path}: no Open Buildings cell covers latitude {box[1]:.3f}, longitude "
                f"{box[0]:.3f}; "
                "they cover Africa, South and Southeast Asia and Latin America: take source folder "
                "elsewhere"
            )
        needed |= met
    return [cell for cell in cells if cell.token in needed]


def footprints_of(
    cell: Cell, manifest: Manifest, boxes: list[Bounds], work: Path, keep: bool = True
) -> geopandas.GeoDataFrame:
    """The cell's polygons near any box, with a column `label` 1 or 255;
    downloaded and read only once.
    """
    url = manifest.cells.replace("{token}", cell.token)
    cached = work / f"{cell.token}-{fingerprint(url, boxes)}.parquet"
    if not cached.exists():
        path = _local(url, work)
        table = keep_near(path, boxes)
        with atomic_file(cached) as partial:
            table.to_parquet(partial)
        if not keep:
            path.unlink()
    table = geopandas.read_parquet(cached)
    table["label"] = np.where(table["confidence"] >= cell.threshold, 1, IGNORE).astype(np.uint8)
    return table


def keep_near(path: Path, boxes: list[Bounds]) -> geopandas.GeoDataFrame:
    """Rows of a gzipped cell whose polygon's box meets one of `boxes` (degrees):
    area_in_meters, confidence.

    A first glance at the centroid skips rows farther than MARGIN from all boxes. `attrs` counts
    malformed rows and repaired polygons. Raises InputError where the file is damaged or another
    one; it is removed then.
    """
    tree = shapely.STRtree(shapely.box(*np.array(boxes).T))
    west, south, east, north = np.add(
        shapely.total_bounds(tree.geometries), [-MARGIN, -MARGIN, MARGIN, MARGIN]
    )
    kept, malformed = [], 0
    for lines in _lines(path):
        near = []
        for line in lines:
            try:
                latitude, longitude, _ = line.split(b",", 2)
                if south < float(latitude) < north and west < float(longitude) < east:
                    near.append(_row(line))
            except (ValueError, csv.Error):
                malformed += bool(line.strip())
        found = pandas.DataFrame(near, columns=KEPT)
        geometry = shapely.from_wkt(found.geometry.to_numpy(object), on_invalid="ignore")
        polygonal = np.isin(shapely.get_type_id(geometry), POLYGONAL)
        malformed += int((~polygonal).sum())
        hit, _ = tree.query(np.where(polygonal, geometry, None))
        kept.append(found.assign(geometry=geometry).iloc[np.unique(hit)])
    table = geopandas.GeoDataFrame(pandas.concat(kept, ignore_index=True), crs=DEGREES)
    polygons, invalid = repair(table.geometry.to_numpy())
    table.geometry = polygons
    collapsed = shapely.is_missing(polygons)
    table = table[~collapsed]
    table.attrs = {
        "malformed": malformed + int(collapsed.sum()),
        "repaired": int((invalid & ~collapsed).sum()),
    }
    return table


def _row(line: bytes) -> tuple[str, float, float]:
    """WKT, area and confidence. Raises ValueError or csv.Error where it is not a building."""
    _, _, area, confidence, wkt, _ = next(csv.reader([line.decode()], strict=True))
    if not 0 <= float(confidence) <= 1:
        raise ValueError(line)
    return wkt, float(area), float(confidence)


def _cut(text: bytes) -> tuple[bytes, bytes]:
    """After the last line that is whole."""
    end = text.rfind(b"\n") + 1
    return text[:end], text[end:]


def _lines(path: Path) -> Iterator[Iterable[bytes]]:
    """The rows of a gzipped cell, some ten thousand at a time, without the header; the next ones are
    unpacked meanwhile, in a thread that needs no interpreter.
    """
    try:
        with (
            OSFile(str(path)) as raw,
            CompressedInputStream(raw, "gzip") as text,
            byte_bar(f"reading {path.name}", path.stat().st_size) as advance,
            ThreadPoolExecutor(1, thread_name_prefix="unpack") as unpacking,
        ):
            header, _, rest = text.read(CHUNK).partition(b"\n")
            if (named := header.strip().decode(errors="replace")) != COLUMNS:
                raise _Other(named)
            read, more = 0, True
            while more:
                lines, rest = _cut(rest)
                read, before = raw.tell(), read
                unpacked = unpacking.submit(text.read, CHUNK)
                yield io.BytesIO(lines)
                del lines  # held are what is parsed, what is unpacked meanwhile, and their seam
                advance(read - before)
                more = bool(unpacked.result())
                rest += unpacked.result()
            yield io.BytesIO(rest)
    except _Other as error:
        path.unlink()
        raise InputError(
            f"{path}: begins with {str(error)[:80]!r}, not with {COLUMNS}: correct cells in the "
            f"manifest, "
            "whose URL leads to other tables (of points, perhaps) than v3's polygons"
        ) from None
    except OSError as error:
        if error.errno:  # the disk's, not the file's
            raise
        path.unlink()
        raise InputError(
            f"{path}: is damaged ({error}); it was removed, run again to download it anew"
        ) from None


def _local(url: str, work: Path) -> Path:
    """The downloaded file. Another URL, of another version say, is another file."""
    return download(url, work / f"{fingerprint(url)}-{Path(urlsplit(url).path).name}")


def look_up(fetch: params.Fetch, city: str) -> None:
    """Raise InputError where there is no such city, or no scene of it."""
    manifest = params.load_section(Manifest, fetch.path, MANIFEST)
    _scene_paths(_place(manifest, fetch.path, city).scenes, city)


def _place(manifest: Manifest, path: str, city: str) -> Place:
    if city not in manifest.cities:
        raise InputError(f"{path}: has no city {city}; it names {', '.join(manifest.cities)}")
    return manifest.cities[city]


def _scene_paths(scenes: list[str], city: str) -> list[str]:
    """Files and URLs of a manifest's entries, each once. Raises InputError
    where an entry is neither.
    """
    found = []
    for entry in scenes:
        scheme = urlsplit(entry).scheme if "://" in entry else ""
        if is_object(entry) and entry.endswith("/"):
            found += _in_bucket(entry, city)
            continue
        if scheme in REMOTE:
            found.append(entry)
            continue
        if scheme not in {"", "file"}:
            raise InputError(
                f"{entry}: a scene of {city} is a file, or a URL of {', '.join(sorted(REMOTE))}"
            )
        pattern = unquote(urlsplit(entry).path) if scheme else entry
        named = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        files = sorted(str(Path(name).resolve()) for name in named)
        if not files:
            raise InputError(f"{entry}: no such scene of {city}; correct fetch.path's manifest")
        found += files
    return list(dict.fromkeys(found))


def _in_bucket(folder: str, city: str) -> list[str]:
    names = [name for name in bucket.names(folder) if name.lower().endswith((".tif", ".tiff"))]
    if not names:
        raise InputError(f"{folder}: no scene of {city}, no .tif, is there; correct the manifest")
    return [bucket.join(folder, name) for name in names]


def _stamp(image: Image) -> str:
    return "" if "://" in image.path else stamp(*image.files)


def _note_rough(image: Image, city: str, notes: dict) -> None:
    rough = rough_shift(DEGREES, image.grid.crs, image.grid.bounds)
    if rough and f"{city}: {rough}" not in notes["warnings"]:
        notes["warnings"].append(f"{city}: {rough}")


def _note_shifts(
    path: Path, images: list[Image], city: str, bands: list[int] | None, notes: dict
) -> None:
    """Note how far the certain footprints lie beside each image, and the images that have none."""
    notes |= {"shift": {}, "scenes_without_buildings": []}
    for image in progress(images, f"aligning {city}"):
        _note_rough(image, city, notes)
        found = read_footprints(path, image.grid.crs, image.grid.bounds)
        certain = found.labels != IGNORE
        if not certain.any():
            notes["scenes_without_buildings"].append(image.name)
            continue
        shift = estimate_shift(
            image.path, Footprints(found.polygons[certain], found.labels[certain]), bands
        )
        if shift is None:
            continue
        notes["shift"][image.name] = {
            name: round(value, 2) for name, value in asdict(shift).items()
        }
        if shift.strength >= STRONG and shift.metres >= OFF:
            notes["warnings"].append(
                f"{city}: footprints lie {shift.metres:.1f} m beside the buildings of "
                f"{image.name}; "
                f"they would fit if moved {shift.east:+.1f} m east and {shift.north:+.1f} m north"
            )
