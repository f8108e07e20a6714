"""Stage generalize: how good is the map in a city the model has never seen, and can that be known beforehand?

Reads models/all, models/without-CITY and the tiles; writes metrics/generalize.json, a GeneralizeMetrics. With one
city there is nothing to hold out: "city" is empty, and only what needs no fold is measured. A city without a building
in its test scenes has no IoU: null in the tables, and in no mean.

Held-out labels are read by `evaluate_city` and `tile_iou` alone, after a model is final: training, early
stopping and adaptation never meet them.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.metrics import GeneralizeMetrics, write
from pipeline.networks.models import Segmenter, read_model
from pipeline.networks.precision import device
from pipeline.params import Params
from pipeline.scoring.evaluation import CityResult, evaluate_city
from pipeline.scoring.metrics import buildings
from pipeline.storage import WORK
from pipeline.tiles.store import Cities, open_cities
from pipeline.training.fit import fit
from pipeline.transfer.estimate import ESTIMATES, estimated
from pipeline.transfer.gap import Fold, Pair, check_fold, check_ground, folds, gap_table
from pipeline.transfer.label_efficiency import frugal
from pipeline.transfer.ladder import adapted
from pipeline.transfer.stress import corrupted, robustness


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    models: Path = Path("models"),
    out: Path = Path("metrics/generalize.json"),
) -> None:
    """Measure everything above.

    Raises InputError where a fold's model or a city's test scenes are missing, a model has seen what it must not have,
    or was trained otherwise than the model it is compared with.
    """
    g = params.generalize
    cities = {city.city: city for city in open_cities(params.fetch.cities, tiles)}
    held_out = folds(cities)
    for city in cities.values():
        if not city.of_split("test"):
            raise InputError(f"{city.folder}: no test scenes; raise tile.test or drop the city from fetch.cities")

    check_ground(cities)
    if held_out and not any(buildings(city.label(r)) for city in cities.values() for r in city.of_split("test")):
        raise InputError("no city has a building in its test scenes; enlarge tile.test or add labelled scenes")
    of_seed = [models_of_seed(params, cities, held_out, models, seed) for seed in g.seeds]
    loaded = {name: read_model(folder, device()) for name, folder in of_seed[0].items()}
    for fold in held_out:
        check_fold(fold, loaded[f"without-{fold.held_out}"].card, loaded["all"].card)

    results = evaluate_all(params, cities, loaded)
    known = [fold.held_out for fold in held_out if results["all"][fold.held_out].iou is not None]
    pairs = {city: pair(params, cities, city, results, of_seed[1:]) for city in known}
    metrics: dict = {**gap_table(pairs, g.bootstrap, g.seed), "corruption": {}, "adaptation": {}, "frugal": {}}
    metrics["seeds"] = list(g.seeds)
    metrics["matrix"] = {model: {city: r.iou for city, r in row.items()} for model, row in results.items()}
    unseen = {fold.held_out: loaded[f"without-{fold.held_out}"] for fold in held_out}
    if held_out and g.corruptions:
        metrics |= corrupted(params, cities, unseen)
    if held_out and g.adaptation:
        metrics |= adapted(params, cities, held_out, unseen, metrics["matrix"])
    if held_out:
        metrics["label_free"] = estimated(params, cities, held_out, unseen, metrics["matrix"])
    if g.attack_steps:
        metrics["robustness"] = robustness(params, cities, loaded["all"], unseen)
    if g.fractions:
        metrics |= frugal(fair(params, params.train.seed), cities, models, of_seed[0]["all"])
    print_tables(write(out, GeneralizeMetrics, metrics))


def models_of_seed(params: Params, cities: Cities, held_out: list[Fold], models: Path, seed: int) -> dict[str, Path]:
    """Folders of the models to compare: "all", "without-CITY", and "only-CITY" where asked for.

    The training seed's own folds are those of the train stage. Other seeds, one-city models, and a reference
    on all cities when folds are trained for fewer epochs than models/all (a gap must not pay for shorter
    training), are trained here, once.
    """
    same, own = fair(params, seed), seed == params.train.seed

    def trained(name: str, on: Iterable[str]) -> Path:
        folder = WORK / "generalize" / f"seed-{seed}" / name
        fit(same, [cities[city] for city in on], folder, work=WORK, name=f"{name}-seed-{seed}")
        return folder

    found = {"all": models / "all" if same == params else trained("all", sorted(cities))}
    for fold in held_out:
        name = f"without-{fold.held_out}"
        found[name] = models / name if own else trained(name, fold.training)
    if params.generalize.single_city:
        found |= {f"only-{city}": trained(f"only-{city}", [city]) for city in sorted(cities)}
    return found


def fair(params: Params, seed: int) -> Params:
    """What every model to be compared is trained with: the folds' epochs, and the experiment's seed."""
    epochs = params.generalize.epochs or params.train.epochs
    return params.model_copy(update={"train": params.train.model_copy(update={"seed": seed, "epochs": epochs})})


def evaluate_all(params: Params, cities: Cities, loaded: dict[str, Segmenter]) -> dict[str, dict[str, CityResult]]:
    jobs = [(model, city) for model in loaded for city in sorted(cities)]
    results: dict[str, dict[str, CityResult]] = {model: {} for model in loaded}
    for model, city in progress(jobs, "city × city"):
        results[model][city] = evaluate_city(loaded[model], cities[city], params.evaluate)
    return results


def pair(params: Params, cities: Cities, city: str, results: dict, other_seeds: list[dict[str, Path]]) -> Pair:
    """The test units of a city under the seen and the unseen model, one row a seed: blocks are the same ones, as long
    as any model's errors are correlated."""
    by_model = []
    for name in ("all", f"without-{city}"):
        more = [evaluate_city(read_model(m[name], device()), cities[city], params.evaluate) for m in other_seeds]
        by_model.append([results[name][city], *more])
    reach = max(result.reach for of_seeds in by_model for result in of_seeds)
    counts = []
    for of_seeds in by_model:
        units = [result.units(params.evaluate, reach) for result in of_seeds]
        counts += [np.stack([u.intersection for u in units]), np.stack([u.union for u in units])]
    return Pair(*counts, held=units[0].held)


