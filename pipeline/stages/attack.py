"""Stage attack: IoU of each city under every attack, the exact worst case over them, and an audit
of their honesty.

Writes metrics/attack.json, an AttackMetrics. A failed check of the audit does not stop what comes
after: it is in the metrics and red on the page, and the report stage ends with its error, so that
no run ends well with numbers that must not be believed.

Killed and started again it goes on with the next city: what is measured stands in .work/attack
until all is. DVC watches what attack.model and attack.transfer name, but for folds: after a change
of these `dvc repro -s -f attack`.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pipeline.cluster import content, summands
from pipeline.code import version
from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.labels import IGNORE, Split
from pipeline.metrics import AttackMetrics, write
from pipeline.params import Attack, AttackMethod, Params
from pipeline.storage import WORK, atomic_folder
from pipeline.tiles.store import CityTiles, open_cities

if TYPE_CHECKING:
    from pipeline.networks.models import Segmenter

SUNLIT = 4  # training scenes a city whose labelled buildings say how dark a shadow is
# training tiles a city that the universal perturbation and the surrogate are made on
CRAFTING_TILES = 8
# Of the tile that loses most, for the report
SHOWN = ("image", "attacked", "label", "before", "after", "erased", "after_erasing")


@dataclass
class Attacked:
    """A city: what was measured there, and the arrays that the report and the
    universal transfer need.
    """

    measured: dict
    arrays: dict[str, np.ndarray]


@dataclass
class Attacking:
    """What attacks a city: a part of the stage. The model and its surrogate are
    made once a process.
    """

    params: Params
    tiles: Path
    segmenter: "Segmenter | None" = None

    @cached_property
    def cities(self) -> dict[str, CityTiles]:
        return {city.city: city for city in open_cities(self.params.fetch.cities, self.tiles)}

    @cached_property
    def samples(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        settings = self.params.attack
        return {
            name: _sample(city, "test", settings.tiles, settings)
            for name, city in self.cities.items()
        }

    @cached_property
    def campaign(self):
        return _campaign(self.params, [*self.cities.values()], self.segmenter)

    def __call__(self, city: str, _: Path) -> Attacked:
        return _one_city(self.campaign, self.cities[city], self.samples[city])

    def __getstate__(self) -> dict:
        """What it is made from: a worker opens and loads it again."""
        return {name: self.__dict__[name] for name in ("params", "tiles", "segmenter")}


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    out: Path = Path("metrics/attack.json"),
    arrays: Path = Path("arrays/attack"),
    work: Path = WORK / "attack",
    segmenter=None,
    *,
    ray: str | None = None,
    shard: str | None = None,
) -> None:
    """Attack attack.model, or the Segmenter that is given, on tiles of each city's test split.

    ray, shard: where its cities are attacked, see pipeline.cluster. Raises InputError on bad tiles
    or models. Failed checks of the audit are told, not raised: see `report`.
    """
    from pipeline.attacks.audit import audit, failures
    from pipeline.attacks.scores import city_metrics, evidence

    settings, attacking = params.attack, Attacking(params, tiles, segmenter)
    folder = work / _key(params, [*attacking.cities.values()], attacking.samples, segmenter)
    results = summands(attacking, [*attacking.cities], folder, ray=ray, shard=shard)
    if results is None:
        return

    measured = {city: result.measured for city, result in results.items()}
    _unrefuted(measured)
    numbers = evidence(measured, f"{settings.reference:g}", _longer(attacking, measured))
    metrics: dict[str, Any] = {"city": {city: city_metrics(m) for city, m in measured.items()}}
    if settings.universal:
        for city, row in _universal(attacking.campaign, results, attacking.samples).items():
            metrics["city"][city]["universal"] = row
    metrics |= {"audit": audit(**numbers), "audit_numbers": numbers}

    with atomic_folder(arrays) as partial:
        for city, result in results.items():
            shown: dict[str, Any] = {
                name: result.arrays[name] for name in SHOWN if name in result.arrays
            }
            np.savez(partial / f"{city}.npz", **shown)
    found = write(out, AttackMetrics, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    print_table(found, f"{settings.reference:g}")
    failed = failures(found.audit)
    console.print(f"audit: {len(found.audit) - len(failed)} of {len(found.audit)} checks passed")
    for sentence in failed:
        console.print(f"audit failed: {sentence}", style="bold red")


def _unrefuted(measured: dict[str, dict]) -> None:
    """Raise SandwichBroken where an exposure that was tried changes a pixel that is certified
    under all of them.
    """
    from pipeline.certificates.ordering import unrefuted

    for city, found in measured.items():
        unrefuted(
            f"{city}, gain and offset", np.array(found.get("physics gain", {}).get("refuted", 0))
        )


def _sample(
    city: CityTiles, split: Split, count: int, settings: Attack
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of a split, or their centres where attack.crop is less."""
    size = min(settings.crop, city.size)
    images, labels = city.sample(split, count, size=size, seed=settings.seed)
    if split == "test" and not len(images):
        raise InputError(
            f"{city.folder}: no test tiles to attack; raise tile.test and run the tile stage again"
        )
    return images, labels


