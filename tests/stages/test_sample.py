"""sample, assess and adapt as a labeller meets them: draw, edit the GeoPackage with other
programs, read it back.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

sys.path.insert(0, str(Path(__file__).parents[1] / "assessment"))
from city import CRS, labelled, map_counts, red_model, town, true_polygons, write_scene  # noqa: E402

from pipeline.assessment import geopackage, survey
from pipeline.assessment.survey import LABELS
from pipeline.errors import InputError
from pipeline.stages import assess, sample


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A city of 49 frames, 12 of them sampled."""
    folder = tmp_path_factory.mktemp("city")
    image, truth = town()
    red_model(folder / "model")
    write_scene(folder / "town.tif", image)
    sample.run(folder / "model", [str(folder / "town.tif")], folder / "CITY", tiles=12, side=64)
    np.save(folder / "truth.npy", truth)
    return folder


@pytest.fixture
def city(drawn, tmp_path) -> Path:
    """A copy of the sample to be edited."""
    return Path(shutil.copytree(drawn / "CITY", tmp_path / "CITY"))


@pytest.fixture
def truth(drawn) -> np.ndarray:
    return np.load(drawn / "truth.npy")


def test_what_is_written_opens_in_a_gis(city):
    path = city / LABELS
    layers = dict(pyogrio.list_layers(path).tolist())
    assert layers == {"frames": "Polygon", "buildings": "MultiPolygon", "layer_styles": None}
    frames, buildings = (gpd.read_file(path, layer=name) for name in ("frames", "buildings"))
    assert len(frames) == 12 and set(frames.status) == {"to do"} and frames.crs == CRS
    assert (frames.inclusion > 0).all() and (frames.inclusion <= 1).all()
    assert buildings.within(frames.union_all().buffer(1e-6)).all()
    with sqlite3.connect(path) as database:
        styles = dict(
            database.execute("SELECT f_table_name, styleQML FROM layer_styles WHERE useAsDefault")
        )
    assert set(styles) == {"frames", "buildings"} and all(
        qml.startswith("<!DOCTYPE qgis") for qml in styles.values()
    )
    for _, frame in frames.iterrows():
        with rasterio.open(city / frame.image) as image:
            assert image.crs == CRS and shapely.box(*image.bounds).covers(frame.geometry)


def test_the_same_seed_draws_the_same_frames_and_another_seed_others(drawn, tmp_path):
    def frames(seed: int) -> np.ndarray:
        out = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        sample.run(drawn / "model", [str(drawn / "town.tif")], out, tiles=6, side=64, seed=seed)
        return survey.load(out).drawn

    np.testing.assert_array_equal(frames(3), frames(3))
    assert set(frames(3)) != set(frames(4))


@pytest.mark.parametrize("strategy", ["active", "core_set", "random"])
def test_frames_drawn_to_learn_from_cannot_be_assessed(drawn, tmp_path, truth, strategy):
    sample.run(
        drawn / "model",
        [str(drawn / "town.tif")],
        tmp_path / "CITY",
        tiles=8,
        side=64,
        strategy=strategy,
    )
    assert len(set(survey.load(tmp_path / "CITY").drawn)) == 8
    labelled(tmp_path / "CITY", truth)
    with pytest.raises(InputError, match="drawn to learn from .*no weight"):
        assess.run(tmp_path / "CITY")


def test_labels_of_the_truth_give_intervals_that_hold_it(city, truth):
    labelled(city, truth)
    found = assess.run(city)
    tp, fp, fn = map_counts(town()[0], truth)
    known = {"iou": tp / (tp + fp + fn), "precision": tp / (tp + fp), "recall": tp / (tp + fn),
             "f1": 2 * tp / (2 * tp + fp + fn), "built_m2": (tp + fn) / 4}  # fmt: skip
    for name, value in known.items():
        row = found["assisted"][name]
        assert row["low"] < value < row["high"], name
    assert found["labelled"] == 12 and found["frames"] == 49
    assert json.loads((city / "assessment.json").read_text()) == found


def test_every_frame_labelled_leaves_no_doubt(drawn, tmp_path, truth):
    sample.run(drawn / "model", [str(drawn / "town.tif")], tmp_path / "CITY", tiles=49, side=64)
    labelled(tmp_path / "CITY", truth)
    tp, fp, fn = map_counts(town()[0], truth)
    for road in ("assisted", "plain"):
        iou = assess.run(tmp_path / "CITY")[road]["iou"]
        np.testing.assert_allclose(
            [iou["value"], iou["low"], iou["high"]], tp / (tp + fp + fn), atol=1e-3
        )


