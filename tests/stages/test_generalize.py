import json

import geopandas as gpd
import numpy as np
import pytest
import torch
from toy import toy_scene, write_city

from pipeline.errors import InputError
from pipeline.networks.card import read_card
from pipeline.networks.models import build_model
from pipeline.params import parse_params
from pipeline.scoring.evaluation import CityResult
from pipeline.storage import WORK, digest
from pipeline.tiles.store import CityTiles
from pipeline.transfer.corruptions import NAMES
from pipeline.transfer.gap import Fold

METHODS = ["none", "histogram", "fda", "adabn", "entropy", "self_training"]
PARAMS = {
    "fetch": {"source": "demo", "path": "x", "cities": ["toyton", "dimham"]},
    "tile": {"gsd": 0.5, "size": 64},
    "train": {
        "model": {"architecture": "small_unet", "width": 8},
        "loss": {"cross_entropy": 1},
        "epochs": 2,
        "steps_per_epoch": 20,
        "batch_size": 4,
        "crop": 64,
        "augment": "none",
        "learning_rate": 0.01,
    },
    "evaluate": {"window": 128},
    "certify": {"crop": 32, "smoothing": {"n": 64}},
    "generalize": {
        "corruption_tiles": 2,
        "adaptation": METHODS,
        "adaptation_tiles": 8,
        "adaptation_steps": 2,
        "attack_steps": 2,
        "bootstrap": 200,
    },
}


@pytest.fixture
def params():
    return parse_params(PARAMS)


@pytest.fixture
def workplace(toy_tiles, monkeypatch):
    monkeypatch.chdir(toy_tiles.parent)
    return toy_tiles


def test_the_stage_writes_the_schema(params, workplace):
    from pipeline.stages import generalize, train

    for city in (None, "toyton", "dimham"):
        train.run(params, city, tiles=workplace)
    generalize.run(params, tiles=workplace)
    metrics = json.loads((workplace.parent / "metrics" / "generalize.json").read_text())
    cities = {"toyton", "dimham"}
    assert set(metrics["city"]) == cities
    for row in metrics["city"].values():
        assert row["gap"] == pytest.approx(row["seen"] - row["unseen"])
        assert row["gap_low"] <= row["gap"] <= row["gap_high"]
    assert set(metrics["matrix"]) == {"all", "without-toyton", "without-dimham"}
    for city in cities:
        assert metrics["matrix"]["all"][city] == pytest.approx(metrics["city"][city]["seen"])
        assert metrics["matrix"][f"without-{city}"][city] == pytest.approx(
            metrics["city"][city]["unseen"]
        )
        assert metrics["adaptation"]["none"][city] == metrics["matrix"][f"without-{city}"][city]
        oracle = metrics["adaptation_choice"][city]["oracle"]
        assert oracle["iou"] == max(metrics["adaptation"][m][city] for m in METHODS)
        assert metrics["adaptation_choice"][city]["iou"] <= oracle["iou"]
        for side in metrics["robustness"]["city"][city].values():
            assert all(
                0 <= side[kind] <= 1 for kind in ("clean", "corrupted", "attacked", "certified")
            )
        estimate = metrics["label_free"]["city"][city]
        assert (
            0 <= estimate["thresholded"] <= 1
            and estimate["iou"] == metrics["matrix"][f"without-{city}"][city]
        )
    # a guess for one city from the other
    a, b = (metrics["label_free"]["city"][c] for c in sorted(cities))
    assert a["mean_unseen"] == b["iou"] and a["mean_gap"] == pytest.approx(
        a["no_gap"] - b["no_gap"] + b["iou"]
    )
    errors = metrics["label_free"]["mean_error"]
    assert errors["mean_unseen"] == pytest.approx(abs(a["iou"] - b["iou"]))
    assert errors[metrics["label_free"]["estimate"]] == min(
        errors[g] for g in ("thresholded", "atc", "expected")
    )
    assert errors[metrics["label_free"]["naive"]] == min(
        errors[g] for g in ("no_gap", "mean_gap", "mean_unseen")
    )
    assert metrics["frugal"] == {}
    assert set(metrics["corruption"]) == set(NAMES)
    assert set(metrics["corruption"]["haze"]) == {"1", "2", "3", "4", "5"}
    assert set(metrics["corruption"]["haze"]["3"]) == cities
    worst, mean = metrics["worst_city"]["unseen"], metrics["mean_city"]["unseen"]
    assert worst <= mean <= max(row["unseen"] for row in metrics["city"].values())


