"""Stage certify: the sandwich certified ≤ attacked ≤ clean IoU of each city, on three roads.

Each road certifies the map that certify.model deploys, its threshold included, where its architecture allows: smoothing
always, convex relaxation small_fcn and small_unet, a Lipschitz certificate lipschitz. Otherwise a small network is
trained here on the same cities' training tiles and kept in models/certify/. Judged are crops, one window each, not
turned. Writes metrics/certify.json, a CertifyMetrics. Convex and Lipschitz certificates are proofs; smoothing's holds
on each tile with confidence 1 − certify.smoothing.alpha, for the smoothed model: one trained without noise
(train.noise) may lose much of its clean IoU to the noise alone.
"""

from pathlib import Path

import numpy as np

from pipeline.code import version
from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.metrics import CertifyMetrics, write
from pipeline.params import METHODS, UNITS, Certify, Model, Params
from pipeline.storage import fingerprint
from pipeline.tiles.store import CityTiles, open_cities

BATCH = 8  # crops a step of training
HALVINGS = 2  # of the training budget, after a collapse
LOST = 0.25  # of the training IoU: a city below it was given up


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    models: Path = Path("models"),
    out: Path = Path("metrics/certify.json"),
) -> None:
    """Certify test crops of each city by certify.methods.

    Raises InputError on bad tiles, models or sample sizes, and SandwichBroken, leaving no metrics behind,
    where an attack or an ordering refutes a certificate.
    """
    from pipeline.certificates.samples import check_samples

    settings, out = params.certify, Path(out)
    (Path(models) / "certify").mkdir(parents=True, exist_ok=True)  # an output also where no method trains
    out.unlink(missing_ok=True)  # numbers that must not be believed beside a failure
    if "smoothing" in settings.methods:
        s = settings.smoothing
        check_samples(s.n, settings.crop**2, s.tau, s.alpha)
    cities = open_cities(params.fetch.cities, tiles)
    samples = {city.city: _sample(city, settings) for city in cities}
    metrics = {method: _method(params, method, cities, samples, models) for method in settings.methods}
    print_table(write(out, CertifyMetrics, metrics))


def _sample(city: CityTiles, settings: Certify) -> tuple[np.ndarray, np.ndarray]:
    images, labels = city.sample("test", settings.tiles, size=settings.crop, seed=settings.seed)
    if not len(images):
        raise InputError(f"{city.folder}: no test tiles to certify; raise tile.test and run the tile stage again")
    return images, labels


def _method(params: Params, method: str, cities: list[CityTiles], samples: dict, models: Path) -> dict:
    """{"city": {CITY: {RADIUS: row}}} of one road, and what its training said."""
    from pipeline.certificates import ordering
    from pipeline.networks.card import check_fit, read_card
    from pipeline.networks.models import read_model
    from pipeline.networks.precision import device, direct_sums
    from pipeline.tiles.tensors import to_tensors

    settings, on = params.certify, device()
    if method != "smoothing":  # which votes, in whatever arithmetic the model has
        direct_sums()
    if METHODS[method].certifies(read_card(settings.model).model):
        segmenter, result = read_model(settings.model, on), {"deployed": True}
        for city in cities:
            check_fit(segmenter.card, city, Path(settings.model))
    else:
        segmenter = certifiable(params, method, cities, Path(models) / "certify" / method)
        result = {"deployed": False, **segmenter.card.metrics}
    rows, answer = ordering.ROWS[method], {}
    for city in progress(cities, f"certify: {method}"):
        data, where = to_tensors(samples[city.city], on), f"{method}, {city.city}"
        answer[city.city] = rows(
            segmenter, data, getattr(settings, method), settings.attack_steps, settings.seed, where
        )
    if not result["deployed"]:
        clean = {city: next(iter(by_radius.values()))["clean"] for city, by_radius in answer.items()}
        least = LOST * result["train_iou"]
        result = {**result, "lost": [city for city, iou in clean.items() if iou is not None and iou < least]}
    return {**result, "city": answer}


