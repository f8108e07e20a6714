"""STAC items of maps, against the specification's own schema, and the index of a run."""

import json
from pathlib import Path

import geopandas as gpd
import jsonschema
import numpy as np
import pyarrow.parquet as parquet
import pytest
import referencing
import shapely
from affine import Affine
from jsonschema import FormatChecker
from referencing.jsonschema import DRAFT7

from pipeline.errors import InputError
from pipeline.imagery import writer
from pipeline.imagery.grid import Grid
from pipeline.imagery.writer import check_driver, footprints
from pipeline.mapping.catalogue import PROPERTIES, check_name, index, map_item

SCHEMAS = Path(__file__).parent / "stac_schemas"
UTM = Grid(200, 300, Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000), "EPSG:32632")
FOUND = {"scene": "/scenes/town.tif", "gsd": [0.5, 0.6], "buildings": 7, "built_area_m2": 812.5}
ABOUT = {
    "source": "town.tif",
    "captured": "2021-06-30",
    "model": "all",
    "model_version": "0123456789abcdef",
}
FILES = {"mask": "town.tif", "polygons": "town.gpkg", "item": "town.item.json"}


def item(scene: Grid = UTM, name: str = "town", **about) -> dict:
    return map_item(name, scene, FILES, FOUND, ABOUT | about)


def check(found: dict) -> None:
    """Raise where `found` is no STAC item 1.1.0."""
    schemas = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    places = {
        name: schema["$id"].rpartition("/")[0] for name, schema in schemas.items()
    }  # common.json misspells its $id
    registry = referencing.Registry().with_resources(
        (f"{places[name]}/{name}", DRAFT7.create_resource(schema))
        for name, schema in schemas.items()
    )
    validator = jsonschema.Draft7Validator(
        schemas["item.json"], registry=registry, format_checker=FormatChecker()
    )
    validator.validate(found)


@pytest.mark.parametrize("captured", ["2021-06-30", None])
@pytest.mark.parametrize(
    "crs", ["EPSG:32632", None, "+proj=laea +lat_0=60 +lon_0=9 +x_0=500000 +y_0=6650000"]
)
def test_an_item_is_what_the_schema_says(crs, captured):
    check(item(Grid(200, 300, UTM.transform, crs), captured=captured))


def test_the_schema_refuses_what_is_no_item():
    for name in ("bbox", "assets", "links", "id", "stac_version"):
        with pytest.raises(jsonschema.ValidationError):
            check({key: value for key, value in item().items() if key != name})


def test_an_item_says_where_when_and_what():
    found = item()
    p = found["properties"]
    assert p["datetime"] == "2021-06-30T00:00:00Z" < p["created"]
    assert (p["proj:code"], p["proj:wkt2"], p["proj:shape"]) == ("EPSG:32632", None, [200, 300])
    assert p["proj:transform"] == [0.5, 0, 500_000, 0, -0.5, 6_650_000]
    assert (p["gsd"], p["buildings"], p["model_version"]) == (0.6, 7, "0123456789abcdef")
    west, south, east, north = found["bbox"]
    assert (
        west == pytest.approx(9)
        and north == pytest.approx(59.985, abs=0.01)
        and west < east
        and south < north
    )
    assert shapely.geometry.shape(found["geometry"]).bounds == pytest.approx(found["bbox"])
    assert {name: asset["href"] for name, asset in found["assets"].items()} == {
        "mask": "./town.tif", "polygons": "./town.gpkg", "record": "./town.json"
    }  # fmt: skip
    own = item(captured=None)["properties"]
    assert own["datetime"] == own["created"]


def test_what_has_no_place_has_no_geometry_and_what_has_no_code_is_written_out():
    nowhere = item(Grid(2, 3, Affine.scale(1, -1)))
    assert (
        nowhere["geometry"] is None
        and "bbox" not in nowhere
        and nowhere["properties"]["proj:code"] is None
    )
    own = item(Grid(2, 3, Affine.scale(1, -1), "+proj=laea +lat_0=60 +lon_0=9"))["properties"]
    assert own["proj:code"] is None and own["proj:wkt2"].startswith("PROJCRS")


