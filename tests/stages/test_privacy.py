"""The stage on two toy cities: the schema, a model that knows its tiles by
heart, and what is refused.
"""

import json
import re

import numpy as np
import pytest
import torch
from toy import toy_scene, write_city

from pipeline.errors import InputError
from pipeline.metrics import Planted
from pipeline.networks.models import build_model, read_model, save_model
from pipeline.params import Model, Privacy, parse_params
from pipeline.privacy.judge import judge, sample
from pipeline.privacy.membership import tile_scores
from pipeline.privacy.planted import Planting, planted
from pipeline.privacy.private_training import records
from pipeline.stages import privacy
from pipeline.tiles.store import CityTiles
from pipeline.tiles.tensors import to_tensors

CITIES = ["toyton", "dimham"]
MODEL = {"architecture": "small_fcn", "width": 4}
QUICK = {"width": 4, "steps": 3, "crop": 32, "epsilon": [8]}
CPU = torch.device("cpu")


def keep(folder, cities, seed=0, **more):
    torch.manual_seed(seed)
    card = {"model": MODEL, "channels": 3, "gsd": 0.5, "classes": 1, "cities": cities, **more}
    save_model(folder, build_model(Model(**MODEL), 3), card)
    return str(folder)


@pytest.fixture
def place(toy_tiles):
    models = toy_tiles.parent / "models"
    keep(models / "all", CITIES)
    for i, city in enumerate(CITIES):
        keep(models / f"folds/without-{city}", [c for c in CITIES if c != city], seed=i + 1)
    return toy_tiles.parent


def run(place, **changes):
    private = {**QUICK, **changes.pop("private", {})}
    params = parse_params(
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
            "privacy": {
                "model": str(place / "models/all"),
                "tiles": 8,
                "bootstrap": 200,
                "planted_steps": 3,
                "private": private,
                **changes,
            },
        }
    )
    out = place / "privacy.json"
    privacy.run(params, place / "tiles", place / "models", out, place / "work")
    return json.loads(out.read_text())


def test_both_attacks_in_each_city_the_small_networks_and_the_plant(place):
    metrics = run(place, private={"unit": "scene", "rate": 1.0})
    for city in CITIES:
        row = metrics["city"][city]
        assert row["members"] == row["others"] == 8 and row["scenes"] == {"members": 3, "others": 2}
        assert row["references"] == 1
        assert all(0 <= row[attack]["auc"] <= 1 for attack in ("loss", "likelihood_ratio"))
    for attack in ("loss", "likelihood_ratio"):
        aucs = [metrics["city"][city][attack]["auc"] for city in CITIES]
        assert metrics["mean_city"][attack]["auc"] == pytest.approx(np.mean(aucs))
        # 16 tiles: too few
        assert metrics["pooled"] == {"fpr": 0.01, "loss": None, "likelihood_ratio": None}
    private = metrics["private"]
    assert private["records"] == 6 and private["delta"] == pytest.approx(0.1 / 6)
    plain, noisy = private["network"]["plain"], private["network"]["8"]
    assert plain["epsilon"] is None and 7 < noisy["epsilon"] <= 8 and 0.5 < noisy["auc_bound"] <= 1
    assert metrics["planted"]["of"] == 4 and metrics["planted"]["repeats"] == 50
    assert not (place / "work").exists()


def test_a_tile_s_privacy_bounds_no_scene_s_and_all_can_be_turned_off(place):
    assert run(place, planted=0)["private"]["network"]["8"]["auc_bound"] is None
    metrics = run(place, planted=0, private={"epsilon": []})
    assert "private" not in metrics and "planted" not in metrics


def test_without_a_reference_there_is_the_loss_alone(place, capsys):
    for file in (place / "models/folds/without-dimham").iterdir():
        file.unlink()
    metrics = run(place, planted=0, private={"epsilon": []})
    assert (
        metrics["city"]["dimham"]["likelihood_ratio"] is None and metrics["city"]["dimham"]["loss"]
    )
    assert metrics["city"]["toyton"]["likelihood_ratio"]
    assert "train --without dimham" in re.sub(r"\s+", " ", capsys.readouterr().out)
    stranger = keep(place / "stranger", ["elsewhere"], seed=5)
    started = keep(place / "started", ["elsewhere"], seed=6, inherited=["dimham"])
    metrics = run(place, planted=0, private={"epsilon": []}, references=[stranger, started])
    assert [metrics["city"][city]["references"] for city in CITIES] == [3, 1]


def test_a_model_of_other_cities_is_refused(place):
    keep(place / "models/all", ["elsewhere"])
    with pytest.raises(InputError, match="no city of fetch.cities that it was trained on"):
        run(place)
    assert not (place / "privacy.json").exists()


