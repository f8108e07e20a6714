"""Stage few_labels on two toy cities: its numbers, its switches, and the page that shows them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.metrics import FewLabelsMetrics
from pipeline.networks.models import build_model, save_model
from pipeline.params import Model, Params, load_params, parse_params
from pipeline.report.page import few_labels as on_the_page
from pipeline.report.results import Results
from pipeline.stages import few_labels as stage
from pipeline.tiles.store import CityTiles


@pytest.fixture
def folds(toy_tiles, tmp_path):
    """models/folds/without-CITY: what is bright is a building, more or less."""
    for city in ("toyton", "dimham"):
        description = Model(architecture="linear")
        segmenter = build_model(description, 3)
        with torch.no_grad():
            segmenter.network.weight[:] = torch.tensor([[-4.0] * 3, [4.0] * 3])[..., None, None]
            segmenter.network.bias[:] = torch.tensor([6.0, -6.0])
        card = {
            "model": description.model_dump(),
            "bands": [1, 2, 3],
            "channels": 3,
            "classes": 1,
            "gsd": 0.5,
        }
        save_model(tmp_path / "models/folds" / f"without-{city}", segmenter, card)
    return tmp_path


def params_of(few: dict) -> Params:
    data = load_params(Path(__file__).parents[1] / "tiny.yaml").model_dump(mode="json")
    data["fetch"]["cities"] = ["toyton", "dimham"]
    data["few_labels"] = {"side": 32, "draws": 50, "samples": [8, 500], "steps": 2, **few}
    return parse_params(data)


def run(folder, **few) -> dict:
    params = params_of(few)
    stage.run(params, folder / "tiles", folder / "models", folder / "metrics/few_labels.json")
    return json.loads((folder / "metrics/few_labels.json").read_text())


def test_intervals_and_a_model_that_learned(folds):
    found = run(folds, budgets=[2, 4], strategies=["random", "active", "core_set"])
    for city, entry in found["city"].items():
        assert entry["frames"] == 32 and 0 < entry["iou"] < 1
        assert list(entry["interval"]) == ["8"]  # 500 would be a census
        assert 0 <= entry["interval"]["8"]["iou"]["assisted"]["coverage"] <= 1
        assert entry["promise"]["8"]["kept"] >= 0.9
        assert {s: list(row) for s, row in entry["learned"].items()} == dict.fromkeys(
            ("random", "active", "core_set"), ["2", "4"]
        )
        assert city in found["forgotten"]["active"]
    shown = on_the_page(Results(params_of({}), folds))
    assert shown["frames"] == "8" and len(shown["told"]) == 2 and len(shown["taught"]) == 6


def test_off_costs_nothing_and_asks_for_no_model(folds):
    shutil.rmtree(folds / "models")
    found = run(folds, draws=0)
    assert found == {"city": {}, "forgotten": {}, "narrower": {}}


def said(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_what_shows_nothing_says_why(folds, capsys):
    assert not run(folds, samples=[30])["narrower"]
    few = "few_labels: no interval: a city has at most 32 frames in its test scenes, and 30 are "
    assert few + "more than 80% of them; lower few_labels.samples" in said(capsys)
    run(folds, draws=0)
    assert "few_labels: neither samples with draws nor budgets are asked for" in said(capsys)
    alone = params_of({})
    alone = alone.model_copy(
        update={"fetch": alone.fetch.model_copy(update={"cities": ["dimham"]})}
    )
    stage.run(alone, folds / "tiles", folds / "models", folds / "alone.json")
    assert "few_labels: a single city, and no fold knows another" in said(capsys)
    assert stage.untold(alone.few_labels, FewLabelsMetrics(), 2).startswith("nothing is built")
    run(folds)
    assert "few_labels: " not in said(capsys)


def test_the_counts_are_those_of_the_evaluated_map(folds):
    from pipeline.networks.models import read_model
    from pipeline.params import Evaluate
    from pipeline.scoring.evaluation import evaluate_city

    found = run(folds)
    model = read_model(folds / "models/folds/without-dimham")
    expected = evaluate_city(model, CityTiles(folds / "tiles/dimham"), Evaluate()).iou
    assert found["city"]["dimham"]["iou"] == pytest.approx(expected, abs=0.01)  # levels are rounded
