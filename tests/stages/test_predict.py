import json
import multiprocessing
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as parquet
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import shapely
import torch
from affine import Affine
from pyproj import Geod
from rasterio.features import rasterize
from rasterio.windows import Window
from scipy import ndimage
from toy import bright_glance, toy_scene

from pipeline import load_model
from pipeline.__main__ import app
from pipeline.errors import InputError
from pipeline.imagery import raster
from pipeline.imagery.writer import FIELDS
from pipeline.mapping import scene as prediction
from pipeline.mapping.flow import label_free_iou
from pipeline.mapping.inputs import load
from pipeline.mapping.mapper import CONFIDENCE, LOGITS, STEPS, Totals
from pipeline.mapping.scene_list import list_scenes
from pipeline.networks.models import build_model, read_model, save_model
from pipeline.params import Fetch, Model, Predict
from pipeline.scoring.disagreement import Disagreement
from pipeline.sources.demo import source as demo
from pipeline.stages import predict as stage
from pipeline.stages.predict import run
from pipeline.tiles.store import CityTiles
from pipeline.training.calibration import calibrate

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 6_650_000), "EPSG:32632"
PLACES = {
    "utm": UTM,
    "finer": (Affine(0.3, 0, 500_000, 0, -0.3, 6_650_000), "EPSG:32632"),
    "coarser": (Affine(0.8, 0, 500_000, 0, -0.8, 6_650_000), "EPSG:32632"),
    "web mercator at 60°": (Affine(1, 0, 1e6, 0, -1, 8_399_737.9), "EPSG:3857"),
    "degrees at 60°": (Affine(9e-6, 0, 10, 0, -4.5e-6, 60), "EPSG:4326"),
    "rotated": (Affine(0.4, 0.3, 500_000, 0.3, -0.4, 6_650_000), "EPSG:32632"),
    "south up": (Affine(0.5, 0, 500_000, 0, 0.5, 6_650_000), "EPSG:32632"),
}
SETTINGS = Predict(window=128, min_area=0, outlines="raw", neck=0)
# of the red model: much that is reddish in any picture
MANY = Predict(min_area=0, threshold=0.15, outlines="raw", neck=0)
DEMO = Path(__file__).parents[2] / "data" / "sources" / "demo.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A pointwise model at half a metre: red roofs are buildings."""
    folder, description = tmp_path_factory.mktemp("models") / "red", Model(architecture="linear")
    segmenter = build_model(description, 3)
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0, 0, 0], [20.0, -10, -10]])[..., None, None]
        segmenter.network.bias[:] = torch.tensor([0.0, -4])
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
        "threshold": 0.5,
        "temperature": 2.0,
        "metrics": {"validation_iou": 0.7},
    }
    save_model(folder, segmenter, card)
    return folder


