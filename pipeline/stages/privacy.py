"""Stage privacy: does the model tell which scenes it was trained on, and what does
it cost to make sure it cannot?

Tiles of the training scenes of a city (members) against tiles of its test scenes.
Reads privacy.model, the folds models/folds/without-CITY and the tiles; writes
metrics/privacy.json, a PrivacyMetrics. Intervals (*_low, *_high, 95 %) are over
scenes, the models held fixed. An attack finds what leaks at least; only auc_bound
is a proof, in expectation over which scenes are trained on.

The networks trained here are kept in .work/privacy until all is measured: killed and started again
it goes on with the next.
"""

import math
import shutil
from pathlib import Path

from pipeline.console import console, table
from pipeline.errors import InputError
from pipeline.metrics import Attacks, Auc, Planted, PrivacyMetrics, write
from pipeline.params import Params
from pipeline.storage import WORK
from pipeline.tiles.store import CityTiles, open_cities


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    models: Path = Path("models"),
    out: Path = Path("metrics/privacy.json"),
    work: Path = WORK / "privacy",
) -> None:
    """Measure everything above. Raises InputError on bad tiles or models, and where there is
    nothing to compare.
    """
    from pipeline.networks.card import check_fit
    from pipeline.networks.models import read_model
    from pipeline.networks.precision import device
    from pipeline.privacy.judge import judge, sample
    from pipeline.privacy.planted import Planting, planted
    from pipeline.privacy.small import SmallNetworks, private

    settings, on = params.privacy, device()
    target, cities = read_model(settings.model, on), open_cities(params.fetch.cities, tiles)
    for city in cities:
        check_fit(target.card, city, Path(settings.model))
    cities = [city for city in cities if city.city in target.card.cities]
    references = load_references(params, cities, Path(models), on)
    samples = {
        city.city: found
        for city in cities
        if (found := sample(city, settings.tiles, settings.seed, references[city.city], on))
    }
    if not samples:
        raise InputError(
            f"{settings.model}: no city of fetch.cities that it was trained on has training and "
            f"test tiles; name "
            "another privacy.model, or raise tile.test and run the tile stage again"
        )
    found = judge(target, samples, settings.bootstrap, settings.seed)
    metrics = {
        "city": {
            city: {**of.counted(), "references": len(references[city]), **found["city"][city]}
            for city, of in samples.items()
        },
        "mean_city": found["mean_city"],
        "pooled": found["pooled"],
    }
    if settings.private.epsilon:
        metrics["private"] = private(SmallNetworks(settings, cities, Path(work), on), samples)
    if settings.planted:
        metrics["planted"] = planted(Planting(target, settings, cities, Path(work)), samples)
    kept = write(out, PrivacyMetrics, metrics)
    shutil.rmtree(work, ignore_errors=True)
    print_tables(kept)


def load_references(params: Params, cities: list[CityTiles], models: Path, on) -> dict[str, list]:
    """For each city the models that have not seen it: of the folds and of privacy.references."""
    from pipeline.networks.card import check_fit
    from pipeline.networks.models import read_model

    names = [city.city for city in cities]
    folds = [
        fold
        for name in names
        if (fold := models / "folds" / f"without-{name}").joinpath("model.json").exists()
    ]
    found: dict[str, list] = {name: [] for name in names}
    for folder in dict.fromkeys([*folds, *map(Path, params.privacy.references)]):
        model = read_model(folder, on)
        for city in cities:
            check_fit(model.card, city, folder)
            if city.city not in {*model.card.cities, *model.card.inherited}:
                found[city.city].append(model)
    if lacking := [name for name in names if not found[name]]:
        console.print(
            f"privacy: every model there is has seen {', '.join(lacking)}: no likelihood ratio "
            f"without a reference; "
            f"run `python -m pipeline train --without {lacking[0]}`"
        )
    return found


def print_tables(found: PrivacyMetrics) -> None:
    def cells(row: Attacks) -> list[float | None]:
        return [value for of in (row.loss, row.likelihood_ratio) for value in _interval(of)]

    rows: list[tuple[str, Attacks]] = [*found.city.items(), ("mean city", found.mean_city)]
    table("Membership inference: AUC of training against test tiles",
          ["city", "by loss", "low", "high", "by likelihood ratio", "low", "high"],
          [[name, *cells(row)] for name, row in rows])  # fmt: skip
    if private := found.private:
        table(f"A small network, δ {private.delta:.2g}, of a {private.unit}",
              ["trained", "IoU", "ε", "AUC by loss", "by likelihood ratio", "at most"],
              [[name, n.iou, n.epsilon, *cells(n)[::3], n.auc_bound]
               for name, n in private.network.items()])  # fmt: skip
    if plant := found.planted:
        console.print(
            f"planted: {plant.scene} of {plant.city}, {plant.repeats} times in training: "
            f"{verdict(plant)}"
        )


def verdict(plant: Planted) -> str:
    """Whether a planted scene was found; of the only one nobody can say."""
    loss = f"its loss is {times_smaller(plant.rise)}"
    if plant.found is None:
        return f"{loss}, but it is the only test scene, and against none is it found or not"
    found = "found" if plant.found else f"not found, {plant.rank}. of {plant.of} test scenes"
    return f"{found}; {loss}, of no other test scene more than {times_smaller(plant.next_rise)}"


def times_smaller(rise: float | None) -> str:
    return "–" if rise is None else f"{math.exp(rise):.1f} times smaller"


def _interval(of: Auc | None) -> tuple[float | None, ...]:
    return (of.auc, of.auc_low, of.auc_high) if of else (None, None, None)