def _key(params: Params, cities: list[CityTiles], samples: dict, segmenter=None) -> str:
    """What a kept measurement depends on: the settings, the models, the tiles, the pixels and
    labels attacked, and the code that attacks them.
    """
    of_models = [
        *([] if segmenter else [params.attack.model]),
        *filter(None, [params.attack.transfer]),
    ]
    files = [
        Path(model) / name for model in of_models for name in ("weights.safetensors", "model.json")
    ]
    arrays = [array for pair in samples.values() for array in pair]
    settings = [
        params.attack.model_dump(),
        params.evaluate.size_bins,
        [city.about for city in cities],
    ]
    return content(version("attack"), settings, segmenter, *files, *arrays)


def _campaign(params: Params, cities: list[CityTiles], segmenter):
    """The model, the other one its attacks are transferred from, and the
    classes' training pixels.
    """
    import torch

    from pipeline.attacks.protocol import Campaign
    from pipeline.attacks.surrogate import surrogate
    from pipeline.networks.card import check_fit
    from pipeline.networks.foreign import load_with_gradients
    from pipeline.networks.precision import autocast, device
    from pipeline.tiles.tensors import to_tensors

    settings, on = params.attack, device()
    name = "the network" if segmenter else settings.model
    segmenter = segmenter.to(on) if segmenter else load_with_gradients(settings.model, on)
    for city in cities:
        check_fit(segmenter.card, city, name)
    if settings.transfer:
        relative = load_with_gradients(settings.transfer, on)
        for city in cities:
            check_fit(relative.card, city, Path(settings.transfer))
    else:
        pairs = [
            to_tensors(_sample(city, "train", CRAFTING_TILES, settings), on) for city in cities
        ]
        images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        relative = surrogate(segmenter, images, labels, seed=settings.seed)
    pixels = sum(
        np.bincount(city.label(region).ravel(), minlength=IGNORE + 1)[: segmenter.classes + 1]
        for city in cities
        for region in city.of_split("train")
    )
    return Campaign(
        segmenter.deployed(),
        relative.deployed(),
        settings,
        torch.from_numpy(np.asarray(pixels)),
        params.evaluate.size_bins,
        lambda: autocast(on, settings.precision),
        _exposures(segmenter, settings),
    )


def _exposures(segmenter, settings: Attack):
    """What certifies images (N, C, H, W) under every gain and offset, None where the model has
    no such certificate.
    """
    from pipeline.certificates.exposure import exposure_classes
    from pipeline.params import Convex

    if not Convex.certifies(segmenter.card.model):
        return None
    s = settings.physics
    return lambda images: exposure_classes(segmenter, images, s.gain, s.offset, s.cells)


