"""Stage explain: what the map rests on in each city, and whether its explanations mean something.

Writes metrics/explain.json, an ExplainMetrics. Intervals of drops are simultaneous:
95 % for all cues of all cities at once, over other tiles of the test split. Those
of gains are over other buildings.

Killed and started again it goes on with the next city.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from pipeline.code import version
from pipeline.console import progress, table
from pipeline.errors import InputError
from pipeline.metrics import ExplainMetrics, write
from pipeline.params import Params
from pipeline.storage import WORK, atomic_folder, digest, fingerprint, write_json
from pipeline.tiles.store import CityTiles, open_cities


def run(
    params: Params,
    model: Path = Path("models/all"),
    tiles: Path = Path("data/tiles"),
    out: Path = Path("metrics/explain.json"),
    arrays: Path = Path("arrays/explain"),
    work: Path = WORK / "explain",
) -> None:
    """Explain a model folder on tiles of each city's test split. Raises
    InputError on bad tiles or models.
    """
    from pipeline.explanation.summary import summarise
    from pipeline.networks.card import check_fit
    from pipeline.networks.models import read_model
    from pipeline.networks.precision import device

    segmenter = read_model(model, device())
    cities = open_cities(params.fetch.cities, tiles)
    for city in cities:
        check_fit(segmenter.card, city, model)
    folder = work / _key(params, cities, model)
    deployed = segmenter.deployed()
    measured = {city.city: _one_city(deployed, city, params, folder / city.city) for city in cities}
    metrics = summarise(measured, {city.city: city.gsd for city in cities})
    with atomic_folder(arrays) as partial:
        for city in measured:
            shutil.copyfile(folder / city / "arrays.npz", partial / f"{city}.npz")
    found = write(out, ExplainMetrics, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    print_table(found)


def _key(params: Params, cities: list[CityTiles], model: Path) -> str:
    """What a kept measurement depends on: settings, model, tiles, and the code that measures."""
    files = (model / name for name in ("weights.safetensors", "model.json"))
    about = [city.about for city in cities]
    return fingerprint(
        params.explain.model_dump(), about, [digest(file) for file in files], version("explain")
    )


def _one_city(deployed, city: CityTiles, params: Params, kept: Path) -> dict:
    """Measured now, or read back from a run that was interrupted."""
    from pipeline.explanation.city import explain_city

    if (kept / "measured.json").exists():
        return json.loads((kept / "measured.json").read_text(encoding="utf-8"))
    e = params.explain
    images, labels = city.sample("test", e.tiles, seed=e.seed)
    if not len(images):
        raise InputError(
            f"{city.folder}: no test tiles to explain; raise tile.test and run the tile stage again"
        )
    measured, pictures = {}, {}
    steps = explain_city(deployed, images.astype(np.float32) / 255, labels, e)
    for name, numbers, arrays in progress(steps, f"explaining {city.city}"):
        measured[name] = numbers
        pictures |= arrays
    with atomic_folder(kept) as partial:
        np.savez(partial / "arrays.npz", **pictures)
        write_json(partial / "measured.json", measured)
    return measured


def print_table(found: ExplainMetrics) -> None:
    cues = list(dict.fromkeys(name for row in found.city.values() for name in row.cue))
    rows = []
    for city, row in found.city.items():
        drops = [cue and cue.drop for cue in map(row.cue.get, cues)]
        rows.append([city, row.iou, *drops, row.leans_on])
    table("IoU, and what it loses without a cue", ["city", "IoU", *cues, "leans on"], rows)
