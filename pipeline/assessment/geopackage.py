"""The labellers' file: a GeoPackage to be edited in QGIS, or by any program that writes one.

frames      polygons: frame (1 is to be labelled first), status (to do, done, unusable), stratum, inclusion, what the
            draft holds, sample (which sample they belong to). Only `status` is to be changed.
buildings   polygons: the model's draft, clipped to the frames. Label 255: perhaps a building, left out of every count.

Reading trusts nothing: frames must be where they were, statuses spelt, and a frame that was edited
must have been decided.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import shapely
from pyproj import CRS

from pipeline.assessment.population import expected, shown
from pipeline.assessment.survey import DRAFT, LABELS, Survey
from pipeline.errors import InputError, nearest
from pipeline.imagery.rasterize import rasterize
from pipeline.imagery.vector import Footprints, read_footprints, reproject
from pipeline.imagery.vector_file import open_layer
from pipeline.labels import IGNORE
from pipeline.mapping.polygons import Polygoniser
from pipeline.mapping.regular import Outlines

STATUSES = ("to do", "done", "unusable")
MOVED = 0.5  # pixels by which a frame's corners may lie beside where they were
LEAST_AREA = 10.0  # m² of a polygon of the draft
LISTED = 5
STYLES = """
CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT, f_table_schema TEXT,
    f_table_name TEXT, f_geometry_column TEXT, styleName TEXT, styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN,
    description TEXT, owner TEXT, ui TEXT, update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')));
INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', 'layer_styles');
"""


@dataclass(frozen=True)
class Labels:
    """What was labelled: indices (n,) of the frames done and their labels (h, w), 255 left out;
    those unusable; and what lay outside of the frames."""

    done: np.ndarray
    masks: list[np.ndarray]
    unusable: np.ndarray
    clipped: int
    outside: int
    source: CRS


def outlines(survey: Survey, crs) -> np.ndarray:
    """(n,) polygons of the sampled frames."""
    found = [shapely.polygons(survey.grid(i).corners()[0]) for i in survey.drawn]
    sources = [survey.grid(i).crs for i in survey.drawn]
    return np.array([_moved(p, source, crs) for p, source in zip(found, sources, strict=True)])


def _moved(polygon, source, target):
    same = CRS.from_user_input(source).equals(CRS.from_user_input(target))
    return polygon if same else reproject(np.array([polygon]), source, target)[0]


def draft(survey: Survey, i: int) -> tuple[np.ndarray, np.ndarray]:
    """The model's polygons in a frame, in its CRS, and the mean probability of each."""
    levels, grid = survey.levels(i), survey.grid(i)
    mask = (shown(survey.threshold)[np.minimum(levels, 254)] & (levels != IGNORE)).astype(np.uint8)
    polygoniser = Polygoniser(grid.width, max(1, int(LEAST_AREA / survey.pixel_area)))
    parts = [polygoniser.add(mask, levels / 254), polygoniser.finish()]
    raw = np.concatenate([part.geometry for part in parts])
    confidence = np.concatenate([part.confidence for part in parts])
    outlines_of = Outlines("regular", grid.shape, (survey.about["gsd"],) * 2)
    pixels, _ = outlines_of.add(raw, grid.height, np.empty((0, 4)))
    kept = ~shapely.is_missing(pixels)
    where = shapely.transform(
        pixels[kept], lambda xy: np.stack(grid.transform @ (xy[:, 0], xy[:, 1]), 1)
    )
    return where, confidence[kept]


def write(survey: Survey) -> None:
    """Write CITY/label.gpkg and CITY/draft.parquet, in the CRS of the first scene."""
    crs = survey.scenes[0].crs
    drafts = [draft(survey, i) for i in survey.drawn]
    numbers = np.arange(1, len(survey.drawn) + 1)
    mapped = expected(survey.frames.histogram[survey.drawn], survey.threshold) * survey.pixel_area
    frames = geopandas.GeoDataFrame(
        {
            "frame": numbers,
            "status": STATUSES[0],
            "stratum": survey.stratum[survey.drawn],
            "inclusion": survey.inclusion[survey.drawn],
            "buildings": [len(p) for p, _ in drafts],
            "mapped_m2": mapped[:, :2].sum(1).round(1),
            "doubtful_m2": mapped[:, 1:].sum(1).round(1),
            "scene": [survey.scenes[survey.frames.scene[i]].name for i in survey.drawn],
            "image": [f"images/{survey.image(i).name}" for i in survey.drawn],
            "sample": survey.key,
        },
        geometry=outlines(survey, crs),
        crs=crs,
    )
    polygons = [
        _moved(p, survey.grid(i).crs, crs)
        for i, (of, _) in zip(survey.drawn, drafts, strict=True)
        for p in of
    ]
    buildings = geopandas.GeoDataFrame(
        {
            "frame": np.repeat(numbers, [len(p) for p, _ in drafts]),
            "label": np.ones(len(polygons), np.int32),
            "confidence": np.concatenate([c for _, c in drafts]).round(3),
        },
        geometry=geopandas.GeoSeries(polygons, crs=crs, dtype="geometry").values,
        crs=crs,
    )
    path = survey.folder / LABELS
    for name, layer, kind in (
        ("frames", frames, "Polygon"),
        ("buildings", buildings, "MultiPolygon"),
    ):
        multi = kind == "MultiPolygon"  # what an editor splits and merges
        pyogrio.write_dataframe(
            layer, path, layer=name, driver="GPKG", geometry_type=kind, promote_to_multi=multi
        )
    buildings.to_parquet(survey.folder / DRAFT, index=False)
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(STYLES)
        for name in ("frames", "buildings"):
            qml = (Path(__file__).parent / f"{name}.qml").read_text(encoding="utf-8")
            database.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
                "f_geometry_column, "
                "styleName, styleQML, styleSLD, useAsDefault, owner) VALUES ('', '', ?, 'geom', ?, "
                "?, '', 1, '')",
                (name, name, qml),
            )


