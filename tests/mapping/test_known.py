"""A map against known footprints: what is built, torn down, enlarged and
shifted is told by its name.
"""

import json
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from shapely.affinity import translate

from pipeline.errors import InputError
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model, Predict
from pipeline.stages.predict import run
from pipeline.storage import read_json

GSD, LEFT, TOP = 0.5, 500_000, 6_650_000
SETTINGS = Predict(window=128, batch_size=1)
SHIFT = np.array([1.5, -1.0])  # metres east and north that the image lies beside the map


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Bright is a building."""
    folder, description = tmp_path_factory.mktemp("models") / "bright", Model(architecture="linear")
    segmenter = build_model(description, 3)
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0.0, 0, 0], [10, 10, 10]])[..., None, None]
        segmenter.network.bias[:] = torch.tensor([0.0, -15])
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": GSD,
    }
    save_model(folder, segmenter, card)
    return folder


def houses() -> list[shapely.Polygon]:
    """Twenty-five of 12 m by 9 m, 20 m apart, on the ground."""
    corners = [(LEFT + 8 + 20 * i, TOP - 8 - 20 * j) for i in range(5) for j in range(5)]
    return [shapely.box(x, y - 9, x + 12, y) for x, y in corners]


def draw(path: Path, built: list, nodata: tuple = ()) -> Path:
    place = Affine(GSD, 0, LEFT, 0, -GSD, TOP)
    from rasterio.features import rasterize

    seen = rasterize([translate(house, *SHIFT) for house in built], (230, 230), transform=place)
    image = (40 + 170 * seen).astype(np.uint8)
    for rows, columns in nodata:
        image[rows, columns] = 0
    profile = {
        "driver": "GTiff",
        "width": 230,
        "height": 230,
        "count": 3,
        "dtype": "uint8",
        "crs": "EPSG:32632",
        "transform": place,
        "nodata": 0,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.stack([image] * 3))
        file.update_tags(TIFFTAG_DATETIME="2024:05:17 10:11:12")
    return path


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:4326"])
@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_new_matched_changed_and_missing_are_told_apart(model, tmp_path, crs, suffix):
    town = houses()
    known = town[:-3]  # three are new
    enlarged = shapely.union(town[0], translate(town[0], 0, -6))
    # two were torn down; one stands under nodata, and is not missing
    built = [enlarged, *town[1:4], *town[6:]]
    scene = draw(tmp_path / "town.tif", built[:-1] + [town[-1]], [(slice(16, 36), slice(176, 204))])
    gpd.GeoDataFrame(geometry=known, crs="EPSG:32632").to_crs(crs).to_file(tmp_path / "known.gpkg")
    settings = SETTINGS.model_copy(update={"polygons": suffix})
    run(model, [str(scene)], tmp_path / "out", settings=settings, known=tmp_path / "known.gpkg")
    read = gpd.read_parquet if suffix == "parquet" else gpd.read_file
    found, missing = (
        read(tmp_path / f"out/town.{suffix}"),
        read(tmp_path / f"out/town.missing.{suffix}"),
    )
    status = found.set_index(found.geometry.centroid.translate(*-SHIFT).to_wkb()).status
    told = {
        name: found[found.status == name].geometry.values for name in ("new", "matched", "changed")
    }
    assert len(status) == len(found) and set(found.status) == {"new", "matched", "changed"}
    assert all(
        any(translate(town[i], *SHIFT).intersects(g) for g in told["new"]) for i in (22, 23, 24)
    )
    assert (
        len(told["new"]) == 3
        and len(told["changed"]) == 1
        and told["changed"][0].intersects(enlarged)
    )
    assert sorted(missing.area_m2.round().tolist()) == [108, 108] and set(missing.status) == {
        "missing"
    }
    for house in (town[4], town[5]):
        assert missing.to_crs(32632).geometry.intersection(house).area.max() > 107
    record = read_json(tmp_path / "out/town.json")["known"]
    assert (record["new"], record["changed"], record["missing"]) == (3, 1, 2)
    assert record["shift_m"] == pytest.approx(SHIFT, abs=0.2) and record["registration_m"] < 0.3
    matched = found[found.status == "matched"]
    assert matched.known_iou.min() > 0.9 and matched.offset_m.between(1.5, 2.1).all()
    assert found[found.status == "new"].known_iou.isna().all()
    assert (
        set(found.source) == {"town.tif"}
        and set(found.captured) == {"2024-05-17"}
        and set(found["class"]) == {"building"}
    )
    assert (
        set(found.model) == {"bright"} and found.model_version.str.fullmatch("[0-9a-f]{16}").all()
    )


def test_qgis_opens_it_coloured_by_status(model, tmp_path):
    scene = draw(tmp_path / "town.tif", houses())
    gpd.GeoDataFrame(geometry=houses(), crs="EPSG:32632").to_file(tmp_path / "known.gpkg")
    run(model, [str(scene)], tmp_path / "out", settings=SETTINGS, known=tmp_path / "known.gpkg")
    run(model, [str(scene)], tmp_path / "plain", settings=SETTINGS)
    for file, layer, attribute in (
        ("out/town.gpkg", "buildings", 'attr="status"'),
        ("out/town.missing.gpkg", "missing", 'attr="status"'),
        ("plain/town.gpkg", "buildings", 'attr="confidence"'),
    ):
        with sqlite3.connect(tmp_path / file) as database:
            query = (
                "select f_table_name, f_geometry_column, useAsDefault, styleQML from layer_styles"
            )
            ((name, column, default, qml),) = database.execute(query).fetchall()
            listed = database.execute("select table_name from gpkg_contents order by 1").fetchall()
        assert (name, column, default) == (layer, "geom", 1) and attribute in qml
        assert ("layer_styles",) in listed
        assert len(gpd.read_file(tmp_path / file, layer=layer)) == (0 if "missing" in file else 25)


def refused(model: Path, folder: Path, known: Path, reason: str, capsys) -> None:
    scene = draw(folder / "town.tif", houses())
    with pytest.raises(InputError):
        run(model, [str(scene)], folder / "out", settings=SETTINGS, known=known)
    assert reason in " ".join(capsys.readouterr().out.split())
    assert not [path for path in (folder / "out").iterdir() if path.name[0] != "."]


@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_a_column_label_of_known_footprints_is_no_class(model, tmp_path, suffix):
    """House numbers: 255 hides no house, 256 spoils no file."""
    frame = gpd.GeoDataFrame({"label": range(250, 275)}, geometry=houses(), crs="EPSG:32632")
    known, scene = tmp_path / f"known.{suffix}", draw(tmp_path / "town.tif", houses())
    frame.to_parquet(known) if suffix == "parquet" else frame.to_file(known)
    run(model, [str(scene)], tmp_path / "out", settings=SETTINGS, known=known)
    found = read_json(tmp_path / "out/town.json")["known"]
    assert (found["new"], found["matched"], found["missing"]) == (0, 25, 0)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_bad_footprints_get_a_sentence_and_nothing_is_written(model, tmp_path, capsys):
    frame = gpd.GeoDataFrame(geometry=houses(), crs="EPSG:32632")
    frame.set_crs(None, allow_override=True).to_file(tmp_path / "bare.gpkg")
    frame.to_crs(4326).translate(60, -30).to_file(tmp_path / "elsewhere.gpkg")
    frame.centroid.to_file(tmp_path / "points.gpkg")
    gpd.GeoDataFrame(geometry=frame.centroid).to_parquet(tmp_path / "points.parquet")
    open_lines = [
        shapely.LineString(shapely.get_coordinates(house)[:-1]) for house in frame.geometry
    ]
    gpd.GeoDataFrame(geometry=open_lines, crs=frame.crs).to_file(tmp_path / "lines.gpkg")
    frame[:0].to_file(tmp_path / "empty.gpkg")
    frame[:0].to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "damaged.gpkg").write_bytes((tmp_path / "bare.gpkg").read_bytes()[:3000])
    for name, reason in (
        ("bare.gpkg", "CRS"), ("elsewhere.gpkg", "lies elsewhere"), ("absent.gpkg", "absent"),
        ("points.gpkg", "no layer of polygons"), ("points.parquet", "holds no polygon"),
        ("lines.gpkg", "points or open lines"),
        ("empty.gpkg", "holds no polygon"), ("empty.parquet", "holds no polygon"),
        ("damaged.gpkg", "cannot be read"),
    ):  # fmt: skip
        refused(model, tmp_path, tmp_path / name, reason, capsys)
    with pytest.raises(InputError, match="compares outlines"):
        settings = SETTINGS.model_copy(update={"polygons": "none"})
        run(model, ["town.tif"], tmp_path / "out", settings=settings, known=tmp_path / "bare.gpkg")


@pytest.mark.parametrize("how", ["same format", "another format", "a link", "missing", "merged"])
def test_known_footprints_that_the_map_would_replace_are_refused(model, tmp_path, how):
    """A year later `--known maps/town.gpkg --out maps` must not cost the old map."""
    scene, out = draw(tmp_path / "town.tif", houses()[:3]), tmp_path / "maps"
    gpd.GeoDataFrame(geometry=houses(), crs="EPSG:32632").to_file(tmp_path / "houses.gpkg")
    known, merged = out / "town.gpkg", how == "merged"
    first = {"known": tmp_path / "houses.gpkg"} if how == "missing" else {"merged": merged}
    run(model, [str(scene)], out, settings=SETTINGS, **first)
    if how in {"missing", "merged"}:
        known = out / ("town.missing.gpkg" if how == "missing" else "merged.gpkg")
    if how == "a link":
        known = tmp_path / "last.gpkg"
        known.symlink_to(out / "town.gpkg")
    draw(scene, houses())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    kind = "geojson" if how == "another format" else "gpkg"
    settings = SETTINGS.model_copy(update={"polygons": kind})
    with pytest.raises(
        InputError, match=f"--known .*{known.name}: is a file of the map of .*another --out"
    ):
        run(model, [str(scene)], out, settings=settings, known=known, merged=merged)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    run(model, [str(scene)], tmp_path / "new", settings=settings, known=known, merged=merged)


def test_what_is_new_has_no_iou_in_geojson_either(model, tmp_path):
    scene = draw(tmp_path / "town.tif", houses())
    gpd.GeoDataFrame(geometry=houses()[:-3], crs="EPSG:32632").to_file(tmp_path / "known.gpkg")
    settings = SETTINGS.model_copy(update={"polygons": "geojson"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # GDAL's of NaN, which JSON does not know
        run(model, [str(scene)], tmp_path / "out", settings=settings, known=tmp_path / "known.gpkg")
    features = json.loads((tmp_path / "out/town.geojson").read_text())["features"]
    new = [f["properties"] for f in features if f["properties"]["status"] == "new"]
    assert len(new) == 3 and all(one["known_iou"] is one["offset_m"] is None for one in new)


def test_known_footprints_may_lie_beside_the_maps(model, tmp_path):
    (tmp_path / "maps").mkdir()
    scene, known = draw(tmp_path / "town.tif", houses()), tmp_path / "maps" / "town.known.gpkg"
    gpd.GeoDataFrame(geometry=houses(), crs="EPSG:32632").to_file(known)
    run(model, [str(scene)], tmp_path / "maps", settings=SETTINGS, known=known)
    assert len(gpd.read_file(known)) == 25


def test_a_scene_across_the_antimeridian_gets_a_sentence(model, tmp_path, capsys):
    """In degrees, where the houses beyond it have the other sign."""
    gpd.GeoDataFrame(geometry=houses(), crs="EPSG:32632").to_file(tmp_path / "known.gpkg")
    scene = draw(tmp_path / "town.tif", houses())
    with rasterio.open(scene, "r+") as dataset:
        dataset.crs, dataset.transform = "EPSG:4326", Affine(5e-6, 0, 179.9995, 0, -5e-6, -17)
    with pytest.raises(InputError):
        run(model, [str(scene)], tmp_path / "out", settings=SETTINGS, known=tmp_path / "known.gpkg")
    assert "beyond the antimeridian" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_footprints_that_another_program_has_locked_get_a_sentence(
    model, tmp_path, capsys, monkeypatch, journal
):
    monkeypatch.setenv("SQLITE_BUSY_TIMEOUT", "100")  # ms that GDAL waits for a lock; 5,000
    gpd.GeoDataFrame(geometry=houses(), crs="EPSG:32632").to_file(tmp_path / "known.gpkg")
    code = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute(f"pragma journal_mode={sys.argv[2]}")
file.execute("pragma locking_mode=exclusive")
file.execute("create table mine (x text)")  # what a write-ahead log holds then
file.execute("begin exclusive")
file.execute("update gpkg_contents set identifier='mine'")
print("locked", flush=True)
input()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "known.gpkg"), journal]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"locked\n"
            refused(model, tmp_path, tmp_path / "known.gpkg", "save and close it", capsys)
        finally:
            other.communicate(b"\n")
    run(model, [str(tmp_path / "town.tif")], tmp_path / "out", settings=SETTINGS,
        known=tmp_path / "known.gpkg")  # fmt: skip
    assert read_json(tmp_path / "out/town.json")["known"]["matched"] == 25
