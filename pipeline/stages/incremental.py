"""Stage incremental: what does a network forget as cities arrive one after another, and a class
after the others?

Small networks on the cities' training tiles, measured on tiles of their test scenes. Writes
metrics/incremental.json, an IncrementalMetrics; its scores are those of incremental/scores.py.

Killed and started again it goes on with the next sequence: what is measured stands in
.work/incremental until all is.
"""

import shutil
from pathlib import Path

from pipeline.code import version
from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.metrics import IncrementalMetrics, write
from pipeline.params import Incremental, Params
from pipeline.storage import WORK, fingerprint, read_json, write_json
from pipeline.tiles.store import CityTiles, open_cities

SCORES = ("average", "forgetting", "backward", "forward")


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    out: Path = Path("metrics/incremental.json"),
    work: Path = WORK / "incremental",
) -> None:
    """Train and measure every sequence. Raises InputError on bad tiles, and on one city, after
    which none arrives.
    """
    from pipeline.incremental.sequence import Tests, orders
    from pipeline.incremental.summary import class_table, sequence_table
    from pipeline.networks.precision import device

    cities, on = open_cities(params.fetch.cities, tiles), device()
    check(cities)
    settings = cut_to(cities, params.incremental)
    tests = Tests(cities, settings.tiles, settings.seed, on)
    about = [city.about for city in cities]
    folder = Path(work) / fingerprint(version("incremental"), settings.model_dump(), about)
    arrivals = orders([city.city for city in cities], settings.orders, settings.seed)
    jobs = [
        ("joint", None),
        *((method, order) for order in arrivals for method in settings.methods),
    ]
    found = {
        (method, *(order or ())): once(
            folder / f"{method}-{i}.json", measure, method, order, cities, tests, settings, on
        )
        for i, (method, order) in enumerate(progress(jobs, "incremental: sequences"))
    }
    untrained = once(
        folder / "untrained.json", measure, "untrained", None, cities, tests, settings, on
    )
    metrics = sequence_table(found, untrained, arrivals, settings, tests)
    several = cities[0].classes > 1
    kinds = (
        once(folder / "classes.json", measure_classes, cities, tests, settings, on)
        if several
        else None
    )
    metrics["classes"] = kinds and class_table(kinds, settings, tests)
    kept = write(out, IncrementalMetrics, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    print_tables(kept)


def check(cities: list[CityTiles]) -> None:
    """Raise InputError where no sequence can be made of the cities."""
    if len(cities) < 2:
        raise InputError(
            "incremental: a single city, and none arrives after it; name more in fetch.cities"
        )
    for key in ("channels", "gsd", "classes"):
        if len({getattr(city, key) for city in cities}) > 1:
            raise InputError(
                f"the cities' tiles differ in {key}; run the tile stage for all of them again"
            )
    for city in cities:
        for split in ("train", "test"):
            if not city.of_split(split):
                raise InputError(
                    f"{city.folder}: no {split} scenes; change tile.test, or drop it "
                    f"from fetch.cities"
                )


def cut_to(cities: list[CityTiles], settings: Incremental) -> Incremental:
    """The settings with a crop that a tile holds, as what replay keeps are tiles."""
    side = min(settings.crop, *(city.size for city in cities))
    return settings.model_copy(update={"crop": side})


def once(file: Path, work, *arguments):
    """What work(*arguments) returns, read back where an interrupted run has left it."""
    if not file.exists():
        write_json(file, work(*arguments))
    return read_json(file)


def measure(
    method: str, order: list[str] | None, cities: list[CityTiles], tests, settings, on
) -> list[dict]:
    """Counts in every city after each step of a sequence; of joint and
    untrained, of one network.
    """
    from pipeline.incremental.sequence import fresh, joint, run_sequence

    if order is None:
        network = joint(cities, settings, on) if method == "joint" else fresh(
            settings, cities[0].channels, cities[0].classes
        ).to(on).eval()  # fmt: skip
        return [tests.measure(network)]
    by_name = {city.city: city for city in cities}
    return run_sequence(method, [by_name[name] for name in order], tests, settings, on)


def measure_classes(cities: list[CityTiles], tests, settings, on) -> dict:
    """{METHOD: counts of each class}, and those of "before", the network of the first step."""
    from pipeline.incremental.arriving import METHODS, supervised, trained

    kinds = list(range(1, cities[0].classes + 1))
    first = supervised(cities, kinds[:-1], settings.steps * len(cities), settings, on)
    found = {"before": [tests.measure(first, kind) for kind in kinds]}
    for method in progress(METHODS, "incremental: a class that arrives"):
        network = trained(method, None if method == "joint" else first, cities, settings, on)
        found[method] = [tests.measure(network, kind) for kind in kinds]
    return found


def print_tables(found: IncrementalMetrics) -> None:
    rows = [
        [name, *(getattr(row, score) for score in SCORES)] for name, row in found.method.items()
    ]
    table("Cities one after another: IoU, mean over the orders", ["method", *SCORES],
          [*rows, ["joint", found.joint.average, None, None, None]])  # fmt: skip
    if found.classes:
        table(
            "A class that arrives later: IoU",
            ["method", "old, before", "old", "new"],
            [[name, row.before, row.old, row.new] for name, row in found.classes.items()],
        )
    else:
        console.print(
            "incremental: the tiles hold one class, so none arrives later; `preset "
            "streets` labels two"
        )
