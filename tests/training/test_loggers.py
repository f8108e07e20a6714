"""The learning curve, told to Lightning's own loggers."""

import csv
import subprocess
import sys

import pytest
from toy import toy_scene, write_city

from pipeline.errors import InputError
from pipeline.params import load_params
from pipeline.tiles.store import CityTiles
from pipeline.training import loggers
from pipeline.training.fit import fit

WRITTEN = {"csv": "metrics.csv", "tensorboard": "events.out.tfevents.*"}


def tiny(names: list[str], root):
    params = load_params(root / "tests/tiny.yaml")
    model = params.train.model.model_copy(
        update={"architecture": "linear", "encoder_weights": None}
    )
    update = {
        "model": model,
        "epochs": 2,
        "steps_per_epoch": 2,
        "batch_size": 2,
        "crop": 32,
        "augment": "none",
    }
    train = params.train.model_copy(update=update | {"loggers": names})
    return params.model_copy(update={"train": train})


def test_the_curve_goes_to_every_logger_named(tmp_path, monkeypatch, request):
    names = ["csv", "tensorboard"]
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    monkeypatch.chdir(tmp_path)
    splits = ["train", "validation"]
    city = CityTiles(
        write_city(
            tmp_path / "tiles", [(split, *toy_scene(i, 64)) for i, split in enumerate(splits)]
        )
    )
    card = fit(
        tiny(names, request.config.rootpath),
        [city],
        tmp_path / "models/all",
        work=tmp_path / ".work",
    )
    for name in names:
        assert len(list(tmp_path.glob(f"logs/{name}/all/version_0/{WRITTEN[name]}"))) == 1
    with next(tmp_path.glob("logs/csv/all/version_0/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 1]
    for row, epoch in zip(rows, card.history, strict=True):
        assert float(row["loss"]) == pytest.approx(epoch["loss"]) and float(
            row["iou"]
        ) == pytest.approx(epoch["iou"])


def test_what_is_null_is_not_logged():
    class Trainer:
        class Heard:
            said: list = []

            def log_metrics(self, metrics, step):
                self.said.append((metrics, step))

            def save(self):
                pass

        loggers = [Heard()]

    loggers.tell(Trainer, {"epoch": 3, "loss": 0.5, "iou": None})
    assert Trainer.Heard.said == [({"loss": 0.5}, 3)]


def test_a_logger_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    from lightning.pytorch import loggers as theirs

    def absent(*_, **__):
        raise ModuleNotFoundError("mlflow")

    monkeypatch.setattr(theirs, "MLFlowLogger", absent)
    with pytest.raises(
        InputError, match="train.loggers: mlflow is not installed; pip install mlflow-skinny"
    ):
        loggers.loggers(["mlflow"], "all")


def test_what_is_not_installed_is_known_before_a_training(monkeypatch):
    there = {"csv", "tensorboardX"}
    monkeypatch.setattr(loggers, "find_spec", lambda module: module in there or None)
    loggers.check_installed(["csv", "tensorboard"])
    with pytest.raises(InputError, match="mlflow is not installed; pip install mlflow-skinny, or"):
        loggers.check_installed(["csv", "mlflow"])


@pytest.mark.slow
def test_none_is_imported_unless_named():
    code = "import sys, pipeline.training.fit; print(*[m for m in ('tensorboard', 'mlflow') if m in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == ""
