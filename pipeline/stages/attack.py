"""Stage attack: IoU of each city under every attack, the exact worst case over them, and an audit of their honesty.

Writes metrics/attack.json:

    city CITY linf, l2   {BUDGET: {ATTACK: IoU}} with "clean", "noise" and "worst", the exact worst case over them;
                         image_clean and image_worst are means over tiles with buildings
              transfer   IoU under a copy's perturbations, and relative_clean, the copy's own clean IoU
              halving    the ℓ∞ budget in 1/255 that halves the IoU
              patch      IoU outside the patch
              erase, invent   buildings found and invented, clean and attacked, by_size in m²
              universal  IoU under a perturbation made "from" each city
    audit                {CHECK: whether it holds}, see robustness.audit

Killed and started again it goes on with the next city: what is measured stands in .work/attack until all is. DVC
watches models/all, not the folders of attack.model and attack.transfer: after a change there `dvc repro -f attack`.
"""

import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipeline.colours import ATTACKS
from pipeline.console import console, progress, table
from pipeline.errors import InputError
from pipeline.geo.scene import IGNORE
from pipeline.geo.tiles import CityTiles, open_cities
from pipeline.params import Params
from pipeline.stages.evaluate import check_fit
from pipeline.storage import WORK, atomic_file, atomic_folder, fingerprint, write_json

CRAFTING_TILES = 8  # training tiles a city that the universal perturbation and the surrogate are made on
CODE = ("robustness", "learning")  # of this code kept measurements are made
AMPLIFIED = 0.5  # the grey level a perturbation of the whole budget reaches above or below ½ in the figure


@dataclass
class Attacked:
    """A city: what was measured there, and the arrays the pictures and the universal transfer need."""

    measured: dict
    arrays: dict[str, np.ndarray]


