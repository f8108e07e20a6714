"""A training's duration, forecast from the time of one step."""

from pathlib import Path

import pytest

from pipeline.params import load_params
from pipeline.training.forecast import forecast, seconds_a_step

ROOT = Path(__file__).parents[2]


def params(cities=("brickvale", "tinroof"), epochs=None, **train):
    found = load_params(ROOT / "tests/tiny.yaml")
    return found.model_copy(
        update={
            "fetch": found.fetch.model_copy(update={"cities": list(cities)}),
            "train": found.train.model_copy(update={"epochs": 4, "steps_per_epoch": 10, **train}),
            "generalize": found.generalize.model_copy(update={"epochs": epochs}),
        }
    )


@pytest.mark.parametrize(
    ("cities", "epochs", "expected"),
    [
        # 4 epochs of 10 steps of half a second, and again without each city
        (("a", "b"), None, (20, 60)),
        (("a", "b"), 1, (20, 30)),
        (("a",), None, (20, 20)),  # without its only city there is nothing to train on
    ],
)
def test_a_forecast_is_steps_times_their_duration(cities, epochs, expected):
    assert forecast(params(cities, epochs), 0.5) == expected


def test_a_step_is_timed_whatever_its_loss_and_attack():
    t = params().train
    small = t.model.model_copy(update={"architecture": "small_unet", "width": 4})
    for method in ("none", "trades"):
        attack = t.adversarial.model_copy(update={"method": method, "steps": 1})
        assert seconds_a_step(params(model=small, crop=32, batch_size=2, adversarial=attack)) > 0
