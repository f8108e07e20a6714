"""One layer of many scenes' footprints: a building on a scene's edge is whole, one
in two scenes is there once.

Only footprints near another scene are looked at together; all others go straight through. Those
near are kept in a database on disk and met from west to east: a group of footprints that touch
across scenes is done once nothing further east can reach it. Memory is that of a batch and of the
groups that are open, never of the layer.

What becomes of a group, the largest first (as in non-maximum suppression):

    whole in its scene    kept, but for one that lies by half or more in what is kept already: the same building again
    cut by its edge       dropped likewise; else united with those it touches in other scenes
    what two share        belongs to the first, so that no ground is counted twice
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pyogrio
import rasterio
import shapely
from pyproj import CRS, Transformer
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.imagery.writer import FIELDS, HERE, WriteFootprints, footprints, plain_name
from pipeline.mapping.edits import content
from pipeline.mapping.publishing import finished, forget, publish, replaceable
from pipeline.storage import fingerprint, scratch

NAME = "merged"
FORMAT = 1  # raise it when the same footprints give another layer
BATCH = 4096  # footprints looked at together
AGAIN = 0.5  # share of a footprint inside another scene's from which on the two are one building
NEAR = 1.5  # pixels: as far as simplified outlines leave a scene's edge, or stop short of it
REST = [name for name in FIELDS if name not in {"id", "label", "area_m2", "confidence"}]
EDGE = 32  # points along a scene's side, which another CRS bends


@dataclass
class Found:
    """n footprints in the layer's CRS, (n,) each: their scene's number, and
    whether its edge cuts them.
    """

    id: np.ndarray
    label: np.ndarray
    area_m2: np.ndarray
    confidence: np.ndarray
    geometry: np.ndarray
    scene: np.ndarray
    cut: np.ndarray
    # what else a footprint says, as JSON: a merged one says what its largest piece did
    rest: np.ndarray

    def where(self, keep: np.ndarray | list) -> "Found":
        return Found(*(getattr(self, f.name)[keep] for f in fields(self)))

    def write(self, to: WriteFootprints) -> None:
        """Every part of them as a polygon, with its share of the area."""
        parts, of = shapely.get_parts(self.geometry, return_index=True)
        keep = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & (
            shapely.area(parts) > 0
        )
        parts, of = parts[keep], of[keep]
        if not len(parts):
            return
        share = shapely.area(parts) / shapely.area(self.geometry)[of]
        nth = np.arange(len(of)) - np.searchsorted(of, of)
        ids = [id if n == 0 else f"{id}-{n}" for id, n in zip(self.id[of], nth, strict=True)]
        rest = [json.loads(text) for text in self.rest[of]]
        columns = {name: [one[name] for one in rest] for name in REST}
        columns |= {"id": ids, "label": self.label[of], "confidence": self.confidence[of]}
        to(columns | {"area_m2": np.round(self.area_m2[of] * share, 3)}, parts)

    @staticmethod
    def join(parts: list["Found"]) -> "Found":
        return Found(
            *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Found))
        )


@dataclass(frozen=True)
class Scene:
    """A mapped scene: its footprints' file and CRS, its outline in the layer's CRS, and a
    pixel's side there.
    """

    path: Path
    crs: CRS
    outline: shapely.Polygon
    pixel: float


def file_name(suffix: str) -> str:
    return f"{NAME}.{suffix}"


def merge(out: Path, names: list[str], suffix: str) -> dict:
    """Merge the footprints OUT/NAME.SUFFIX of mapped scenes into OUT/merged.SUFFIX,
    in the first scene's CRS.

    Returns OUT/merged.json's content. Raises InputError where a scene has no CRS or the layer was
    edited since; nothing is left then.
    """
    record, file = out / f"{NAME}.json", file_name(suffix)
    key = fingerprint(FORMAT, suffix, [[name, content(out / f"{name}.{suffix}")] for name in names])
    if before := finished(record, key, [file]):
        return before
    replaceable(record, [file])
    scenes, crs = _scenes(out, names, suffix)
    with scratch(record) as partial:
        with footprints(partial / file, crs) as write:
            count, area = _merge(scenes, CRS.from_user_input(crs), partial / "near.sqlite", write)
        (partial / "near.sqlite").unlink()
        found = {
            "scenes": names,
            "key": key,
            "files": {file: content(partial / file)},
            "buildings": count,
            "built_area_m2": round(area, 1),
        }
        publish(partial, record, found, replaceable(record, [file]))
    forget(record)
    return found


def _scenes(out: Path, names: list[str], suffix: str) -> tuple[list[Scene], object]:
    """The scenes with their outlines in the CRS of the first."""
    scenes, target = [], None
    for name in names:
        with rasterio.open(out / f"{name}.tif") as mask:
            grid = Grid(mask.height, mask.width, mask.transform, mask.crs)
        if grid.crs is None:
            raise InputError(
                f"--merge: {name} has no CRS, so where it lies beside the others is "
                f"unknown; leave it out"
            )
        target = target or grid.crs
        outline = shapely.Polygon(grid.corners()[0])
        outline = shapely.segmentize(outline, outline.length / EDGE)
        outline = _moved(np.array([outline]), grid.crs, target)[0]
        crs = "OGC:CRS84" if suffix == "geojson" else grid.crs
        pixel = float(np.sqrt(outline.area / (grid.height * grid.width)))
        scenes.append(Scene(out / f"{name}.{suffix}", CRS.from_user_input(crs), outline, pixel))
    return scenes, target


def _moved(geometry: np.ndarray, source, target) -> np.ndarray:
    source, target = CRS.from_user_input(source), CRS.from_user_input(target)
    if source == target:
        return geometry
    change = Transformer.from_crs(source, target, always_xy=True).transform
    return shapely.transform(geometry, lambda xy: np.stack(change(*xy.T), axis=-1))


def _merge(
    scenes: list[Scene], crs: CRS, database: Path, write: WriteFootprints
) -> tuple[int, float]:
    """The number and m² of the footprints written."""
    total = np.zeros(2)

    def counted(columns: dict, polygons: np.ndarray) -> None:
        write(columns, polygons)
        total[:] += len(polygons), float(np.sum(columns["area_m2"]))

    near = NEAR * max(scene.pixel for scene in scenes)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "create table near (west, id, label, area, confidence, geometry, scene, cut, rest)"
        )
        tree = shapely.STRtree([scene.outline for scene in scenes])
        for number, scene in enumerate(scenes):
            others = np.setdiff1d(tree.query(scene.outline, "dwithin", distance=near), [number])
            around = shapely.union_all([scenes[i].outline for i in others])
            shapely.prepare(around)
            for batch in _read(scene, number, crs):
                close = shapely.dwithin(batch.geometry, around, near)
                batch.where(~close).write(counted)
                _keep(connection, batch.where(close))
        for group in _groups(_from_west(connection), near):
            _resolved(group, near).write(counted)
    return int(total[0]), float(total[1])


def _read(scene: Scene, number: int, crs: CRS) -> Iterator[Found]:
    """A scene's footprints in batches."""
    edge = shapely.boundary(scene.outline)
    shapely.prepare(edge)
    for table in _tables(scene.path):
        columns = {
            name: table.column(name).to_numpy(zero_copy_only=False) for name in table.schema.names
        }
        if not table.num_rows:
            continue
        wkb = next(
            columns[name] for name in ("geometry", "wkb_geometry", "geom") if name in columns
        )
        geometry = _moved(shapely.make_valid(shapely.from_wkb(wkb)), scene.crs, crs)
        yield Found(
            columns["id"], columns["label"], columns["area_m2"], columns["confidence"], geometry,
            np.full(len(geometry), number), shapely.dwithin(geometry, edge, NEAR * scene.pixel),
            _rest(columns, len(geometry)),
        )  # fmt: skip