def of_labellers(polygons: list) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"label": np.ones(len(polygons), np.int32)}, geometry=polygons, crs=CRS)


HELD_OPEN = """
import sqlite3, sys  # a process of its own: SQLite's locks are a process's
path, *gone = sys.argv[1:]
editor = sqlite3.connect(path)
editor.execute("PRAGMA journal_mode = WAL")
editor.execute("PRAGMA wal_autocheckpoint = 0")
for (trigger,) in editor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
    editor.execute(f'DROP TRIGGER "{trigger}"')  # they call functions that OGR brings along
editor.executemany("DELETE FROM buildings WHERE fid = ?", [(int(i),) for i in gone])
editor.commit()
print("deleted", flush=True)
sys.stdin.read()
"""


def test_edited_through_ogr_in_wal_mode_as_qgis_does(city, truth):
    """While QGIS holds the file open its changes lie in the write-ahead log: one building is
    deleted, one added.
    """
    labelled(city, truth)
    path = city / LABELS
    drawn = survey.load(city)
    before = dict(
        zip((drawn.number(i) for i in drawn.drawn), geopackage.read(drawn).masks, strict=True)
    )
    frame = max(before, key=lambda number: before[number].sum())
    place = gpd.read_file(path, layer="frames").set_index("frame").geometry[frame]
    buildings = pyogrio.read_dataframe(path, layer="buildings", fid_as_index=True)
    gone = buildings.index[buildings.intersects(place)]
    held = [sys.executable, "-c", HELD_OPEN, str(path), *(str(i) for i in gone)]
    editor = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert editor.stdout.readline() == "deleted\n"
    corner = shapely.box(
        place.bounds[0], place.bounds[1], place.bounds[0] + 10, place.bounds[1] + 5
    )
    added = gpd.GeoDataFrame({"label": [1]}, geometry=[shapely.MultiPolygon([corner])], crs=CRS)
    pyogrio.set_gdal_config_options({"OGR_SQLITE_JOURNAL": "WAL"})
    try:
        pyogrio.write_dataframe(added, path, layer="buildings", driver="GPKG", append=True)
        assert path.with_name("label.gpkg-wal").stat().st_size > 0
        after = dict(zip(before, geopackage.read(drawn).masks, strict=True))
    finally:
        pyogrio.set_gdal_config_options({"OGR_SQLITE_JOURNAL": None})
        editor.communicate("")
    expected = np.zeros_like(after[frame])
    expected[-10:, :20] = 1  # metres of half a pixel, from the lower left corner
    np.testing.assert_array_equal(after[frame], expected)


