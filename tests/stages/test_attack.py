import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy import toy_scene, write_city

from pipeline import params
from pipeline.attacks import protocol
from pipeline.attacks.audit import CHECKS
from pipeline.errors import InputError
from pipeline.networks.models import build_model, save_model
from pipeline.params import parse_params
from pipeline.stages import attack
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_tensors

CITIES = ["toyton", "dimham"]
MODEL = {"architecture": "small_fcn", "width": 8}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Tiles of two toy cities and a small network that knows them.

    Their buildings are 40 or 30 grey levels brighter than the ground: at 32/255
    nothing can be known for sure.
    """
    folder = tmp_path_factory.mktemp("known")
    for c, contrast in enumerate((40, 30)):
        splits = ["train", "train", "train", "test", "test"]
        scenes = [
            (split, *toy_scene(10 * c + i, contrast=contrast)) for i, split in enumerate(splits)
        ]
        write_city(folder / "tiles", scenes, CITIES[c])
    torch.manual_seed(0)
    segmenter = build_model(params.Model(**MODEL), 3)
    images, labels = (
        torch.cat(parts)
        for parts in zip(
            *(
                to_tensors(CityTiles(folder / "tiles" / city).sample("train", 12), "cpu")
                for city in CITIES
            ),
            strict=True,
        )
    )
    optimizer = torch.optim.Adam(segmenter.parameters(), 1e-2)
    for _ in range(60):
        loss = F.cross_entropy(segmenter(images - 0.5), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    segmenter.mean.fill_(0.5)
    save_model(
        folder / "model", segmenter, {"model": MODEL, "channels": 3, "gsd": 0.5, "classes": 1}
    )
    return folder


@pytest.fixture
def stage(known, tmp_path):
    """The stage's parameters and paths, on copies."""
    shutil.copytree(known, tmp_path, dirs_exist_ok=True)
    settings = parse_params(
        {
            "fetch": {"source": "demo", "path": "unused", "cities": CITIES},
            "tile": {"gsd": 0.5, "size": 64},
            "train": {
                "model": MODEL,
                "loss": {"cross_entropy": 1.0},
                "epochs": 1,
                "steps_per_epoch": 1,
                "batch_size": 1,
                "crop": 64,
            },
            "attack": {
                "model": str(tmp_path / "model"),
                "tiles": 3,
                "linf": [0.5, 4, 16],
                "l2": [1],
                "steps": 6,
                "apgd_steps": 4,
                "soft_iou_steps": 6,
                "reference": 16,
                "patch": 8,
                "physics": {
                    "tiles": 2,
                    "grid": 5,
                    "steps": 1,
                    "gain": 0.02,
                    "offset": 0.01,
                    "cells": 4,
                    "sun": {"toyton": [135, 45]},
                },
                "precision": "fp32",
            },
        }
    )
    return settings, {
        "tiles": tmp_path / "tiles",
        "out": tmp_path / "metrics.json",
        "arrays": tmp_path / "arrays",
        "work": tmp_path / "work",
    }