def town(height: int = 300, width: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 grey noise with red roofs, some with a yard; and where
    they are, (H, W) uint8.
    """
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), np.uint8)
    for _ in range(height * width // 3000):
        top, left = rng.integers(0, height - 30), rng.integers(0, width - 30)
        truth[top : top + rng.integers(10, 30), left : left + rng.integers(10, 30)] = 1
        if rng.random() < 0.2:
            truth[top + 4 : top + 7, left + 4 : left + 7] = 0
    image = np.repeat(rng.integers(60, 180, (height, width, 1), dtype=np.uint8), 3, axis=2)
    image[truth == 1] = (220, 40, 40)
    return image, truth


def write_scene(path: Path, image: np.ndarray, place=UTM, **profile) -> Path:
    height, width, count = image.shape
    transform, crs = place
    shape = {"height": height, "width": width, "count": count, "dtype": image.dtype}
    profile = {"driver": "GTiff", "transform": transform, "crs": crs, **shape, **profile}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(image, -1, 0))
    return path


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero((a == 1) & (b == 1)) / max(1, np.count_nonzero((a == 1) | (b == 1)))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones and folders too."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in sorted(folder.rglob("*"))
    }


def check_round_trip(
    source: Path, out: Path, threshold: float = 0.5
) -> tuple[np.ndarray, gpd.GeoDataFrame]:
    """The mask lies on the scene, the polygons on the mask, and areas are those
    on the ellipsoid.
    """
    polygons = gpd.read_file(out / f"{source.stem}.gpkg")
    with rasterio.open(source) as scene, rasterio.open(out / f"{source.stem}.tif") as map_:
        assert (map_.shape, map_.transform, map_.crs) == (scene.shape, scene.transform, scene.crs)
        assert map_.nodata == 255 and map_.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        mask = map_.read(1)
        infrared = scene.count == 4  # Ohio's files call it alpha
        np.testing.assert_array_equal(
            mask != 255, infrared or scene.read_masks([1, 2, 3]).any(axis=0)
        )
        drawn = rasterize(polygons.geometry, mask.shape, transform=scene.transform)
    assert iou(drawn, mask) >= 0.98
    degrees = polygons.to_crs(4326).geometry
    on_ground = [abs(Geod(ellps="WGS84").geometry_area_perimeter(g)[0]) for g in degrees]
    np.testing.assert_allclose(polygons.area_m2, on_ground, rtol=1e-4, atol=1e-3)
    assert polygons.id.is_unique and polygons.confidence.between(threshold, 1).all()
    return mask, polygons


@pytest.mark.parametrize("name", PLACES)
def test_round_trip_of_any_grid(model, tmp_path, name):
    image, truth = town()
    scene = write_scene(tmp_path / "town.tif", image, PLACES[name])
    run(model, [str(scene)], tmp_path / "out", settings=SETTINGS)
    mask, polygons = check_round_trip(scene, tmp_path / "out")
    if name in ("finer", "coarser"):
        assert iou(mask, truth) > 0.8  # through a coarser or finer grid and back
    else:
        np.testing.assert_array_equal(mask, truth)
        assert len(polygons) == ndimage.label(truth)[1]
        assert any(len(p.interiors) for p in polygons.geometry)


def middle(path: Path, folder: Path, side: int = 1024) -> Path:
    """A copy of a scene's middle, side × side pixels at most: Banepa's and Zanzibar's are
    larger, and take long.
    """
    with rasterio.open(path) as scene:
        height, width = min(side, scene.height), min(side, scene.width)
        window = Window((scene.width - width) // 2, (scene.height - height) // 2, width, height)
        profile = {
            **scene.profile,
            "height": height,
            "width": width,
            "transform": scene.window_transform(window),
        }
        with rasterio.open(folder / path.name, "w", **profile) as copy:
            copy.write(scene.read(window=window))
    return folder / path.name


@pytest.mark.parametrize(
    "city",
    ["austin", "banepa", "montenegro", pytest.param("ohio", marks=pytest.mark.slow), "zanzibar"],
)
def test_round_trip_of_every_real_scene(model, tmp_path, shared_cities, city):
    (tmp_path / "scenes").mkdir()
    scenes = [
        middle(path, tmp_path / "scenes")
        for path in sorted((shared_cities / city / "images").iterdir())
    ]
    run(model, [str(tmp_path / "scenes")], tmp_path / "out", settings=MANY)
    assert sum(
        len(check_round_trip(scene, tmp_path / "out", MANY.threshold)[1]) for scene in scenes
    )


@pytest.mark.parametrize("city", ["brickvale", "marlstead", "tinroof", "pinemoor", "duskholm"])
def test_round_trip_of_demo_scenes(model, tmp_path, city):
    fetch = Fetch(source="demo", path=str(DEMO), cities=[city], scenes=[1, 2], scene_size=256)
    demo.fetch(fetch, city, tmp_path / city, tmp_path)
    whole, wedge = sorted((tmp_path / city / "images").iterdir())
    run(model, [str(whole.parent)], tmp_path / "out", settings=MANY)
    assert (check_round_trip(whole, tmp_path / "out", MANY.threshold)[0] != 255).all()
    mask, polygons = check_round_trip(wedge, tmp_path / "out", MANY.threshold)
    assert 0.02 < (mask == 255).mean() < 0.5 and len(polygons)


def test_a_pointwise_model_shows_no_seams(model, tmp_path):
    image, _ = town(500, 333)
    scene = write_scene(tmp_path / "town.tif", image, PLACES["finer"])
    outputs = []
    for window, overlap in ((64, 0.25), (160, 0.5), (512, 0.0)):
        out = tmp_path / str(window)
        settings = SETTINGS.model_copy(
            update={"window": window, "overlap": overlap, "probability": True}
        )
        run(model, [str(scene)], out, settings=settings)
        outputs.append({k: v for k, v in snapshot(out).items() if k != "town.json"})
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "nan"])
def test_nodata_is_kept_and_never_a_building(model, tmp_path, kind):
    image, truth = town()
    empty = np.zeros_like(truth, bool)
    empty[100:250, 50:300] = True
    path = tmp_path / "town.tif"
    if kind == "nan":
        values = image.astype(np.float32) / 1000
        values[empty, 1] = np.nan
        write_scene(path, values)
    else:
        image[empty] = 0
        if kind == "alpha":
            write_scene(
                path,
                np.dstack([image, np.where(empty, 0, 255)]).astype(np.uint8),
                alpha="yes",
                photometric="rgb",
            )
        else:
            write_scene(path, image, **({"nodata": 0} if kind == "nodata" else {}))
        if kind == "mask":
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
                file.write_mask(~empty)
    options = {"value_range": (0, 0.255)} if kind == "nan" else {}
    run(
        model,
        [str(path)],
        tmp_path / "out",
        settings=SETTINGS.model_copy(update={"probability": True}),
        **options,
    )
    with (
        rasterio.open(tmp_path / "out" / "town.tif") as map_,
        rasterio.open(tmp_path / "out" / "town.probability.tif") as p,
    ):
        np.testing.assert_array_equal(map_.read(1), np.where(empty, 255, truth))
        np.testing.assert_array_equal(p.read(1) == 255, empty)
    found = json.loads((tmp_path / "out" / "town.json").read_text())
    assert found["area_km2"] == pytest.approx((~empty).sum() * 0.25e-6, rel=2e-3)


def test_sixteen_bit_scenes_are_scaled_as_a_whole(model, tmp_path):
    image, truth = town()
    scene = write_scene(tmp_path / "town.tif", image.astype(np.uint16) * 16 + 3000)
    run(model, [str(scene)], tmp_path / "out", settings=SETTINGS)
    with rasterio.open(tmp_path / "out" / "town.tif") as map_:
        np.testing.assert_array_equal(map_.read(1), truth)


def test_floats_with_nan_are_scaled_by_what_they_hold(model, tmp_path):
    image, truth = town()
    values = image.astype(np.float32) / 7 - 3
    values[100:200, 50:90, 2] = np.nan
    scene = write_scene(tmp_path / "town.tif", values)
    run(model, [str(scene)], tmp_path / "out", settings=SETTINGS)
    with rasterio.open(tmp_path / "out" / "town.tif") as map_:
        np.testing.assert_array_equal(
            map_.read(1), np.where(np.isnan(values).any(axis=-1), 255, truth)
        )


@pytest.mark.parametrize("kind", [np.float32, pytest.param(np.uint16, marks=pytest.mark.slow)])
def test_a_range_is_found_where_data_are_few_and_a_map_where_there_are_none(
    model, tmp_path, monkeypatch, kind
):
    """360 × 360 pixels of data between the patches that a range is usually estimated from."""
    monkeypatch.setattr(raster, "STRIP", 2**19)
    nothing, (image, truth) = {np.float32: np.nan, np.uint16: 0}[kind], town(360, 360)
    values = np.full((1100, 1100, 3), nothing, kind)
    packed = {"nodata": nothing, "compress": "deflate", "zlevel": 1}
    write_scene(tmp_path / "nothing.tif", values, **packed)
    values[480:840, 480:840] = image.astype(kind) + 1
    values[
        np.add.outer(
            *(np.isin(np.arange(1100), np.linspace(0, 1068, 8).astype(int)[:, None] + range(32)),)
            * 2
        )
    ] = nothing
    write_scene(tmp_path / "corner.tif", values, **packed)
    run(
        model,
        [str(tmp_path / f"{name}.tif") for name in ("corner", "nothing")],
        tmp_path / "out",
        settings=SETTINGS,
    )
    with (
        rasterio.open(tmp_path / "out" / "corner.tif") as corner,
        rasterio.open(tmp_path / "out" / "nothing.tif") as none,
    ):
        mask, data = corner.read(1)[480:840, 480:840], (values > 0).all(axis=-1)[480:840, 480:840]
        np.testing.assert_array_equal(mask, np.where(data, truth, 255))
        assert (none.read(1) == 255).all()


@pytest.mark.parametrize("window", [64, 128])
def test_black_roofs_are_data(tmp_path, window):
    folder, description = tmp_path / "dark", Model(architecture="linear")
    segmenter = build_model(description, 3)
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0, 0, 0], [-20.0, -20, -20]])[..., None, None]
        segmenter.network.bias[:] = torch.tensor([0.0, 8])
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
    }
    save_model(folder, segmenter, card)
    image = np.full((400, 400, 3), 120, np.uint8)
    image[100:300, 100:300] = 0
    scene = write_scene(tmp_path / "roof.tif", image)
    run(
        folder,
        [str(scene)],
        tmp_path / "out",
        settings=SETTINGS.model_copy(update={"window": window}),
    )
    with rasterio.open(tmp_path / "out" / "roof.tif") as map_:
        np.testing.assert_array_equal(map_.read(1), image[..., 0] == 0)


def test_layers_are_calibrated_and_symmetric_models_do_not_disagree(model, tmp_path):
    image, truth = town()
    scene = write_scene(tmp_path / "town.tif", image)
    settings = SETTINGS.model_copy(update={"probability": True, "uncertainty": True})
    run(model, [str(scene)], tmp_path / "out", settings=settings)
    logit = ((20 * 220 - 20 * 40) / 255 - 4) / 2  # of a red roof, over the card's temperature
    with rasterio.open(tmp_path / "out" / "town.probability.tif") as file:
        values = file.read(1) * file.scales[0]
    assert np.abs(values[truth == 1] - 1 / (1 + np.exp(-logit))).max() < 0.01
    with rasterio.open(tmp_path / "out" / "town.uncertainty.tif") as file:
        assert file.read(1).max() <= 1 and file.scales[0] == pytest.approx(0.5 / STEPS)


def test_disagreement_is_the_deviation_over_the_eight_symmetries():
    torch.manual_seed(0)
    segmenter = build_model(Model(architecture="small_fcn", classes=2, width=4), 3).eval()
    images = torch.rand(2, 3, 24, 24)
    with torch.inference_mode():
        halves = Disagreement(segmenter, 1.5)(images).softmax(1)[:, 1:]
        views = [(images.rot90(t, (2, 3)), t) for t in range(4)] + [
            (images.rot90(t, (2, 3)).flip(3), t) for t in range(4)
        ]
        p = [(segmenter(v) / 1.5).softmax(1)[:, 1:] for v, _ in views]
    p = torch.stack(
        [
            (q.flip(3) if i >= 4 else q).rot90(-t, (2, 3))
            for i, (q, (_, t)) in enumerate(zip(p, views, strict=True))
        ]
    )
    split = Disagreement.split(halves)
    torch.testing.assert_close(split[:, :2], p.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(split[:, 2], p.sum(2).std(0, correction=0), atol=1e-5, rtol=1e-3)
    assert split[:, 2].max() > 1e-3


def test_maps_come_with_items_and_an_index_where_asked_for(model, tmp_path, capsys):
    paths = [str(write_scene(tmp_path / f"{name}.tif", town(64, 64)[0])) for name in ("one", "two")]
    settings, out = SETTINGS.model_copy(update={"stac": True}), tmp_path / "out"
    run(model, paths, out, settings=settings)
    ends = {
        f"{name}.{end}" for name in ("one", "two") for end in ("tif", "gpkg", "item.json", "json")
    }
    assert {path.name for path in out.iterdir()} == ends | {"items.parquet", "items.json"}
    item, record = (json.loads((out / f"one.{end}").read_text()) for end in ("item.json", "json"))
    assert (
        item["properties"]["buildings"] == record["buildings"] > 0
        and "one.item.json" in record["files"]
    )
    assert all((out / asset["href"]).is_file() for asset in item["assets"].values())
    assert list(gpd.read_parquet(out / "items.parquet").id) == ["one", "two"]
    capsys.readouterr()
    # is there already; the index stays of both
    run(model, paths, out, settings=settings, shard="1/2")
    assert (
        len(gpd.read_parquet(out / "items.parquet")) == 2
        and "catalogue" not in capsys.readouterr().out
    )


@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "parquet", "geojson"])
def test_every_format_holds_the_same_polygons(model, tmp_path, suffix):
    image, truth = town(200, 200)
    scene = write_scene(tmp_path / "town.tif", image, PLACES["web mercator at 60°"])
    run(
        model,
        [str(scene)],
        tmp_path / "out",
        settings=SETTINGS.model_copy(update={"polygons": suffix}),
    )
    path = tmp_path / "out" / f"town.{suffix}"
    polygons = gpd.read_parquet(path) if suffix == "parquet" else gpd.read_file(path)
    assert polygons.crs == (4326 if suffix == "geojson" else 3857)
    with rasterio.open(scene) as file:
        drawn = rasterize(polygons.to_crs(3857).geometry, file.shape, transform=file.transform)
    assert iou(drawn, truth) > 0.999
    assert {*polygons.columns} - {"bbox"} == {*FIELDS, "geometry"}
    if suffix == "parquet":
        covering = json.loads(parquet.read_metadata(path).metadata[b"geo"])["columns"]["geometry"][
            "covering"
        ]
        assert covering["bbox"]["xmin"] == ["bbox", "xmin"]
        left = polygons.total_bounds[0] + np.ptp(polygons.total_bounds[[0, 2]]) / 3
        some = gpd.read_parquet(path, bbox=(left, *polygons.total_bounds[1:]))  # by the boxes alone
        assert set(some.id) == set(polygons[polygons.bounds.maxx >= left].id) and 0 < len(
            some
        ) < len(polygons)


def test_small_polygons_are_dropped_and_outlines_are_regular(model, tmp_path):
    image, truth = town()
    image[0:3, 0:3] = (220, 40, 40)
    scene = write_scene(tmp_path / "town.tif", image)
    settings = Predict(window=128, min_area=5, polygons="parquet", neck=0)
    run(model, [str(scene)], tmp_path / "out", settings=settings)
    polygons = gpd.read_parquet(tmp_path / "out" / "town.parquet")
    assert len(polygons) == ndimage.label(truth)[1] and polygons.area_m2.min() >= 5
    assert shapely.is_valid(polygons.geometry.values).all() and polygons.regularised.mean() > 0.8
    with rasterio.open(scene) as file:
        drawn = rasterize(polygons.geometry, file.shape, transform=file.transform)
    assert iou(drawn, truth) > 0.94


def test_a_narrow_joint_parts_two_buildings_in_their_outlines_alone(model, tmp_path):
    image = np.full((300, 300, 3), 90, np.uint8)
    # houses of 10 m and a joint of 3 m, on the seam of two windows
    for rows, columns in ((slice(118, 138), slice(100, 120)), (slice(118, 138), slice(128, 148)),
                          (slice(125, 131), slice(120, 128))):  # fmt: skip
        image[rows, columns] = (220, 40, 40)
    scene = write_scene(tmp_path / "town.tif", image)
    drawn = {}
    for neck in (0, Predict().neck):
        settings = SETTINGS.model_copy(update={"neck": neck})
        run(model, [str(scene)], tmp_path / f"{neck}", settings=settings)
        drawn[neck] = gpd.read_file(tmp_path / f"{neck}/town.gpkg")
    whole, apart = drawn.values()
    assert len(whole) == 1 and len(apart) == 2
    # a line a pixel thin is between them
    assert whole.area_m2.sum() - apart.area_m2.sum() == pytest.approx(6 * 0.25, abs=0.01)
    masks = [(tmp_path / f"{neck}/town.tif").read_bytes() for neck in drawn]
    assert masks[0] == masks[1]


def test_thresholds_come_from_the_card_unless_stated(model, tmp_path):
    image, _ = town()
    predictor = load_model(model, "cpu")
    shares = [predictor.predict(image, threshold=t).mask.mean() for t in (0.01, None, 0.999)]
    assert shares[0] > shares[1] > shares[2] == 0


def test_python_maps_arrays_and_paths_alike(model, tmp_path):
    image, truth = town()
    scene = write_scene(tmp_path / "town.tif", image)
    predictor = load_model(model, "cpu")
    one, two = (
        predictor.predict(what, min_area=0, outlines="raw", neck=0) for what in (image, scene)
    )
    np.testing.assert_array_equal(one.mask, truth)
    np.testing.assert_array_equal(two.mask, truth)
    np.testing.assert_array_equal(one.probability, two.probability)
    assert two.polygons.crs == 32632 and one.polygons.crs is None
    np.testing.assert_allclose(one.polygons.area_m2.sum(), truth.sum() * 0.25)
    assert one.transform == Affine.identity() and two.transform == UTM[0]
    with pytest.raises(InputError, match="an image is"):
        predictor.predict(image[..., :2])
    with pytest.raises(InputError, match="polygon"):
        predictor.predict(image, polygons="shp")
    with pytest.raises(InputError, match="begins with one of"):
        predictor.predict("ftp://example.org/town.tif")
    with pytest.raises(InputError, match="how to read a raster"):
        predictor.predict(image, gsd=0.3)
    write_scene(tmp_path / "other.tif", image)
    with pytest.raises(InputError, match="names 2 scenes"):
        predictor.predict(tmp_path)


def test_import_is_instant():
    code = "import sys, pipeline; assert not {'torch', 'rasterio', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_command_reads_the_section_predict_of_params_yaml_and_no_other(
    model, tmp_path, monkeypatch
):
    scene, said = write_scene(tmp_path / "town.tif", town(64, 64)[0]), {}
    monkeypatch.chdir(tmp_path)

    def settings(*options: str) -> Predict:
        with monkeypatch.context() as patch:
            patch.setattr(stage, "run", lambda *_, settings, **__: said.update(settings=settings))
            app(["predict", str(model), str(scene), *options], standalone_mode=False)
        return said["settings"]

    assert settings() == Predict()
    Path("params.yaml").write_text(
        "train: {of: another project}\npredict: {outlines: raw, min_area: 3}\n"
    )
    assert settings("--min-area", "7") == Predict(outlines="raw", min_area=7)
    Path("params.yaml").write_text("predict: {min_aera: 3}\n")
    Path("other.yaml").write_text("predict: {window: 64}\n")
    assert settings("--params", "other.yaml") == Predict(window=64)
    for broken, reason in (
        ("predict: {min_aera: 3}", "did you mean min_area"),
        ("a: [", "not valid YAML"),
    ):
        Path("params.yaml").write_text(broken)
        with pytest.raises(InputError, match=reason):
            settings()


# ---------------------------------------- which scenes, again and elsewhere


def test_lists_of_scenes(tmp_path):
    for name in ("a/one.tif", "a/two.TIF", "b/one.tif", "b/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(
        "\ufeffa/one.tif\n# mine\na/one.tif\n\nhttps://example.org/x/three.tif?key=1\n"
    )
    a, b = tmp_path / "a", tmp_path / "b"
    assert list(list_scenes([str(a)])) == ["one", "two"]
    assert list(list_scenes([f"{tmp_path}/**/*.tif"])) == ["a-one", "b-one"]
    assert list_scenes([str(tmp_path / "list.txt")]) == {
        "one": str(a / "one.tif"), "three": "https://example.org/x/three.tif?key=1"
    }  # fmt: skip
    assert list_scenes([str(a / "one.tif"), str(a / "one.tif")]) == {"one": str(a / "one.tif")}
    for wrong, reason in (
        ("ftp://example.org/x.tif", "begins with one of"),
        ("/vsicurl/https://example.org/x.tif", "GDAL's own paths"),
        (str(tmp_path), "no images in this folder"),
        (f"{b}/*.jp2", "matches no file"),
    ):
        with pytest.raises(InputError, match=reason):
            list_scenes([wrong])


def test_urls_of_files_are_files(tmp_path):
    scene = tmp_path / "old town.tif"
    assert list_scenes([scene.as_uri(), str(scene), f"FILE://localhost{scene}"]) == {
        "old town": str(scene)
    }
    with pytest.raises(InputError, match="three slashes"):
        list_scenes(["file://town.tif"])


def cog(path: Path, image: np.ndarray) -> Path:
    plain = write_scene(path.with_suffix(".plain.tif"), image)
    rasterio.shutil.copy(plain, path, driver="COG", blocksize=128)
    plain.unlink()
    return path


def test_a_scene_is_read_from_a_server_by_ranges_and_its_map_is_that_of_the_file(
    model, tmp_path, server
):
    cog(server.root / "town.tif", town(500, 600)[0])
    run(model, [str(server.root / "town.tif")], tmp_path / "here", settings=SETTINGS)
    run(model, [f"{server.url}/town.tif"], tmp_path / "there", settings=SETTINGS)
    here, there = snapshot(tmp_path / "here"), snapshot(tmp_path / "there")
    assert here.pop("town.json") != there.pop("town.json") and here == there
    # no side-car files are hunted for
    assert {name for _, name, _ in server.requests} == {"town.tif"}
    assert all("Range" in headers for headers in server.asked("town.tif"))


def test_what_a_server_does_not_have_is_a_sentence_and_stops_no_other_scene(
    model, tmp_path, server, capsys
):
    write_scene(tmp_path / "local.tif", town(64, 64)[0])
    for name in ("good", "page"):
        write_scene(server.root / f"{name}.tif", town(64, 64)[0])
    server.fail("page.tif", html=True)
    scenes = [
        *(f"{server.url}/{name}.tif" for name in ("absent", "page", "good")),
        str(tmp_path / "local.tif"),
    ]
    with pytest.raises(InputError, match="2 of 4 scenes failed"):
        run(model, scenes, tmp_path / "out", settings=SETTINGS)
    said = capsys.readouterr().out.splitlines()
    for name in ("absent", "page"):
        (line,) = [line for line in said if line.startswith(f"failed {name}:")]
        assert f"{server.url}/{name}.tif: cannot be read" in line
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"good", "local"}


def test_finished_scenes_are_skipped_and_changed_ones_are_not(model, tmp_path, capsys):
    scene = write_scene(tmp_path / "town.tif", town(100, 100)[0])
    out = tmp_path / "out"
    rich = SETTINGS.model_copy(update={"probability": True})
    run(model, [str(scene)], out, settings=rich)
    first = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    run(model, [str(scene)], out, settings=rich)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == first
    run(model, [str(scene)], out, settings=SETTINGS)  # other outputs: the old ones do not stay
    assert sorted(p.name for p in out.iterdir()) == ["town.gpkg", "town.json", "town.tif"]
    write_scene(scene, town(100, 100, seed=1)[0])
    run(model, [str(scene)], out, settings=SETTINGS)
    with rasterio.open(out / "town.tif") as map_:
        np.testing.assert_array_equal(map_.read(1), town(100, 100, seed=1)[1])


def test_a_mosaic_whose_source_changed_and_a_model_trained_on_are_not_finished(model, tmp_path):
    tile, out, own = (
        tmp_path / "tile.tif",
        tmp_path / "out",
        shutil.copytree(model, tmp_path / "model"),
    )
    write_scene(tile, town(100, 100)[0])
    rasterio.shutil.copy(tile, tmp_path / "town.vrt", driver="VRT")

    def mask() -> np.ndarray:
        run(own, [str(tmp_path / "town.vrt")], out, settings=SETTINGS)
        with rasterio.open(out / "town.tif") as map_:
            return map_.read(1)

    np.testing.assert_array_equal(mask(), town(100, 100)[1])
    write_scene(tile, town(100, 100, seed=1)[0])
    np.testing.assert_array_equal(mask(), town(100, 100, seed=1)[1])
    segmenter = load(own, "cpu")
    with torch.no_grad():
        segmenter.network.bias[1] = -99
    save_model(own, segmenter, segmenter.card)
    assert not mask().any()


def georeferenced(folder: Path, left: float) -> None:
    (folder / "town.wld").write_text(f"0.5\n0\n0\n-0.5\n{left}\n6650000\n")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_is_corrected_beside_a_scene_changes_its_map(model, tmp_path):
    """A world file, GDAL's notes, a mask; statistics that a viewer left say nothing new."""
    scene, out = tmp_path / "town.png", tmp_path / "out"
    write_scene(scene, town(100, 100)[0], driver="PNG")
    (tmp_path / "town.png.aux.xml").unlink()

    def origin_and_nodata() -> tuple[float, int]:
        run(model, [str(scene)], out, settings=SETTINGS, gsd=0.5)
        with rasterio.open(out / "town.tif") as map_:
            return map_.transform.c, int((map_.read(1) == 255).sum())

    own = scene.stat()
    assert prediction._scene_key(str(scene)) == [str(scene), (own.st_size, own.st_mtime_ns)]
    assert origin_and_nodata() == (0, 0)
    for left in (500_000, 600_000):
        georeferenced(tmp_path, left)
        assert origin_and_nodata() == (left - 0.25, 0)
    made = (out / "town.tif").stat().st_mtime_ns
    with rasterio.open(scene) as dataset:
        dataset.statistics(1)
    assert (tmp_path / "town.png.aux.xml").exists()
    assert origin_and_nodata() == (599_999.75, 0)
    assert (out / "town.tif").stat().st_mtime_ns == made
    mask = np.full((100, 100, 1), 255, np.uint8)
    mask[:50] = 0
    write_scene(tmp_path / "town.png.msk", mask)
    with rasterio.open(tmp_path / "town.png.msk", "r+") as dataset:
        dataset.update_tags(INTERNAL_MASK_FLAGS_1=2)  # as GDAL marks a mask of all bands
    assert origin_and_nodata() == (599_999.75, 5000)
    notes = "<PAMDataset><GeoTransform>7, 0.5, 0, 9, 0, -0.5</GeoTransform></PAMDataset>"
    (tmp_path / "town.png.aux.xml").write_text(notes)
    (tmp_path / "town.wld").unlink()  # which would win
    assert origin_and_nodata() == (7, 5000)


@pytest.mark.parametrize("how", ["path", "URL", "link"])
def test_results_never_overwrite_scenes(model, tmp_path, how):
    (tmp_path / "out").mkdir()
    scene = write_scene(tmp_path / "out" / "town.tif", town(64, 64)[0])
    if how == "link":
        scene = scene.rename(tmp_path / "elsewhere.tif")
        (tmp_path / "out" / "town.tif").symlink_to(scene)
    before, given = scene.read_bytes(), tmp_path / "out" / "town.tif"
    with pytest.raises(InputError, match="choose another --out"):
        run(model, [given.as_uri() if how == "URL" else str(given)], tmp_path / "out")
    assert scene.read_bytes() == before and given.is_symlink() == (how == "link")


def test_what_predict_did_not_write_it_does_not_overwrite(model, tmp_path, capsys):
    scene, out = write_scene(tmp_path / "town.tif", town(64, 64)[0]), tmp_path / "out"
    out.mkdir()
    for name in ("town.tif", "town.json", "town.gpkg"):
        (out / name).write_text("[1]")
        with pytest.raises(InputError, match="1 of 1"):
            run(model, [str(scene)], out, settings=SETTINGS)
        assert f"{name}: would be overwritten" in capsys.readouterr().out
        assert snapshot(out) == {name: b"[1]"}
        (out / name).unlink()
    run(model, [str(scene)], out, settings=SETTINGS)
    (out / "town.fgb").write_text("mine")
    with pytest.raises(InputError, match="1 of 1"):
        run(model, [str(scene)], out, settings=SETTINGS.model_copy(update={"polygons": "fgb"}))


NAMES = [
    "a;b",
    "roof!",
    "-dash",
    "(1)",
    "#1",
    "gpkg_contents",
    "a?b",
    "50%20",
    "[red]x",
    "[old",
    ":house:",
    "it's",
    'a"b',
    "a$b`c`",
    "a|b*",
    "{x}",
    "größe–1",
    " lead",
    "a\\b",
    "C:x",
    "zip+file",
    "select",
    ".hidden",
    "x.rows",
]


@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "parquet", "geojson"])
def test_names_of_scenes_and_folders_are_data(model, tmp_path, suffix):
    folder, out = tmp_path / "in!;[a] #?%20", tmp_path / "out!;[b] #?%20"
    folder.mkdir()
    scene, (_, truth) = write_scene(tmp_path / "s.tif", town(64, 64)[0]), town(64, 64)
    for name in NAMES:
        shutil.copy(scene, folder / f"{name}.tif")
    run(
        model,
        [str(folder / f"{n}.tif") for n in NAMES],
        out,
        settings=SETTINGS.model_copy(update={"polygons": suffix}),
    )
    assert {p.name for p in out.iterdir()} == {
        f"{name}.{end}" for name in NAMES for end in ("tif", "json", suffix)
    }
    for name in NAMES:
        path = shutil.copy(out / f"{name}.{suffix}", tmp_path / f"plain.{suffix}")
        polygons = gpd.read_parquet(path) if suffix == "parquet" else gpd.read_file(path)
        assert len(polygons) == ndimage.label(truth)[1]
        if suffix == "gpkg":
            assert gpd.list_layers(path).name.tolist() == ["buildings", "layer_styles"]


