"""Every attack on one city's tiles: what is measured, as plain numbers that can be kept between two runs.

A measurement is a pair of lists, intersection and union of each tile; a ratio comes last. Attacks may run in
mixed precision; what they found is always measured in float32, by a forward pass of its own.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline import params
from pipeline.learning.perturb import length
from pipeline.robustness import attack_losses, attacks
from pipeline.robustness.attacks import Target
from pipeline.robustness.objects import false_by_size, recall_by_size, size_names
from pipeline.robustness.patch import beyond, corner_patch, receptive_radius
from pipeline.robustness.worst_case import pooled_iou, worst_case

STRONG = 32  # 1/255: a budget at which no segmenter should stand
APGD = ("mce", "mce_bal", "js")
HALVING_ROUNDS = 3  # bisections between two known budgets
Measurement = list[list[int]]  # intersection and union of each tile


@dataclass
class Campaign:
    """The model, another one to transfer from, and the settings of the stage."""

    segmenter: torch.nn.Module
    relative: torch.nn.Module
    settings: params.Attack
    pixels: torch.Tensor  # (K,) training pixels of each class
    size_bins: list[float]  # m²
    autocast: Callable[[], AbstractContextManager] = nullcontext

    def predict(self, images: torch.Tensor, segmenter=None) -> torch.Tensor:
        """(N, H, W) classes, in float32 whatever the attack's precision."""
        size = self.settings.batch_size
        with torch.no_grad():
            return torch.cat([(segmenter or self.segmenter)(part).argmax(1) for part in images.split(size)])

    def run(self, target: Target, attack: Callable[[Target], torch.Tensor]) -> torch.Tensor:
        with self.autocast():
            return attacks.in_batches(target, self.settings.batch_size, attack)


def excess(found: torch.Tensor, target: Target) -> float:
    """By how much the longest perturbation exceeds ε, or a pixel leaves [0, 1]; 0 at best."""
    over = length(found.double() - target.images.double(), target.norm).max() - target.epsilon
    return float(torch.stack([over, found.max() - 1, -found.min()]).max().clamp_min(0))


def smallest_budget(iou_at: Callable[[float], float], goal: float, low: float, high: float, rounds: int) -> float:
    """The least ε known to bring the IoU to `goal` or below, by bisection of log ε between `low`, which does
    not, and `high`, which does; from 0 the first step is a quarter of `high`."""
    for _ in range(rounds):
        middle = math.sqrt(low * high) if low else high / 4
        if iou_at(middle) <= goal:
            high = middle
        else:
            low = middle
    return high