def test_across_the_antimeridian_west_is_more_than_east():
    found = item(Grid(10, 10, Affine(0.1, 0, 179.5, 0, -0.1, 0.5), "EPSG:4326"))
    assert found["bbox"] == pytest.approx([179.5, -0.5, -179.5, 0.5])
    assert found["geometry"]["type"] == "MultiPolygon"
    check(found)


@pytest.fixture
def items(tmp_path) -> tuple[Path, dict[str, dict]]:
    found = {
        "town": item(),
        "nowhere": item(Grid(2, 3, Affine.scale(1, -1)), "nowhere", captured=None),
    }
    for name, one in found.items():
        (tmp_path / f"{name}.item.json").write_text(json.dumps(one))
    return tmp_path, found


def test_the_index_has_a_row_an_item(items):
    out, found = items
    assert index(out, list(found))["items"] == 2
    rows = gpd.read_parquet(out / "items.parquet")
    assert list(rows.id) == ["town", "nowhere"] and rows.crs == "OGC:CRS84"
    assert (
        rows.geometry[0].equals(shapely.geometry.shape(found["town"]["geometry"]))
        and rows.geometry[1] is None
    )
    assert set(PROPERTIES) < set(rows) and list(rows["proj:code"].dropna()) == ["EPSG:32632"]
    assert rows.datetime[0].isoformat() == "2021-06-30T00:00:00+00:00"
    assert rows.assets[0]["polygons"]["href"] == "./town.gpkg"
    metadata = parquet.read_metadata(out / "items.parquet").metadata
    assert json.loads(metadata[b"stac-geoparquet"])["version"] == "1.1.0"
    assert json.loads(metadata[b"geo"])["columns"]["geometry"]["covering"]["bbox"]["xmin"] == [
        "bbox",
        "xmin",
    ]


def test_an_index_is_made_once_and_an_edited_one_stays(items):
    out, found = items
    index(out, list(found))
    before = (out / "items.parquet").stat().st_mtime_ns
    index(out, list(found))
    assert (out / "items.parquet").stat().st_mtime_ns == before
    index(out, ["town"])
    assert len(gpd.read_parquet(out / "items.parquet")) == 1
    (out / "items.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match="was changed since predict wrote it"):
        index(out, list(found))
    with pytest.raises(InputError, match="a scene is called items"):
        check_name(["town", "items"])


def test_pmtiles_hold_every_building_and_need_a_place_and_a_driver(tmp_path, monkeypatch):
    check_driver("pmtiles")
    fields = {
        name: kind
        for name, kind in writer.FIELDS.items()
        if name in {"id", "confidence", "regularised"}
    }
    houses = shapely.box(
        *(
            np.array([[0, 0, 9, 6]])
            + [500_000, 6_650_000, 500_000, 6_650_000]
            + np.arange(40)[:, None] * 20
        ).T
    )
    columns = {
        "id": np.array([f"{k:x}" for k in range(40)]),
        "confidence": np.full(40, 0.5),
        "regularised": np.ones(40, bool),
    }
    with footprints(tmp_path / "town.pmtiles", "EPSG:32632", fields) as write:
        write(columns, houses)
    rows = gpd.read_file(tmp_path / "town.pmtiles").to_crs("EPSG:32632").dissolve("id")
    assert set(rows.index) == set(columns["id"])
    assert rows.area.to_numpy() == pytest.approx(54, rel=0.15)
    with (
        pytest.raises(InputError, match="no place on a web map"),
        footprints(tmp_path / "a.pmtiles", None),
    ):
        pass
    monkeypatch.setattr(writer.pyogrio, "list_drivers", lambda write: {"GPKG": "rw"})
    with pytest.raises(InputError, match="no driver PMTiles"):
        check_driver("pmtiles")
    check_driver("gpkg")