def _rest(columns: dict[str, np.ndarray], count: int) -> np.ndarray:
    """(count,) JSON of the other columns; one that a file lacks, or a row leaves open, is null."""
    rows = zip(*(columns.get(name, np.full(count, None)).tolist() for name in REST), strict=True)
    known = ([None if value != value else value for value in row] for row in rows)  # NaN is no JSON
    return np.array([json.dumps(dict(zip(REST, row, strict=True))) for row in known], object)


def _tables(path: Path) -> Iterator[pa.Table | pa.RecordBatch]:
    if path.suffix == ".parquet":
        with parquet.ParquetFile(path, filesystem=HERE) as file:
            yield from file.iter_batches(BATCH)
    else:
        with (
            plain_name(path) as plain,
            pyogrio.open_arrow(plain, layer=0, batch_size=BATCH, use_pyarrow=True) as (_, reader),
        ):
            yield from reader


def _keep(connection: sqlite3.Connection, found: Found) -> None:
    west = shapely.bounds(found.geometry)[:, 0] if len(found.id) else []
    wkb = shapely.to_wkb(found.geometry)
    columns = (
        west,
        found.id,
        found.label,
        found.area_m2,
        found.confidence,
        wkb,
        found.scene,
        found.cut,
        found.rest,
    )
    rows = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    connection.executemany("insert into near values (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _from_west(connection: sqlite3.Connection) -> Iterator[Found]:
    rows = connection.execute(
        "select id, label, area, confidence, geometry, scene, cut, rest from near order by west, "
        "scene, id"
    )
    while batch := rows.fetchmany(BATCH):
        id, label, area, confidence, wkb, scene, cut, rest = zip(*batch, strict=True)
        yield Found(
            np.array(id, object), np.array(label), np.array(area, float),
            np.array(confidence, float), shapely.from_wkb(np.array(wkb, object)), np.array(scene),
            np.array(cut, bool), np.array(rest, object),
        )  # fmt: skip


def _groups(batches: Iterator[Found], near: float) -> Iterator[Found]:
    """Footprints that touch across scenes, or are alone, each group once
    nothing further east can touch it.
    """
    waiting: Found | None = None
    for batch in batches:
        # what comes later begins here or further east
        reached = shapely.bounds(batch.geometry)[-1, 0]
        waiting = batch if waiting is None else Found.join([waiting, batch])
        group = _touching(waiting, near)
        east = np.full(group.max() + 1, -np.inf)
        np.maximum.at(east, group, shapely.bounds(waiting.geometry)[:, 2])
        closed = east[group] < reached - near
        yield from _split(waiting.where(closed), group[closed])
        waiting = waiting.where(~closed)
    if waiting is not None and len(waiting.id):
        yield from _split(waiting, _touching(waiting, near))


def _split(found: Found, group: np.ndarray) -> Iterator[Found]:
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members):
            yield found.where(members)


