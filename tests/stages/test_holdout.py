"""The stage holdout says what it has done; that its folds are the same wherever they are trained is
in tests/test_cluster.py.
"""

from pathlib import Path

import pytest

from pipeline.params import load_params
from pipeline.stages import holdout, train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(toy_tiles, monkeypatch, capsys):
    """What the stage says of folds of these cities, in which nothing is trained."""

    def tell(cities: list[str]) -> str:
        params = load_params(ROOT / "tests/tiny.yaml")
        update = {
            "fetch": params.fetch.model_copy(update={"cities": cities}),
            "generalize": params.generalize.model_copy(update={"epochs": None}),
        }
        holdout.run(params.model_copy(update=update))
        return " ".join(capsys.readouterr().out.split())

    (toy_tiles.parent / "data").mkdir()
    toy_tiles.rename(toy_tiles.parent / "data/tiles")
    monkeypatch.chdir(toy_tiles.parent)
    return tell


def test_a_single_city_has_no_fold_and_none_is_said_to_be_trained(told):
    said = told(["dimham"])
    assert "dimham is the only city: nothing to train on without it" in said
    assert "is trained" not in said
    assert not any(Path("models/folds/without-dimham").iterdir())


def test_every_fold_of_several_is_said_to_be_trained(told, monkeypatch):
    monkeypatch.setattr(train, "run", lambda params, without: None)
    said = told(["toyton", "dimham"])
    assert "the fold without toyton is trained the fold without dimham is trained" in said