def print_tables(found: GeneralizeMetrics) -> None:
    columns = list(found.city)
    if not columns:
        console.print("one city: nothing to hold out, so no unseen IoU; name more in fetch.cities", markup=False)
        return
    rows = [*found.city.items(), ("mean city", found.mean_city), ("pooled", found.pooled)]
    keys = ("seen", "unseen", "gap", "gap_low", "gap_high", "gap_spread")
    table("IoU seen and unseen, from so many test scenes or blocks (no interval: too few, or too small a scene)",
          ["city", "units", "seen", "unseen", "gap", "low", "high", "spread"],
          [[name, f"{row.units:g}", *(getattr(row, k) for k in keys)] for name, row in rows])  # fmt: skip
    if found.adaptation:
        table("IoU of the held-out city after adaptation without labels", ["method", *columns],
              [[m, *(row[c] for c in columns)] for m, row in found.adaptation.items()])  # fmt: skip
        if found.beyond_adaptation:
            console.print(f"no method tried repairs {', '.join(found.beyond_adaptation)}", markup=False)
    if withstood := found.robustness.city:
        sides = [(c, s, r) for c, city in withstood.items() for s, r in city if r]
        kinds = ("clean", "corrupted", "attacked", "certified")
        table("Robustness, seen and unseen", ["city", *kinds],
              [[f"{c}, {s}", *(getattr(r, k) for k in kinds)] for c, s, r in sides])  # fmt: skip
    if found.frugal:
        table("IoU by share of training scenes", ["share", *columns],
              [[f"{float(s):.0%}", *(row[c] for c in columns)] for s, row in found.frugal.items()])  # fmt: skip
    estimates, naive = found.label_free, found.label_free.naive
    guesses = (*ESTIMATES, *([naive] if naive else []))
    errors = [estimates.mean_error[guess] for guess in guesses]
    table("IoU estimated without labels, and the best naive guess", ["city", "true", *guesses, "feature distance"],
          [[c, r.iou, *(getattr(r, guess) for guess in guesses), r.distance] for c, r in estimates.city.items()]
          + [["mean error", None, *errors, None]])  # fmt: skip
