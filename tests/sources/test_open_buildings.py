"""Open Buildings in its real layout, from a local server: what meets a scene, a
threshold for each cell.
"""

import csv
import gzip
import io
import pickle
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from scipy import ndimage

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.imagery.rasterize import rasterize
from pipeline.imagery.scene import read_city, write_city
from pipeline.imagery.vector import read_footprints, reproject
from pipeline.labels import IGNORE
from pipeline.params import Fetch
from pipeline.sources.open_buildings.source import (
    COLUMNS,
    Cell,
    _on_sphere,
    fetch,
    keep_near,
    read_cells,
)

UTM = "EPSG:32636"  # the scenes lie at 0.3° north, 32.6° east
SIDE, GSD, LEFT, TOP = 300, 0.5, 455_000, 35_000
WEST, EAST = "17", "19"  # cells left and right of 32.7° east
THRESHOLDS = {WEST: (0.7, 0.75, 0.8), EAST: (0.8, 0.85, 0.9)}


def row(polygon, confidence=0.95, area=None):
    """A line of the CSV: `polygon` in UTM metres."""
    degrees = reproject(np.array([polygon], object), UTM, "EPSG:4326")[0]
    at, text = degrees.centroid, io.StringIO()
    values = [
        f"{at.y:.8f}",
        f"{at.x:.8f}",
        f"{area or polygon.area:.4f}",
        f"{confidence:.4f}",
        degrees.wkt,
        "6GCRPR",
    ]
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def cell(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress((COLUMNS + "\n" + "".join(rows)).encode()))
    return path


def table(path, cells, thresholds=THRESHOLDS):
    names = [f"confidence_threshold_{p}%_precision" for p in (80, 85, 90)]
    counts = [f"building_count_{p}%_precision" for p in (80, 85, 90)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["s2_token", "geometry", *names, "building_count", *counts, "num_samples"])
        for token, polygon in cells.items():
            writer.writerow([token, polygon.wkt, *thresholds[token], 9, 3, 2, 1, 100])


def box(x, y, width=10, height=10):
    """A building `x` metres right of and `y` metres below the scene's corner."""
    return shapely.box(LEFT + x, TOP - y - height, LEFT + x + width, TOP - y)


def image(path, polygons=(), left=0, crs=UTM):
    """A scene of 150 m with roofs where `polygons` are, on textured ground."""
    random = np.random.default_rng(0)
    transform = Affine(GSD, 0, LEFT + left, 0, -GSD, TOP)
    pixels = ndimage.gaussian_filter(random.normal(0, 1, (SIDE, SIDE)), 3) * 150 + 120
    for i, polygon in enumerate(polygons):
        roof = rasterize(np.array([polygon]), np.ones(1, np.uint8), Grid(SIDE, SIDE, transform)) > 0
        pixels[roof] = 60 if i % 2 else 190
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "count": 3,
        "height": SIDE,
        "width": SIDE,
        "dtype": "uint8",
        "crs": crs,
        "transform": transform,
    }
    with rasterio.open(
        path, "w", driver="GTiff", tiled=True, blockxsize=128, blockysize=128, **profile
    ) as dataset:
        dataset.write(np.broadcast_to(pixels.clip(1, 255).astype(np.uint8), (3, SIDE, SIDE)))
    return path


@pytest.fixture
def place(server, tmp_path, monkeypatch):
    """A server with two cells that meet at 32.7° east, and a manifest of the
    city `town` with one scene.
    """
    monkeypatch.chdir(tmp_path)
    west, east = shapely.box(30, -2, 32.7, 2), shapely.box(32.7, -2, 35, 2)
    table(server.root / "thresholds.csv", {WEST: west, EAST: east})
    cell(server.root / f"cells/{WEST}_buildings.csv.gz", [])
    cell(server.root / f"cells/{EAST}_buildings.csv.gz", [])
    image(tmp_path / "imagery" / "a.tif")
    return server


def elsewhere(url):
    """A URL's name and first pixels, or the InputError, in another process:
    GDAL waits with Python held.
    """
    code = f"""
import pickle, sys
from pipeline.errors import InputError
from pipeline.imagery.raster import open_raster
from pipeline.sources.survey import survey
url = {url!r}
try:
    name = survey(url).name
    with open_raster(url) as dataset:
        value = name, dataset.read(1, window=((0, 20), (0, 20)))
except InputError as error:
    value = error
pickle.dump(value, sys.stdout.buffer)
"""
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=root, capture_output=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return pickle.loads(ran.stdout)


