"""Whatever is in a file, it is taken or refused in a sentence: parameters,
footprints, rasters, archives.

Every example is drawn the same in every run; see tests/test_params.py for single
values of parameters.
"""

import json
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from faulty import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.imagery.scene import City, Scene, write_city
from pipeline.params import Fetch, Params, Predict, Tile, load_params
from pipeline.presets import full
from pipeline.sources.archive import extract_zip
from pipeline.sources.folder import source as folder
from pipeline.stages import tile
from pipeline.tiles.store import CityTiles

TEXT = full(ROOT / "tests/tiny.yaml")


def fuzz(examples: int):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def sentence(error: InputError) -> bool:
    """Short, of printable words."""
    text = str(error)
    return 0 < len(text) < 5000 and all(line.isprintable() for line in text.splitlines())


# ------------------------------------------------------------------ parameters


pieces = st.sampled_from(
    [
        "\t",
        "- ",
        ": ",
        "{",
        "[",
        "&a ",
        "*a",
        "!!python/object/apply:os.system [ls]",
        "2020-13-45",
        "1" * 5000,
        "\0",
        "é",
        "<<: *a\n",
        "? ",
        "|",
        "%",
        "''",
        ".nan",
        "-.inf",
        "0x",
        "\n",
        "#",
        "!!binary =",
        "!!set {a}",
    ]
)
cuts = st.integers(0, len(TEXT))


@fuzz(250)
@given(st.lists(st.tuples(cuts, cuts, pieces), min_size=1, max_size=4))
def test_any_mutation_of_params_yaml_is_valid_or_refused_in_words(changes):
    text = TEXT
    for start, length, piece in changes:
        text = text[:start] + piece + text[start + length % 40 :]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "params.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            assert isinstance(load_params(path), Params)
        except InputError as error:
            assert sentence(error) and "params.yaml" in str(error)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n"
for before, name in zip("abcdefgh", "bcdefghi", strict=True):
    BOMB += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "[" * 5000,
        "fetch: 2020-13-45",
        "fetch: " + "9" * 5000,
        TEXT.replace("[brickvale, tinroof, duskholm]", "[..]"),
        TEXT.replace("[brickvale, tinroof, duskholm]", "['../x']"),
        TEXT.replace("width: 32", "width: 1000000000"),
    ],
    ids=[
        "a bomb of aliases",
        "nested without end",
        "no such day",
        "a number of 5000 digits",
        "..",
        "../x",
        "a width",
    ],
)
def test_parameters_that_mean_harm(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_params(tmp_path / "params.yaml")
    assert sentence(error.value)


# ------------------------------------------------------------------ rasters


def write(path: Path, pixels: np.ndarray, **profile) -> Path:
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=count,
            height=height,
            width=width,
            dtype=pixels.dtype,
            **profile,
        ) as dataset:
            dataset.write(pixels)
    return path


DTYPES = [
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float32",
    "float64",
    "complex64",
]
TRANSFORMS = {
    "half a metre": Affine(0.5, 0, 5e5, 0, -0.5, 5e6),
    "south up": Affine(0.5, 0, 5e5, 0, 0.5, 5e6),
    "turned": Affine(0.4, 0.3, 5e5, 0.3, -0.4, 5e6),
    "flat": Affine(0.5, 0, 5e5, 0, 0, 5e6),
    "none": Affine(0, 0, 0, 0, 0, 0),
    "of a continent": Affine(1e6, 0, 5e5, 0, -1e6, 5e6),
    "of an atom": Affine(1e-9, 0, 5e5, 0, -1e-9, 5e6),
    "nowhere": Affine(0.5, 0, 1e30, 0, -0.5, 1e30),
    "not a number": Affine(float("nan"), 0, 5e5, 0, -0.5, 5e6),
    "infinite": Affine(float("inf"), 0, 5e5, 0, -0.5, 5e6),
}
CRSS = ["EPSG:32633", "EPSG:4326", "EPSG:3857", None]
FILLS = ["noise", "zeros", "one value", "extremes", "nan"]