def test_split_added_and_holed_polygons_are_their_area(city, truth):
    labelled(city, truth)
    path = city / LABELS
    whole = geopackage.read(survey.load(city))
    buildings = gpd.read_file(path, layer="buildings")
    largest = buildings.geometry[buildings.area.idxmax()]
    left, bottom, right, top = largest.bounds
    middle = np.floor(left + right) / 2
    halves = [
        largest.intersection(shapely.box(*b))
        for b in ((left, bottom, middle, top), (middle, bottom, right, top))
    ]
    split = buildings.drop(buildings.area.idxmax())
    split = of_labellers([*split.geometry, *halves])
    split.to_file(path, layer="buildings", driver="GPKG")
    after = geopackage.read(survey.load(city))
    for a, b in zip(whole.masks, after.masks, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_frame_without_a_building_is_a_label_and_a_doubtful_polygon_is_none(city, truth):
    labelled(city, truth)
    buildings = gpd.read_file(city / LABELS, layer="buildings")
    buildings["label"] = 255
    buildings.to_file(city / LABELS, layer="buildings", driver="GPKG")
    assert assess.run(city)["assisted"]["recall"]["value"] is None
    buildings.iloc[:0].to_file(city / LABELS, layer="buildings", driver="GPKG")
    assert assess.run(city)["assisted"]["iou"]["value"] == 0


def edit_frames(city: Path, change) -> None:
    frames = gpd.read_file(city / LABELS, layer="frames")
    change(frames).to_file(city / LABELS, layer="frames", driver="GPKG")


def test_a_frame_edited_and_still_to_do_is_asked_for(city, truth):
    labelled(city, truth)
    drawn = survey.load(city)
    before = [geopackage.draft(drawn, i)[0] for i in drawn.drawn]
    after = geopackage.read(drawn).masks
    apart = [abs(shapely.area(b).sum() - a.sum() / 4) for b, a in zip(before, after, strict=True)]
    number = int(np.argmax(apart)) + 1
    edit_frames(city, lambda f: f.assign(status=np.where(f.frame == number, "to do", f.status)))
    with pytest.raises(InputError, match=f"frame {number} was edited and still to do: finish"):
        assess.run(city)


def test_frames_left_alone_wait_and_unusable_ones_are_stood_for(city, truth, capsys):
    labelled(city, truth)
    draft = gpd.read_parquet(city / survey.DRAFT)
    frames = gpd.read_file(city / LABELS, layer="frames").set_index("frame")
    alone = frames.geometry[12]
    buildings = gpd.read_file(city / LABELS, layer="buildings")
    kept = buildings[~buildings.intersects(alone.buffer(-0.01))]
    both = [*kept.geometry, *draft[draft.frame == 12].geometry]
    of_labellers(both).to_file(city / LABELS, layer="buildings", driver="GPKG")
    status = {12: "to do", 3: "unusable"}
    # however it is capitalised
    edit_frames(city, lambda f: f.assign(status=f.frame.map(status).fillna("Done ")))
    found = assess.run(city)
    assert found["labelled"] == 10 and found["unusable"] == 1
    said = capsys.readouterr().out
    assert "1 frames are still to do" in said and "1 unusable" in said


BAD = {
    "is 'dnoe'|status 'dnoe'.*done\\?": lambda f: f.assign(status="dnoe"),
    "frame 1 was moved": lambda f: f.assign(geometry=f.translate(np.where(f.frame == 1, 3, 0))),
    "frame 2 was deleted": lambda f: f[f.frame != 2],
    "belongs to another sample": lambda f: f.assign(sample="0123456789abcdef"),
    "lost the column status": lambda f: f.drop(columns="status"),
    "no frame is done": lambda f: f.assign(status="unusable"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_what_is_wrong_with_frames_is_one_sentence(city, truth, sentence):
    labelled(city, truth)
    if sentence == "frame 1 was moved":
        edit_frames(
            city,
            lambda f: f.set_geometry(
                [
                    g if n != 1 else shapely.affinity.translate(g, 3)
                    for n, g in zip(f.frame, f.geometry, strict=True)
                ]
            ),
        )
    else:
        edit_frames(city, BAD[sentence])
    with pytest.raises(InputError, match=sentence) as error:
        assess.run(city)
    assert "\n" not in str(error.value)
    assert not (city / "assessment.json").exists()


def test_another_crs_is_brought_back_and_said(city, truth, capsys):
    labelled(city, truth)
    straight = assess.run(city)
    for layer in ("frames", "buildings"):
        gpd.read_file(city / LABELS, layer=layer).to_crs("EPSG:25832").to_file(
            city / LABELS, layer=layer, driver="GPKG"
        )
    moved = assess.run(city)
    assert "brought back" in capsys.readouterr().out
    assert moved["assisted"]["iou"]["value"] == pytest.approx(
        straight["assisted"]["iou"]["value"], abs=1e-3
    )


def test_polygons_beside_the_frames_are_clipped_and_counted(city, truth):
    labelled(city, truth)
    whole = true_polygons(truth)
    far = shapely.affinity.translate(whole.geometry[0], 5000)
    of_labellers([*whole.geometry, far]).to_file(city / LABELS, layer="buildings", driver="GPKG")
    read = geopackage.read(survey.load(city))
    frames = gpd.read_file(city / LABELS, layer="frames").union_all()
    assert read.clipped > 0
    assert read.outside == (~whole.intersects(frames.buffer(1e-6))).sum() + 1


def test_nothing_of_the_labellers_is_overwritten(drawn, city):
    before = (city / LABELS).read_bytes()
    with pytest.raises(InputError, match="already there"):
        sample.run(drawn / "model", [str(drawn / "town.tif")], city)
    assert (city / LABELS).read_bytes() == before


def test_what_cannot_be_sampled_is_one_sentence(drawn, tmp_path):
    model, scene = drawn / "model", drawn / "town.tif"
    with pytest.raises(InputError, match="probability"):
        sample.run(model, [str(scene)], tmp_path / "a", strategy="probable")
    write_scene(tmp_path / "nowhere.tif", town(64, 64)[0], crs=None)
    with pytest.raises(InputError, match="CRS"):
        sample.run(model, [str(tmp_path / "nowhere.tif")], tmp_path / "a", gsd=0.5)
    with pytest.raises(InputError, match="draw a sample first"):
        assess.run(tmp_path)
    assert not (tmp_path / "a").exists()
