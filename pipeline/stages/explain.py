"""Stage explain: what the map rests on in each city, and whether its explanations mean something.

Writes metrics/explain.json, an ExplainMetrics. Intervals of drops are simultaneous:
95 % for all cues of all cities at once, over other tiles of the test split. Those
of gains are over other buildings.

Killed and started again it goes on with the next city.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import content, forget, summands
from pipeline.code import version
from pipeline.console import progress, table
from pipeline.errors import InputError
from pipeline.metrics import ExplainMetrics, write
from pipeline.params import Params
from pipeline.storage import WORK, atomic_folder
from pipeline.tiles.store import CityTiles, open_cities


@dataclass
class Explaining:
    """What explains a city: a part of the stage. The model is loaded once a process."""

    params: Params
    model: Path
    tiles: Path

    @cached_property
    def cities(self) -> dict[str, CityTiles]:
        return {city.city: city for city in open_cities(self.params.fetch.cities, self.tiles)}

    @cached_property
    def deployed(self) -> Any:
        from pipeline.networks.card import check_fit
        from pipeline.networks.models import read_model
        from pipeline.networks.precision import device

        segmenter = read_model(self.model, device())
        for city in self.cities.values():
            check_fit(segmenter.card, city, self.model)
        return segmenter.deployed()

    def __call__(self, name: str, folder: Path) -> dict:
        """The city's numbers; its pictures are left in the folder."""
        from pipeline.explanation.city import explain_city

        city, e = self.cities[name], self.params.explain
        images, labels = city.sample("test", e.tiles, seed=e.seed)
        if not len(images):
            raise InputError(
                f"{city.folder}: no test tiles to explain; raise tile.test and run the tile stage "
                "again"
            )
        measured, pictures = {}, {}
        steps = explain_city(self.deployed, images.astype(np.float32) / 255, labels, e)
        for kind, numbers, arrays in progress(steps, f"explaining {name}"):
            measured[kind] = numbers
            pictures |= arrays
        np.savez(folder / "arrays.npz", **pictures)
        return measured

    def __getstate__(self) -> dict:
        """What it is made from: a worker opens and loads it again."""
        return {name: self.__dict__[name] for name in ("params", "model", "tiles")}


def run(
    params: Params,
    model: Path = Path("models/all"),
    tiles: Path = Path("data/tiles"),
    out: Path = Path("metrics/explain.json"),
    arrays: Path = Path("arrays/explain"),
    work: Path = WORK / "explain",
    *,
    ray: str | None = None,
    shard: str | None = None,
) -> None:
    """Explain a model folder on tiles of each city's test split; ray, shard: where its cities are,
    see pipeline.cluster. Raises InputError on bad tiles or models.
    """
    from pipeline.explanation.summary import summarise

    explaining = Explaining(params, Path(model), tiles)
    _ = explaining.deployed  # refused here, not in a worker
    kept = work / _key(explaining)
    measured = summands(explaining, [*explaining.cities], kept, ray=ray, shard=shard)
    if measured is None:
        return
    metrics = summarise(measured, {name: city.gsd for name, city in explaining.cities.items()})
    with atomic_folder(arrays) as partial:
        for city in measured:
            shutil.copyfile(kept / city / "arrays.npz", partial / f"{city}.npz")
    found = write(out, ExplainMetrics, metrics)
    forget(kept)
    print_table(found)


def _key(explaining: Explaining) -> str:
    """What a kept measurement depends on: settings, model, tiles, and the code that measures."""
    about = [city.about for city in explaining.cities.values()]
    settings = explaining.params.explain.model_dump()
    return content(version("explain"), settings, about, explaining.model)


def print_table(found: ExplainMetrics) -> None:
    cues = list(dict.fromkeys(name for row in found.city.values() for name in row.cue))
    rows = []
    for city, row in found.city.items():
        drops = [cue and cue.drop for cue in map(row.cue.get, cues)]
        rows.append([city, row.iou, *drops, row.leans_on])
    table("IoU, and what it loses without a cue", ["city", "IoU", *cues, "leans on"], rows)