def pixels(dtype: str, bands: int, height: int, width: int, fill: str) -> np.ndarray:
    kind, random = np.dtype(dtype), np.random.default_rng(0)
    if fill == "zeros":
        return np.zeros((bands, height, width), kind)
    if fill == "one value":
        return np.full((bands, height, width), 7, kind)
    if fill == "nan" and kind.kind in "fc":
        return np.full((bands, height, width), np.nan, kind)
    if fill == "extremes":
        low, high = (
            (0, 1)
            if kind.kind == "c"
            else (lambda i: (i.min, i.max))(np.finfo(kind) if kind.kind == "f" else np.iinfo(kind))
        )
        return np.where(
            random.random((bands, height, width)) < 0.5, kind.type(low), kind.type(high)
        ).astype(kind)
    return random.integers(1, 100, (bands, height, width)).astype(kind)


rasters = st.fixed_dictionaries({
    "dtype": st.sampled_from(DTYPES), "bands": st.integers(1, 5),
    "height": st.sampled_from([1, 2, 33, 64]), "width": st.sampled_from([1, 40, 64]),
    "fill": st.sampled_from(FILLS), "crs": st.sampled_from(CRSS),
    "transform": st.sampled_from(list(TRANSFORMS)),
    "nodata": st.sampled_from([None, 0, 255, -9999, float("nan")]),
})  # fmt: skip


def drawn(place: Path, about: dict) -> Path:
    """A raster as described; hypothesis is told to draw another where GDAL
    itself will not write it.
    """
    from hypothesis import assume

    array = pixels(*(about[key] for key in ("dtype", "bands", "height", "width", "fill")))
    try:
        return write(
            place / "a.tif",
            array,
            crs=about["crs"],
            transform=TRANSFORMS[about["transform"]],
            nodata=about["nodata"],
        )
    except (ValueError, OverflowError, rasterio.errors.RasterioError):
        assume(False)


