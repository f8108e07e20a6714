"""Stage train: one segmenter on the training scenes of every city, or of every city but one.

Writes metrics/train.json: validation_iou, temperature, and how it was trained: seconds, resumed, device, precision,
processes, torch.
"""

from pathlib import Path

from pipeline.console import console, table
from pipeline.errors import InputError
from pipeline.geo.tiles import open_cities
from pipeline.params import Params
from pipeline.storage import WORK, atomic_file, write_json

FIGURES = Path("figures/train")


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
        write_history(FIGURES / "curve.csv", card["history"])
        draw_curve(card["history"])
    epochs = card["history"][-3:]
    table(f"{folder} (last epochs)", list(epochs[-1]), [list(e.values()) for e in epochs])
    iou = card["metrics"]["validation_iou"]
    best = "no building in validation: the last epoch is kept" if iou is None else f"best validation IoU {iou:.3f}"
    console.print(f"{best}; weights in {folder}/weights.safetensors")


def draw_curve(history: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    loss = figure.subplots()
    iou = loss.twinx()
    epochs = [h["epoch"] + 1 for h in history]
    loss.plot(epochs, [h["loss"] for h in history], color="#999999", label="training loss")
    iou.plot(epochs, [h["iou"] for h in history], color="#0072B2", marker="o", markersize=3, label="validation IoU")
    loss.set(xlabel="epoch", ylabel="training loss")
    iou.set(ylabel="validation IoU", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    with atomic_file(FIGURES / "curve.svg") as partial:
        figure.savefig(partial)