def test_a_name_that_is_no_text_fails_alone_and_is_spelt_out(model, tmp_path, capsys):
    good = write_scene(tmp_path / "[red]good.tif", town(64, 64)[0])
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/[b]caf\xe9.tif")
    shutil.copy(good, bad)
    with pytest.raises(InputError, match="1 of 2 scenes failed"):
        run(model, [bad, str(good)], tmp_path / "out", settings=SETTINGS)
    assert (
        "failed [b]caf\\udce9: " in (said := capsys.readouterr().out)
        and "no UTF-8 text; rename it" in said
    )
    assert (tmp_path / "out" / "[red]good.gpkg").exists()


def test_lists_and_globs_take_names_at_their_word(tmp_path):
    folder = tmp_path / "maps [old]"
    folder.mkdir()
    for name in ("a.tif", "#1.tif", "b\u2028c.tif"):
        (folder / name).touch()
    (folder / "list.txt").write_text("# a remark\n#1.tif\n*.tif\n", encoding="utf-8")
    assert len(list_scenes([f"{folder}/*.tif"])) == 3
    assert list(list_scenes([str(folder / "list.txt")])) == ["#1", "a", "b\u2028c"]


def database(path: Path, *statements: str) -> None:
    """Run statements on a GeoPackage as an editor would, whose triggers ask for
    functions of geometry.
    """
    file = sqlite3.connect(path, isolation_level=None)
    for name in ("IsEmpty", "MinX", "MaxX", "MinY", "MaxY"):
        file.create_function(f"ST_{name}", 1, lambda geometry: 0)
    for statement in statements:
        file.execute(statement)
    file.close()