def taken(server, scenes=("imagery/*.tif",), precision=90, **keywords):
    manifest = {
        "thresholds": f"{server.url}/thresholds.csv",
        "cells": f"{server.url}/cells/{{token}}_buildings.csv.gz",
        "rights": "CC BY 4.0",
        "attribution": "Google",
        "cities": {"town": {"scenes": list(scenes), "rights": "mine"}},
    } | keywords
    work = server.root.parent
    (work / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (work / "town").mkdir(exist_ok=True)
    section = Fetch(
        source="open_buildings",
        path=str(work / "manifest.yaml"),
        cities=["town"],
        precision=precision,
    )
    city = fetch(section, "town", work / "town", work / "downloads")
    return city, geopandas.read_parquet(work / "town" / "footprints.parquet")


def test_each_cell_has_its_own_threshold(place):
    """Both cells hold a building of confidence 0.82 over the scene: certain in
    one, doubtful in the other.
    """
    cell(
        place.root / f"cells/{WEST}_buildings.csv.gz",
        [row(box(20, 20), 0.82), row(box(50, 20), 0.79)],
    )
    cell(
        place.root / f"cells/{EAST}_buildings.csv.gz",
        [row(box(80, 20), 0.82), row(box(110, 20), 0.9)],
    )
    table(place.root / "thresholds.csv", {t: shapely.box(32, -1, 33, 1) for t in (WEST, EAST)})
    city, found = taken(place)
    assert city.notes["cells"] == {WEST: 0.8, EAST: 0.9}
    assert dict(zip(found["confidence"], found["label"], strict=False)) == {
        0.82: 255,
        0.79: 255,
        0.9: 1,
    }
    assert found["label"].tolist() == [1, 255, 255, 1]
    assert (city.notes["footprints"], city.notes["doubtful_footprints"]) == (4, 2)
    assert taken(place, precision=80)[1]["label"].tolist() == [1, 1, 1, 1]


def test_what_crosses_the_edge_is_kept_and_what_lies_beside_is_not(place):
    crossing, beside = box(-38, 50, width=40), box(-60, 50, width=40)
    assert not shapely.box(LEFT, TOP - 150, LEFT + 150, TOP).contains(crossing.centroid)
    two_parts = shapely.MultiPolygon([box(100, 100), box(120, 100)])
    cell(
        place.root / f"cells/{WEST}_buildings.csv.gz", [row(crossing), row(beside), row(two_parts)]
    )
    _, found = taken(place)
    there = reproject(found.geometry.to_numpy(), "EPSG:4326", UTM)
    assert [g.equals_exact(e, 1e-3) for g, e in zip(there, (crossing, two_parts), strict=True)] == [
        True,
        True,
    ]
    assert found.geom_type.tolist() == ["Polygon", "MultiPolygon"]
    assert found["area_in_meters"].tolist() == [400, 200]


def test_the_city_reads_back_with_labels(place, tmp_path):
    cell(place.root / f"cells/{WEST}_buildings.csv.gz", [row(box(20, 20)), row(box(50, 20), 0.7)])
    city, _ = taken(place)
    write_city(tmp_path / "town", city)
    scene = read_city(tmp_path / "town").scenes[0]
    found = read_footprints(scene.labels, UTM)
    assert found.labels.tolist() == [1, IGNORE]
    assert shapely.area(found.polygons) == pytest.approx([100, 100], rel=1e-4)
    assert (city.rights, city.attribution) == ("CC BY 4.0; images: mine", "Google")


def test_malformed_rows_are_counted_and_invalid_polygons_repaired(place):
    good, far = row(box(20, 20)), row(box(20_000, 20))
    bowtie = shapely.Polygon(
        [(LEFT + x, TOP - y) for x, y in ((60, 60), (70, 70), (70, 64), (60, 70))]
    )
    wrong = [
        "not a row\n",
        "abc," + good.split(",", 1)[1],
        good.split('"')[0] + '"POLYGON((32.6 0.3, 32.6\n',  # cut short, its quote never closed
        good.replace("POLYGON", "POLYGOM"),
        good.replace("0.9500", "9.5"),
        good.replace("0.9500", ""),
    ]
    cell(
        place.root / f"cells/{WEST}_buildings.csv.gz",
        [*wrong, good, "\n", far, row(bowtie, area=50), good.strip()],
    )
    city, found = taken(place)
    assert len(found) == 3 and found.is_valid.all()
    assert (city.notes["malformed_rows"], city.notes["repaired_polygons"]) == (len(wrong), 1)
    assert any("6 malformed rows" in warning for warning in city.notes["warnings"])


def test_an_empty_cell_is_a_city_without_buildings(place):
    city, found = taken(place)
    assert len(found) == 0 and found.crs == "EPSG:4326"
    assert city.notes["scenes_without_buildings"] == ["a"]
    assert "town: no building anywhere at 90 % precision" in city.notes["warnings"]


def test_a_cell_is_read_once_whatever_is_asked_of_it(place):
    cell(place.root / f"cells/{WEST}_buildings.csv.gz", [row(box(20, 20), 0.76)])
    name = f"cells/{WEST}_buildings.csv.gz"
    assert taken(place)[1]["label"].tolist() == [IGNORE]
    (place.root.parent / "downloads" / "open_buildings").joinpath("gone").touch()
    for path in (place.root.parent / "downloads" / "open_buildings").glob("*.gz"):
        path.unlink()
    assert taken(place, precision=85)[1]["label"].tolist() == [1]
    assert len(place.asked(name)) == 1
    image(place.root.parent / "imagery" / "b.tif", left=200)
    taken(place)
    assert len(place.asked(name)) == 2  # other scenes need other rows


def test_only_cells_that_meet_a_scene_are_downloaded(place):
    taken(place)
    assert len(place.asked(f"cells/{WEST}_buildings.csv.gz")) == 1
    assert place.asked(f"cells/{EAST}_buildings.csv.gz") == []


def test_no_cell_covers_the_scene(place):
    table(place.root / "thresholds.csv", {EAST: shapely.box(40, -2, 42, 2)})
    with pytest.raises(
        InputError,
        match=r"a.tif: no Open Buildings cell covers latitude 0.31\d, "
        r"longitude 32.59\d",
    ):
        taken(place)


def test_cells_have_edges_of_great_circles():
    """The great circle from 18° to 28° east passes 10 km north of the parallel
    of 30° through its ends.
    """
    corners = np.array([(18, 25), (28, 25), (28, 30), (18, 30)], float)
    for ring in (corners, corners[::-1]):
        west = Cell("1", [_on_sphere(ring)], 0.7)
        assert west.meets((22.99, 30.06, 23.01, 30.07))  # outside of the straight edge
        assert not west.meets((22.99, 30.12, 23.01, 30.13))
        assert west.meets((22.99, 25.07, 23.01, 25.08))
        assert not west.meets((22.99, 25.04, 23.01, 25.05))  # inside of the straight edge
        assert not west.meets((200, -28, 200.01, -27.99))  # the antipodes


def test_a_cell_without_threshold_is_all_doubt(place):
    table(
        place.root / "thresholds.csv", {WEST: shapely.box(32, -1, 33, 1)}, {WEST: ("", "", "nan")}
    )
    cell(place.root / f"cells/{WEST}_buildings.csv.gz", [row(box(20, 20), 1.0)])
    city, found = taken(place)
    assert found["label"].tolist() == [IGNORE]
    assert any("17 has no threshold" in warning for warning in city.notes["warnings"])


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_damaged_cell_is_removed_and_fetched_anew(place, damage):
    path = cell(place.root / f"cells/{WEST}_buildings.csv.gz", [row(box(20, y)) for y in range(99)])
    whole = path.read_bytes()
    path.write_bytes({
        "cut": whole[: len(whole) // 2],
        "garbled": whole[:400] + bytes(len(whole) - 400),
    }[damage])  # fmt: skip
    with pytest.raises(InputError, match=r"17_buildings.csv.gz: is damaged \(.*removed, run again"):
        taken(place)
    path.write_bytes(whole)
    assert len(taken(place)[1]) == 99


def test_a_table_of_points_is_no_damage_but_another_url(place):
    path, points = place.root / f"cells/{WEST}_buildings.csv.gz", COLUMNS.replace("geometry,", "")
    path.write_bytes(gzip.compress(points.encode()))
    with pytest.raises(InputError, match="correct cells in the manifest") as refused:
        taken(place)
    assert "again" not in str(refused.value)


def test_a_scene_is_taken_by_its_name_and_once(place):
    image(place.root.parent / "imagery" / "ortho[2].tif")
    names = ["imagery/ortho[2].tif", "./imagery/ortho[2].tif", "imagery/ortho[[]2].tif"]
    assert [scene.name for scene in taken(place, scenes=names)[0].scenes] == ["ortho[2]"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_without_crs_is_told_what_helps(place):
    image(place.root.parent / "imagery" / "a.tif", crs=None)
    with pytest.raises(InputError, match="polygons cannot be laid over it; assign one") as refused:
        taken(place)
    assert "gsd" not in str(refused.value)


def test_a_cut_connection_resumes(place):
    path = cell(place.root / f"cells/{WEST}_buildings.csv.gz", [row(box(20, y)) for y in range(99)])
    place.fail(f"cells/{path.name}", cut_after=700, times=1)
    assert len(taken(place)[1]) == 99
    assert len(place.asked(f"cells/{path.name}")) == 2


def test_no_thresholds_table(place):
    (place.root / "thresholds.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has no column confidence_threshold_90%_precision"):
        taken(place)
    table(
        place.root / "thresholds.csv",
        {"../../evil": shapely.box(32, -1, 33, 1)},
        {"../../evil": (0.7,) * 3},
    )
    with pytest.raises(InputError, match="'../../evil' is no S2 cell"):
        taken(place)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"cities": {"twon": {"scenes": ["a.tif"]}}}, "has no city town; it names twon"),
        ({"cities": {"town": {"scene": ["a.tif"]}}}, "parameter cities.town.scenes is missing"),
        ({"cells": "http://x/cell.csv.gz"}, "it must be a URL with {token} in it"),
        ({"scenes": ["nowhere/*.tif"]}, r"nowhere/\*.tif: no such scene of town"),
        (
            {"scenes": ["ftp://x/a.tif"]},
            "a scene of town is a file, or a URL of gs, http, https, s3",
        ),
    ],
)
def test_a_wrong_manifest_says_where(place, keywords, message):
    with pytest.raises(InputError, match=message):
        taken(place, **keywords)


