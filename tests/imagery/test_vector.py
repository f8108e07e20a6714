"""Footprints come out valid and in the CRS asked for, whatever they were written in."""

import json
import sqlite3
import struct
import zipfile

import numpy as np
import pyogrio
import pytest
import shapely
from pyproj import CRS, Geod

from pipeline.errors import InputError
from pipeline.imagery.vector import (
    read_footprints,
    repair,
    reproject,
    rough_shift,
    transform_bounds,
)

SQUARE = shapely.box(500_000, 6_000_000, 500_020, 6_000_010)  # 20 m by 10 m in EPSG:32633
BOWTIE = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
UTM = "EPSG:32633"


def write(path, geometries, crs=UTM, **columns):
    kind = "Polygon" if path.suffix == ".shp" else "Unknown"
    wkb, data = (
        shapely.to_wkb(np.array(geometries, object)),
        [np.array(v) for v in columns.values()],
    )
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
    # metres on the ground: UTM shrinks by 0.9996
    assert abs(area) == pytest.approx(200 / 0.9996**2, rel=1e-3)
    assert found.labels.tolist() == [2]


def test_geoparquet_under_capitals_and_in_another_encoding(tmp_path):
    import geopandas

    geoparquet(tmp_path / "a.parquet", [SQUARE]).rename(tmp_path / "B.PARQUET")
    assert read_footprints(tmp_path / "B.PARQUET").polygons[0].equals(SQUARE)
    path = tmp_path / "arrow.parquet"
    geopandas.GeoDataFrame(geometry=[SQUARE], crs=UTM).to_parquet(
        path, geometry_encoding="geoarrow"
    )
    with pytest.raises(
        InputError, match="its geometry is encoded as polygon; write the file again, encoded as WKB"
    ):
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
    hole_touching = shapely.Polygon(
        [(0, 0), (4, 0), (4, 4), (0, 4)], [[(1, 1), (5, 1), (5, 2), (1, 2)]]
    )
    spike = shapely.Polygon([(0, 0), (2, 0), (2, 2), (2, 9), (2, 2), (0, 2)])
    line = shapely.Polygon([(0, 0), (1, 1), (2, 2)])
    given = np.array(
        [SQUARE, BOWTIE, hole_touching, spike, line, shapely.Point(0, 0), None], object
    )
    polygons, invalid = repair(given)
    assert invalid.tolist() == [False, True, True, True, True, False, False]
    assert shapely.is_missing(polygons).tolist() == [False, False, False, False, True, True, True]
    assert shapely.is_valid(polygons[:4]).all()
    assert shapely.area(polygons[[0, 1, 3]]) == pytest.approx([200, 2, 4])


def test_repaired_and_dropped_are_counted(tmp_path):
    far = shapely.affinity.translate(BOWTIE, 500_100, 6_000_000)
    near = shapely.affinity.translate(BOWTIE, 500_000, 6_000_000)
    path = write(
        tmp_path / "a.gpkg",
        [SQUARE, near, far, shapely.Point(500_001, 6_000_001), shapely.Polygon()],
    )
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
    corners = reproject(np.array([shapely.box(0, 50, 30, 60)], object), "EPSG:4326", "EPSG:3035")[
        0
    ].bounds
    # parallels bulge in a conic or azimuthal CRS
    assert bottom < corners[1] - 1000 or top > corners[3] + 1000
    assert CRS(3035).axis_info[0].direction == "north"  # and yet x comes first
    assert left < right and bottom < top


def surface(*faces):
    """WKB of a polyhedral surface: each face a ring (K, 3)."""
    polygons = [
        struct.pack("<BIII", 1, 1003, 1, len(face)) + np.asarray(face, "<f8").tobytes()
        for face in faces
    ]
    return struct.pack("<BII", 1, 1015, len(faces)) + b"".join(polygons)