def by_heart(city: CityTiles, share: float):
    """A network, by hand, that knows the labels of what it was trained on, and
    elsewhere guesses.
    """
    known = {r: city.label(r) for r in city.of_split("train")}

    def network(images):
        answers = []
        for image in images:
            tile = (image.movedim(0, -1) * 255).round().numpy().astype(np.uint8)
            logits = torch.zeros(2, *tile.shape[:2])
            for region, label in known.items():
                for window in region.windows(64):
                    place = np.s_[window.top : window.top + 64, window.left : window.left + 64]
                    if np.array_equal(city.image(region)[place], tile):
                        truth = torch.from_numpy(np.array(label[place]))
                        logits = share * torch.stack([1.0 - truth, truth.float()])
            answers.append(logits)
        return torch.stack(answers)

    return network


def test_a_model_that_knows_its_training_by_heart_gives_all_of_it_away(place):
    city = CityTiles(place / "tiles/toyton")
    of = sample(city, 8, 0, [by_heart(city, 0.0)], CPU)
    found = judge(by_heart(city, 5.0), {"toyton": of}, 200, 0)
    assert (
        found["city"]["toyton"]["loss"]["auc"]
        == found["city"]["toyton"]["likelihood_ratio"]["auc"]
        == 1
    )
    blind = judge(by_heart(city, 0.0), {"toyton": of}, 200, 0)
    assert (
        blind["city"]["toyton"]["loss"]["auc"]
        == blind["mean_city"]["likelihood_ratio"]["auc"]
        == 0.5
    )


def test_a_planted_scene_is_found_by_its_loss(place, monkeypatch):
    """Given networks: one that never saw it, and one by hand that knows the
    planted scene and no other.
    """
    cities = [CityTiles(place / "tiles" / name) for name in CITIES]
    samples = {city.city: sample(city, 8, 0, [], CPU) for city in cities}
    trained = []

    def given(self, name, of):
        trained.append(of)
        if len(trained) == 1:
            return by_heart(cities[0], 0.0)
        plant = of[-1]
        known = {
            r: plant.city.label(r) for r in plant.city.regions if r.parent == plant.region.parent
        }
        monkeypatch.setattr(CityTiles, "of_split", lambda self, split: list(known))
        return by_heart(plant.city, 5.0)

    monkeypatch.setattr(Planting, "tuned", given)
    found = planted(Planting(None, Privacy(), cities, place / "work"), samples)
    assert found["found"] and found["rank"] == 1 and found["rise"] > found["next_rise"] == 0
    # ln 2 of a network that guesses, ln(1 + e^-5) of one that knows
    assert found["rise"] == pytest.approx(np.log(np.log(2) / np.log1p(np.exp(-5))))
    without, of = trained
    twins = of[len(without) :]
    assert {(r.city.city, r.region.parent) for r in twins} == {(found["city"], found["scene"])}
    assert len(twins) == 50 * 4


def test_the_only_test_scene_is_neither_found_nor_missed(tmp_path, monkeypatch):
    scenes = [(split, *toy_scene(i)) for i, split in enumerate(("train", "train", "test"))]
    write_city(tmp_path, scenes, "lonely")
    city = CityTiles(tmp_path / "lonely")
    monkeypatch.setattr(Planting, "tuned", lambda self, name, of: by_heart(city, 0.0))
    of = {"lonely": sample(city, 8, 0, [], CPU)}
    found = planted(Planting(None, Privacy(), [city], tmp_path), of)
    assert found["of"] == 1
    assert found["rank"] is found["found"] is found["next_rise"] is None
    said = privacy.verdict(Planted(**found))
    assert said.endswith("it is the only test scene, and against none is it found or not")
    assert privacy.verdict(Planted(rise=0.0, rank=2, of=3, found=False)).startswith("not found, 2.")


def test_the_training_goes_on_from_the_model_and_is_kept(place):
    cities = [CityTiles(place / "tiles" / name) for name in CITIES]
    settings = Privacy(model=str(place / "models/all"), planted_steps=30)
    target = read_model(settings.model)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    planting = Planting(target, settings, cities, place / "work")
    of = records(cities, "train", "tile")
    tuned = planting.tuned("planted", of)
    images, labels = to_tensors(cities[0].sample("train", 8), CPU)
    loss = {m: -tile_scores(m, images, labels)["loss"].mean() for m in (target, tuned)}
    assert loss[tuned] < loss[target]
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    kept = planting.tuned("planted", of)
    assert all(
        torch.equal(a, b) for a, b in zip(kept.parameters(), tuned.parameters(), strict=True)
    )


def test_scores_of_a_tile_do_not_depend_on_the_batch(place):
    city = CityTiles(place / "tiles/toyton")
    of = sample(city, 8, 0, [], CPU)
    network = by_heart(city, 1.0)
    together = tile_scores(network, of.images, of.labels)["loss"]
    alone = [
        tile_scores(network, of.images[i : i + 1], of.labels[i : i + 1])["loss"][0]
        for i in range(len(together))
    ]
    assert together == pytest.approx(alone)


def test_a_city_without_training_tiles_is_left_out(place):
    write_city(
        place / "tiles", [("validation", *toy_scene(1)), ("test", *toy_scene(2))], "untaught"
    )
    assert sample(CityTiles(place / "tiles/untaught"), 8, 0, [], CPU) is None
