"""Stage few_labels: what an hour of labelling buys in a city never seen.

Each known city is held out in turn: models/folds/without-CITY maps it, and its test scenes' labels play
the labeller; the frames it learns from are of its training scenes. Writes metrics/few_labels.json,
a FewLabelsMetrics.
"""

from pathlib import Path
from statistics import fmean

import numpy as np

from pipeline.assessment.adapting import LabelledFrame, Tuning, fine_tune
from pipeline.assessment.population import (
    LEVELS,
    Frames,
    building_levels,
    crop,
    doubt,
    features,
    frame_windows,
    of_scene,
    together,
)
from pipeline.assessment.sampling import active_sample, core_set
from pipeline.assessment.simulation import KnownCity, coverage, promises
from pipeline.console import console, progress, table
from pipeline.labels import IGNORE, Split
from pipeline.metrics import FewLabelsMetrics, write
from pipeline.networks.models import Segmenter, read_model
from pipeline.networks.precision import device
from pipeline.params import FewLabels, Params
from pipeline.scoring.evaluation import evaluate_city, predict_region
from pipeline.tiles.store import Cities, CityTiles, open_cities

MARGIN = 32  # pixels of context around a labelled frame
CONFIDENCE = 0.95
SHARE = 0.8  # of a city's frames: a larger sample is a census


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    models: Path = Path("models"),
    out: Path = Path("metrics/few_labels.json"),
) -> None:
    """Raises InputError where tiles or a fold's model are missing."""
    few = params.few_labels
    cities = {city.city: city for city in open_cities(params.fetch.cities, tiles)}
    found: dict = {"city": {}, "forgotten": {}, "narrower": {}}
    held_out = sorted(cities) if len(cities) > 1 and (few.draws or few.budgets) else []
    for name in progress(held_out, "few labels"):
        model = read_model(models / "folds" / f"without-{name}", device())
        found["city"][name] = of_city(params, cities, name, model, found["forgotten"])
    if few.draws:
        found["narrower"] = narrower(found["city"])
    kept = write(out, FewLabelsMetrics, found)
    print_tables(kept)
    if why := untold(params.few_labels, kept, len(cities)):
        console.print(f"few_labels: {why}")


def surveyed(
    params: Params, model: Segmenter, city: CityTiles, split: Split
) -> tuple[Frames, list[np.ndarray]]:
    """The frames of a split, and the map of each of its regions in levels, 255
    where nothing is known.
    """
    parts, maps = [], []
    for number, region in enumerate(city.of_split(split)):
        _, _, calibrated, _ = predict_region(model, city, region, params.evaluate)
        levels = np.rint(calibrated * ((LEVELS - 1) / 255)).astype(np.uint8)
        levels[np.asarray(city.label(region)) == IGNORE] = IGNORE
        windows = frame_windows(region.height, region.width, params.few_labels.side)
        parts.append(of_scene(number, levels, city.image(region), windows))
        maps.append(levels)
    return together(parts), maps


def known_city(params: Params, model: Segmenter, city: CityTiles) -> KnownCity:
    frames, maps = surveyed(params, model, city, "test")
    regions = city.of_split("test")
    built = [
        building_levels(
            maps[scene][frames.place(i).slices], city.label(regions[scene])[frames.place(i).slices]
        )
        for i, scene in enumerate(frames.scene)
    ]
    return KnownCity(frames.histogram, np.array(built), model.decision.threshold)


def of_city(
    params: Params, cities: Cities, name: str, model: Segmenter, forgotten: dict
) -> dict | None:
    """One city's entry; None where nothing is built in its test scenes."""
    few, city = params.few_labels, cities[name]
    known = known_city(params, model, city)
    tp, fp, fn = known.counts.sum(0)
    if not tp + fn:
        return None
    entry = {
        "frames": len(known),
        "iou": float(tp / (tp + fp + fn)),
        "interval": {},
        "promise": {},
        "learned": {},
    }
    for n in few.samples if few.draws else []:
        if n <= SHARE * len(known):
            entry["interval"][str(n)] = coverage(known, n, few.draws, few.seed)
            repetitions = min(few.draws, 500)
            entry["promise"][str(n)] = promises(
                known, n, repetitions, few.recall, CONFIDENCE, "frame", few.seed
            )
    if few.budgets:
        entry["learned"] = learned(params, cities, name, model, forgotten)
    return entry