@pytest.mark.filterwarnings("ignore:Registering non-standard")
def test_a_solid_is_what_its_faces_cover(tmp_path):
    """A gabled house: two slopes that meet, the ground below them, and a wall, which has no
    area from above.
    """
    slopes = [
        [(0, 0, 5), (5, 0, 8), (5, 9, 8), (0, 9, 5), (0, 0, 5)],
        [(5, 0, 8), (9, 0, 5), (9, 9, 5), (5, 9, 8), (5, 0, 8)],
    ]
    ground, wall = (
        [(0, 0, 0), (9, 0, 0), (9, 9, 0), (0, 9, 0), (0, 0, 0)],
        [(0, 0, 0), (0, 9, 0), (0, 9, 5), (0, 0, 0)],
    )
    solid = surface(*slopes, ground, wall)
    collection = struct.pack("<BII", 1, 1007, 1) + solid
    path, wkb = tmp_path / "a.gpkg", np.array([solid, collection], object)
    pyogrio.raw.write(path, wkb, [], [], geometry_type="Unknown", crs=UTM)
    found = read_footprints(path, UTM, (0, 0, 20, 20))
    assert shapely.area(found.polygons).tolist() == [81, 81]
    assert (found.repaired, found.dropped) == (0, 0)


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.parquet"])
def test_closed_lines_are_outlines_and_open_ones_are_counted(tmp_path, name):
    ring, hole = (shapely.get_coordinates(shapely.box(a, a, b, b)) for a, b in ((0, 10), (2, 4)))
    lines = [
        shapely.LineString(ring),
        shapely.MultiLineString([ring, hole]),
        shapely.LineString(ring[:3]),
    ]
    path = (geoparquet if name.endswith("parquet") else write)(tmp_path / name, lines, "EPSG:4326")
    found = read_footprints(path)
    assert sorted(shapely.area(found.polygons)) == pytest.approx([96, 100])
    assert (found.outlines, found.dropped) == (2, 1)


OSM = {
    "osm_id": ["1", "2", "3"],
    "building": ["yes", None, "no"],
    "landuse": [None, "forest", None],
}
THREE = [shapely.affinity.translate(SQUARE, 100 * i, 0) for i in range(3)]


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.fgb", "a.parquet", "a.shp"])
def test_of_openstreetmap_only_buildings_unless_a_condition_says_otherwise(tmp_path, name):
    import geopandas

    frame = geopandas.GeoDataFrame(OSM, geometry=THREE, crs=UTM)
    path = tmp_path / name
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_file(path)
    found = read_footprints(path, UTM)
    assert (len(found), found.others) == (1, 2) and found.bounds == pytest.approx(SQUARE.bounds)
    found = read_footprints(
        path, UTM, tuple(shapely.total_bounds(THREE).tolist()), where="landuse = 'forest'"
    )
    assert (len(found), found.others) == (1, 0) and found.bounds == pytest.approx(THREE[1].bounds)
    for where in ("lnduse = 'forest'", "landuse >"):
        with pytest.raises(
            InputError, match="is not understood .*on its columns osm_id, building, landuse"
        ):
            read_footprints(path, where=where)


def test_openstreetmap_without_buildings_is_refused_and_geofabriks_class_is_known(tmp_path):
    path = write(tmp_path / "a.gpkg", THREE, osm_id=["1", "2", "3"], landuse=["forest"] * 3)
    with pytest.raises(InputError, match="OpenStreetMap's landuse and no column building; .*where"):
        read_footprints(path)
    path = write(
        tmp_path / "b.gpkg",
        THREE,
        osm_id=["1", "2", "3"],
        fclass=["building", "forest", "building"],
    )
    assert len(read_footprints(path)) == 2
    path = write(tmp_path / "c.gpkg", THREE, building=["a", "b", "no"])  # a register's own column
    assert len(read_footprints(path)) == 3


@pytest.mark.parametrize(
    "name",
    ["a;b.gpkg", "a!b.geojson", "a?b#c%41.shp", "-a {b} [c]*.fgb", "gpkg_'\".gpkg", "A.GPKG"],
)
def test_no_name_means_anything(tmp_path, name):
    folder = tmp_path / "work!zip://x;y"
    folder.mkdir(parents=True)
    written = write(tmp_path / f"plain.{name.rpartition('.')[2].lower()}", [SQUARE])
    for file in tmp_path.glob("plain.*"):
        file.rename(
            folder
            / file.name.replace("plain", name.rpartition(".")[0]).replace(
                written.suffix, f".{name.rpartition('.')[2]}"
            )
        )
    assert len(read_footprints(folder / name)) == 1


def test_a_shapefile_without_its_index_is_said_to_lack_it(tmp_path):
    write(tmp_path / "a.shp", [SQUARE])
    (tmp_path / "a.shx").unlink()
    with pytest.raises(
        InputError,
        match=r"a\.shp: a\.shx is missing beside it; copy all files of "
        r"that name$",
    ):
        read_footprints(tmp_path / "a.shp")