EDITS = {
    "an attribute": ("gpkg", lambda p: database(p, "update buildings set label = 2 where fid = 1")),
    "a style": ("gpkg", lambda p: database(p, "update layer_styles set styleQML = 'mine'")),
    "a building more": (
        "gpkg",
        lambda p: pyogrio.write_dataframe(
            gpd.read_file(p).head(1), p, layer="buildings", append=True
        ),
    ),
    "another layer": ("gpkg", lambda p: database(p, "create table mine (geom blob)")),
    "no database any more": ("gpkg", lambda p: p.write_bytes(b"mine")),
    "a line of text": (
        "geojson",
        lambda p: p.write_text(p.read_text().replace('"label": 1', '"label": 2')),
    ),
    "fewer features": ("fgb", lambda p: gpd.read_file(p).head(1).to_file(p)),
    "pixels": ("tif", lambda p: write_scene(p, np.ones((100, 100, 1), np.uint8))),
    "a folder": ("tif", lambda p: (p.unlink(), p.mkdir())),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_a_hand_changed_is_never_overwritten(model, tmp_path, capsys, edit):
    suffix, change = EDITS[edit]
    scene, out = write_scene(tmp_path / "town.tif", town(100, 100)[0]), tmp_path / "out"
    settings = SETTINGS.model_copy(update={"polygons": "gpkg" if suffix == "tif" else suffix})
    run(model, [str(scene)], out, settings=settings)
    change(out / f"town.{suffix}")
    before = snapshot(out)
    run(model, [str(scene)], out, settings=settings)  # the same map is there already
    # new polygons, and none of this format any more
    for other in ({"min_area": 20}, {"polygons": "parquet"}):
        with pytest.raises(InputError, match="1 of 1 scenes failed"):
            run(model, [str(scene)], out, settings=settings.model_copy(update=other))
        assert f"{out}/town.{suffix}: was changed since predict wrote it" in capsys.readouterr().out
        assert snapshot(out) == before
    (out / f"town.{suffix}").rename(tmp_path / "mine")
    run(model, [str(scene)], out, settings=settings.model_copy(update={"min_area": 20}))


@pytest.mark.parametrize("looked", [
    ["pragma journal_mode=wal", "pragma journal_mode=delete"], ["vacuum"], ["analyze"],
    ["begin", "update buildings set label = label + 1", "rollback"],
])  # fmt: skip
def test_a_map_that_was_only_looked_at_is_mapped_anew(model, tmp_path, looked):
    scene, out = write_scene(tmp_path / "town.tif", town(100, 100)[0]), tmp_path / "out"
    run(model, [str(scene)], out, settings=SETTINGS)
    database(out / "town.gpkg", *looked)
    with rasterio.open(out / "town.tif") as mask:
        mask.statistics(1)
    os.utime(out / "town.tif")
    run(model, [str(scene)], out, settings=SETTINGS.model_copy(update={"min_area": 20}))
    # statistics of the old mask are gone
    assert sorted(snapshot(out)) == ["town.gpkg", "town.json", "town.tif"]
    assert gpd.read_file(out / "town.gpkg").area_m2.min() >= 20


BESIDE = {
    "town.gpkg-wal": "is open in an editor", "town.gpkg-shm": "is open in an editor",
    "town.gpkg-journal": "is open in an editor", "town.tif.ovr": "read along with the new town.tif",
    "town.tif.msk": "read along with the new town.tif",
    "town.tif.aux.xml": "read along with the new town.tif",
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_would_be_read_along_with_a_new_map_is_named(model, tmp_path, capsys, name):
    scene, out = write_scene(tmp_path / "town.tif", town(64, 64)[0]), tmp_path / "out"
    run(model, [str(scene)], out, settings=SETTINGS)
    (out / name).write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    before = snapshot(out)
    with pytest.raises(InputError, match="1 of 1"):
        run(model, [str(scene)], out, settings=SETTINGS.model_copy(update={"min_area": 20}))
    assert (
        name in (said := capsys.readouterr().out)
        and BESIDE[name] in said
        and snapshot(out) == before
    )


def test_ground_that_a_glance_sees_nothing_in_is_skipped_and_said(model, tmp_path):
    """Dark ground holds no red roof: the map is the whole map, and most of the
    passes are not made.
    """
    image, _ = town(256, 384)
    image[:, 128:] //= 4
    scene = write_scene(tmp_path / "town.tif", image)
    settings, seeing = SETTINGS.model_copy(update={"overlap": 0}), tmp_path / "seeing"
    card = json.loads((model / "model.json").read_text())
    save_model(seeing, read_model(model), card | {"glance": {"threshold": -0.1}}, bright_glance())
    for name, skip in (("whole", False), ("skipped", True)):
        run(
            seeing,
            [str(scene)],
            tmp_path / name,
            settings=settings.model_copy(update={"skip_empty": skip}),
        )
    maps = [rasterio.open(tmp_path / name / "town.tif").read() for name in ("whole", "skipped")]
    records = [
        json.loads((tmp_path / name / "town.json").read_text()) for name in ("whole", "skipped")
    ]
    assert maps[0].any() and (maps[0] == maps[1]).all()
    assert records[0]["skipped"] is None and records[1]["skipped"] == round(4 / 6, 4)
    assert records[0]["skipped_below"] is None and records[1]["skipped_below"] == 0


def test_a_model_without_a_glance_skips_nothing(model, tmp_path):
    scene = write_scene(tmp_path / "town.tif", town(64, 64)[0])
    with pytest.raises(
        InputError,
        match=r"red has no glance to skip by; train with train\.glance: "
        r"300",
    ):
        run(
            model,
            [str(scene)],
            tmp_path / "out",
            settings=SETTINGS.model_copy(update={"skip_empty": True}),
        )


def test_an_editor_s_journal_outlives_its_file_and_is_named(model, tmp_path, capsys):
    scene, out = write_scene(tmp_path / "town.tif", town(64, 64)[0]), tmp_path / "out"
    out.mkdir()
    (out / "town.gpkg-wal").touch()
    with pytest.raises(InputError, match="1 of 1"):
        run(model, [str(scene)], out, settings=SETTINGS)
    assert "town.gpkg-wal: is left of a town.gpkg that is gone" in capsys.readouterr().out
    assert list(snapshot(out)) == ["town.gpkg-wal"]


def test_an_editor_that_comes_while_a_scene_is_mapped_is_seen(model, tmp_path, capsys, monkeypatch):
    scene, out = write_scene(tmp_path / "town.tif", town(100, 100)[0]), tmp_path / "out"
    run(model, [str(scene)], out, settings=SETTINGS)
    whole = prediction._map_scene

    def mapped(*rest):
        database(out / "town.gpkg", "delete from buildings where fid = 1")
        return whole(*rest)

    monkeypatch.setattr(prediction, "_map_scene", mapped)
    with pytest.raises(InputError, match="1 of 1"):
        run(model, [str(scene)], out, settings=SETTINGS.model_copy(update={"min_area": 20}))
    assert "town.gpkg: was changed since" in capsys.readouterr().out
    assert sorted(snapshot(out)) == ["town.gpkg", "town.json", "town.tif"]


def test_a_map_of_an_earlier_version_that_noted_no_contents_stays(model, tmp_path, capsys):
    scene, out = write_scene(tmp_path / "town.tif", town(64, 64)[0]), tmp_path / "out"
    run(model, [str(scene)], out, settings=SETTINGS)
    record = json.loads((out / "town.json").read_text())
    (out / "town.json").write_text(
        json.dumps(record | {"key": "3", "files": list(record["files"])})
    )
    with pytest.raises(InputError, match="1 of 1"):
        run(model, [str(scene)], out, settings=SETTINGS)
    assert "is of an earlier version, perhaps changed since" in capsys.readouterr().out


def test_what_was_not_asked_for_is_null(model, tmp_path, capsys):
    scene, out = write_scene(tmp_path / "town.tif", town(64, 64)[0]), tmp_path / "out"
    run(model, [str(scene)], out, settings=SETTINGS.model_copy(update={"polygons": "none"}))
    record = json.loads((out / "town.json").read_text())
    assert record["buildings"] is None and record["built_area_m2"] is None
    assert "–" in capsys.readouterr().out
    run(
        model,
        [str(write_scene(tmp_path / "bare.tif", np.full((64, 64, 3), 90, np.uint8)))],
        out,
        settings=SETTINGS,
    )
    assert json.loads((out / "bare.json").read_text())["buildings"] == 0


TERMINALS = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX"}, {"LANG": "C"}]
STRICTEST = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "terminal",
    [STRICTEST, *(pytest.param(terminal, marks=pytest.mark.slow) for terminal in TERMINALS)],
    ids=str,
)
def test_a_terminal_that_is_not_utf_8_fails_no_stage(model, tmp_path, terminal):
    scene = write_scene(tmp_path / "town.tif", town(64, 64)[0])
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "pipeline",
        "predict",
        str(model),
        str(scene),
        "--out",
        "maps",
    ]
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))
    }
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), **terminal}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0 and b"Mapped" in done.stdout, done.stderr
    assert (tmp_path / "maps" / "town.json").exists()


