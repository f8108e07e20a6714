"""The stage fetch leaves a city whole or not at all, and says what it noticed."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from pipeline.errors import InputError
from pipeline.imagery.scene import read_city
from pipeline.params import Fetch, Params, Tile, Train
from pipeline.stages.fetch import run


def tif(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    profile = {
        "count": bands,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        "crs": "EPSG:32633",
    }
    with rasterio.open(
        path, "w", "GTiff", transform=Affine(1, 0, 5e5, 0, -1, 6e6), **profile
    ) as dataset:
        dataset.write(pixels)


def params(cities, bands=(1, 2, 3), **fetch):
    train = Train.model_construct()
    section = Fetch(source="folder", path="imagery", cities=cities, **fetch)
    return Params.model_construct(
        fetch=section, tile=Tile(gsd=1, size=64, bands=list(bands)), train=train
    )


@pytest.fixture(autouse=True)
def towns(tmp_path, monkeypatch):
    """imagery/ with the cities wide (RGB) and grey (one band), and a working
    directory beside it.
    """
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0).integers(1, 255, (3, 60, 80), dtype=np.uint8)
    for name, pixels in (("wide", random), ("grey", random[:1])):
        tif(Path("imagery", name, "images", "a.tif"), pixels)
        tif(Path("imagery", name, "labels", "a.tif"), (random[:1] > 99).astype(np.uint8))


def test_a_city_is_written_and_summed_up(capsys):
    run(params(["wide"]))
    city = read_city(Path("data/scenes/wide"))
    assert (city.city, city.source, city.bands) == ("wide", "folder", None)
    assert Path(city.scenes[0].image) == Path("imagery/wide/images/a.tif").resolve()
    said = capsys.readouterr().out
    assert "wide" in said and "0.005" in said  # 60 × 80 px


def test_one_band_where_three_are_asked():
    run(params(["wide"]))
    with pytest.raises(InputError, match=r"a.tif: has 1 band, but band 3 is asked for"):
        run(params(["wide", "grey"]))
    assert sorted(path.name for path in Path("data/scenes").iterdir()) == ["wide"]
    run(params(["grey"], overrides={"grey": {"bands": [1, 1, 1]}}))
    assert read_city(Path("data/scenes/grey")).bands == [1, 1, 1]


def test_a_failure_keeps_the_last_good_city():
    run(params(["wide"]))
    before = Path("data/scenes/wide/city.json").read_text()
    Path("imagery/wide/labels/a.tif").unlink()
    with pytest.raises(InputError, match="no label"):
        run(params(["wide"]))
    assert Path("data/scenes/wide/city.json").read_text() == before


def test_only_the_city_asked_for():
    run(params(["wide", "grey"], overrides={"grey": {"bands": [1]}}), city="grey")
    assert [path.name for path in Path("data/scenes").iterdir()] == ["grey"]
    with pytest.raises(
        InputError, match="--city: gray is not one of fetch.cities; did you mean grey"
    ):
        run(params(["wide", "grey"]), city="gray")


def test_an_unchanged_city_is_the_same_bytes():
    run(params(["wide"]))
    before = Path("data/scenes/wide/city.json").read_bytes()
    run(params(["wide"]))
    assert Path("data/scenes/wide/city.json").read_bytes() == before
    assert json.loads(before)["scenes"][0]["stamp"]


@pytest.mark.slow
def test_real_cities(shared_cities, capsys):
    cities = ["austin", "banepa", "montenegro", "ohio", "zanzibar"]
    run(
        params(cities).model_copy(
            update={"fetch": Fetch(source="folder", path=str(shared_cities), cities=cities)}
        )
    )
    assert [len(read_city(Path("data/scenes") / city).scenes) for city in cities] == [
        1,
        1,
        12,
        118,
        2,
    ]
    assert "1466 footprints" in capsys.readouterr().out.replace("\n", " ")