def test_a_shapefile_in_a_folder_of_a_zip(tmp_path):
    write(tmp_path / "a.shp", [SQUARE])
    for name, places in (
        ("one.zip", ["x/"]),
        ("mac.zip", ["", "__MACOSX/._"]),
        ("two.zip", ["", "x/"]),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in tmp_path.glob("a.*"):
                for place in places:
                    archive.write(file, f"{place}{file.name}")
    assert (
        len(read_footprints(tmp_path / "one.zip"))
        == len(read_footprints(tmp_path / "mac.zip"))
        == 1
    )
    with pytest.raises(
        InputError, match="holds 2 files of footprints, a.shp, x/a.shp; pack exactly one"
    ):
        read_footprints(tmp_path / "two.zip")


def test_what_an_editor_has_not_saved_yet_is_read_or_said(tmp_path):
    path = write(tmp_path / "a.gpkg", THREE)
    before = read_footprints(path).digest
    editor = sqlite3.connect(path, isolation_level=None)
    editor.execute("pragma journal_mode=wal")
    assert read_footprints(path).digest == before
    for (name,) in editor.execute(
        "select name from sqlite_master where type = 'trigger'"
    ).fetchall():
        editor.execute(f'drop trigger "{name}"')
    editor.execute("delete from a where fid = 1")
    assert len(read_footprints(path)) == 2 and read_footprints(path).digest != before
    editor.execute("pragma journal_mode=delete")
    editor.close()
    path.write_bytes(b"torn" + path.read_bytes()[4:])
    (tmp_path / "a.gpkg-journal").write_bytes(b"x")
    with pytest.raises(
        InputError, match="last changes lie in a file beside it.*open it in QGIS, save and close it"
    ):
        read_footprints(path)


def test_a_digest_knows_what_is_drawn_and_no_order(tmp_path):
    path, back = write(tmp_path / "a.gpkg", THREE), write(tmp_path / "b.fgb", THREE[::-1])
    assert read_footprints(path).digest == read_footprints(back).digest
    assert (
        read_footprints(write(tmp_path / "c.gpkg", THREE, label=[1, 1, 255])).digest
        != read_footprints(path).digest
    )


def test_a_datum_shift_without_its_grid_is_said(monkeypatch):
    """Britain's needs OSTN15, which no wheel brings; within one datum, or from
    ETRS89, nothing is missing.
    """
    said = rough_shift("EPSG:4326", "EPSG:27700", (91_000, 11_000, 92_000, 12_000))
    if said is None:
        pytest.skip("PROJ has the grid here")
    assert (
        "uk_os_OSTN15_NTv2_OSGBtoETRS.tif" in said
        and "2 m or more" in said
        and "with it 1 m" in said
    )
    assert rough_shift("EPSG:4326", UTM, SQUARE.bounds) is None
    assert rough_shift("EPSG:4258", "EPSG:25833", SQUARE.bounds) is None
    unknown = "+proj=longlat +ellps=bessel +no_defs"
    assert "no datum shift" in rough_shift(unknown, UTM, SQUARE.bounds)


def test_no_way_between_two_crs_is_a_sentence(tmp_path):
    site = 'LOCAL_CS["site",UNIT["metre",1]]'
    path = write(tmp_path / "a.gpkg", [SQUARE])
    with pytest.raises(
        InputError, match="nothing leads from its CRS WGS 84 / UTM zone 33N to site"
    ):
        read_footprints(path, site, SQUARE.bounds)


@pytest.mark.parametrize(
    ("geo", "message"),
    [
        (b"{", "metadata are not GeoParquet's"),
        (b"[]", "metadata are not GeoParquet's"),
        (b"{}", "metadata are not GeoParquet's: KeyError..primary_column"),
        (
            b'{"primary_column": "x", "columns": {"x": {"encoding": "WKB"}}}',
            "metadata are not GeoParquet's",
        ),
        (
            b'{"primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB", "crs": '
            b'"EPSG:0"}}}',
            "not understood",
        ),
    ],
)
def test_odd_metadata_of_parquet_are_a_sentence(tmp_path, geo, message):
    import pyarrow.parquet as parquet

    path = geoparquet(tmp_path / "a.parquet", [SQUARE])
    parquet.write_table(parquet.read_table(path).replace_schema_metadata({b"geo": geo}), path)
    with pytest.raises(InputError, match=f"a.parquet: .*{message}"):
        read_footprints(path)


BOTH_SIDES = [shapely.box(x, -17, x + 0.001, -16.999) for x in (179.995, -179.996)]


@pytest.mark.parametrize(("left", "right"), [(179.99, 180.01), (-180.01, -179.99)])
def test_a_scene_in_degrees_across_the_antimeridian_is_refused(tmp_path, left, right):
    path = write(tmp_path / "fiji.geojson", BOTH_SIDES, crs="EPSG:4326")
    with pytest.raises(InputError, match="beyond the antimeridian.*such as its UTM zone"):
        read_footprints(path, "EPSG:4326", (left, -17.1, right, -16.9))


def test_a_scene_that_ends_at_the_antimeridian_and_one_in_metres_across_it_are_not(tmp_path):
    path = write(tmp_path / "fiji.geojson", BOTH_SIDES, crs="EPSG:4326")
    assert len(read_footprints(path, "EPSG:4326", (179.99, -17.1, 180.0000001, -16.9))) == 1
    here = read_footprints(path, "EPSG:32760").bounds
    assert len(read_footprints(path, "EPSG:32760", here)) == 2
