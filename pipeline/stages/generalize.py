"""Stage generalize: how good is the map in a city the model has never seen, and can
that be known beforehand?

Reads models/all, models/folds/without-CITY and the tiles; writes metrics/generalize.json,
a GeneralizeMetrics. With one city there is nothing to hold out: "city" is empty,
and only what needs no fold is measured. A city without a building in its test
scenes has no IoU: null in the tables, and in no mean.

Held-out labels are read by `evaluate_city` and `tile_iou` alone, after a model is final: training,
early stopping and adaptation never meet them.

Killed and started again it goes on with the next city: what is measured stands in
.work/generalize until all is.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from pipeline.cluster import CORES, content, each, forget, summands
from pipeline.code import version
from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.metrics import GeneralizeMetrics, write
from pipeline.networks.card import read_card
from pipeline.networks.models import Segmenter, read_model
from pipeline.networks.precision import device
from pipeline.params import Params
from pipeline.scoring.evaluation import CityResult, evaluate_city
from pipeline.scoring.metrics import buildings
from pipeline.storage import WORK
from pipeline.tiles.store import Cities, CityTiles, open_cities
from pipeline.transfer.estimate import ESTIMATES, estimate_table, estimated
from pipeline.transfer.gap import Fold, Pair, check_fold, check_ground, folds, gap_table
from pipeline.transfer.label_efficiency import frugal
from pipeline.transfer.ladder import adapted, choose
from pipeline.transfer.stress import (
    certifies,
    corrupted,
    corruption_table,
    robust,
    robustness_table,
)


@dataclass
class Measured:
    """A city under every model of the first seed, and under the two to compare of each other one.

    None where there is no model that has not seen it, it has no IoU, or nothing was asked for.
    """

    results: dict[str, CityResult]
    other_seeds: dict[str, list[CityResult]] = field(default_factory=dict)
    corruption: dict | None = None
    adaptation: dict | None = None
    estimate: dict | None = None
    robustness: dict | None = None


@dataclass
class Generalizing:
    """What measures a city: a part of the stage. A model of the first seed is
    loaded once a process.
    """

    params: Params
    tiles: Path
    of_seed: list[dict[str, Path]]

    @cached_property
    def cities(self) -> Cities:
        return {city.city: city for city in open_cities(self.params.fetch.cities, self.tiles)}

    @cached_property
    def models(self) -> dict[str, Segmenter]:
        return {name: read_model(folder, device()) for name, folder in self.of_seed[0].items()}

    def __call__(self, name: str, _: Path) -> Measured:
        params, g, city, unseen = (
            self.params,
            self.params.generalize,
            self.cities[name],
            f"without-{name}",
        )
        scored = progress(self.models.items(), f"{name}: every model")
        found = Measured(
            {model: evaluate_city(segmenter, city, params.evaluate) for model, segmenter in scored}
        )
        if unseen in self.models:
            segmenter, iou = self.models[unseen], found.results[unseen].iou
            fold = next(fold for fold in folds(self.cities) if fold.held_out == name)
            if found.results["all"].iou is not None:
                found.other_seeds = {
                    model: self.with_other_seeds(model, city) for model in ("all", unseen)
                }
            if g.corruptions:
                found.corruption = corrupted(params, city, segmenter)
            if g.adaptation:
                found.adaptation = adapted(params, self.cities, fold, segmenter, iou)
            if iou is not None:
                found.estimate = estimated(params, self.cities, fold, segmenter)
        if g.attack_steps:
            sides = {"seen": self.models["all"], "unseen": self.models.get(unseen)}
            found.robustness = {
                side: robust(params, city, segmenter) for side, segmenter in sides.items()
            }
        return found

    def with_other_seeds(self, model: str, city: CityTiles) -> list[CityResult]:
        folders = [of_seed[model] for of_seed in self.of_seed[1:]]
        return [
            evaluate_city(read_model(folder, device()), city, self.params.evaluate)
            for folder in folders
        ]

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("params", "tiles", "of_seed")}


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    models: Path = Path("models"),
    out: Path = Path("metrics/generalize.json"),
    *,
    ray: str | None = None,
    shard: str | None = None,
) -> None:
    """Measure everything above; ray, shard: where models are trained and cities measured, see
    pipeline.cluster.

    Raises InputError where a fold's model or a city's test scenes are missing, a model has seen
    what it must not have, or was trained otherwise than the model it is compared with.
    """
    g = params.generalize
    cities = {city.city: city for city in open_cities(params.fetch.cities, tiles)}
    held_out = folds(cities)
    for city in cities.values():
        if not city.of_split("test"):
            raise InputError(
                f"{city.folder}: no test scenes; raise tile.test or drop the city from fetch.cities"
            )

    check_ground(cities)
    if held_out and not any(
        buildings(city.label(r)) for city in cities.values() for r in city.of_split("test")
    ):
        raise InputError(
            "no city has a building in its test scenes; enlarge tile.test or add labelled scenes"
        )
    if g.attack_steps:
        certifies(params)
    of_seed = [models_of_seed(params, cities, held_out, models, seed, ray) for seed in g.seeds]
    reference = read_card(of_seed[0]["all"])
    for fold in held_out:
        check_fold(fold, read_card(of_seed[0][f"without-{fold.held_out}"]), reference)

    kept = WORK / "generalize" / f"cities-{_key(params, cities, of_seed)}"
    found = summands(
        Generalizing(params, tiles, of_seed), sorted(cities), kept, ray=ray, shard=shard
    )
    if found is None:
        return
    metrics = _sum(params, held_out, of_seed, found)
    if g.fractions:
        metrics |= frugal(
            params.of_folds(), cities, models, of_seed[0]["all"], None if ray == CORES else ray
        )
    record = write(out, GeneralizeMetrics, metrics)
    forget(kept)
    print_tables(record)


def _key(params: Params, cities: Cities, of_seed: list[dict[str, Path]]) -> str:
    """What a kept city depends on: the settings, the models, all tiles, and the code."""
    sections = params.generalize, params.train, params.evaluate, params.certify
    settings = [
        *(section.model_dump() for section in sections),
        params.tile.size,
        params.attack.reference,
    ]
    folders = [folder for models in of_seed for folder in models.values()]
    return content(
        version("generalize"), settings, *folders, *(city.folder for city in cities.values())
    )


def _sum(
    params: Params, held_out: list[Fold], of_seed: list[dict[str, Path]], found: dict[str, Measured]
) -> dict:
    """metrics/generalize.json, but for frugal learning."""
    g = params.generalize
    known = [
        fold.held_out for fold in held_out if found[fold.held_out].results["all"].iou is not None
    ]
    pairs = {city: pair(params, city, found[city]) for city in known}
    metrics = {
        **gap_table(pairs, g.bootstrap, g.seed),
        "corruption": {},
        "adaptation": {},
        "frugal": {},
    }
    metrics["seeds"] = list(g.seeds)
    matrix = {
        model: {city: of_city.results[model].iou for city, of_city in found.items()}
        for model in of_seed[0]
    }
    metrics["matrix"] = matrix
    parts = {
        kind: {
            city: part
            for city, of_city in found.items()
            if (part := getattr(of_city, kind)) is not None
        }
        for kind in ("corruption", "adaptation", "estimate", "robustness")
    }
    if held_out and g.corruptions:
        metrics |= corruption_table(parts["corruption"])
    if held_out and g.adaptation:
        ladder: dict[str, dict] = {
            method: {city: row[method] for city, row in parts["adaptation"].items()}
            for method in g.adaptation
        }
        metrics |= {"adaptation": ladder, **choose(ladder, matrix)}
    if held_out:
        metrics["label_free"] = estimate_table(parts["estimate"], held_out, matrix)
    if g.attack_steps:
        metrics["robustness"] = robustness_table(params, parts["robustness"])
    return metrics


def models_of_seed(
    params: Params,
    cities: Cities,
    held_out: list[Fold],
    models: Path,
    seed: int,
    ray: str | None = None,
) -> dict[str, Path]:
    """Folders of the models to compare: "all", "without-CITY", and "only-CITY" where asked for.

    The training seed's own folds, and the reference on all cities where folds are trained for fewer
    epochs than models/all, are those of the holdout stage. Other seeds and one-city models are
    trained here, once; a reference too where the folds were trained one by one.
    """
    same, own = params.of_folds(seed), seed == params.train.seed
    folders = {name: city.folder for name, city in cities.items()}
    teachers: dict[str, list[str]] = {"all": sorted(cities)}
    teachers |= {f"without-{fold.held_out}": [*fold.training] for fold in held_out}
    if params.generalize.single_city:
        teachers |= {f"only-{city}": [city] for city in sorted(cities)}
    there = {"all": models / "all"} if same == params else {}
    if own:
        trained = [f"without-{fold.held_out}" for fold in held_out]
        if same != params and (models / "folds/all/model.json").exists():
            trained.append("all")
        there |= {name: models / "folds" / name for name in trained}
    here = WORK / "generalize" / f"seed-{seed}"

    taught = {name: [folders[city] for city in names] for name, names in teachers.items()}
    for _ in each(partial(_train, same, taught, here), [n for n in taught if n not in there], ray):
        pass
    return {name: there.get(name, here / name) for name in teachers}


def _train(params: Params, taught: dict[str, list[Path]], here: Path, name: str) -> None:
    """HERE/NAME, of the tile folders that teach it."""
    from pipeline.training.fit import fit

    seed = params.train.seed
    cities = [CityTiles(folder) for folder in taught[name]]
    fit(params, cities, here / name, work=WORK, name=f"{name}-seed-{seed}")


def pair(params: Params, city: str, found: Measured) -> Pair:
    """The test units of a city under the seen and the unseen model, one row a seed: blocks are the
    same ones, as long as any model's errors are correlated, and one where some model's are too few.
    """
    by_model = [
        [found.results[name], *found.other_seeds[name]] for name in ("all", f"without-{city}")
    ]
    reach = max(result.reach for of_seeds in by_model for result in of_seeds)
    units = [[r.units(params.evaluate, reach) for r in of_seeds] for of_seeds in by_model]
    if any(len(u.union) == 1 for of_seeds in units for u in of_seeds):
        units = [[u.as_one() for u in of_seeds] for of_seeds in units]
    counts = [
        np.stack([getattr(u, count) for u in of_seeds])
        for of_seeds in units
        for count in ("intersection", "union")
    ]
    return Pair(*counts, held=units[0][0].held)


def print_tables(found: GeneralizeMetrics) -> None:
    columns = list(found.city)
    if not columns:
        console.print(
            "one city: nothing to hold out, so no unseen IoU; name more in fetch.cities",
            markup=False,
        )
        return
    rows = [*found.city.items(), ("mean city", found.mean_city), ("pooled", found.pooled)]
    keys = ("seen", "unseen", "gap", "gap_low", "gap_high", "gap_spread")
    table(
        "IoU seen and unseen, from so many test scenes or blocks (no interval: too few, or too "
        "small a scene)",
        ["city", "units", "seen", "unseen", "gap", "low", "high", "spread"],
        [[name, f"{row.units:g}", *(getattr(row, k) for k in keys)] for name, row in rows],
    )
    if found.adaptation:
        table("IoU of the held-out city after adaptation without labels", ["method", *columns],
              [[m, *(row[c] for c in columns)] for m, row in found.adaptation.items()])  # fmt: skip
        if found.beyond_adaptation:
            console.print(
                f"no method tried repairs {', '.join(found.beyond_adaptation)}", markup=False
            )
    if withstood := found.robustness.city:
        sides = [(c, s, r) for c, city in withstood.items() for s, r in city if r]
        kinds = ("clean", "corrupted", "attacked", "certified")
        table("Robustness, seen and unseen", ["city", *kinds],
              [[f"{c}, {s}", *(getattr(r, k) for k in kinds)] for c, s, r in sides])  # fmt: skip
    if found.frugal:
        table(
            "IoU by share of training scenes",
            ["share", *columns],
            [[f"{float(s):.0%}", *(row[c] for c in columns)] for s, row in found.frugal.items()],
        )
    estimates, naive = found.label_free, found.label_free.naive
    guesses = (*ESTIMATES, *([naive] if naive else []))
    errors = [estimates.mean_error[guess] for guess in guesses]
    table(
        "IoU estimated without labels, and the best naive guess",
        ["city", "true", *guesses, "feature distance"],
        [
            [c, r.iou, *(getattr(r, guess) for guess in guesses), r.distance]
            for c, r in estimates.city.items()
        ]
        + [["mean error", None, *errors, None]],
    )