def test_seeds_single_cities_and_shares(params, workplace):
    """Everything that is off by default, with the smallest trainings."""
    from pipeline.stages import generalize, train

    small = params.train.model_copy(update={"epochs": 1, "steps_per_epoch": 2})
    options = {
        "epochs": 1, "seeds": [0, 1], "single_city": True, "fractions": [0.3, 1.0],
        "corruptions": False, "adaptation": [], "attack_steps": 0,
        "initialisations": ["random", "other_cities", "self_supervised"],
    }  # fmt: skip
    brief = params.pretrain.model_copy(update={"steps": 2, "crop": 64, "tiles": 4})
    params = params.model_copy(
        update={
            "train": small,
            "pretrain": brief,
            "generalize": params.generalize.model_copy(update=options),
        }
    )
    for city in (None, "toyton", "dimham"):
        train.run(params, city, tiles=workplace)
    generalize.run(params, tiles=workplace)
    metrics = json.loads((workplace.parent / "metrics" / "generalize.json").read_text())
    assert metrics["seeds"] == [0, 1]
    assert metrics["city"]["toyton"]["unseen_spread"] is not None
    assert {"only-toyton", "only-dimham"} <= set(metrics["matrix"])
    assert metrics["frugal"] == metrics["frugal_by_initialisation"]["random"]
    assert metrics["frugal_scenes"] == {
        "0.3": {"dimham": 1, "toyton": 1},
        "1": {"dimham": 3, "toyton": 3},
    }
    assert set(metrics["frugal_by_initialisation"]) == {"random", "other_cities", "self_supervised"}
    assert metrics["frugal"]["1"] == metrics["matrix"]["all"]
    trainings = {path.name: read_card(path) for path in (WORK / "generalize").glob("frugal-*")}
    assert "frugal-random-1" not in trainings  # it is the reference, not trained once more
    assert set(trainings["frugal-random-0.3"].cities) == {"toyton", "dimham"}
    card = trainings["frugal-other_cities-1-dimham"]
    assert (card.cities, card.inherited) == (["dimham"], ["toyton"])


def trained(params, workplace, folds=(None, "toyton", "dimham")):
    from pipeline.stages import train

    brief = {"epochs": 1, "steps_per_epoch": 1}
    params = params.model_copy(update={"train": params.train.model_copy(update=brief)})
    for city in folds:
        train.run(params, city, tiles=workplace)
    return params


def with_init(params, folder):
    return params.model_copy(
        update={"train": params.train.model_copy(update={"init": str(folder)})}
    )


def test_a_start_that_has_seen_the_held_out_city_is_refused_and_a_self_supervised_one_is_not(
    params, workplace
):
    from pipeline.stages import train
    from pipeline.training.pretraining import pretrain

    params = trained(params, workplace)
    cities = [CityTiles(workplace / name) for name in ("toyton", "dimham")]
    (workplace.parent / "models" / "all").rename(workplace.parent / "clean")
    (workplace.parent / "models/folds/without-toyton").rename(workplace.parent / "clean-dimham")
    before = digest(workplace.parent / "models/folds/without-dimham/weights.safetensors")
    for start, known in (("clean", "toyton, dimham"), ("clean-dimham", "dimham")):
        for city in ("toyton", "dimham"):  # whichever fold is the first: the other one could not be
            with pytest.raises(
                InputError, match=f"has been trained on {known}, so no fold can leave that out"
            ):
                train.run(with_init(params, workplace.parent / start), city, tiles=workplace)
    assert digest(workplace.parent / "models/folds/without-dimham/weights.safetensors") == before
    small = params.pretrain.model_copy(update={"steps": 2, "crop": 64, "tiles": 4})
    pretrain(params.model_copy(update={"pretrain": small}), cities, workplace.parent / "pretrained")
    train.run(with_init(params, workplace.parent / "pretrained"), "dimham", tiles=workplace)
    card = read_card(workplace.parent / "models/folds/without-dimham")
    assert card.cities == ["toyton"] and card.inherited == []
    assert digest(workplace.parent / "models/folds/without-dimham/weights.safetensors") != before


