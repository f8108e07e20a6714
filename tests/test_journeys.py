"""Three newcomers' first hours, as docs/first_hour.md tells them, at a tiny size."""

import csv
import sys
from pathlib import Path

import geopandas
import pytest
import rasterio
import yaml
from affine import Affine
from rasterio.features import shapes
from shapely.geometry import shape
from toy import toy_scene, write_city

from pipeline.__main__ import main
from pipeline.params import load_params
from pipeline.presets import find, full
from pipeline.scoring.evaluation import MEASURES
from pipeline.scoring.metrics import ratio

ROOT = Path(__file__).parents[1]
SMALL = {"epochs": 1, "steps_per_epoch": 3, "batch_size": 2, "crop": 64,
         "model": {"architecture": "small_unet", "width": 4}}  # fmt: skip


def run(monkeypatch, command: str) -> None:
    """`python -m pipeline COMMAND`."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *command.split()])
    main()


def params(text: str, **sections: dict) -> None:
    """Write params.yaml: a preset's text, with a training so small that it takes seconds."""
    data = yaml.safe_load(text)
    for section, values in {"train": SMALL, **sections}.items():
        data[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(data))


def test_an_analyst_has_a_layer_of_a_town_after_the_documented_commands(tmp_path, monkeypatch):
    text = full(find(str(ROOT / "presets/town.yaml")))
    monkeypatch.chdir(tmp_path)
    town = Path("data/my-imagery/my-town")
    (town / "images").mkdir(parents=True)
    outlines = []
    for i in range(3):
        image, label = toy_scene(i)
        place = Affine(0.5, 0, 500_000 + 64 * i, 0, -0.5, 5_400_000)
        with rasterio.open(
            town / f"images/{i}.tif",
            "w",
            driver="GTiff",
            width=128,
            height=128,
            count=3,
            dtype="uint8",
            crs="EPSG:32633",
            transform=place,
        ) as scene:
            scene.write(image.transpose(2, 0, 1))
        outlines += [shape(s) for s, v in shapes(label, transform=place) if v == 1]
    geopandas.GeoDataFrame(geometry=outlines, crs="EPSG:32633").to_file(town / "buildings.gpkg")
    params(text)
    for command in ("fetch", "tile", "train"):  # `dvc repro train`
        run(monkeypatch, command)
    run(monkeypatch, f"predict models/all {town}/images --out maps --merge --threshold 0.01")
    layer = geopandas.read_file("maps/merged.gpkg")
    assert {"id", "label", "area_m2", "confidence"} <= {
        *layer.columns
    } and layer.crs == "EPSG:32633"
    assert layer.union_all().area == pytest.approx(layer.area.sum())


def test_a_researcher_compares_two_losses_on_three_cities_with_a_metric_of_their_own(
    tmp_path, monkeypatch, capsys
):
    text = yaml.safe_dump(load_params(ROOT / "tests/tiny.yaml").model_dump(mode="json"))
    monkeypatch.setitem(
        MEASURES, "specificity", lambda r: ratio(r.pixels[3], r.pixels[3] + r.pixels[1])
    )
    losses = {
        "ce": {"cross_entropy": 1, "dice": 0},
        "lovasz": {"cross_entropy": 0, "dice": 0, "lovasz": 1},
    }
    cities = ["alder", "birch", "cedar"]
    for name, loss in losses.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for c, city in enumerate(cities):
            splits = ["train", "train", "validation", "test", "test"]
            scenes = [(split, *toy_scene(10 * c + i, side=64)) for i, split in enumerate(splits)]
            write_city(Path("data/tiles"), scenes, city)
        params(text, train=SMALL | {"loss": loss}, fetch={"cities": cities})
        run(monkeypatch, "train")
        run(monkeypatch, "evaluate")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    run(monkeypatch, "compare ce lovasz --csv runs.csv")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "run alder birch cedar mean city" in said and "lovasz: train.loss.cross_entropy=0" in said
    )
    with Path("runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["run"], row["city"]) for row in rows} >= {
        (run, city) for run in losses for city in cities
    }
    assert all(0 <= float(row["specificity"]) <= 1 for row in rows) and "seen_low" in rows[0]


def test_a_student_finds_the_lectures_topics_and_runs_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "course")
    assert "svm" in capsys.readouterr().out
    run(monkeypatch, "course pooling")
    assert Path("course/pooling.png").stat().st_size > 0