def learned(params: Params, cities: Cities, name: str, model: Segmenter, forgotten: dict) -> dict:
    """IoU of the test scenes after fine-tuning on frames of the training scenes, by strategy
    and number of frames.
    """
    few, city = params.few_labels, cities[name]
    frames, _ = surveyed(params, model, city, "train")
    others = [other for other in cities.values() if other.city != name]
    replay = [other for other in others if other.of_split("train")]

    def iou(segmenter: Segmenter, of: CityTiles) -> float | None:
        return evaluate_city(segmenter, of, params.evaluate).iou

    found: dict = {}
    before = mean_of(iou(model, other) for other in others)
    for strategy in few.strategies:
        order = drawn(strategy, frames, model.decision.threshold, max(few.budgets), few.seed)
        found[strategy] = {}
        for budget in sorted(few.budgets):
            chosen = [frame_of(city, frames, i) for i in order[:budget]]
            tuned = fine_tune(model, chosen, Tuning(steps=few.steps, seed=few.seed), replay)
            found[strategy][str(budget)] = iou(tuned, city)
        forgotten.setdefault(strategy, {})[name] = (
            mean_of(iou(tuned, other) for other in others) - before
        )
    return found


def mean_of(values) -> float:
    return fmean(value for value in values if value is not None)


def drawn(strategy: str, frames: Frames, threshold: float, count: int, seed: int) -> np.ndarray:
    """Frames in the order in which they would be labelled: fewer are the first of more."""
    match strategy:
        case "active":
            return active_sample(features(frames), doubt(frames.histogram, threshold), count, seed)
        case "core_set":
            return core_set(features(frames), count, seed)
    return np.random.default_rng(seed).permutation(len(frames))[:count]


def frame_of(city: CityTiles, frames: Frames, i: int) -> LabelledFrame:
    region, window = city.of_split("train")[frames.scene[i]], frames.place(i)
    image, place = crop(city.image(region), window, MARGIN)
    label = np.full(image.shape[:2], IGNORE, np.uint8)
    label[place.slices] = city.label(region)[window.slices]
    return LabelledFrame(image, label, place.slices)


def narrower(cities: dict) -> dict:
    """By what share the model-assisted interval is narrower than the plain one,
    on the mean of the cities.
    """
    known = [entry["interval"] for entry in cities.values() if entry]
    shares: dict = {}
    for n in sorted({n for interval in known for n in interval}, key=int):
        rows = [interval[n] for interval in known if n in interval]
        shares[n] = {m: _narrower([row[m] for row in rows]) for m in rows[0]}
    return shares


def _narrower(rows: list[dict]) -> float | None:
    widths = [(row["assisted"]["width"], row["plain"]["width"]) for row in rows]
    shares = [1 - ours / plain for ours, plain in widths if ours is not None and plain]
    return fmean(shares) if shares else None


def print_tables(found: FewLabelsMetrics) -> None:
    known = {city: entry for city, entry in found.city.items() if entry}
    rows = [
        [
            f"{city}, {n} frames",
            entry.iou,
            *(
                value
                for road in ("assisted", "plain")
                for value in (row["iou"][road].coverage, row["iou"][road].width)
            ),
        ]
        for city, entry in known.items()
        for n, row in entry.interval.items()
    ]
    if rows:
        table(
            "95 % intervals of a city's IoU",
            ["city", "IoU", "coverage", "width", "plain coverage", "width"],
            rows,
        )
    rows = [
        [f"{city}, {strategy}", entry.iou, *ious.values(), found.forgotten[strategy][city]]
        for city, entry in known.items()
        for strategy, ious in entry.learned.items()
    ]
    if rows:
        budgets = list(next(iter(known.values())).learned.values())[0]
        table(
            "IoU of a held-out city after labelling", ["city", "0", *budgets, "the others'"], rows
        )


def untold(few: FewLabels, found: FewLabelsMetrics, cities: int) -> str | None:
    """Why there is nothing to show, or no interval; None where there is."""
    known = [entry for entry in found.city.values() if entry]
    wanted = few.draws and few.samples
    if not wanted and not few.budgets:
        return "neither samples with draws nor budgets are asked for: nothing is measured"
    if cities < 2:
        return "a single city, and no fold knows another; name more in fetch.cities"
    if not known:
        return "nothing is built in the test scenes of any city: nothing is measured"
    if wanted and not any(entry.interval for entry in known):
        return (
            f"no interval: a city has at most {max(entry.frames or 0 for entry in known)} frames "
            f"in its test scenes, and {min(few.samples)} are more than {SHARE:.0%} of them; lower "
            f"few_labels.samples or few_labels.side, or raise tile.test"
        )
    return None
