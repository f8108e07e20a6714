"""A model on a city: what is counted is what a second, naive computation counts."""

import json

import numpy as np
import pytest
import torch
from toy import toy_scene, write_city

from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter, build_model
from pipeline.networks.precision import autocast
from pipeline.params import Evaluate, Model
from pipeline.scoring.evaluation import city_metrics, evaluate_city
from pipeline.tiles.store import CityTiles

TEMPERATURE, THRESHOLD = 3.0, 0.6
COLOURS = {1: [[-6.0, -6, -6], [6, 6, 6]], 2: [[-4.0, -4, -4], [5, 5, 5], [16, -1, -1]]}
BIASES = {1: [7.0, -7], 2: [5.0, -8, -6]}


def coloured(classes: int) -> Segmenter:
    """Bright pixels are class 1, reddish ones class 2, and it is surer of it than it should be."""
    segmenter = (
        build_model(Model(architecture="linear", classes=classes), 3).eval().requires_grad_(False)
    )
    segmenter.network.weight.copy_(torch.tensor(COLOURS[classes])[..., None, None])
    segmenter.network.bias.copy_(torch.tensor(BIASES[classes]))
    segmenter.decision = Decision(TEMPERATURE, THRESHOLD)
    return segmenter


def calibration_error(probability: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Of the likelier of building and not, by probabilities rounded to 1/255, pixel by pixel."""
    level = np.rint(255 * probability)  # whole numbers: bins begin at some of them
    sure, right = np.maximum(level, 255 - level) / 255, (probability > 0.5) == truth
    place = np.minimum((sure * bins).astype(int), bins - 1)
    kept = [place == i for i in range(bins) if (place == i).any()]
    return sum(abs(sure[k].mean() - right[k].mean()) * k.sum() for k in kept) / truth.size


@pytest.mark.parametrize("classes", [1, 2])
def test_the_calibrated_numbers_are_those_of_the_tempered_softmax(classes, tmp_path):
    image, label = toy_scene(0)
    label[40:90, 30:80] *= classes
    noise = np.random.default_rng(0).normal(0, 60, image.shape)
    image, label[:9] = np.clip(image + noise, 0, 255).astype(np.uint8), 255
    about = write_city(tmp_path, [("test", image, label)]) / "regions.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "classes": classes}))
    settings, segmenter = Evaluate(), coloured(classes)
    found = city_metrics(
        evaluate_city(segmenter, CityTiles(tmp_path / "toyton"), settings), settings
    )

    valid = label != 255
    with autocast(torch.device("cpu")):  # in the arithmetic of this machine, as evaluate does
        logits = segmenter(torch.from_numpy(image[None]).movedim(-1, 1).float() / 255)[0].float()
    truth = label[valid] > 0

    def building(temperature: float) -> np.ndarray:
        return (1 - (logits / temperature).softmax(0)[0]).numpy()[valid]

    cut = building(TEMPERATURE) > THRESHOLD  # as predict draws it
    assert found["iou"] == pytest.approx((cut & truth).sum() / (cut | truth).sum(), abs=1e-4)
    for temperature, name in ((1.0, "ece"), (TEMPERATURE, "ece_calibrated")):
        expected = calibration_error(np.rint(255 * building(temperature)) / 255, truth)
        assert found[name] == pytest.approx(expected, abs=1e-4)


def test_a_city_without_a_building_has_no_iou(tmp_path):
    """Whether the model invents some there, or none, or there is nothing but nodata."""
    image, label = toy_scene(0)
    cities = {
        "invented": (image, label * 0),
        "bare": (image // 4, label * 0),
        "nodata": (image * 0, label * 0 + 255),
    }
    for city, (pixels, truth) in cities.items():
        write_city(tmp_path, [("test", pixels, truth)], city)
        row = city_metrics(
            evaluate_city(coloured(1), CityTiles(tmp_path / city), Evaluate()), Evaluate()
        )
        assert row["iou"] is row["iou_low"] is row["recall"] is None
        assert row["precision"] == (0 if city == "invented" else None)
