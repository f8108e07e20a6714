import json

import numpy as np
import pytest
import torch
from toy import write_city

from pipeline import params
from pipeline.course import tint
from pipeline.errors import InputError
from pipeline.explanation import city as one_city
from pipeline.explanation.cues import CUES
from pipeline.networks.models import build_model, save_model
from pipeline.params import parse_params
from pipeline.stages import explain

CITIES = ["bluetown", "elsewhere"]


@pytest.fixture
def stage(tmp_path):
    """Two cities with the planted tint, a network that answers from it, and the
    stage's arguments.
    """
    for seed, city in enumerate(CITIES):
        images, labels = (part.numpy() for part in tint.tiles(10, seed, size=64))
        pixels = np.rint(255 * images.transpose(0, 2, 3, 1)).astype(np.uint8)
        labels[:, 0, ::2] ^= 1  # an IoU of 1 in every tile would not say how far others are from it
        splits = ["train", "validation", *["test"] * 8]
        write_city(
            tmp_path / "tiles",
            list(zip(splits, pixels, labels.astype(np.uint8), strict=True)),
            city,
        )
    segmenter = build_model(params.Model(architecture="linear"), 3)
    segmenter.network.weight.data.copy_(
        torch.tensor([[0.0, 0, 0], [0, -200, 200]]).view(2, 3, 1, 1)
    )
    segmenter.network.bias.data.zero_()
    card = {"model": {"architecture": "linear"}, "channels": 3, "gsd": 0.5, "classes": 1}
    save_model(tmp_path / "model", segmenter, card)
    train = {"model": card["model"], "loss": {"dice": 1}, "epochs": 1, "steps_per_epoch": 1}
    settings = parse_params({
        "fetch": {"source": "demo", "path": "unused", "cities": CITIES},
        "tile": {"gsd": 0.5, "size": 64},
        "train": {**train, "batch_size": 1, "crop": 64},
        "explain": {"tiles": 8, "buildings": 2, "steps": 2},
    })  # fmt: skip
    names = {
        "model": "model",
        "tiles": "tiles",
        "out": "explain.json",
        "arrays": "arrays",
        "work": "work",
    }
    return settings, {key: tmp_path / name for key, name in names.items()}


def test_every_city_leans_on_the_planted_tint(stage):
    settings, paths = stage
    explain.run(settings, **paths)
    metrics = json.loads(paths["out"].read_text())
    assert list(metrics["city"]) == CITIES and metrics["buildings"] == 4
    for row in metrics["city"].values():
        assert row["leans_on"] == "colour" and set(row["cue"]) == set(CUES)
        assert row["bands"][0] == 0 and row["tiles"] == 8
        assert set(row["randomised"]) == {"head", "half", "all"}
    for gain in metrics["attribution"].values():
        assert gain["deletion_gain"] > 0 and gain["insertion_gain"] > 0
    for city in CITIES:
        with np.load(paths["arrays"] / f"{city}.npz") as shown:
            assert {"image", "map", "label", "without colour", "gradients"} <= set(shown.files)
    assert not list(paths["work"].iterdir())


def test_stopped_after_a_city_it_goes_on_with_the_next(stage, monkeypatch):
    settings, paths = stage
    started = []

    def stopping(*args, measure=one_city.explain_city):
        started.append(None)
        if len(started) == 2:
            raise KeyboardInterrupt
        yield from measure(*args)

    monkeypatch.setattr(one_city, "explain_city", stopping)
    with pytest.raises(KeyboardInterrupt):
        explain.run(settings, **paths)
    assert not paths["out"].exists()
    explain.run(settings, **paths)
    resumed = paths["out"].read_bytes()
    assert len(started) == 3
    explain.run(settings, **paths)
    assert len(started) == 5 and paths["out"].read_bytes() == resumed


def test_tiles_of_another_resolution_are_refused_before_anything_is_written(stage):
    settings, paths = stage
    card = json.loads((paths["model"] / "model.json").read_text())
    (paths["model"] / "model.json").write_text(json.dumps({**card, "gsd": 0.3}))
    with pytest.raises(InputError, match="ground sample distance"):
        explain.run(settings, **paths)
    assert not paths["out"].exists() and not paths["arrays"].exists()


def test_without_test_tiles_it_says_which_city_and_what_helps(stage):
    settings, paths = stage
    table = paths["tiles"] / CITIES[0] / "tiles.parquet"
    import geopandas

    frame = geopandas.read_parquet(table)
    frame["split"] = "train"
    frame.to_parquet(table)
    with pytest.raises(InputError, match=r"bluetown: no test tiles to explain; raise tile.test"):
        explain.run(settings, **paths)