def certifiable(params: Params, method: str, cities: list[CityTiles], folder: Path):
    """The small network of a road, trained or, where nothing has changed, read back from `folder`.

    A collapsed convex network is trained again with half the budget, HALVINGS times; the card's metrics say so.
    """
    import torch

    from pipeline.certificates.interval_training import OBJECTIVES, train_interval, train_margin
    from pipeline.networks.card import Card
    from pipeline.networks.models import build_model, kept_model, read_model, save_model
    from pipeline.networks.precision import device

    settings, on = getattr(params.certify, method), device()
    shared = params.certify.crop, params.certify.seed
    training = settings.model_dump(exclude={"radii", "chunk"})
    key = fingerprint(version("certify"), training, shared, [c.about for c in cities])
    if kept := kept_model(folder, key):
        return kept.to(on)
    architecture = settings.architecture if method == "convex" else "lipschitz"
    model = Model(
        architecture=architecture, width=settings.width, classes=cities[0].classes, group=getattr(settings, "group", 2)
    )
    epsilon = settings.train_epsilon if method == "convex" else settings.margin
    for halving in range(HALVINGS + 1):
        torch.manual_seed(params.certify.seed)
        segmenter = build_model(model, cities[0].channels).to(on)
        batches = _batches(params, cities, on, f"certify: training for {method}", settings.steps)
        if method == "lipschitz":
            trained = train_margin(segmenter, batches, settings.steps, epsilon)
            break
        segmenter.set_normalisation([0.5] * cities[0].channels, [0.25] * cities[0].channels)
        bound = OBJECTIVES[settings.objective]
        trained = train_interval(segmenter, batches, settings.steps, epsilon / 255, bound=bound)
        if not trained.collapsed or halving == HALVINGS:
            break
        epsilon /= 2
        console.print(f"certify: {settings.objective} training collapsed; once more with ε {epsilon:g}/255")
    if trained.collapsed:
        console.print(f"certify: the {method} network collapsed: its certificates are worth nothing here")
    metrics = {"train_iou": trained.iou, "collapsed": trained.collapsed, "train_budget": epsilon}
    first = cities[0]
    card = Card(
        model=model, channels=first.channels, classes=first.classes, gsd=first.gsd, bands=params.tile.bands,
        cities=[c.city for c in cities], params={"certify": params.certify.model_dump()}, metrics=metrics,
        fingerprint=key,
    )  # fmt: skip
    save_model(folder, segmenter, card)
    return read_model(folder, on)


def _batches(params: Params, cities: list[CityTiles], device, description: str, steps: int):
    """`steps` batches of random training crops, cities drawn evenly, turned and flipped."""
    import torch

    from pipeline.tiles.tensors import to_tensors
    from pipeline.training.crops import RandomCrops

    crops = RandomCrops(cities, params.certify.crop, params.certify.seed, "flips")
    for step in progress(range(steps), description):
        pairs = [crops[step * BATCH + i] for i in range(BATCH)]
        images, labels = (torch.stack(side).numpy() for side in zip(*pairs, strict=True))
        yield to_tensors((images, labels), device)


def print_table(found: CertifyMetrics) -> None:
    rows = [
        [method, UNITS[METHODS[method].norm], city, radius, row.certified, row.attacked, row.clean]
        for method, result in found.methods.items() for city, by_radius in result.city.items()
        for radius, row in by_radius.items()
    ]  # fmt: skip
    table(
        "Certified ≤ attacked ≤ clean IoU", ["method", "norm", "city", "radius", "certified", "attacked", "clean"], rows
    )
    for method, result in found.methods.items():
        console.print(f"{method}: of {METHODS[method].whose(result.deployed)}")
        if result.collapsed:
            console.print(f"{method}: training collapsed to one class; its certified IoU says nothing")
        elif result.lost:
            console.print(f"{method}: the small network hardly finds a building in {', '.join(result.lost)}")