def test_planted_shift_is_reported_within_a_pixel(place):
    random = np.random.default_rng(1)
    places = [(x, y) for x in range(5, 140, 22) for y in range(5, 140, 22)]
    sizes = random.uniform(6, 14, (len(places), 2))
    seen = [box(*at, *size) for at, size in zip(places, sizes, strict=True)]
    image(place.root.parent / "imagery" / "a.tif", seen)
    east, north = 4.5, -3.0
    drawn = [shapely.affinity.translate(building, -east, -north) for building in seen]
    cell(place.root / f"cells/{WEST}_buildings.csv.gz", [row(building) for building in drawn])
    city, _ = taken(place)
    shift = city.notes["shift"]["a"]
    assert (shift["east"], shift["north"]) == pytest.approx((east, north), abs=GSD)
    assert (
        "5.4 m beside the buildings of a; they would fit if moved +4." in city.notes["warnings"][-1]
    )


def test_scenes_as_urls_are_read_by_window(place):
    remote = image(place.root / "images" / "far.tif")
    url = f"{place.url}/images/far.tif"
    name, pixels = elsewhere(url)
    assert name == "far"
    with rasterio.open(remote) as expected:
        assert np.array_equal(pixels, expected.read(1, window=((0, 20), (0, 20))))
    sent = [headers["Range"] for headers in place.asked("images/far.tif")]
    assert (
        sum(int(last) - int(first) + 1 for first, last in (r[6:].split("-") for r in sent))
        < remote.stat().st_size
    )