def _touching(found: Found, near: float) -> np.ndarray:
    """(n,) the group of each footprint: those of different scenes within `near`
    of each other are one.
    """
    a, b = shapely.STRtree(found.geometry).query(found.geometry, "dwithin", distance=near)
    across = found.scene[a] != found.scene[b]
    edges = coo_array((np.ones(across.sum()), (a[across], b[across])), shape=(len(found.id),) * 2)
    return connected_components(edges, directed=False)[1]


def _resolved(group: Found, near: float) -> Found:
    """What a group becomes, see the module."""
    if len(group.id) == 1:
        return group
    united = _united(group.where(group.cut), near) if group.cut.any() else []
    whole = group.where(~group.cut)
    parts = Found.join([whole, *united])
    # What its scene shows whole comes first; of a united building the scenes know parts only.
    order = np.lexsort((-shapely.area(parts.geometry), parts.cut))
    kept, ground = [], shapely.Polygon()
    for i in order:
        one = parts.where([i])
        inside = shapely.intersection(one.geometry[0], ground).area
        if inside >= AGAIN * one.geometry[0].area:
            continue
        if inside:
            rest = shapely.difference(one.geometry[0], ground)
            one.area_m2 = one.area_m2 * (rest.area / one.geometry[0].area)
            one.geometry = np.array([rest], object)
        ground = shapely.union(ground, one.geometry[0])
        kept.append(one)
    return Found.join(kept)


def _united(cut: Found, near: float) -> list[Found]:
    """Pieces of one class that go on in another scene, as one footprint each."""
    group = _touching(cut, near) * 256 + cut.label
    return [_one(pieces, near) for pieces in _split(cut, np.unique(group, return_inverse=True)[1])]


def _one(pieces: Found, near: float) -> Found:
    """Pieces as one footprint, the gap that simplified outlines leave on the seam closed; the
    largest gives its id.
    """
    if len(pieces.id) == 1:
        return pieces
    whole = shapely.union_all(pieces.geometry)
    if shapely.get_num_geometries(whole) > 1:
        wide = shapely.buffer(pieces.geometry, near / 2, join_style="mitre")
        whole = shapely.union(
            whole, shapely.buffer(shapely.union_all(wide), -near / 2, join_style="mitre")
        )
    whole = shapely.simplify(whole, near / 1e3)  # the seam has left points on straight walls
    areas = shapely.area(pieces.geometry)
    first = np.argmax(areas)
    one = pieces.where([first])
    one.geometry = np.array([whole], object)
    # metres as on the ground there
    one.area_m2 = np.array([pieces.area_m2.sum() / areas.sum() * whole.area])
    one.confidence = np.round(np.array([np.average(pieces.confidence, weights=areas)]), 4)
    return one
