"""Maps in a catalogue: a STAC item beside each map, and one stac-geoparquet index of a run's items.

https://github.com/radiantearth/stac-spec (1.1.0), https://github.com/stac-extensions/projection
(2.0.0), https://github.com/radiantearth/stac-geoparquet-spec (1.1.0)
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import shapely
from pyproj import CRS

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.imagery.writer import HERE, geo_metadata, onto_disk
from pipeline.mapping.edits import content
from pipeline.mapping.publishing import finished, forget, publish, replaceable
from pipeline.storage import fingerprint, read_json, scratch

NAME, FORMAT = "items", 1  # raise it when the same items give another index
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
MEDIA = {
    "tif": COG, "gpkg": "application/geopackage+sqlite3", "fgb": "application/vnd.flatgeobuf",
    "parquet": "application/vnd.apache.parquet", "geojson": "application/geo+json",
    "pmtiles": "application/vnd.pmtiles", "json": "application/json",
}  # fmt: skip
TIME, TEXT, NUMBER = pa.timestamp("us", "UTC"), pa.string(), pa.float64()
PROPERTIES = {
    "datetime": TIME, "created": TIME, "description": TEXT, "gsd": NUMBER, "proj:code": TEXT,
    "proj:wkt2": TEXT, "proj:shape": pa.list_(pa.int64()), "proj:transform": pa.list_(NUMBER),
    "buildings": pa.int64(), "built_area_m2": NUMBER, "model": TEXT, "model_version": TEXT,
}  # fmt: skip
BOX = pa.struct([(side, NUMBER) for side in ("xmin", "ymin", "xmax", "ymax")])


def map_item(
    name: str, scene: Grid, files: dict[str, str], found: dict, about: dict[str, str | None]
) -> dict:
    """The map of a scene as a STAC item; without a CRS it has no geometry.

    files: by layer; found: the record's `scene`, `gsd`, `buildings`, `built_area_m2`; about:
    `captured`, `model` and `model_version`. `datetime` is the day the scene was taken, where its
    tags do not say one the map's own (`created`).
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    held = files | {"record": f"{name}.json"}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [PROJECTION],
        "id": name,
        **_placed(scene),
        "properties": {
            "datetime": f"{about['captured']}T00:00:00Z" if about["captured"] else now,
            "created": now,
            "description": f"Buildings mapped by {about['model']}",
            "gsd": max(found["gsd"]),
            **_projection(scene),
            **{key: found[key] for key in ("buildings", "built_area_m2")},
            **{key: about[key] for key in ("model", "model_version")},
        },
        "links": [{"rel": "derived_from", "href": found["scene"]}],
        "assets": {layer: _asset(layer, file) for layer, file in held.items() if layer != "item"},
    }


def _asset(layer: str, file: str) -> dict:
    role = "metadata" if layer == "record" else "data"
    return {
        "href": f"./{file}",
        "type": MEDIA[file.rpartition(".")[2]],
        "title": layer,
        "roles": [role],
    }


def _placed(scene: Grid) -> dict:
    """Geometry and bounding box in degrees; across the antimeridian its west is more than its
    east (RFC 7946).
    """
    if scene.crs is None:
        return {"geometry": None}
    (outline,) = scene.outlines()
    west, south, east, north = shapely.bounds(shapely.get_parts(outline)).T
    box = [float(side) for side in (west.max(), south.min(), east.min(), north.max())]
    return {
        "geometry": json.loads(shapely.to_geojson(shapely.orient_polygons(outline))),
        "bbox": box,
    }


def _projection(scene: Grid) -> dict:
    """The extension's fields; what has no authority's code is written out (WKT 2)."""
    crs = None if scene.crs is None else CRS.from_user_input(scene.crs)
    code = crs.to_authority(min_confidence=100) if crs else None
    return {
        "proj:code": ":".join(code) if code else None,
        "proj:wkt2": crs.to_wkt("WKT2_2019") if crs and not code else None,
        "proj:shape": list(scene.shape),
        "proj:transform": list(scene.transform)[:6],
    }


def check_name(names: list[str]) -> None:
    """Raise InputError where a scene is called as the index is."""
    if NAME in names:
        raise InputError(f"--stac: a scene is called {NAME}, as the index would be; rename it")


def index(out: Path, names: list[str]) -> dict:
    """Write OUT/items.parquet, a row an item OUT/NAME.item.json of `names`; returns
    OUT/items.json's content.

    Raises InputError where the index was changed since it was written, or the disk
    does not take it.
    """
    record, file = out / f"{NAME}.json", f"{NAME}.parquet"
    key = fingerprint(FORMAT, [[name, content(out / f"{name}.item.json")] for name in names])
    if before := finished(record, key, [file]):
        return before
    replaceable(record, [file])
    items = [read_json(out / f"{name}.item.json") for name in names]
    with scratch(record) as partial:
        with onto_disk(partial / file):
            parquet.write_table(_table(items), partial / file, filesystem=HERE, compression="zstd")
        found = {"items": len(items), "key": key, "files": {file: content(partial / file)}}
        publish(partial, record, found, replaceable(record, [file]))
    forget(record)
    return found


def _table(items: list[dict]) -> pa.Table:
    """A column a property, as stac-geoparquet has them."""
    times = [name for name, kind in PROPERTIES.items() if kind == TIME]
    properties = [item["properties"] for item in items]
    properties = [p | {name: datetime.fromisoformat(p[name]) for name in times} for p in properties]
    columns = {
        name: pa.array([p[name] for p in properties], kind) for name, kind in PROPERTIES.items()
    }
    boxes = [
        dict(zip(BOX.names, item["bbox"], strict=True)) if "bbox" in item else None
        for item in items
    ]
    outlines = [item["geometry"] and shapely.geometry.shape(item["geometry"]).wkb for item in items]
    same = ("stac_version", "stac_extensions", "id", "links", "assets")
    columns |= {name: pa.array([item[name] for item in items]) for name in same}
    columns |= {"bbox": pa.array(boxes, BOX), "geometry": pa.array(outlines, pa.binary())}
    covering = {"bbox": {side: ["bbox", side] for side in BOX.names}}
    geo = geo_metadata(
        CRS("OGC:CRS84"), geometry_types=["Polygon", "MultiPolygon"], covering=covering
    )
    return pa.table(columns).replace_schema_metadata(
        geo | {"stac-geoparquet": json.dumps({"version": "1.1.0"})}
    )