def attack_city(
    campaign: Campaign, images: torch.Tensor, labels: torch.Tensor, crafting: tuple, gsd: float
) -> Iterator[tuple[str, dict, dict[str, np.ndarray]]]:
    """Every measurement the settings ask for, one at a time: its name, numbers (JSON), and arrays to keep.

    images (N, C, H, W) in [0, 1] and labels (N, H, W) of the tiles attacked; `crafting` the same of training
    tiles, which the universal perturbation is made on.
    """
    settings, segmenter = campaign.settings, campaign.segmenter
    generator = torch.Generator().manual_seed(settings.seed)
    reference = Target(segmenter, images, labels, "linf", settings.reference / 255)
    worst_excess = 0.0

    def measure(found: torch.Tensor, target: Target) -> Measurement:
        nonlocal worst_excess
        worst_excess = max(worst_excess, excess(found, target))
        return [c.tolist() for c in attacks.counts(campaign.predict(found), target.labels)]

    def pgd(target: Target, steps: int = settings.steps, **options) -> torch.Tensor:
        return campaign.run(target, lambda part: attacks.pgd(part, steps, generator=generator, **options))

    clean_map = campaign.predict(images)
    clean = [c.tolist() for c in attacks.counts(clean_map, labels)]
    yield "clean", {"tiles": clean}, {}

    known = [(0.0, clean)]  # linf budgets in 1/255 and everything measured there
    for norm, budgets, unit in (("linf", settings.linf, 255), ("l2", settings.l2, 1)):
        for budget in sorted(budgets):
            target = Target(segmenter, images, labels, norm, budget / unit)
            results = {}
            for name, found in _all_attacks(campaign, target, generator):
                results[name] = measure(found, target)
                if norm == "linf":
                    known.append((budget, results[name]))
            yield f"{norm} {budget:g}", results, {}

    half = pgd(reference, max(1, settings.steps // 2))
    full = pgd(reference)
    transfer = campaign.run(
        replace(reference, segmenter=campaign.relative),
        lambda part: attacks.pgd(part, settings.steps, generator=generator),
    )
    strong = replace(reference, epsilon=STRONG / 255)
    # Aimed at what the check asks for: cross-entropy spends most of its gradient on pixels already wrong.
    vanishing = measure(pgd(strong, 2 * settings.steps, loss=attack_losses.erase), strong)
    known.append((STRONG, vanishing))
    yield (
        "checks",
        {
            "half_steps": measure(half, reference),
            "steps": measure(full, reference),
            "noise": measure(attacks.noise(reference, generator), reference),
            "transfer": measure(transfer, reference),
            "vanishing": vanishing,
            "relative_clean": [c.tolist() for c in attacks.counts(campaign.predict(images, campaign.relative), labels)],
        },
        _picture(campaign, images, labels, full, clean_map),
    )

    if settings.halving:
        yield "halving", {"linf": _halving(known, lambda target: measure(pgd(target), target), reference)}, {}
    if settings.targeted:
        names = size_names(campaign.size_bins)

        def by_size(counter, attacked: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
            maps = clean_map, campaign.predict(attacked)
            return tuple(counter(m.cpu().numpy(), labels.cpu().numpy(), gsd, campaign.size_bins) for m in maps)

        outside = replace(reference, mask=(labels == 0).unsqueeze(1), score=attacks.erased)
        inside = replace(reference, mask=((labels > 0) & (labels != 255)).unsqueeze(1), score=attacks.invented)
        found = pgd(outside, loss=attack_losses.erase)
        measure(found, outside)
        before, after = by_size(recall_by_size, found)
        yield "erase", _recalls(names, before, after), {}
        found = pgd(inside, loss=attack_losses.invent)
        measure(found, inside)
        before, after = by_size(false_by_size, found)
        yield "invent", _falses(names, before, after), {}
    if settings.patch:
        effective, support = receptive_radius(segmenter, images[: settings.batch_size])
        anything = replace(reference, epsilon=1.0, mask=corner_patch(images, settings.patch))
        scored = replace(anything, labels=beyond(labels, settings.patch + effective))
        found = measure(pgd(scored, step=0.1), scored)
        whole = [c.tolist() for c in attacks.counts(clean_map, scored.labels)]
        yield (
            "patch",
            {
                "clean": whole,
                "attacked": found,
                "effective_radius": effective,
                "support_radius": support,
                "scored_share": float((scored.labels != 255).sum() / (labels != 255).sum().clamp_min(1)),
            },
            {},
        )
    if settings.universal:
        batches = list(zip(*(part.split(settings.batch_size) for part in crafting), strict=True))
        with campaign.autocast():
            delta = attacks.universal(segmenter, batches, "linf", reference.epsilon, settings.steps)
        measure(attacks.apply_universal(images, delta), reference)
        yield "universal", {}, {"universal": delta.cpu().numpy()}
    yield "excess", {"value": worst_excess}, {}


def _all_attacks(campaign: Campaign, target: Target, generator) -> Iterator[tuple[str, torch.Tensor]]:
    settings = campaign.settings
    options = {"generator": generator, "restarts": settings.restarts}
    yield "noise", attacks.noise(target, generator)
    for method in settings.methods:
        match method:
            case "fgsm":
                yield "fgsm", campaign.run(target, attacks.fgsm)
            case "pgd" | "segpgd" | "cospgd":
                attack = getattr(attacks, method)
                yield method, campaign.run(target, lambda part, a=attack: a(part, settings.steps, **options))
            case "apgd":
                for name, loss in attacks.sea_losses(campaign.pixels).items():
                    yield (
                        name,
                        campaign.run(
                            target,
                            lambda part, loss=loss: attacks.red_epsilon(part, loss, settings.apgd_steps, generator),
                        ),
                    )


def _halving(known: list, measure: Callable[[Target], Measurement], reference: Target) -> float | None:
    """The smallest ℓ∞ budget (1/255) that halves the city's IoU, or None where not even the strongest does."""

    def worst_up_to(budget: float, *more: Measurement) -> float:
        return worst_case(*np.array([*(m for e, m in known if e <= budget), *more]).swapaxes(0, 1))[0]

    goal = worst_up_to(0) / 2
    budgets = sorted({e for e, _ in known})
    enough = [e for e in budgets if worst_up_to(e) <= goal]
    if not enough or goal == 0:
        return None
    low = max(e for e in budgets if e < enough[0])

    def iou_at(budget: float) -> float:
        return worst_up_to(budget, measure(replace(reference, epsilon=budget / 255)))

    return smallest_budget(iou_at, goal, low, enough[0], HALVING_ROUNDS)


def _share(part: int, whole: int) -> float | None:
    return int(part) / int(whole) if whole else None


def _recalls(names: list[str], before: np.ndarray, after: np.ndarray) -> dict:
    """Object recall before and after erasing, of all buildings and by size in m²."""
    number = before[1]
    return {
        "objects": int(number.sum()),
        "clean": _share(before[0].sum(), number.sum()),
        "attacked": _share(after[0].sum(), number.sum()),
        "by_size": {
            name: {"objects": int(n), "clean": _share(b, n), "attacked": _share(a, n)}
            for name, n, b, a in zip(names, number, before[0], after[0], strict=True)
        },
    }


def _falses(names: list[str], before: np.ndarray, after: np.ndarray) -> dict:
    """False objects before and after inventing, in all and by size in m²."""
    return {
        "clean": int(before.sum()),
        "attacked": int(after.sum()),
        "by_size": {n: {"clean": int(b), "attacked": int(a)} for n, b, a in zip(names, before, after, strict=True)},
    }


def _picture(campaign: Campaign, images, labels, found, clean_map) -> dict[str, np.ndarray]:
    """The tile that loses most, as the figure shows it."""
    attacked_map = campaign.predict(found)
    lost = (attacks.counts(clean_map, labels)[0] - attacks.counts(attacked_map, labels)[0]).argmax()
    return {
        "image": images[lost].cpu().numpy(),
        "attacked": found[lost].cpu().numpy(),
        "label": labels[lost].cpu().numpy(),
        "before": clean_map[lost].cpu().numpy(),
        "after": attacked_map[lost].cpu().numpy(),
    }


def city_metrics(measured: dict) -> dict:
    """One city's part of metrics/attack.json from what `attack_city` measured, without the universal perturbation."""

    def iou(measurement: Measurement) -> float:
        return pooled_iou(*measurement)

    clean = measured["clean"]["tiles"]
    metrics: dict = {"linf": {}, "l2": {}}
    candidates: dict[str, list[Measurement]] = {"linf": [clean], "l2": [clean]}
    for key, results in measured.items():
        norm, _, budget = key.partition(" ")
        if norm not in metrics or not budget:
            continue
        candidates[norm] += results.values()
        row = {"clean": iou(clean), **{name: iou(m) for name, m in results.items() if name not in APGD}}
        losses = [results[name] for name in APGD if name in results]
        if losses:
            row["apgd"] = _worst(losses)
            row["apgd_losses"] = {name: iou(results[name]) for name in APGD}
        row["worst"] = _worst(candidates[norm])
        row["image_clean"], row["image_worst"] = _image_iou([clean]), _image_iou(candidates[norm])
        metrics[norm][budget] = row
    checks = measured["checks"]
    metrics["transfer"] = {"iou": iou(checks["transfer"]), "relative_clean": iou(checks["relative_clean"])}
    if "halving" in measured:
        metrics["halving"] = measured["halving"]["linf"]
    if "patch" in measured:
        p = measured["patch"]
        scored = p["scored_share"] > 0
        metrics["patch"] = {
            **p,
            "clean": iou(p["clean"]) if scored else None,
            "attacked": iou(p["attacked"]) if scored else None,
        }
    return metrics | {key: measured[key] for key in ("erase", "invent") if key in measured}


def _worst(measurements: list[Measurement]) -> float:
    return worst_case(*np.array(measurements).swapaxes(0, 1))[0]


def _image_iou(measurements: list[Measurement]) -> float:
    """The mean over tiles of each tile's least IoU: pooled IoU hides losses on small buildings (Halmosi et
    al. 2024)."""
    intersection, union = np.array(measurements, float).swapaxes(0, 1)
    return float(np.where(union > 0, intersection / np.maximum(union, 1), 1).min(0).mean())


def evidence(measured: dict[str, dict], reference: str) -> dict:
    """What the audit judges, from every city's measurements; `reference` is the ℓ∞ budget as a key."""

    def pooled(measurements: list[Measurement]) -> float:
        return pooled_iou(*np.concatenate([np.array(m) for m in measurements], axis=1))

    cities = list(measured.values())
    worst = [
        [pooled_iou(*city["clean"]["tiles"]), *(row["worst"] for row in city_metrics(city)[norm].values())]
        for city in cities
        for norm in ("linf", "l2")
    ]
    white_box = []
    for city in cities:
        at_reference = {**city.get(f"linf {reference}", {}), "steps": city["checks"]["steps"]}
        candidates = np.array([city["clean"]["tiles"], *(at_reference[k] for k in at_reference if k != "noise")])
        choice = worst_case(*candidates.swapaxes(0, 1))[1]
        white_box.append(candidates[choice, :, np.arange(len(choice))].T)
    return {
        "excess": max(city["excess"]["value"] for city in cities),
        "worst": worst,
        "steps": [pooled([city["checks"][key] for city in cities]) for key in ("half_steps", "steps")],
        "white_box": pooled(white_box),
        **{key: pooled([city["checks"][key] for city in cities]) for key in ("transfer", "noise")},
        "clean": pooled([city["clean"]["tiles"] for city in cities]),
        "vanishing": [pooled_iou(*city["checks"]["vanishing"]) for city in cities],
    }