def without_test_buildings(folder):
    labels, about = (
        np.load(folder / "labels.npy"),
        json.loads((folder / "regions.json").read_text()),
    )
    for r in about["regions"]:
        if r["split"] == "test":
            labels[r["offset"] : r["offset"] + r["height"] * r["width"]] = 0
    np.save(folder / "labels.npy", labels)
    table = gpd.read_parquet(folder / "tiles.parquet")
    table.loc[table["split"] == "test", "building"] = 0.0
    table.to_parquet(folder / "tiles.parquet")


def test_a_city_without_test_buildings_is_null_and_in_no_mean(params, workplace):
    from pipeline.stages import generalize

    scenes = [
        (split, *toy_scene(90 + i)) for i, split in enumerate(["train", "validation", "test"])
    ]
    without_test_buildings(write_city(workplace, scenes, "bare"))
    cities = params.fetch.model_copy(update={"cities": ["toyton", "dimham", "bare"]})
    few = {"corruption_tiles": 1, "adaptation": ["none", "adabn"], "attack_steps": 1}
    params = params.model_copy(
        update={"fetch": cities, "generalize": params.generalize.model_copy(update=few)}
    )
    params = trained(params, workplace, (None, "toyton", "dimham", "bare"))
    generalize.run(params, tiles=workplace)
    metrics = json.loads((workplace.parent / "metrics" / "generalize.json").read_text())
    assert set(metrics["city"]) == set(metrics["label_free"]["city"]) == {"toyton", "dimham"}
    assert all(row["bare"] is None for row in metrics["matrix"].values())
    assert metrics["adaptation"]["adabn"]["bare"] is metrics["corruption_clean"]["bare"] is None
    assert "bare" not in metrics["robustness"]["city"]
    means = [row["unseen"] for row in metrics["city"].values()]
    assert metrics["mean_city"]["unseen"] == pytest.approx(sum(means) / 2)


def test_where_no_city_has_a_test_building_no_fold_is_trained(params, workplace):
    from pipeline.stages import generalize

    for city in ("toyton", "dimham"):
        without_test_buildings(workplace / city)
    seeds = params.model_copy(
        update={"generalize": params.generalize.model_copy(update={"seeds": [0, 1]})}
    )
    with pytest.raises(InputError, match="no city has a building in its test scenes"):
        generalize.run(seeds, tiles=workplace)
    assert not (WORK / "generalize").exists()


def test_a_stale_fold_is_refused(params, workplace):
    from pipeline.stages import generalize, train

    params = trained(params, workplace)
    other = params.model_copy(
        update={"train": params.train.model_copy(update={"learning_rate": 0.5})}
    )
    train.run(other, "dimham", tiles=workplace)
    with pytest.raises(
        InputError,
        match="models/folds/without-dimham: train.learning_rate is 0.5.* --without dimham",
    ):
        generalize.run(params, tiles=workplace)


def test_one_city_has_nothing_to_hold_out(params, workplace):
    from pipeline.stages import generalize, train

    alone = params.fetch.model_copy(update={"cities": ["toyton"]})
    brief = params.train.model_copy(update={"epochs": 1, "steps_per_epoch": 2})
    few = params.generalize.model_copy(
        update={"fractions": [1.0], "initialisations": ["random", "other_cities"]}
    )
    params = params.model_copy(update={"fetch": alone, "train": brief, "generalize": few})
    for city in (None, "toyton"):
        train.run(params, city, tiles=workplace)
    fold = workplace.parent / "models/folds/without-toyton"
    assert fold.is_dir() and not any(fold.iterdir())
    generalize.run(params, tiles=workplace)
    metrics = json.loads((workplace.parent / "metrics" / "generalize.json").read_text())
    assert metrics["city"] == metrics["corruption"] == metrics["adaptation"] == {}
    assert set(metrics["matrix"]) == {"all"} and metrics["frugal"] == {
        "1": metrics["matrix"]["all"]
    }
    assert metrics["robustness"]["city"]["toyton"]["unseen"] is None