def read(survey: Survey) -> Labels:
    """What CITY/label.gpkg says. Raises InputError on frames moved, added or lost, a status
    misspelt, another sample's file, a frame edited and not decided, and where none is done.
    """
    path = survey.folder / LABELS
    if not path.exists():
        raise InputError(f"{path}: not found; put the labelled file there")
    status, source = _frames(survey, path)
    footprints = read_footprints(path, survey.scenes[0].crs, layer="buildings")
    wrong = footprints.labels[~np.isin(footprints.labels, (1, IGNORE))]
    if len(wrong):
        raise InputError(
            f"{path}: a building's label is {wrong[0]}; it is 1, or 255 where nobody can tell"
        )
    before = read_footprints(survey.folder / DRAFT, survey.scenes[0].crs)
    to_do = survey.drawn[status == "to do"]
    undecided = [
        i
        for i in to_do
        if not np.array_equal(_mask(survey, i, before), _mask(survey, i, footprints))
    ]
    if undecided:
        raise InputError(
            f"{path}: {_named(survey, undecided)} edited and still to do: finish and mark done, or "
            f"mark unusable"
        )
    done = survey.drawn[status == "done"]
    if not len(done):
        raise InputError(f"{path}: no frame is done; label some and set their status to done")
    clipped, outside = _beside(survey, footprints)
    masks = [_mask(survey, i, footprints) for i in done]
    return Labels(done, masks, survey.drawn[status == "unusable"], clipped, outside, source)


def _named(survey: Survey, frames: list[int]) -> str:
    numbers = sorted(survey.number(i) for i in frames)
    names = ", ".join(map(str, numbers[:LISTED])) + (
        f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    )
    return f"frame {names} was" if len(numbers) == 1 else f"frames {names} were"


def _frames(survey: Survey, path: Path) -> tuple[np.ndarray, CRS]:
    """The status (n,) of each sampled frame, and the CRS that the layer is in."""
    with open_layer(path, "frames") as layer:
        source, wanted = layer.crs, {"frame", "status", "sample"}
        if lost := wanted - set(layer.fields):
            raise InputError(
                f"{path}: its layer frames has lost the column {min(lost)}; start from the file as "
                f"written"
            )
        geometry, columns = layer.read(wanted, None, None)
    if strange := {str(key) for key in columns["sample"]} - {survey.key}:
        raise InputError(
            f"{path}: belongs to another sample ({min(strange)}, not {survey.key}); bring back "
            f"this one's file"
        )
    numbers = columns["frame"].tolist()
    if sorted(numbers, key=str) != sorted(range(1, len(survey.drawn) + 1), key=str):
        expected_numbers = set(range(1, len(survey.drawn) + 1))
        odd = sorted(expected_numbers ^ set(numbers), key=str) or [
            n for n in numbers if numbers.count(n) > 1
        ]
        raise InputError(
            f"{path}: frame {odd[0]} was deleted, added or copied; every frame must be there once"
        )
    order = np.argsort(numbers)
    words = [" ".join(str(word).lower().split()) for word in columns["status"][order]]
    for number, word in enumerate(words, start=1):
        if word not in STATUSES:
            near = nearest(word, STATUSES)
            raise InputError(
                f"{path}: frame {number} has status {word!r}; it is {', '.join(STATUSES)}: {near}?"
            )
    crs = survey.scenes[0].crs
    same = source.equals(CRS.from_user_input(crs))
    here = geometry[order] if same else reproject(geometry[order], source, crs)
    for i, there, found in zip(survey.drawn, outlines(survey, crs), here, strict=True):
        pixel = np.sqrt(there.area / (survey.grid(i).height * survey.grid(i).width))
        if found is None or not shapely.hausdorff_distance(there, found) <= MOVED * pixel:
            raise InputError(
                f"{path}: frame {survey.number(i)} was moved or reshaped; frames must stay where "
                f"they were drawn"
            )
    return np.array(words), source


def _mask(survey: Survey, i: int, footprints: Footprints) -> np.ndarray:
    """(h, w) uint8: 1 where a pixel's centre is in a building, 255 in a doubtful one."""
    grid, crs = survey.grid(i), survey.scenes[0].crs
    frame = _moved(shapely.polygons(grid.corners()[0]), grid.crs, crs)
    near = shapely.intersects(footprints.polygons, frame)
    polygons = footprints.polygons[near]
    if len(polygons) and not CRS.from_user_input(grid.crs).equals(CRS.from_user_input(crs)):
        polygons = reproject(polygons, crs, grid.crs)
    return rasterize(polygons, footprints.labels[near], grid)


def _beside(survey: Survey, footprints: Footprints) -> tuple[int, int]:
    """Polygons that reach out of the frames, and those that are in none."""
    frames = shapely.buffer(
        shapely.union_all(outlines(survey, survey.scenes[0].crs)), 1e-6 * np.sqrt(survey.pixel_area)
    )
    shapely.prepare(frames)
    meets = shapely.intersects(frames, footprints.polygons)
    inside = shapely.covers(frames, footprints.polygons)
    return int((meets & ~inside).sum()), int((~meets).sum())