@pytest.mark.parametrize("ending", ["| true", ">&-"])
def test_a_reader_that_has_gone_fails_no_stage(model, tmp_path, ending):
    scene = write_scene(tmp_path / "-town.tif", town(64, 64)[0])
    command = f'set -o pipefail; "$PYTHON" -m pipeline predict "$MODEL" ./{scene.name} --out maps {ending}'
    environment = {**os.environ, "PYTHON": sys.executable, "MODEL": str(model)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "maps" / "-town.json").exists()


def test_two_scenes_never_share_a_file(model, tmp_path):
    scenes = [
        str(write_scene(tmp_path / f"{name}.tif", town(64, 64)[0]))
        for name in ("town", "town.probability")
    ]
    rich = SETTINGS.model_copy(update={"probability": True})
    with pytest.raises(InputError, match=r"town\.probability\.tif: two scenes"):
        run(model, scenes, tmp_path / "out", settings=rich)
    assert not (tmp_path / "out").exists()
    run(model, scenes, tmp_path / "out", settings=SETTINGS)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(9))
def test_killed_while_files_get_their_names_other_settings_leave_nothing_of_it(
    model, tmp_path, monkeypatch, step
):
    """The steps of giving a map its names, each the last one; then a map of fewer files."""
    path, out = write_scene(tmp_path / "town.tif", town(100, 100)[0]), tmp_path / "out"
    rich, steps = (
        SETTINGS.model_copy(update={"probability": True, "polygons": "fgb"}),
        iter(range(step)),
    )

    def until_killed(change):
        def changed(file, *rest, **options):
            if Path((file, *rest)[-1]).parent == out and next(steps, None) is None:
                raise Killed
            return change(file, *rest, **options)

        return changed

    run(model, [str(path)], out, settings=SETTINGS.model_copy(update={"uncertainty": True}))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        for change in ("replace", "unlink"):
            patch.setattr(os, change, until_killed(getattr(os, change)))
        run(model, [str(path)], out, settings=rich)
    run(model, [str(path)], out, settings=SETTINGS)
    assert sorted(snapshot(out)) == ["town.gpkg", "town.json", "town.tif"]


