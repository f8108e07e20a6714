"""Stage train: one segmenter on the training scenes of every city, or of every city but one.

Writes metrics/train.json, a TrainMetrics.
"""

from pathlib import Path

from pipeline.console import console, table
from pipeline.errors import InputError
from pipeline.metrics import TrainMetrics, write
from pipeline.params import Params
from pipeline.storage import WORK
from pipeline.tiles.store import open_cities

ARRAYS = Path("arrays/train")
FOLDS = Path("models/folds")


def run(params: Params, without: str | None = None, tiles: Path = Path("data/tiles")) -> None:
    """Train models/all, or models/folds/without-CITY.
    Raises InputError on bad tiles.

    A single city leaves nothing to train on: its fold is an empty folder.
    """
    cities = open_cities(params.fetch.cities, tiles)
    if without is None:
        name, folder = "all", Path("models/all")
    else:
        if without not in params.fetch.cities:
            raise InputError(
                f"no city {without!r} to leave out of {', '.join(params.fetch.cities)}"
            )
        check_folds(params)
        cities = [city for city in cities if city.city != without]
        name, folder = f"without-{without}", FOLDS / f"without-{without}"
        if not cities:
            console.print(
                f"{without} is the only city: nothing to train on without it; {folder} stays empty"
            )
            folder.mkdir(parents=True, exist_ok=True)
            return
        params = params.of_folds()

    from pipeline.training.fit import fit, processes, write_history

    card = fit(params, cities, folder, work=WORK, name=name)
    if processes()[0]:  # the first process of several writes and speaks
        return
    if without is None:
        found = {**card.metrics, "temperature": card.temperature, **card.training}
        write("metrics/train.json", TrainMetrics, found)
        write_history(ARRAYS / "curve.csv", card.history)
    epochs = card.history[-3:]
    table(f"{folder} (last epochs)", list(epochs[-1]), [list(e.values()) for e in epochs])
    iou = card.metrics["validation_iou"]
    best = (
        "no building in validation: the last epoch is kept"
        if iou is None
        else f"best validation IoU {iou:.3f}"
    )
    console.print(f"{best}; weights in {folder}/weights.safetensors")


def reference(params: Params, tiles: Path = Path("data/tiles")) -> None:
    """Train models/folds/all, on every city and as long as the folds: a gap must not pay for
    shorter training.
    """
    from pipeline.training.fit import fit

    cities = open_cities(params.fetch.cities, tiles)
    fit(params.of_folds(), cities, FOLDS / "all", work=WORK, name="reference")


def check_folds(params: Params) -> None:
    """Raise InputError where a fold would start from a model that knows its city, before the
    first one is trained.
    """
    from pipeline.training.fit import inherited

    if barred := [city for city in params.fetch.cities if city in inherited(params.train)]:
        raise InputError(
            f"train.init: {params.train.init} has been trained on {', '.join(barred)}, so no fold "
            f"can leave that out; "
            "start from a model that has not, or from `python -m pipeline pretrain`, or run `dvc "
            "repro train` alone"
        )