def run(
    params: Params,
    tiles: Path = Path("data/tiles"),
    out: Path = Path("metrics/attack.json"),
    figures: Path = Path("figures/attack"),
    work: Path = WORK / "attack",
) -> None:
    """Attack attack.model on tiles of each city's test split.

    Raises InputError on bad tiles or models, and AuditFailed, leaving no metrics behind, where a check fails.
    """
    from pipeline.robustness.audit import audit, demand
    from pipeline.robustness.scores import city_metrics, evidence

    model, settings = Path(params.attack.model), params.attack
    cities = open_cities(params.fetch.cities, tiles)
    samples = {city.city: _sample(city, settings.tiles, settings.seed) for city in cities}
    folder = work / _key(params, cities, samples)
    campaign = _campaign(params, cities, model)
    results = {city.city: _one_city(campaign, city, samples[city.city], folder / city.city) for city in cities}

    measured = {city: result.measured for city, result in results.items()}
    checks = audit(**evidence(measured, f"{settings.reference:g}"))
    metrics = {"city": {city: city_metrics(m) for city, m in measured.items()}, "audit": checks}
    if settings.universal:
        for city, row in _universal(campaign, results, samples).items():
            metrics["city"][city]["universal"] = row
    if not all(checks.values()):
        out.unlink(missing_ok=True)  # numbers that must not be believed
        write_json(folder / "failed.json", metrics)
    demand(checks, str(folder / "failed.json"))

    with atomic_folder(figures) as partial:
        draw_curves(metrics["city"], partial / "iou.svg")
        for city, result in results.items():
            draw_example(result.arrays, partial / f"{city}.png", city, settings.reference)
    write_json(out, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    print_table(metrics, f"{settings.reference:g}")


def _sample(city: CityTiles, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = city.sample("test", count, seed=seed)
    if not len(images):
        raise InputError(f"{city.folder}: no test tiles to attack; raise tile.test and run the tile stage again")
    return images, labels


def _key(params: Params, cities: list[CityTiles], samples: dict) -> str:
    """What a kept measurement depends on: the settings, the models, the tiles, the pixels and labels attacked, and
    the code that attacks them."""
    parts = [params.attack.model_dump(), params.evaluate.size_bins, [city.about for city in cities]]
    for model in filter(None, (params.attack.model, params.attack.transfer)):
        files = (Path(model) / name for name in ("weights.safetensors", "model.json"))
        parts += [sha256(file.read_bytes()).hexdigest() if file.exists() else None for file in files]
    code = Path(__file__).parents[1]
    parts += [file.read_text(encoding="utf-8") for floor in CODE for file in sorted((code / floor).glob("*.py"))]
    parts += [sha256(array.tobytes()).hexdigest() for pair in samples.values() for array in pair]
    return fingerprint(*parts)


def _campaign(params: Params, cities: list[CityTiles], model: Path):
    """The model, the other one its attacks are transferred from, and the classes' training pixels."""
    import torch

    from pipeline.learning.crops import to_tensors
    from pipeline.learning.models import load_model
    from pipeline.learning.precision import autocast, device
    from pipeline.robustness.campaign import Campaign
    from pipeline.robustness.surrogate import surrogate

    settings, on = params.attack, device()
    segmenter = load_model(model, on)
    for city in cities:
        check_fit(segmenter.card, city, model)
    if settings.transfer:
        relative = load_model(settings.transfer, on)
        for city in cities:
            check_fit(relative.card, city, Path(settings.transfer))
    else:
        pairs = [to_tensors(city.sample("train", CRAFTING_TILES, seed=settings.seed), on) for city in cities]
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
    )


def _one_city(campaign, city: CityTiles, sample: tuple, kept: Path) -> Attacked:
    """Measured now, or read back from a run that was interrupted."""
    from pipeline.learning.crops import to_tensors
    from pipeline.robustness.campaign import attack_city

    if (kept / "measured.json").exists():
        with np.load(kept / "arrays.npz", allow_pickle=False) as file:
            return Attacked(json.loads((kept / "measured.json").read_text(encoding="utf-8")), dict(file))
    result = Attacked({}, {})
    device = next(campaign.segmenter.parameters()).device
    crafting = to_tensors(city.sample("train", CRAFTING_TILES, seed=campaign.settings.seed), device)
    steps = attack_city(campaign, *to_tensors(sample, device), crafting, city.gsd)
    s = campaign.settings
    budgets = len({*s.linf, s.reference}) + len(s.l2)
    total = 3 + budgets + s.halving + 2 * bool(s.targeted) + bool(s.patch) + s.universal
    for name, numbers, arrays in progress(steps, f"attacking {city.city}", total):
        result.measured[name] = numbers
        result.arrays |= arrays
    with atomic_folder(kept) as partial:
        np.savez(partial / "arrays.npz", **result.arrays)
        write_json(partial / "measured.json", result.measured)
    return result


def _universal(campaign, results: dict[str, Attacked], samples: dict) -> dict[str, dict]:
    """IoU of each city under its own universal perturbation and under every other city's."""
    import torch

    from pipeline.learning.crops import to_tensors
    from pipeline.robustness import attacks
    from pipeline.robustness.worst_case import pooled_iou

    device = next(campaign.segmenter.parameters()).device
    deltas = {city: torch.from_numpy(r.arrays["universal"]).to(device) for city, r in results.items()}
    rows = {}
    for city, sample in samples.items():
        images, labels = to_tensors(sample, device)
        iou = {
            source: pooled_iou(
                *(
                    c.cpu().numpy()
                    for c in attacks.counts(campaign.predict(attacks.apply_universal(images, delta)), labels)
                )
            )
            for source, delta in deltas.items()
        }
        rows[city] = {"iou": iou.pop(city), "from": iou}
    return rows


def print_table(metrics: dict, reference: str) -> None:
    names = ["clean", "noise", "fgsm", "pgd", "segpgd", "cospgd", "apgd", "worst"]
    rows = []
    for city, row in metrics["city"].items():
        rows.append([city, *(row["linf"][reference].get(name) for name in names), row.get("halving")])
    table(f"IoU under attack at ℓ∞ {reference}/255", ["city", *names, "halved at /255"], rows)
    console.print(f"audit: {len(metrics['audit'])} checks passed")


def draw_curves(cities: dict[str, dict], path: Path) -> None:
    """IoU against ε, one panel a city: every attack and their worst case."""
    from matplotlib.figure import Figure

    columns = min(3, len(cities))
    rows = -(-len(cities) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (city, metrics) in zip(axes, cities.items(), strict=False):
        budgets = list(metrics["linf"])
        for name, colour in ATTACKS.items():
            points = [(float(b), metrics["linf"][b][name]) for b in budgets if name in metrics["linf"][b]]
            if points:
                x, y = zip((0, metrics["linf"][budgets[0]]["clean"]), *points, strict=True)
                wide = {"linewidth": 2.4, "zorder": 3} if name == "worst" else {"linewidth": 1}
                axis.plot(x, y, color=colour, marker="o", markersize=2.5, label=name, **wide)
        axis.set_title(city, fontsize="medium")
        axis.set_xscale("symlog", linthresh=0.5)
        axis.set(ylim=(0, 1), xlabel="ε in 1/255", ylabel="IoU")
        axis.label_outer()
    for axis in axes[len(cities) :]:
        axis.set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize="small")
    with atomic_file(path) as partial:
        figure.savefig(partial)


def draw_example(arrays: dict[str, np.ndarray], path: Path, city: str, epsilon: float) -> None:
    """The tile that loses most: image, perturbation (amplified), and the map before and after, errors in colour."""
    from matplotlib.figure import Figure

    from pipeline.stages.evaluate import overlay

    image, attacked = (arrays[key].transpose(1, 2, 0)[..., :3] for key in ("image", "attacked"))
    if image.shape[-1] < 3:
        image, attacked = (a[..., :1].repeat(3, -1) for a in (image, attacked))
    gain = AMPLIFIED * 255 / epsilon
    pixels = (255 * image).astype(np.uint8)
    panels = {
        "image": image,
        f"perturbation × {gain:.0f}": (0.5 + gain * (attacked - image)).clip(0, 1),
        "before": overlay(pixels, arrays["before"], arrays["label"]),
        f"after ({epsilon:g}/255)": overlay(pixels, arrays["after"], arrays["label"]),
    }
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for axis, (title, panel) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize="medium")
        axis.axis("off")
    figure.suptitle(f"{city}: found green, invented orange, missed purple", fontsize="medium")
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=110)
