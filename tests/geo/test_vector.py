"""Footprints come out valid and in the CRS asked for, whatever they were written in."""

import json

import numpy as np
import pyogrio
import pytest
import shapely
from pyproj import CRS, Geod

from pipeline.errors import InputError
from pipeline.geo.vector import read_footprints, repair, reproject, transform_bounds

SQUARE = shapely.box(500_000, 6_000_000, 500_020, 6_000_010)  # 20 m by 10 m in EPSG:32633
BOWTIE = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
UTM = "EPSG:32633"


def write(path, geometries, crs=UTM, **columns):
    kind = "Polygon" if path.suffix == ".shp" else "Unknown"
    wkb, data = shapely.to_wkb(np.array(geometries, object)), [np.array(v) for v in columns.values()]
    pyogrio.raw.write(path, wkb, data, list(columns), geometry_type=kind, crs=crs)
    return path


def geoparquet(path, geometries, crs=UTM, **columns):
    import geopandas

    geopandas.GeoDataFrame(columns, geometry=list(geometries), crs=crs).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.shp", "a.fgb"])
def test_every_format_gives_the_same_polygons(tmp_path, name):
    crs = "EPSG:4326" if name == "a.geojson" else UTM
    squares = np.array([SQUARE, shapely.affinity.translate(SQUARE, 100, 0)], object)
    path = write(tmp_path / name, reproject(squares, UTM, crs), crs, label=[1, 255])
    found = read_footprints(path, UTM)
    order = np.argsort(shapely.bounds(found.polygons)[:, 0])
    assert np.allclose(shapely.bounds(found.polygons[order]), shapely.bounds(squares), atol=1e-2)
    assert found.labels[order].tolist() == [1, 255]
    assert (found.repaired, found.dropped) == (0, 0)


def test_geoparquet_carries_its_crs(tmp_path):
    path = geoparquet(tmp_path / "a.parquet", [SQUARE], label=np.array([2], np.uint8))
    found = read_footprints(path, "EPSG:4326")
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(found.polygons[0])
    assert abs(area) == pytest.approx(200 / 0.9996**2, rel=1e-3)  # metres on the ground: UTM shrinks by 0.9996
    assert found.labels.tolist() == [2]


def test_geoparquet_under_capitals_and_in_another_encoding(tmp_path):
    import geopandas

    geoparquet(tmp_path / "a.parquet", [SQUARE]).rename(tmp_path / "B.PARQUET")
    assert read_footprints(tmp_path / "B.PARQUET").polygons[0].equals(SQUARE)
    path = tmp_path / "arrow.parquet"
    geopandas.GeoDataFrame(geometry=[SQUARE], crs=UTM).to_parquet(path, geometry_encoding="geoarrow")
    with pytest.raises(InputError, match="its geometry is encoded as polygon; write the file again, encoded as WKB"):
        read_footprints(path)


def test_geoparquet_without_crs_key_is_longitude_latitude_and_null_is_refused(tmp_path):
    path = geoparquet(tmp_path / "a.parquet", [shapely.box(10, 50, 11, 51)], crs=None)
    with pytest.raises(InputError, match="carry no CRS"):
        read_footprints(path)
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    geo = json.loads(table.schema.metadata[b"geo"])
    del geo["columns"]["geometry"]["crs"]
    parquet.write_table(table.replace_schema_metadata({b"geo": json.dumps(geo).encode()}), path)
    assert read_footprints(path, "EPSG:4326").bounds == (10, 50, 11, 51)


def test_bounding_box_keeps_what_crosses_it_and_nothing_else(tmp_path):
    inside, crossing, outside = (shapely.affinity.translate(SQUARE, dx, 0) for dx in (0, 35, 80))
    write(tmp_path / "a.gpkg", [inside, crossing, outside])
    geoparquet(tmp_path / "a.parquet", [inside, crossing, outside])
    bounds = (500_000, 6_000_000, 500_040, 6_000_040)  # the second one's centre lies outside
    for path in tmp_path.iterdir():
        assert len(read_footprints(path, UTM, bounds)) == 2
        box = transform_bounds(bounds, UTM, "EPSG:3857")
        assert len(read_footprints(path, "EPSG:3857", box)) == 2