def test_a_url_that_is_not_there_says_so(place):
    error = elsewhere(f"{place.url}/images/none.tif")
    assert isinstance(error, InputError) and "none.tif: cannot be read" in str(error)


def test_file_urls_and_globs_name_the_same_scene(place):
    path = place.root.parent / "imagery" / "a.tif"
    assert taken(place, scenes=[path.as_uri()])[0].scenes == taken(place)[0].scenes


@pytest.mark.slow
def test_memory_holds_a_chunk_not_a_cell(tmp_path):
    """Rows far from the scene leave nothing behind: 200 MB of text go through in some 34."""
    import tracemalloc

    far = row(box(50_000, 50_000)) * 1000
    path = tmp_path / "cell.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(f"{COLUMNS}\n".encode())
        for _ in range(800):
            file.write(far.encode())
        file.write(row(box(20, 20)).encode())
    size = 800 * len(far)
    west, south, east, north = reproject(np.array([box(0, 0, 150, 150)]), UTM, "EPSG:4326")[
        0
    ].bounds
    tracemalloc.start()
    found = keep_near(path, [(west, south, east, north)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1
    assert size > 200e6 and peak < 40e6


def test_thresholds_of_the_precision_asked_for(place, tmp_path):
    cells = {p: read_cells(place.root / "thresholds.csv", p) for p in (80, 85, 90)}
    assert [[cell.threshold for cell in cells[p]] for p in (80, 85, 90)] == [
        [0.7, 0.8],
        [0.75, 0.85],
        [0.8, 0.9],
    ]
