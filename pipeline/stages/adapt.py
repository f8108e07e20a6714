"""Verb adapt: a model that has learned the labelled frames of a new city, without
forgetting the old ones.

Writes a model folder like the train stage's, and in it cross_fitted.npz: what
`assess CITY --model OUT` judges.
"""

import time
from pathlib import Path

from pipeline.assessment import geopackage, survey
from pipeline.assessment.adapting import (
    Tuning,
    cross_fit,
    fine_tune,
    labelled_frames,
    save_cross_fitted,
)
from pipeline.console import console, table
from pipeline.errors import InputError
from pipeline.mapping.scene import model_of
from pipeline.networks.card import Card
from pipeline.networks.models import read_model, save_model
from pipeline.networks.precision import device
from pipeline.params import Evaluate
from pipeline.scoring.evaluation import evaluate_city
from pipeline.stages.assess import estimates
from pipeline.storage import fingerprint
from pipeline.tiles.store import CityTiles

LEAST = 4


def run(
    model: Path, folder: Path, out: Path, *, tiles: Path = Path("data/tiles"), steps: int = 80,
    folds: int = 3, learning_rate: float = 3e-4, seed: int = 0,
) -> Card:  # fmt: skip
    """Fine-tune MODEL on the frames done in FOLDER and write OUT; returns its card. `tiles`: where
    the old cities lie, if they are at hand. Raises InputError on another model's sample, too few
    labels, a folder that is another model's."""
    city = survey.load(folder)
    if model.is_file():
        raise InputError(f"{model}: an ONNX file cannot learn; name the model's folder")
    _, key = model_of(str(model))
    if key != city.about["model_key"]:
        raise InputError(
            f"{folder}: was sampled by {city.about['model']}, not by {model}; adapt that model"
        )
    if out.exists():
        raise InputError(f"{out}: is already there; choose another --out")
    labels = geopackage.read(city)
    if len(labels.done) < max(LEAST, folds):
        raise InputError(
            f"{folder}: {len(labels.done)} frames are done; label at least {max(LEAST, folds)} to "
            f"learn from"
        )
    started, segmenter = time.perf_counter(), read_model(model, device())
    old = [
        CityTiles(tiles / name)
        for name in segmenter.card.cities
        if (tiles / name / "regions.json").exists()
    ]
    old = [c for c in old if (c.channels, c.gsd) == (segmenter.card.channels, segmenter.card.gsd)]
    replay = [c for c in old if c.of_split("train")]
    tuning = Tuning(steps=steps, learning_rate=learning_rate, seed=seed)
    frames = labelled_frames(city, labels)
    levels = cross_fit(segmenter, frames, folds, tuning, replay) if folds > 1 else None
    tuned = fine_tune(segmenter, frames, tuning, replay)
    seconds = time.perf_counter() - started

    before_after = {}
    for tiles_of in (c for c in old if c.of_split("test")):
        before_after[tiles_of.city] = [
            evaluate_city(s, tiles_of, Evaluate()).iou for s in (segmenter, tuned)
        ]
    adapted = {
        "from": str(model), "sample": city.key, "frames": len(frames), "steps": steps,
        "folds": folds, "learning_rate": learning_rate, "seed": seed,
        "replayed": [c.city for c in replay],
        "old_cities": {name: {"before": a, "after": b} for name, (a, b) in before_after.items()},
    }  # fmt: skip
    update = {
        "cities": [folder.resolve().name],
        "inherited": sorted({*segmenter.card.cities, *segmenter.card.inherited}),
        "confidence": None, "least_expected_iou": None, "metrics": {}, "history": [],
        "adapted": adapted,
        "training": {"seconds": round(seconds, 1), "device": str(device().type)},
        "fingerprint": fingerprint(key, city.key, steps, folds, learning_rate, seed),
    }  # fmt: skip
    card = segmenter.card.model_copy(update=update)
    save_model(out, tuned, card)
    if levels is not None:
        save_cross_fitted(out, city, labels.done, levels)
    _say(city, labels, levels, before_after, out, seconds, bool(replay))
    return card


def _say(
    city, labels, levels, before_after: dict, out: Path, seconds: float, replayed: bool
) -> None:
    if levels is not None and city.probability_sample:
        zero = estimates(city, labels, [city.levels(i) for i in labels.done], city.threshold)[
            "assisted"
        ]["iou"]
        tuned = estimates(city, labels, levels, city.threshold)["assisted"]["iou"]
        table(
            "The new city, estimated on frames not learned from",
            ["model", "IoU", "low", "high"],
            [["as it was", *zero.values()], ["adapted, cross-fitted", *tuned.values()]],
        )
    if before_after:
        table("The old cities' test scenes", ["city", "before", "after"],
              [[name, *ious] for name, ious in before_after.items()])  # fmt: skip
    if not replayed:
        console.print(
            "no tiles of the old cities were at hand to replay (--tiles): the model may forget them"
        )
    console.print(f"{out}: learned {len(labels.done)} frames in {seconds:.0f} s")
