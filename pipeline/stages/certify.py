"""Stage certify: the sandwich certified ≤ attacked ≤ clean IoU of each city, on three roads.

Each road certifies the map that certify.model deploys, its threshold included, where its
architecture allows: smoothing always, convex relaxation small_fcn and small_unet, a Lipschitz
certificate lipschitz. Otherwise a small network is trained here on the same cities' training tiles
and kept in models/certify/. Judged are crops, one window each, not turned. Writes
metrics/certify.json, a CertifyMetrics. Convex and Lipschitz certificates are proofs; smoothing's
holds on each tile with confidence 1 − certify.smoothing.alpha, for the smoothed model: one trained
without noise (train.noise) may lose much of its clean IoU to the noise alone.

Killed and started again it goes on with the next city: what is proven stands in
.work/certify until all is.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cluster import content, each, forget, summands
from pipeline.code import version
from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.metrics import CertifyMetrics, write
from pipeline.params import METHODS, UNITS, Certify, Model, Params
from pipeline.storage import WORK, fingerprint
from pipeline.tiles.store import CityTiles, open_cities

BATCH = 8  # crops a step of training
HALVINGS = 2  # of the training budget, after a collapse
LOST = 0.25  # of the training IoU: a city below it was given up


@dataclass
class Certifying:
    """What certifies METHOD/CITY: a part of the stage. A road's network is
    loaded once a process.
    """

    params: Params
    tiles: Path
    models: Path

    def __post_init__(self):
        self.networks: dict = {}

    @cached_property
    def cities(self) -> dict[str, CityTiles]:
        return {city.city: city for city in open_cities(self.params.fetch.cities, self.tiles)}

    @cached_property
    def samples(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {name: _sample(city, self.params.certify) for name, city in self.cities.items()}

    def deployed(self, method: str) -> bool:
        from pipeline.networks.card import read_card

        return METHODS[method].certifies(read_card(self.params.certify.model).model)

    def folder(self, method: str) -> Path:
        return (
            Path(self.params.certify.model)
            if self.deployed(method)
            else self.models / "certify" / method
        )

    def network(self, method: str):
        """The Segmenter that a road certifies, trained first where the deployed one is not it."""
        from pipeline.networks.card import check_fit
        from pipeline.networks.models import read_model
        from pipeline.networks.precision import device

        if method not in self.networks:
            cities, folder = [*self.cities.values()], self.folder(method)
            if self.deployed(method):
                segmenter = read_model(folder, device())
                for city in cities:
                    check_fit(segmenter.card, city, folder)
            else:
                with arithmetic(method):
                    segmenter = certifiable(self.params, method, cities, folder)
            self.networks[method] = segmenter
        return self.networks[method]

    def train(self, method: str) -> None:
        self.network(method)

    def __call__(self, part: str, _: Path) -> dict[str, dict]:
        """{RADIUS: row}."""
        from pipeline.certificates import ordering
        from pipeline.networks.precision import device
        from pipeline.tiles.tensors import to_tensors

        (method, city), settings = part.split("/"), self.params.certify
        segmenter, data = self.network(method), to_tensors(self.samples[city], device())
        options = (
            getattr(settings, method),
            settings.attack_steps,
            settings.seed,
            f"{method}, {city}",
        )
        with arithmetic(method):
            return ordering.ROWS[method](segmenter, data, *options)

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("params", "tiles", "models")} | {
            "networks": {}
        }


@contextmanager
def arithmetic(method: str) -> Generator[None]:
    """Direct sums (see networks.precision) for a proof; smoothing votes in
    whatever arithmetic the model has.
    """
    import torch

    from pipeline.networks.precision import direct_sums

    if method == "smoothing":
        yield
        return
    cudnn, matmul, nnpack = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.nnpack
    before = cudnn.allow_tf32, matmul.allow_tf32, nnpack.set_flags(False)
    try:
        direct_sums()
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before[:2]
        nnpack.set_flags(*before[2])


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    models: Path = Path("models"),
    out: Path = Path("metrics/certify.json"),
    work: Path = WORK / "certify",
    *,
    ray: str | None = None,
    shard: str | None = None,
) -> None:
    """Certify test crops of each city by certify.methods.

    ray, shard: where its cities are certified, see pipeline.cluster. Raises InputError on bad
    tiles, models or sample sizes, and SandwichBroken, leaving no metrics behind, where an attack or
    an ordering refutes a certificate.
    """
    from pipeline.certificates.samples import check_samples

    settings, out = params.certify, Path(out)
    # an output also where no method trains
    (Path(models) / "certify").mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)  # numbers that must not be believed beside a failure
    if "smoothing" in settings.methods:
        s = settings.smoothing
        check_samples(s.n, settings.crop**2, s.tau, s.alpha)
    certifying = Certifying(params, tiles, Path(models))
    for _ in each(
        certifying.train, [m for m in settings.methods if not certifying.deployed(m)], ray
    ):
        pass
    names = [f"{method}/{city}" for method in settings.methods for city in certifying.cities]
    kept = work / _key(certifying)
    rows = summands(certifying, names, kept, ray=ray, shard=shard)
    if rows is None:
        return
    metrics = {method: _road(certifying, method, rows) for method in settings.methods}
    found = write(out, CertifyMetrics, metrics)
    forget(kept)
    print_table(found)


def _key(certifying: Certifying) -> str:
    """What a kept certificate depends on: the settings, the networks, the
    pixels and labels, and the code.
    """
    settings = certifying.params.certify
    networks = [certifying.folder(method) for method in settings.methods]
    ground = [city.about for city in certifying.cities.values()]
    arrays = [array for pair in certifying.samples.values() for array in pair]
    return content(version("certify"), settings.model_dump(), ground, *networks, *arrays)


def _sample(city: CityTiles, settings: Certify) -> tuple[np.ndarray, np.ndarray]:
    images, labels = city.sample("test", settings.tiles, size=settings.crop, seed=settings.seed)
    if not len(images):
        raise InputError(
            f"{city.folder}: no test tiles to certify; raise tile.test and run the tile stage again"
        )
    return images, labels


def _road(certifying: Certifying, method: str, rows: dict[str, dict]) -> dict:
    """{"city": {CITY: {RADIUS: row}}} of one road, and what its training said."""
    answer = {city: rows[f"{method}/{city}"] for city in certifying.cities}
    if certifying.deployed(method):
        return {"deployed": True, "city": answer}
    result = {"deployed": False, **certifying.network(method).card.metrics}
    clean = {city: next(iter(by_radius.values()))["clean"] for city, by_radius in answer.items()}
    least = LOST * result["train_iou"]
    lost = [city for city, iou in clean.items() if iou is not None and iou < least]
    return {**result, "lost": lost or None, "city": answer}  # dvc plots stumbles over an empty list


def certifiable(params: Params, method: str, cities: list[CityTiles], folder: Path):
    """The small network of a road, trained or, where nothing has changed, read back from `folder`.

    A collapsed convex network is trained again with half the budget, HALVINGS
    times; the card's metrics say so.
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
        architecture=architecture,
        width=settings.width,
        classes=cities[0].classes,
        group=getattr(settings, "group", 2),
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
        console.print(
            f"certify: {settings.objective} training collapsed; once more with ε {epsilon:g}/255"
        )
    if trained.collapsed:
        console.print(
            f"certify: the {method} network collapsed: its certificates are worth nothing here"
        )
    metrics = {"train_iou": trained.iou, "collapsed": trained.collapsed, "train_budget": epsilon}
    first = cities[0]
    card = Card(
        model=model, channels=first.channels, classes=first.classes, gsd=first.gsd,
        bands=params.tile.bands, cities=[c.city for c in cities],
        params={"certify": params.certify.model_dump()}, metrics=metrics, fingerprint=key,
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
        "Certified ≤ attacked ≤ clean IoU",
        ["method", "norm", "city", "radius", "certified", "attacked", "clean"],
        rows,
    )
    for method, result in found.methods.items():
        console.print(f"{method}: of {METHODS[method].whose(result.deployed)}")
        if result.collapsed:
            console.print(
                f"{method}: training collapsed to one class; its certified IoU says nothing"
            )
        elif result.lost:
            console.print(
                f"{method}: the small network hardly finds a building in {', '.join(result.lost)}"
            )
