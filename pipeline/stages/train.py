"""Stage train: one segmenter on the training scenes of every city, or of every city but one.

Writes metrics/train.json: validation_iou, temperature, and how it was trained: seconds, resumed, device, precision,
processes, torch.
"""

from pathlib import Path

from pipeline.console import console, table
from pipeline.errors import InputError
from pipeline.geo.tiles import open_cities
from pipeline.params import Params
from pipeline.storage import WORK, write_json

ARRAYS = Path("arrays/train")


def run(params: Params, without: str | None = None, tiles: Path = Path("data/tiles")) -> None:
    """Train models/all, or models/without-CITY for the leave-one-city-out folds. Raises InputError on bad tiles.

    A single city leaves nothing to train on: its fold is an empty folder.
    """
    cities = open_cities(params.fetch.cities, tiles)
    if without is None:
        name, folder = "all", Path("models/all")
    else:
        if without not in params.fetch.cities:
            raise InputError(f"no city {without!r} to leave out of {', '.join(params.fetch.cities)}")
        cities = [city for city in cities if city.city != without]
        name, folder = f"without-{without}", Path(f"models/without-{without}")
        if not cities:
            console.print(f"{without} is the only city: nothing to train on without it; {folder} stays empty")
            folder.mkdir(parents=True, exist_ok=True)
            return
        if params.generalize.epochs:
            epochs = {"epochs": params.generalize.epochs}
            params = params.model_copy(update={"train": params.train.model_copy(update=epochs)})

    from pipeline.learning.training import fit, processes, write_history

    card = fit(params, cities, folder, work=WORK, name=name)
    if processes()[0]:  # the first process of several writes and speaks
        return
    if without is None:
        write_json("metrics/train.json", {**card["metrics"], "temperature": card["temperature"], **card["training"]})
        write_history(ARRAYS / "curve.csv", card["history"])
    epochs = card["history"][-3:]
    table(f"{folder} (last epochs)", list(epochs[-1]), [list(e.values()) for e in epochs])
    iou = card["metrics"]["validation_iou"]
    console.print(f"best validation IoU {iou:.3f}; weights in {folder}/weights.safetensors")