@pytest.fixture(scope="module")
def workers():
    """Processes that start with everything imported, and nothing ever run, before them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.stages.predict", "geopandas"])
    return context


@pytest.fixture(scope="module")
def towns(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("towns")
    for i in range(5):
        write_scene(folder / f"town{i}.tif", town(600, 800, seed=i)[0], PLACES["finer"])
    return folder


EVERYTHING = SETTINGS.model_copy(update={"probability": True, "polygons": "gpkg"})


def start(workers, model, towns, out, **options):
    process = workers.Process(
        target=run, args=(model, [str(towns)], out), kwargs={"settings": EVERYTHING, **options}
    )
    process.start()
    return process


@pytest.fixture(scope="module")
def reference(model, towns, tmp_path_factory, workers) -> tuple[dict[str, bytes], float]:
    """What a run that nobody disturbs leaves, and the seconds it takes."""
    start(workers, model, towns, tmp_path_factory.mktemp("warm")).join()
    out, begun = tmp_path_factory.mktemp("reference"), time.monotonic()
    start(workers, model, towns, out).join()
    return snapshot(out), time.monotonic() - begun


@pytest.mark.slow  # at moments of the clock; tests/faults/test_kill.py kills at changes of files
def test_killed_at_any_moment_and_run_again_it_gives_the_same(
    model, towns, tmp_path, workers, reference
):
    (expected, seconds), interrupted = reference, 0
    assert len(expected) == 5 * 4
    for i, share in enumerate(np.random.default_rng(0).uniform(0.1, 0.9, 5)):
        out = tmp_path / str(i)
        process = start(workers, model, towns, out)
        process.join(share * seconds)
        interrupted += process.is_alive()
        process.kill()
        process.join()
        for name, content in snapshot(out).items() if out.exists() else ():
            assert name.startswith(".") or content == expected[name]  # whole, or not there
        process = start(workers, model, towns, out)
        process.join()
        assert process.exitcode == 0 and snapshot(out) == expected
    assert interrupted


def test_shards_of_two_processes_give_what_one_gives(model, towns, tmp_path, workers, reference):
    processes = [start(workers, model, towns, tmp_path / "out", shard=f"{i}/2") for i in (1, 2)]
    for process in processes:
        process.join()
    assert snapshot(tmp_path / "out") == reference[0]
    for shard in ("0/2", "3/2", "x", "1"):
        with pytest.raises(InputError, match="write i/n"):
            run(model, [str(towns)], tmp_path / "out", shard=shard)


# ---------------------------------------------------------------- bad input


def jpeg(path: Path) -> None:
    write_scene(path, town(64, 64)[0], (Affine.identity(), None), driver="JPEG")


BAD = {
    "one-band.tif": (
        lambda p: write_scene(p, town(64, 64)[0][..., :1]),
        "has 1 band, but the model reads bands 1, 2, 3",
    ),
    "placeless.tif": (
        lambda p: write_scene(p, town(64, 64)[0], (Affine.identity(), None)),
        "carries no CRS.*--gsd",
    ),
    "photo.jpg": (jpeg, "carries no CRS.*--gsd"),
    "empty.tif": (lambda p: p.touch(), "cannot be read"),
    "absent.tif": (lambda p: None, "No such file"),
    "words.tif": (lambda p: p.write_text("not a picture"), "cannot be read"),
    "t" * 235 + ".tif": (lambda p: write_scene(p, town(64, 64)[0]), "too long"),
}


def truncated(path: Path) -> None:
    options = (
        {"driver": "PNG"}
        if path.suffix == ".png"
        else {"tiled": True, "blockxsize": 128, "blockysize": 128}
    )
    write_scene(
        path,
        town(400, 400)[0],
        **({"compress": "deflate"} | options if "tiled" in options else options),
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BAD["truncated.tif"] = BAD["cut.png"] = (truncated, "cannot be read")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_bad_scenes_are_reported_each_in_a_sentence_and_the_good_one_is_mapped(
    model, tmp_path, capsys
):
    for name, (write, _) in BAD.items():
        write(tmp_path / name)
    write_scene(tmp_path / "good.tif", town(64, 64)[0])
    scenes = [str(tmp_path / name) for name in (*BAD, "good.tif")]
    with pytest.raises(InputError, match=f"{len(BAD)} of {len(BAD) + 1} scenes failed"):
        run(model, scenes, tmp_path / "out", settings=SETTINGS)
    said = capsys.readouterr().out.splitlines()
    for name, (_, reason) in BAD.items():
        (line,) = [line for line in said if line.startswith(f"failed {Path(name).stem}:")]
        assert name in line and re.search(reason, line), line
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "good.gpkg",
        "good.json",
        "good.tif",
    ]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_without_a_crs_the_gsd_may_be_stated(model, tmp_path):
    image, truth = town(100, 120)
    scene = write_scene(tmp_path / "photo.png", image, (Affine.identity(), None), driver="PNG")
    run(model, [str(scene)], tmp_path / "out", settings=SETTINGS, gsd=0.5)
    with rasterio.open(tmp_path / "out" / "photo.tif") as map_:
        assert map_.crs is None
        np.testing.assert_array_equal(map_.read(1), truth)
        place = map_.transform
    polygons = gpd.read_file(tmp_path / "out" / "photo.gpkg")
    # where QGIS shows an image without a place: its first row at 0, others below
    assert place == Affine.scale(1, -1)
    assert iou(rasterize(polygons.geometry, truth.shape, transform=place), truth) == 1
    np.testing.assert_allclose(polygons.area_m2.sum(), truth.sum() * 0.25)


def test_other_bands_may_be_read(model, tmp_path):
    image, truth = town(100, 120)
    scene = write_scene(
        tmp_path / "town.tif", np.dstack([np.full_like(truth, 9), image[..., ::-1]])
    )
    run(model, [str(scene)], tmp_path / "out", settings=SETTINGS, bands=[4, 3, 2])
    with rasterio.open(tmp_path / "out" / "town.tif") as map_:
        np.testing.assert_array_equal(map_.read(1), truth)
    with pytest.raises(InputError, match="1 of 1 scenes failed"):
        run(model, [str(scene)], tmp_path / "out", settings=SETTINGS, bands=[1, 2])


@pytest.mark.parametrize("bands", [None, [1, 1, 1]])
def test_a_paletted_scene_is_told_how_to_be_expanded(model, tmp_path, capsys, bands):
    indices = town(64, 64)[0][..., :1]
    scene = write_scene(tmp_path / "town.tif", indices, photometric="palette")
    with rasterio.open(scene, "r+") as dataset:
        dataset.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    with pytest.raises(InputError, match="1 of 1 scenes failed"):
        run(model, [str(scene)], tmp_path / "out", settings=SETTINGS, bands=bands)
    assert "town.tif: is paletted" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [3_000, 30_000])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_a_sentence_and_leaves_nothing(model, tmp_path, capsys, limit):
    rng = np.random.default_rng(0)
    speckle = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    scene = write_scene(tmp_path / "town.tif", speckle)
    settings = SETTINGS.model_copy(update={"probability": True})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(InputError, match="1 of 1 scenes failed"):
            run(model, [str(scene)], tmp_path / "out", settings=settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large; choose a file system" in capsys.readouterr().out
    assert snapshot(tmp_path / "out") == {}
    run(model, [str(scene)], tmp_path / "out", settings=settings)
    with sqlite3.connect(tmp_path / "out" / "town.gpkg") as file:
        assert file.execute("pragma integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"gsd": 0}, "more than 0 metres"),
        ({"gsd": -1.0}, "more than 0 metres"),
        ({"bands": [0, 1, 2]}, "count from 1"),
        ({"value_range": (5, 5)}, "LOW < HIGH"),
        ({"value_range": (3,)}, "LOW < HIGH"),
        ({"value_range": (0, float("inf"))}, "LOW < HIGH, both finite"),
        ({"value_range": (float("-inf"), 0)}, "LOW < HIGH, both finite"),
        ({"value_range": (0, float("nan"))}, "LOW < HIGH"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_scene_is_read(
    model, tmp_path, option, reason
):
    with pytest.raises(InputError, match=reason):
        run(model, [str(tmp_path / "any.tif")], tmp_path / "out", settings=SETTINGS, **option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_is_no_folder_is_a_sentence(model, tmp_path, out):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file or lies under one"):
        run(model, [str(write_scene(tmp_path / "town.tif", town(64, 64)[0]))], tmp_path / out)


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("CUDA error:\n no kernel")])
def test_a_machine_that_cannot_map_one_scene_maps_the_others(
    model, tmp_path, monkeypatch, capsys, error
):
    whole, scenes = (
        stage.predict_scene,
        [write_scene(tmp_path / f"{n}.tif", town(64, 64)[0]) for n in ("a", "b")],
    )

    def failing(model, task):
        if task.name == "a":
            raise error
        return whole(model, task)

    monkeypatch.setattr(stage, "predict_scene", failing)
    with pytest.raises(InputError, match=r"1 of 2 scenes failed \(a\)"):
        run(model, list(map(str, scenes)), tmp_path / "out", settings=SETTINGS)
    assert (
        f"a.tif: {type(error).__name__}: {' '.join(str(error).split())}" in capsys.readouterr().out
    )
    assert (tmp_path / "out" / "b.tif").exists()


# ---------------------------------------- when not to trust the map


def test_the_label_free_iou_is_that_of_true_probabilities():
    rng = np.random.default_rng(0)
    p = 1 / (1 + np.exp(-rng.normal(-1, 3, 400_000).clip(-8, 8)))
    truth = rng.random(len(p)) < p
    found = p > 0.5
    totals = Totals(histogram=np.histogram(np.log(p / (1 - p)), len(LOGITS), (-8, 8))[0])
    real = (found & truth).sum() / (found | truth).sum()
    assert label_free_iou(totals, None) == pytest.approx(real, abs=0.01)
    thresholds = {
        "building": np.quantile(p[found], 1 - truth[found].mean()),
        "background": np.quantile(1 - p[~found], truth[~found].mean()),
    }
    assert label_free_iou(totals, thresholds) == pytest.approx(real, abs=0.02)
    assert label_free_iou(Totals(histogram=(CONFIDENCE < 0.5).astype(int)), None) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "a scene is called merged, as the layer would be; rename it"),
        ({"shard": "1/2"}, "--merge needs every scene"),
        ({"settings": Predict(polygons="none")}, "--polygons none makes none"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_is_mapped(options, said, model, tmp_path):
    scenes = [
        str(write_scene(tmp_path / f"{name}.tif", toy_scene(0)[0])) for name in ("a", "merged")
    ]
    with pytest.raises(InputError, match=re.escape(said)):
        run(
            model,
            scenes[1:] if not options else scenes[:1],
            tmp_path / "maps",
            merged=True,
            **options,
        )
    assert not (tmp_path / "maps").exists()


def test_a_hard_training_citys_own_scenes_are_not_unlike_the_training_cities():
    """Two cities, .9 and .5, make .72 on validation: the second one's scenes are as usual, and
    a bit harder ones.
    """
    assert prediction.unlike(0.5, 0.72, least=None)
    assert not prediction.unlike(0.5, 0.72, least=0.5) and not prediction.unlike(
        0.4, 0.72, least=0.5
    )
    assert prediction.unlike(0.37, 0.72, least=0.5)
    assert prediction.unlike(0.5, 0.72, least=0.8)
    assert not prediction.unlike(None, 0.72, 0.5) and not prediction.unlike(0.1, None, None)


def test_a_scene_unlike_the_training_cities_is_flagged(toy_tiles, tmp_path, capsys):
    """Calibrated on bright roofs, a brightness threshold errs where they are
    faint, and says so without labels.
    """
    description, cities = Model(architecture="linear"), [CityTiles(toy_tiles / "toyton")]
    segmenter = build_model(description, 3).eval()
    with torch.no_grad():
        segmenter.network.weight[:] = torch.tensor([[0.0, 0, 0], [40, 0, 0]])[..., None, None]
        # between noise (90 ± 20) and roofs (180 ± 20)
        segmenter.network.bias[:] = torch.tensor([0.0, -40 * 135 / 255])
    calibration = calibrate(segmenter, cities, 64)
    card = {
        "model": description.model_dump(),
        "bands": [1, 2, 3],
        "channels": 3,
        "classes": 1,
        "gsd": 0.5,
        **calibration,
        "metrics": {"validation_iou": 0.94},
    }
    save_model(tmp_path / "model", segmenter, card)
    scenes = [
        write_scene(tmp_path / f"{name}.tif", toy_scene(99, 256, contrast)[0])
        for name, contrast in (("bright", 90), ("faint", 50))
    ]
    run(tmp_path / "model", [str(scene) for scene in scenes], tmp_path / "out", settings=SETTINGS)
    bright, faint = (json.loads((tmp_path / "out" / f"{s.stem}.json").read_text()) for s in scenes)
    # the same cut, and the labels that predict never saw; an estimate errs, and in bf16 more
    for record, contrast in ((bright, 90), (faint, 50)):
        image, label = toy_scene(99, 256, contrast)
        known = iou(image[..., 0] > 135, label)
        assert record["expected_iou"] == pytest.approx(known, abs=0.12)
    assert faint["expected_iou"] < 0.65
    assert (bright["unlike_training"], faint["unlike_training"]) == (False, True)
    cautions = [line for line in capsys.readouterr().out.splitlines() if line.startswith("caution")]
    assert len(cautions) == 1 and "faint.tif" in cautions[0]
