"""Stage generalize: how good is the map in a city the model has never seen, and can that be known beforehand?

Reads models/all, models/without-CITY and the tiles; writes metrics/generalize.json:

    city, mean_city, pooled, worst_city    seen, unseen, gap, 95 % intervals, spread over training seeds
    matrix               {MODEL: {CITY: IoU}}
    corruption           {NAME: {SEVERITY: {CITY: IoU}}} of the model that has not seen the city, on a few tiles, with
                         corruption_clean, corruption_retained and the worst_corruption a city
    adaptation           {METHOD: {CITY: IoU}}; adaptation_choice: the method chosen on the other cities, and the
                         "oracle", chosen with the city's own labels; beyond_adaptation: cities none of them repairs
    label_free           IoU estimated from unlabelled tiles, and the error of the estimates over the folds
    robustness           clean, attacked, certified and corrupted IoU of each city, seen and unseen, on equal pixels
    frugal               {SHARE: {CITY: IoU}} and frugal_by_initialisation, where generalize.fractions is set

Held-out labels are read by `evaluate_city` and `tile_iou` alone, after a model is final: training, early
stopping and adaptation never meet them.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.generalization import corruptions, figures, label_free
from pipeline.generalization.adaptation import adapt
from pipeline.generalization.frugal import nested_scenes, share_of
from pipeline.generalization.gap import Fold, Pair, check_disjoint, folds, gap_table
from pipeline.generalization.predictions import building_probability, tile_iou
from pipeline.geo.tiles import CityTiles, open_cities
from pipeline.learning.crops import to_float
from pipeline.learning.evaluation import CityResult, evaluate_city
from pipeline.learning.expected_iou import expected_iou, fit_thresholds, thresholded_iou
from pipeline.learning.models import Segmenter, load_model
from pipeline.learning.precision import device
from pipeline.learning.training import fit
from pipeline.params import Params
from pipeline.robustness.attacks import Target, pgd
from pipeline.robustness.certificates import certified_iou
from pipeline.robustness.smoothing import check_samples, radius, smooth
from pipeline.stages.train import WORK
from pipeline.storage import atomic_folder, write_json

REPAIRED = 0.02  # IoU an adaptation must add before it counts as a repair

Tiles = dict[str, CityTiles]


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    models: Path = Path("models"),
    out: Path = Path("metrics/generalize.json"),
    figures_folder: Path = Path("figures/generalize"),
) -> None:
    """Measure everything above. Raises InputError where a fold's model or a city's test scenes are missing."""
    g = params.generalize
    cities = {city.city: city for city in open_cities(params.fetch.cities, tiles)}
    held_out = folds(list(cities))
    for city in cities.values():
        if not city.of_split("test"):
            raise InputError(f"{city.folder}: no test scenes; raise tile.test or drop the city from fetch.cities")

    of_seed = [models_of_seed(params, cities, held_out, models, seed) for seed in g.seeds]
    loaded = {name: load_model(folder, device()) for name, folder in of_seed[0].items()}
    for fold in held_out:
        check_disjoint(fold, loaded[f"without-{fold.held_out}"].card, cities)

    results = evaluate_all(params, cities, loaded)
    pairs = {fold.held_out: pair(params, cities, fold.held_out, results, of_seed[1:]) for fold in held_out}
    metrics = gap_table(pairs, g.bootstrap, g.seed)
    metrics["seeds"] = list(g.seeds)
    metrics["matrix"] = {model: {city: r.iou for city, r in row.items()} for model, row in results.items()}
    unseen = {city: loaded[f"without-{city}"] for city in cities}
    if g.corruptions:
        metrics |= corrupted(params, cities, unseen)
    if g.adaptation:
        metrics |= adapted(params, cities, held_out, unseen, metrics["matrix"])
    metrics["label_free"] = estimated(params, cities, held_out, unseen, metrics["matrix"])
    if g.attack_steps:
        metrics["robustness"] = robustness(params, cities, loaded["all"], unseen)
    if g.fractions:
        metrics |= frugal(params, cities, models)
    with atomic_folder(figures_folder) as folder:
        figures.draw_all(metrics, folder)
    write_json(out, metrics)
    print_tables(metrics)


def models_of_seed(params: Params, cities: Tiles, held_out: list[Fold], models: Path, seed: int) -> dict[str, Path]:
    """Folders of the models to compare: "all", "without-CITY", and "only-CITY" where asked for.

    The training seed's own folds are those of the train stage. Other seeds, one-city models, and a reference
    on all cities when folds are trained for fewer epochs than models/all (a gap must not pay for shorter
    training), are trained here, once.
    """
    g, train = params.generalize, params.train
    epochs = g.epochs or train.epochs
    fair = params.model_copy(update={"train": train.model_copy(update={"seed": seed, "epochs": epochs})})

    def trained(name: str, on: Iterable[str]) -> Path:
        folder = WORK / "generalize" / f"seed-{seed}" / name
        fit(fair, [cities[city] for city in on], folder, work=WORK, name=f"{name}-seed-{seed}")
        return folder

    own = seed == train.seed
    found = {"all": models / "all" if own and epochs == train.epochs else trained("all", sorted(cities))}
    for fold in held_out:
        name = f"without-{fold.held_out}"
        found[name] = models / name if own else trained(name, fold.training)
    if g.single_city:
        found |= {f"only-{city}": trained(f"only-{city}", [city]) for city in sorted(cities)}
    return found


def evaluate_all(params: Params, cities: Tiles, loaded: dict[str, Segmenter]) -> dict[str, dict[str, CityResult]]:
    jobs = [(model, city) for model in loaded for city in sorted(cities)]
    results: dict[str, dict[str, CityResult]] = {model: {} for model in loaded}
    for model, city in progress(jobs, "city × city"):
        results[model][city] = evaluate_city(loaded[model], cities[city], params.evaluate)
    return results


def pair(params: Params, cities: Tiles, city: str, results: dict, other_seeds: list[dict[str, Path]]) -> Pair:
    """The test units of a city under the seen and the unseen model, one row a seed."""
    counts = []
    for name in ("all", f"without-{city}"):
        more = [evaluate_city(load_model(m[name], device()), cities[city], params.evaluate) for m in other_seeds]
        units = [result.units for result in (results[name][city], *more)]
        counts += [np.stack([u.intersection for u in units]), np.stack([u.union for u in units])]
    return Pair(*counts)


def corrupted(params: Params, cities: Tiles, unseen: dict[str, Segmenter]) -> dict:
    """IoU of each city, not seen in training, under every corruption and severity, and the share it retains."""
    g = params.generalize
    samples = {city: cities[city].sample("test", g.corruption_tiles, seed=g.seed) for city in sorted(cities)}
    clean = {city: tile_iou(building_probability(unseen[city], s[0]), s[1]) for city, s in samples.items()}
    found: dict = {name: {str(s): {} for s in corruptions.SEVERITIES} for name in corruptions.NAMES}
    jobs = [(name, s, city) for name in corruptions.NAMES for s in corruptions.SEVERITIES for city in samples]
    for name, severity, city in progress(jobs, "corruptions"):
        images, labels = corruptions.corrupt(name, severity, *samples[city], cities[city].gsd, g.seed)
        found[name][str(severity)][city] = tile_iou(building_probability(unseen[city], images), labels)
    worst, retained = {}, {name: {} for name in found}
    for city in [city for city in samples if clean[city]]:
        shares = {
            (name, s): found[name][s][city] / clean[city]
            for name in found
            for s in found[name]
            if found[name][s][city] is not None
        }
        name, severity = min(shares, key=shares.get)
        worst[city] = {"name": name, "severity": severity, "retained": shares[name, severity]}
        for name in found:
            retained[name][city] = float(np.mean([v for (n, _), v in shares.items() if n == name] or [1.0]))
    return {"corruption": found, "corruption_clean": clean, "corruption_retained": retained, "worst_corruption": worst}


def unlabelled(params: Params, city: CityTiles, count: float, side: int, split: str = "train") -> np.ndarray:
    """Image crops of a city, from another split where this one has none; labels and their table stay unopened."""
    for name in (split, "train", "validation", "test"):
        if city.of_split(name):
            return city.unlabelled(name, math.ceil(count), side, params.generalize.seed)
    raise InputError(f"{city.folder}: no scenes; run the tile stage again")


def adapted(params: Params, cities: Tiles, held_out: list[Fold], unseen: dict[str, Segmenter], matrix: dict) -> dict:
    """The adaptation ladder on each held-out city: fitted on its unlabelled training scenes, tested on its
    test ones."""
    g = params.generalize
    ladder: dict[str, dict[str, float | None]] = {method: {} for method in g.adaptation}
    for fold, method in progress([(f, m) for f in held_out for m in g.adaptation], "adaptation"):
        city = fold.held_out
        if method == "none":
            ladder[method][city] = matrix[f"without-{city}"][city]
            continue
        segmenter = adapt_to(params, cities, fold, method, unseen[city])
        ladder[method][city] = evaluate_city(segmenter, cities[city], params.evaluate).iou
    return {
        "adaptation": ladder,
        **choose(ladder, {fold.held_out: matrix[f"without-{fold.held_out}"] for fold in held_out}),
    }


def adapt_to(params: Params, cities: Tiles, fold: Fold, method: str, segmenter: Segmenter) -> Segmenter:
    """Adapt to the held-out city by its images alone, in crops the size of the windows it will be mapped by."""
    g, size = params.generalize, params.tile.size
    sides = [min(r.height, r.width) for r in cities[fold.held_out].of_split("test")]
    side = max(32, min(params.evaluate.window, *sides) // 32 * 32)
    count = max(4, g.adaptation_tiles * size**2 / side**2)
    batch = max(2, round(params.train.batch_size * params.train.crop**2 / side**2))
    target = unlabelled(params, cities[fold.held_out], count, side)
    source = np.concatenate([unlabelled(params, cities[c], count / len(fold.training), side) for c in fold.training])
    return adapt(method, segmenter, source, target, steps=g.adaptation_steps, batch_size=batch, seed=g.seed)


def choose(ladder: dict[str, dict[str, float | None]], unadapted: dict) -> dict:
    """For each city the method that was best on average on the *other* cities, and beside it the oracle's.

    beyond_adaptation: cities under the mean of the model's own seen cities that no method, not even the
    oracle, lifts by REPAIRED: a shift in what a roof looks like, not in the light.
    """
    cities = [c for c in next(iter(ladder.values())) if all(ladder[m][c] is not None for m in ladder)]
    choice, beyond = {}, []
    for city in cities:
        others = [c for c in cities if c != city]
        honest = max(ladder, key=lambda m: sum(ladder[m][c] for c in others))
        oracle = max(ladder, key=lambda m: ladder[m][city])
        choice[city] = {
            "method": honest,
            "iou": ladder[honest][city],
            "oracle": {"method": oracle, "iou": ladder[oracle][city]},
        }
        seen = [iou for c, iou in unadapted[city].items() if c != city and iou is not None]
        before = unadapted[city][city]
        if seen and before < np.mean(seen) - REPAIRED and ladder[oracle][city] < before + REPAIRED:
            beyond.append(city)
    return {"adaptation_choice": choice, "beyond_adaptation": beyond}


def estimated(params: Params, cities: Tiles, held_out: list[Fold], unseen: dict[str, Segmenter], matrix: dict) -> dict:
    """Label-free estimates of each held-out city's IoU, and their mean absolute error over the folds.

    Two naive guesses stand beside them: the model's IoU on its own cities' test scenes ("no_gap"), and that
    guess less the other folds' mean gap ("mean_gap").
    """
    g, size = params.generalize, params.tile.size
    rows: dict[str, dict] = {}
    for fold in progress(held_out, "label-free estimates"):
        city, segmenter = fold.held_out, unseen[fold.held_out]
        iou = matrix[f"without-{city}"][city]
        if iou is None:
            continue
        validation = [cities[c].sample("validation", g.adaptation_tiles, seed=g.seed) for c in fold.training]
        images, labels = (np.concatenate(part) for part in zip(*validation, strict=True))
        thresholds = fit_thresholds(building_probability(segmenter, images), labels)
        target = unlabelled(params, cities[city], 2 * g.adaptation_tiles, size, "test")
        probability = building_probability(segmenter, target)
        own = [matrix[f"without-{city}"][c] for c in fold.training]
        rows[city] = {
            "iou": iou,
            "thresholded": thresholded_iou(probability, thresholds),
            "expected": expected_iou(probability),
            "distance": label_free.feature_distance(segmenter, target),
            "no_gap": mean(own),
        }
    truths = {city: row["iou"] for city, row in rows.items()}
    for name, score in (("corrected", "thresholded"), ("mean_gap", "no_gap")):
        estimates = label_free.corrected({city: row[score] for city, row in rows.items()}, truths)
        for city, estimate in estimates.items():
            rows[city][name] = estimate
    guesses = ("thresholded", "expected", "corrected", "no_gap", "mean_gap")
    error = {name: label_free.mean_error({c: r[name] for c, r in rows.items()}, truths) for name in guesses}
    return {"city": rows, "error": error}


def robustness(params: Params, cities: Tiles, seen: Segmenter, unseen: dict[str, Segmenter]) -> dict:
    """Clean, attacked, certified and corrupted IoU of each city by the model that saw it and the one that did not.

    All four on the same crops. The attack is a light PGD (an upper bound; the stage attack has the strong
    ones), the certificate randomised smoothing, the corruption the mean over the table at severity 3.
    """
    g, c, s = params.generalize, params.certify, params.certify.smoothing
    epsilon, sigma, certify = params.attack.reference, s.sigma[0], "smoothing" in c.methods
    if certify:
        check_samples(s.n, c.crop**2, s.tau, s.alpha)
    found: dict = {city: {} for city in sorted(cities)}
    sides: list[tuple[str, Callable[[str], Segmenter]]] = [("seen", lambda _: seen), ("unseen", unseen.get)]
    for city, (side, model) in progress([(city, side) for city in found for side in sides], "robustness"):
        images, labels = cities[city].sample("test", g.corruption_tiles, c.crop, g.seed)
        segmenter, on = model(city), device()
        x, y = to_float(torch.from_numpy(images).to(on)), torch.from_numpy(labels).to(on).long()
        generator = torch.Generator(on).manual_seed(g.seed)
        target = Target(segmenter, x, y, "linf", epsilon / 255)
        attacked = pgd(target, g.attack_steps, generator=generator)
        shaken = [corruptions.corrupt(name, 3, images, labels, cities[city].gsd, g.seed) for name in corruptions.NAMES]
        scores = [tile_iou(building_probability(segmenter, i), t) for i, t in shaken]
        row = {
            "clean": tile_iou(building_probability(segmenter, images), labels),
            "attacked": tile_iou(of_tensor(segmenter, attacked), labels),
            "certified": None,
            "corrupted": mean(scores),
        }
        if certify:
            noisy = smooth(segmenter, x, sigma, s.n0, s.n, batch_size=s.batch_size, generator=generator)
            row["certified"] = certified_iou(noisy.certified(s.tau, s.alpha, s.correction), y)
        found[city][side] = row if row["clean"] is not None else None
    return {
        "attack": {"norm": "linf", "epsilon": epsilon, "steps": g.attack_steps},
        "certificate": {"norm": "l2", "radius": radius(sigma, s.tau), "sigma": sigma} if certify else None,
        "city": {city: row for city, row in found.items() if row["seen"] is not None},
    }


def mean(ious: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [iou for iou in ious if iou is not None]
    return float(np.mean(known)) if known else None


@torch.inference_mode()
def of_tensor(segmenter: Segmenter, images: torch.Tensor) -> np.ndarray:
    """Building probability (N, H, W) of images that are no longer 8-bit: in full precision, as they were attacked."""
    return (1 - segmenter(images).float().softmax(1)[:, 0]).cpu().numpy()


def frugal(params: Params, cities: Tiles, models: Path) -> dict:
    """IoU of each city after training on a nested share of its own scenes, from each initialisation.

    A share limits validation scenes too: early stopping must not see more labels than training.
    """
    g = params.generalize
    epochs = g.epochs or params.train.epochs
    found: dict = {start: {f"{share:g}": {} for share in g.fractions} for start in g.initialisations}
    scenes: dict = {f"{share:g}": {} for share in g.fractions}
    jobs = [(start, share, city) for start in g.initialisations for share in g.fractions for city in sorted(cities)]
    for start, share, city in progress(jobs, "frugal learning"):
        init, weights = start_of(params, cities, models, start, city)
        model = params.train.model.model_copy(update={"encoder_weights": weights})
        changed = {"epochs": epochs, "init": init, "model": model}
        fair = params.model_copy(update={"train": params.train.model_copy(update=changed)})
        smaller = share_of(cities[city], share, g.seed)
        name = f"frugal-{start}-{share:g}-{city}"
        folder = WORK / "generalize" / name
        fit(fair, [smaller], folder, work=WORK, name=name)
        found[start][f"{share:g}"][city] = evaluate_city(load_model(folder, device()), smaller, params.evaluate).iou
        scenes[f"{share:g}"][city] = len(nested_scenes(cities[city], "train", [share], g.seed)[share])
    first = next(iter(found.values()))
    return {"frugal": first, "frugal_by_initialisation": found, "frugal_scenes": scenes}


def start_of(params: Params, cities: Tiles, models: Path, start: str, city: str) -> tuple[str | None, str | None]:
    """(train.init, train.model.encoder_weights) of an initialisation."""
    match start:
        case "imagenet":
            return None, "imagenet"
        case "other_cities":
            return str(models / f"without-{city}"), params.train.model.encoder_weights
        case "self_supervised":
            from pipeline.learning.pretraining import pretrain

            folder = WORK / "generalize" / "self-supervised"
            pretrain(params, [cities[c] for c in sorted(cities)], folder)
            return str(folder), params.train.model.encoder_weights
    return None, None


def print_tables(metrics: dict) -> None:
    rows = [(city, row) for city, row in metrics["city"].items()]
    rows += [(name.replace("_", " "), metrics[name]) for name in ("mean_city", "pooled")]
    keys = ("seen", "unseen", "gap", "gap_low", "gap_high", "gap_spread")
    table("IoU seen and unseen", ["city", "seen", "unseen", "gap", "low", "high", "spread"],
          [[name, *(row[k] for k in keys)] for name, row in rows])  # fmt: skip
    columns = list(metrics["city"])
    if "adaptation" in metrics:
        table("IoU of the held-out city after adaptation without labels", ["method", *columns],
              [[m, *(row[c] for c in columns)] for m, row in metrics["adaptation"].items()])  # fmt: skip
        for city in metrics["beyond_adaptation"]:
            console.print(f"no adaptation repairs {city}: it needs labels of its own", markup=False)
    if "robustness" in metrics:
        sides = [(c, s, r) for c, city in metrics["robustness"]["city"].items() for s, r in city.items() if r]
        kinds = ("clean", "corrupted", "attacked", "certified")
        table("Robustness, seen and unseen", ["city", *kinds],
              [[f"{c}, {s}", *(r[k] for k in kinds)] for c, s, r in sides])  # fmt: skip
    estimates = metrics["label_free"]
    table("IoU estimated without labels", ["city", "true", "estimated", "feature distance"],
          [[c, r["iou"], r["corrected"], r["distance"]] for c, r in estimates["city"].items()]
          + [["mean error", None, estimates["error"]["corrected"], None]])  # fmt: skip