@fuzz(80)
@given(rasters)
def test_any_raster_is_tiled_or_refused_in_words(about):
    with (
        tempfile.TemporaryDirectory() as place,
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        root = Path(place)
        image = drawn(root, about)
        label = write(root / "label.tif", np.zeros((1, about["height"], about["width"]), np.uint8))
        scenes = [Scene(s, str(image), str(label), s) for s in ("train", "validation", "test")]
        (root / "scenes" / "town").mkdir(parents=True)
        write_city(root / "scenes" / "town", City("town", "test", scenes))
        params = load_params(ROOT / "tests/tiny.yaml")
        params = params.model_copy(update={"tile": Tile(gsd=0.5, size=32, workers=1, memory=64)})
        try:
            tile.run(params, "town", root / "scenes", root / "tiles")
        except InputError as error:
            assert sentence(error) and not list((root / "tiles").glob("*"))
        else:
            assert len(CityTiles(root / "tiles/town").regions) == 3


@fuzz(30)
@given(rasters)
def test_any_raster_is_mapped_or_refused_in_words(about):
    import torch

    from pipeline.mapping.inputs import Task
    from pipeline.mapping.scene import predict_scene
    from pipeline.networks.models import build_model, save_model
    from pipeline.params import Model

    with (
        tempfile.TemporaryDirectory() as place,
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        root = Path(place)
        image = drawn(root, about)
        torch.manual_seed(0)
        card = {
            "model": {"architecture": "linear"},
            "channels": 3,
            "classes": 1,
            "gsd": 0.5,
            "bands": [1, 2, 3],
        }
        save_model(root / "model", build_model(Model(**card["model"]), 3), card)
        try:
            found = predict_scene(
                str(root / "model"), Task(str(image), "a", str(root / "maps"), Predict(window=64))
            )
        except InputError as error:
            assert sentence(error) and not list((root / "maps").glob("*"))
        else:
            assert sorted(p.name for p in (root / "maps").iterdir()) == sorted(
                [*found.files, "a.json"]
            )


# ------------------------------------------------------------------ footprints


numbers = st.sampled_from(
    [0, 1, 500_010, 5_999_970, 1e308, -1e308, float("nan"), float("inf"), "x", None, []]
)
points = st.lists(numbers, max_size=3)
shapes = st.recursive(points, lambda inner: st.lists(inner, max_size=5), max_leaves=12)
SQUARE = [[[500_010, 5_999_970], [500_020, 5_999_970], [500_020, 5_999_980], [500_010, 5_999_970]]]
geometries = st.none() | st.fixed_dictionaries({
    "type": st.sampled_from(["Polygon", "MultiPolygon", "Point", "LineString", "GeometryCollection", "Circle", 3]),
    "coordinates": st.just(SQUARE) | shapes,
})  # fmt: skip
labels = st.sampled_from([1, 255, 0, -1, 256, 1.5, "roof", None, True, [1], 10**30])
features = st.fixed_dictionaries(
    {"type": st.sampled_from(["Feature", "Feature", "Thing"]), "geometry": geometries},
    optional={"properties": st.none() | st.fixed_dictionaries({"label": labels})},
)
SUFFIXES = ["geojson", "json", "gpkg", "parquet", "shp", "zip", "kml"]
crss = st.sampled_from(["urn:ogc:def:crs:EPSG::32633", "EPSG:32633", "EPSG:999999", "nonsense", ""])


@fuzz(150)
@given(st.lists(features, max_size=4), crss, st.sampled_from(SUFFIXES))
def test_any_footprints_are_taken_or_refused_in_words(found, crs, suffix):
    """Much of it is GeoJSON under another format's name."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(place)
        (root / "town/images").mkdir(parents=True)
        write(root / "town/images/a.tif", pixels("uint8", 3, 64, 64, "noise"), crs="EPSG:32633",
              transform=Affine(1, 0, 500_000, 0, -1, 6_000_000))  # fmt: skip
        collection = {"type": "FeatureCollection", "features": found}
        collection |= {"crs": {"type": "name", "properties": {"name": crs}}}
        (root / f"town/buildings.{suffix}").write_text(json.dumps(collection))
        try:
            city = folder.fetch(
                Fetch(source="folder", path=place, cities=["town"]), "town", root, root
            )
        except InputError as error:
            assert sentence(error)
            return
        (root / "scenes/town").mkdir(parents=True)
        write_city(root / "scenes/town", city)
        params = load_params(ROOT / "tests/tiny.yaml")
        params = params.model_copy(update={"tile": Tile(gsd=0.25, size=32, workers=1, margin=0)})
        try:
            tile.run(params, "town", root / "scenes", root / "tiles")
        except InputError as error:
            assert sentence(error)


# ------------------------------------------------------------------ archives


parts = st.sampled_from(
    ["..", ".", "", "a", "train", "C:", "\\", "/", "images", "a.tif", "\0", "é", "~", "x" * 300]
)


@fuzz(150)
@given(
    st.lists(st.lists(parts, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4),
    st.booleans(),
)
def test_members_of_any_name_are_written_where_asked_or_not_at_all(names, links):
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(place)
        inside = root / "in" / "deep"
        inside.mkdir(parents=True)
        with zipfile.ZipFile(root / "a.zip", "w") as archive:
            for name in ["good.tif", *names]:
                about = zipfile.ZipInfo(name)
                about.external_attr = 0o120777 << 16 if links else 0  # a symbolic link
                archive.writestr(about, b"/etc/passwd")
        asked = {"good.tif": inside / "good.tif", names[0]: inside / "other.tif"}
        try:
            extract_zip(root / "a.zip", asked, limit=100)
        except InputError as error:
            assert str(error)
        here = {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()}
        assert here <= {"a.zip", "in/deep/good.tif", "in/deep/other.tif"}
        assert not any(p.is_symlink() for p in root.rglob("*"))
