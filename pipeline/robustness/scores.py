"""From what a campaign measured to IoU: a city's part of metrics/attack.json, and what the audit judges."""

import numpy as np

from pipeline.robustness.worst_case import pooled_iou, worst_case

APGD = ("mce", "mce_bal", "js")
Measurement = list[list[int]]  # intersection and union of each tile


def city_metrics(measured: dict) -> dict:
    """One city's part of metrics/attack.json from what `attack_city` measured, without the universal perturbation.

    Every IoU is None where its tiles hold no building.
    """

    clean, buildings = measured["clean"]["tiles"], measured["clean"]["buildings"]

    def iou(measurement: Measurement) -> float | None:
        return pooled_iou(*measurement) if any(buildings) else None

    def worst(measurements: list[Measurement]) -> float | None:
        return _worst(measurements) if any(buildings) else None

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
            row["apgd"] = worst(losses)
            row["apgd_losses"] = {name: iou(results[name]) for name in APGD}
        row["worst"] = worst(candidates[norm])
        for name, measurements in (("image_clean", [clean]), ("image_worst", candidates[norm])):
            row[name] = _image_iou(measurements, buildings)
        metrics[norm][budget] = row
    checks = measured["checks"]
    metrics["transfer"] = {"iou": iou(checks["transfer"]), "relative_clean": iou(checks["relative_clean"])}
    if "halving" in measured:
        metrics["halving"] = measured["halving"]["linf"]
    if "patch" in measured:
        p = dict(measured["patch"])
        scored = p.pop("buildings") > 0
        metrics["patch"] = {
            **p,
            "clean": iou(p["clean"]) if scored else None,
            "attacked": _worst([p["clean"], p["attacked"]]) if scored else None,
        }
    return metrics | {key: measured[key] for key in ("erase", "invent") if key in measured}


def _worst(measurements: list[Measurement]) -> float | None:
    return worst_case(*np.array(measurements).swapaxes(0, 1))[0]


def _image_iou(measurements: list[Measurement], buildings: list[int]) -> float | None:
    """The mean over tiles with buildings of each tile's least IoU, None without any: pooled IoU hides losses on small
    buildings (Halmosi et al. 2024)."""
    intersection, union = np.array(measurements, float)[:, :, np.array(buildings) > 0].swapaxes(0, 1)
    return float((intersection / union).min(0).mean()) if union.size else None


def evidence(measured: dict[str, dict], reference: str) -> dict:
    """What the audit judges, from every city's measurements; `reference` is the ℓ∞ budget as a key.

    A city without a building in its tiles has no IoU to be judged by, only perturbations to be within the budget.
    """

    def pooled(measurements: list[Measurement]) -> float | None:
        return pooled_iou(*np.concatenate([np.zeros((2, 0)), *map(np.array, measurements)], axis=1))

    cities = [city for city in measured.values() if any(city["clean"]["buildings"])]
    worst = [
        [
            pooled_iou(*city["clean"]["tiles"]),
            *(_worst(list(found.values())) for key, found in city.items() if key.startswith(norm)),
        ]
        for city in cities
        for norm in ("linf", "l2")
    ]
    white_box = []
    for city in cities:
        at_reference = {**city[f"linf {reference}"], "steps": city["checks"]["steps"]}
        candidates = np.array([city["clean"]["tiles"], *(at_reference[k] for k in at_reference if k != "noise")])
        choice = worst_case(*candidates.swapaxes(0, 1))[1]
        white_box.append(candidates[choice, :, np.arange(len(choice))].T)
    return {
        "excess": max(city["excess"]["value"] for city in measured.values()),
        "worst": worst,
        "steps": [pooled([city["checks"][key] for city in cities]) for key in ("half_steps", "steps")],
        "white_box": pooled(white_box),
        **{key: pooled([city["checks"][key] for city in cities]) for key in ("scale_free", "transfer", "noise")},
        "clean": pooled([city["clean"]["tiles"] for city in cities]),
        "vanishing": [pooled_iou(*city["checks"]["vanishing"]) for city in cities],
    }