@pytest.mark.parametrize("method", METHODS)
def test_labels_replaced_by_noise_give_the_same_adapted_model(params, workplace, method):
    from pipeline.transfer.ladder import adapt_to

    torch.manual_seed(0)
    resnet = params.train.model.model_copy(
        update={"architecture": "unet", "decoder_channels": [32, 16]}
    )
    segmenter = build_model(resnet, 3).eval()

    def adapted():
        cities = {name: CityTiles(workplace / name) for name in ("toyton", "dimham")}
        return adapt_to(params, cities, Fold("dimham", ("toyton",)), method, segmenter)

    probe = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    before = adapted()(probe)
    for name in ("toyton", "dimham"):
        labels = np.load(workplace / name / "labels.npy")
        noise = np.random.default_rng(0).integers(0, 2, labels.shape).astype(np.uint8)
        np.save(workplace / name / "labels.npy", noise)
        (workplace / name / "tiles.parquet").unlink()
    after = adapted()(probe)
    assert torch.equal(before, after)
    assert method == "none" or not torch.equal(before, segmenter(probe))


def test_folds_are_compared_at_equal_training(params, workplace):
    """Where folds train for fewer epochs than models/all, the reference on all cities does too."""
    from pipeline.stages import generalize

    short = params.generalize.model_copy(update={"epochs": 1})
    cheap = params.train.model_copy(update={"steps_per_epoch": 1})
    params = params.model_copy(update={"generalize": short, "train": cheap})
    cities = {name: CityTiles(workplace / name) for name in ("toyton", "dimham")}
    folders = generalize.models_of_seed(
        params, cities, generalize.folds(cities), workplace.parent / "models", 0
    )
    card = read_card(folders["all"])
    assert card.params["train"]["epochs"] == 1 and set(card.cities) == {"toyton", "dimham"}
    assert folders["without-dimham"] == workplace.parent / "models/folds/without-dimham"


def test_blocks_that_tell_one_model_nothing_are_one_unit_for_both():
    """One scene of 400 cells, 50 of them built; the unseen model finds buildings in 40 others."""
    from pipeline.stages.generalize import Measured, pair

    def result(invented: int, seed: int) -> CityResult:
        intersection, union, built = (np.zeros((20, 20), int) for _ in range(3))
        there, hits = np.random.default_rng(0).permutation(400), np.random.default_rng(seed)
        built.flat[there[:50]], union.flat[there[: 50 + invented]] = 800, 900
        intersection.flat[there[:50]] = hits.integers(500, 780, 50)
        cells = np.stack([intersection, union, np.full_like(union, 4096), built])
        return CityResult("town", 0.5, cells={"scene": [cells]})

    params = parse_params({**PARAMS, "evaluate": {"block": 64}})
    for invented, units in ((40, 400), (5, 1)):
        seen, unseen = result(invented, 1), result(40, 2)
        found = pair(
            params,
            "town",
            Measured({"all": seen, "without-town": unseen}, {"all": [], "without-town": []}),
        )
        assert found.seen_union.shape == found.unseen_union.shape == (1, units)
        assert found.unseen_union.sum() == 90 * 900


def test_the_honest_choice_does_not_read_its_own_city():
    from pipeline.transfer.ladder import choose

    ladder = {"none": {"a": 0.5, "b": 0.5, "c": 0.1}, "adabn": {"a": 0.7, "b": 0.7, "c": 0.1},
              "fda": {"a": 0.2, "b": 0.2, "c": 0.11}}  # fmt: skip
    matrix = {
        f"without-{city}": {"a": 0.8, "b": 0.8, "c": 0.8, city: ladder["none"][city]}
        for city in "abc"
    }
    found = choose(ladder, matrix)
    assert {
        city: row["method"] for city, row in found["adaptation_choice"].items()
    } == dict.fromkeys("abc", "adabn")
    assert found["adaptation_choice"]["c"]["oracle"]["method"] == "fda"
    assert found["beyond_adaptation"] == ["c"]
    # no model maps it: nothing to repair
    unmapped = {model: row | {"c": 0.1} for model, row in matrix.items()}
    assert choose(ladder, unmapped)["beyond_adaptation"] == []