def test_repair_keeps_the_area_a_person_meant():
    hole_touching = shapely.Polygon([(0, 0), (4, 0), (4, 4), (0, 4)], [[(1, 1), (5, 1), (5, 2), (1, 2)]])
    spike = shapely.Polygon([(0, 0), (2, 0), (2, 2), (2, 9), (2, 2), (0, 2)])
    line = shapely.Polygon([(0, 0), (1, 1), (2, 2)])
    given = np.array([SQUARE, BOWTIE, hole_touching, spike, line, shapely.Point(0, 0), None], object)
    polygons, invalid = repair(given)
    assert invalid.tolist() == [False, True, True, True, True, False, False]
    assert shapely.is_missing(polygons).tolist() == [False, False, False, False, True, True, True]
    assert shapely.is_valid(polygons[:4]).all()
    assert shapely.area(polygons[[0, 1, 3]]) == pytest.approx([200, 2, 4])


def test_repaired_and_dropped_are_counted(tmp_path):
    far = shapely.affinity.translate(BOWTIE, 500_100, 6_000_000)
    near = shapely.affinity.translate(BOWTIE, 500_000, 6_000_000)
    path = write(tmp_path / "a.gpkg", [SQUARE, near, far, shapely.Point(500_001, 6_000_001), shapely.Polygon()])
    found = read_footprints(path, UTM)
    assert (len(found), found.repaired, found.dropped) == (3, 2, 2)
    found = read_footprints(path, UTM, (500_000, 6_000_000, 500_040, 6_000_040))
    assert (len(found), found.repaired, found.dropped) == (2, 1, 1)


def test_height_is_forgotten(tmp_path):
    path = write(tmp_path / "a.gpkg", [shapely.force_3d(SQUARE, 7)])
    assert not shapely.has_z(read_footprints(path, "EPSG:4326").polygons).any()


def test_an_empty_file_has_no_polygons(tmp_path):
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert len(read_footprints(tmp_path / "a.geojson", UTM, SQUARE.bounds)) == 0


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_unreadable_and_ambiguous_files_say_so(tmp_path):
    (tmp_path / "a.geojson").write_text("<!doctype html>")
    with pytest.raises(InputError, match="a.geojson: cannot be read as footprints"):
        read_footprints(tmp_path / "a.geojson")
    (tmp_path / "a.parquet").write_text("<!doctype html>")
    with pytest.raises(InputError, match="a.parquet: cannot be read as footprints"):
        read_footprints(tmp_path / "a.parquet")
    path = write(tmp_path / "none.gpkg", [SQUARE], crs=None)
    with pytest.raises(InputError, match="no CRS"):
        read_footprints(path)
    for layer in ("one", "two"):
        pyogrio.raw.write(
            tmp_path / "two.gpkg", shapely.to_wkb(np.array([SQUARE])), [], [], layer=layer, crs=UTM,
            geometry_type="Polygon",
        )  # fmt: skip
    with pytest.raises(InputError, match=r"2 layers of polygons \(one, two\)"):
        read_footprints(tmp_path / "two.gpkg")
    path = write(tmp_path / "wrong.gpkg", [SQUARE], label=[300])
    with pytest.raises(InputError, match="label holds 300"):
        read_footprints(path)


def test_bounds_follow_the_curved_edges():
    left, bottom, right, top = transform_bounds((0, 50, 30, 60), "EPSG:4326", "EPSG:3035")
    corners = reproject(np.array([shapely.box(0, 50, 30, 60)], object), "EPSG:4326", "EPSG:3035")[0].bounds
    assert bottom < corners[1] - 1000 or top > corners[3] + 1000  # parallels bulge in a conic or azimuthal CRS
    assert CRS(3035).axis_info[0].direction == "north"  # and yet x comes first
    assert left < right and bottom < top