def _one_city(campaign, city: CityTiles, sample: tuple) -> Attacked:
    from pipeline.attacks.protocol import attack_city
    from pipeline.tiles.tensors import to_tensors

    result = Attacked({}, {})
    device = next(campaign.segmenter.parameters()).device
    crafting = to_tensors(_sample(city, "train", CRAFTING_TILES, campaign.settings), device)
    steps = attack_city(campaign, *to_tensors(sample, device), crafting, city.gsd)
    s = campaign.settings
    budgets = len({*s.linf, s.reference}) + len(s.l2)
    total = (
        3
        + budgets
        + s.halving
        + 2 * bool(s.targeted)
        + bool(s.patch)
        + s.universal
        + len(s.physics.families)
    )
    for name, numbers, arrays in progress(steps, f"attacking {city.city}", total):
        result.measured[name] = numbers
        result.arrays |= arrays
    if city.city in s.physics.sun:
        result.measured["shadow"] = _shadows(campaign, city, s.physics.sun[city.city])
    return result


def _shadows(campaign, city: CityTiles, sun: tuple[float, float]) -> dict:
    """Whether the buildings of the maps of the city's test scenes cast shadows, judged as its
    labelled ones do.
    """
    from pipeline.attacks import shadows

    def of(region, classes: np.ndarray):
        return shadows.scores(city.image(region), classes, city.gsd, sun, region.transform)

    limit = shadows.threshold(
        [of(region, city.label(region))[1] for region in city.of_split("train")[:SUNLIT]]
    )
    found = []
    for region in city.of_split("test"):
        labels = city.label(region)
        drawn = np.where(labels == IGNORE, IGNORE, _drawn(campaign.segmenter, city.image(region)))
        components, scores = of(region, drawn)
        found.append((scores, shadows.is_true(components, labels)))
    return {"sun": list(sun), **shadows.verdict(found, limit)}


def _drawn(deployed, image: np.ndarray) -> np.ndarray:
    """The map (H, W) of a whole scene (H, W, C) uint8."""
    from pipeline.scoring.inference import infer

    bands = infer(deployed.segmenter, image, temperature=deployed.decision.temperature)
    return np.concatenate([deployed.decision.of_probabilities(p[..., 1:]) for _, p in bands])


def _longer(attacking: Attacking, measured: dict[str, dict]) -> dict | None:
    """The audit's longest attack, on the fullest tile of every city at once; None where no tile
    holds a building.
    """
    from pipeline.attacks.protocol import longer
    from pipeline.attacks.scores import fullest, judged, on_fullest
    from pipeline.tiles.tensors import to_tensors

    if not (cities := judged(measured)):
        return None
    campaign = attacking.campaign
    pairs = [
        [part[fullest(city)] for part in attacking.samples[name]] for name, city in cities.items()
    ]
    images, labels = (np.stack(parts) for parts in zip(*pairs, strict=True))
    before = on_fullest(measured, f"{campaign.settings.reference:g}")
    device = next(campaign.segmenter.parameters()).device
    console.print("audit: ten times the gradients on the fullest tile of each city")
    return longer(campaign, *to_tensors((images, labels), device), before)


def _universal(campaign, results: dict[str, Attacked], samples: dict) -> dict[str, dict]:
    """IoU of each city under its own universal perturbation and under every other city's."""
    import torch

    from pipeline.attacks import engine
    from pipeline.scoring.metrics import iou
    from pipeline.tiles.tensors import to_tensors

    device = next(campaign.segmenter.parameters()).device
    deltas = {
        city: torch.from_numpy(r.arrays["universal"]).to(device) for city, r in results.items()
    }
    rows = {}
    for city, sample in samples.items():
        images, labels = to_tensors(sample, device)
        found = {
            source: iou(campaign.predict(engine.apply_universal(images, delta)), labels)
            for source, delta in deltas.items()
        }
        rows[city] = {"iou": found.pop(city), "from": found}
    return rows


def print_table(found: AttackMetrics, reference: str) -> None:
    names = ["clean", "noise", *get_args(AttackMethod), "worst"]
    rows = []
    for city, row in found.city.items():
        rows.append(
            [city, *(getattr(row.linf[reference], name, None) for name in names), row.halving]
        )
    table(f"IoU under attack at ℓ∞ {reference}/255", ["city", *names, "halved at /255"], rows)