def test_every_city_in_the_schema(stage):
    settings, paths = stage
    attack.run(settings, **paths)
    metrics = json.loads(paths["out"].read_text())
    learned = {"vanishes", "ten_times_is_no_worse"}  # hang on what sixty steps taught
    assert set(metrics["audit"]) == set(CHECKS)
    assert all(passed for check, passed in metrics["audit"].items() if check not in learned)
    assert list(metrics["city"]) == CITIES
    for city, row in metrics["city"].items():
        physics = row["physics"]
        assert (
            physics["all"]["worst"]
            <= min(f["worst"] for f in physics["family"].values())
            <= physics["clean"]
        )
        for family in physics["family"].values():
            assert family["worst"] <= family["grid"] <= physics["clean"]
        gain = physics["family"]["gain"]
        assert (
            0 < gain["certified"] <= gain["worst"] and "certified" not in physics["family"]["haze"]
        )
        assert ("shadow" in row) == (city == "toyton")
    for city in metrics["city"].values():
        assert list(city["linf"]) == ["0.5", "4", "16"] and list(city["l2"]) == ["1"]
        for row in [*city["linf"].values(), *city["l2"].values()]:
            names = {
                "clean",
                "noise",
                "fgsm",
                "pgd",
                "segpgd",
                "cospgd",
                "apgd",
                "soft_iou",
                "worst",
            }
            assert names <= set(row)
            assert row["worst"] <= min(row[name] for name in names)
        assert {"transfer", "erase", "invent", "patch", "halving", "universal"} <= set(city)
    assert list(metrics["city"]["toyton"]["universal"]["from"]) == ["dimham"]
    for city in CITIES:
        with np.load(paths["arrays"] / f"{city}.npz") as shown:  # the tile that loses most, exactly
            assert np.abs(shown["attacked"] - shown["image"]).max() <= 16 / 255 + 1e-6
            assert (shown["before"] != shown["after"]).any()
    assert not list(paths["work"].iterdir())


@pytest.mark.slow
def test_stopped_after_a_city_it_goes_on_with_the_next(stage, monkeypatch):
    settings, paths = stage
    attacked = []

    def stopping(*args, measure=protocol.attack_city):
        attacked.append(None)
        if len(attacked) == 2:
            raise KeyboardInterrupt
        yield from measure(*args)

    monkeypatch.setattr(protocol, "attack_city", stopping)
    with pytest.raises(KeyboardInterrupt):
        attack.run(settings, **paths)
    assert not paths["out"].exists()
    attack.run(settings, **paths)
    assert len(attacked) == 3
    resumed = paths["out"].read_bytes()
    attack.run(settings, **paths)
    assert len(attacked) == 5 and paths["out"].read_bytes() == resumed


def test_changed_code_models_and_tiles_measure_again(stage, monkeypatch):
    settings, paths = stage
    cities = [CityTiles(paths["tiles"] / city) for city in CITIES]
    samples = {city.city: attack._sample(city, "test", 1, settings.attack) for city in cities}
    keys = [attack._key(settings, cities, samples)]
    assert keys[0] == attack._key(settings, cities, samples)
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **k: read(self, **k) + "#" * (self.name == "engine.py")
    )
    keys.append(attack._key(settings, cities, samples))
    monkeypatch.undo()
    card = paths["tiles"].parent / "model" / "model.json"
    card.write_text(card.read_text() + " ")
    keys.append(attack._key(settings, cities, samples))
    cities[0].about["gsd"] = 0.6
    keys.append(attack._key(settings, cities, samples))
    assert len(set(keys)) == 4


def test_a_failed_check_is_in_the_metrics_and_told(stage, monkeypatch, capsys):
    """So that the stages after it go on: the report ends with the error."""
    settings, paths = stage
    # no attack can succeed: as if gradients were hidden
    monkeypatch.setattr(protocol, "STRONG", 0.01)
    # what the audit judges, and no attack besides
    less = {"linf": [16], "l2": [], "halving": False, "patch": 0, "targeted": 0, "universal": False}
    less["physics"] = settings.attack.physics.model_copy(update={"families": []})
    lean = settings.attack.model_copy(update=less)
    attack.run(settings.model_copy(update={"attack": lean}), **paths)
    metrics = json.loads(paths["out"].read_text())
    assert (
        metrics["audit"]["vanishes"] is False and max(metrics["audit_numbers"]["vanishing"]) > 0.1
    )
    assert "audit failed: vanishes" in capsys.readouterr().out
    assert not list(paths["work"].iterdir())


def test_a_model_of_other_tiles_is_refused(stage):
    settings, paths = stage
    card = json.loads((paths["tiles"].parent / "model" / "model.json").read_text())
    (paths["tiles"].parent / "model" / "model.json").write_text(json.dumps({**card, "gsd": 0.3}))
    with pytest.raises(InputError, match="ground sample distance"):
        attack.run(settings, **paths)
