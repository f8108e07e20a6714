"""From what a campaign measured to IoU: a city's part of metrics/attack.json,
and what the audit judges.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pipeline.attacks.worst_case import pooled_iou, worst_case
from pipeline.scoring.bootstrap import tile_interval

Measurement = list[list[int]]  # intersection and union of each tile


def city_metrics(measured: dict) -> dict:
    """One city's part of metrics/attack.json from what `attack_city` measured, without the
    universal perturbation.

    Every IoU is None where its tiles hold no building.
    """

    clean, buildings = measured["clean"]["tiles"], measured["clean"]["buildings"]

    def iou(measurement: Measurement) -> float | None:
        return pooled_iou(*measurement) if any(buildings) else None

    def worst(measurements: list[Measurement]) -> float | None:
        return _worst(measurements) if any(buildings) else None

    def interval(measurements: list[Measurement]) -> tuple[float | None, float | None]:
        return tile_interval(*_chosen(measurements)) if any(buildings) else (None, None)

    metrics: dict = {"linf": {}, "l2": {}}
    candidates: dict[str, list[Measurement]] = {"linf": [clean], "l2": [clean]}
    for key, results in measured.items():
        norm, _, budget = key.partition(" ")
        if norm not in metrics or not budget:
            continue
        candidates[norm] += results.values()
        row = {"clean": iou(clean), **by_method(results, worst)}
        row["worst"] = worst(candidates[norm])
        row["worst_low"], row["worst_high"] = interval(candidates[norm])
        for name, measurements in (("image_clean", [clean]), ("image_worst", candidates[norm])):
            row[name] = _image_iou(measurements, buildings)
        metrics[norm][budget] = row
    checks = measured["checks"]
    metrics["transfer"] = {
        "iou": iou(checks["transfer"]),
        "relative_clean": iou(checks["relative_clean"]),
    }
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
    if families := physics(measured):
        metrics["physics"] = families
    return metrics | {
        key: measured[key] for key in ("erase", "invent", "shadow") if key in measured
    }


def physics(measured: dict) -> dict:
    """IoU by family of physical change, over its grid and over all that was tried,
    with the 95 % interval over tiles; of "gain" also what is certified, and under
    "all" the worst of every family on each tile.
    """
    found = {
        key.removeprefix("physics "): m for key, m in measured.items() if key.startswith("physics ")
    }
    if not found:
        return {}
    clean = next(iter(found.values()))["clean"]
    empty = not any(measured["clean"]["buildings"][: len(clean[0])])
    rows, every = {}, [clean]
    for name, m in found.items():
        tried = [clean, *m["grid"], *m["gradient"]]
        every += tried
        rows[name] = {
            "grid": None if empty else _worst([clean, *m["grid"]]),
            **_worst_row(tried, empty),
        }
        if "certified" in m:
            low, high = (None, None) if empty else tile_interval(*np.array(m["certified"]))
            certified = None if empty else pooled_iou(*m["certified"])
            rows[name] |= {"certified": certified, "certified_low": low, "certified_high": high}
    return {
        "clean": None if empty else pooled_iou(*clean),
        "all": _worst_row(every, empty),
        "family": rows,
    }


def _worst_row(measurements: list[Measurement], empty: bool) -> dict:
    if empty:
        return dict.fromkeys(("worst", "worst_low", "worst_high"))
    low, high = tile_interval(*_chosen(measurements))
    return {"worst": _worst(measurements), "worst_low": low, "worst_high": high}


def by_method(
    results: dict[str, Measurement], worst: Callable[[list[Measurement]], float | None]
) -> dict:
    """IoU by method, and of one with members, "METHOD MEMBER", the worst case
    over them and METHOD_losses.
    """
    row: dict = {}
    for name in results:
        method, _, member = name.partition(" ")
        row[method] = worst([m for other, m in results.items() if other.split()[0] == method])
        if member:
            row.setdefault(f"{method}_losses", {})[member] = worst([results[name]])
    return row


def _worst(measurements: ArrayLike) -> float | None:
    return worst_case(*np.array(measurements).swapaxes(0, 1))[0]


def _chosen(measurements: list[Measurement]) -> np.ndarray:
    """Intersection and union (2, tiles) of the worst case's choice on each tile."""
    candidates = np.array(measurements)
    choice = worst_case(*candidates.swapaxes(0, 1))[1]
    return candidates[choice, :, np.arange(len(choice))].T


def _image_iou(measurements: list[Measurement], buildings: list[int]) -> float | None:
    """The mean over tiles with buildings of each tile's least IoU, None without any: pooled IoU
    hides losses on small buildings (Halmosi et al. 2024).
    """
    intersection, union = np.array(measurements, float)[:, :, np.array(buildings) > 0].swapaxes(
        0, 1
    )
    return float((intersection / union).min(0).mean()) if union.size else None


def judged(measured: dict[str, dict]) -> dict[str, dict]:
    """The cities with a building in their tiles: one without has no IoU to be judged by, only
    perturbations to be within the budget.
    """
    return {name: city for name, city in measured.items() if any(city["clean"]["buildings"])}


def fullest(city: dict) -> int:
    """The tile of a city with the most building."""
    return int(np.argmax(city["clean"]["buildings"]))


def on_fullest(measured: dict[str, dict], reference: str) -> np.ndarray:
    """What each judged city's own gradients found on its fullest tile at the reference budget,
    (attacks, 2, cities); at least one city is judged.
    """
    own = [np.array(_own(c, reference))[..., fullest(c)] for c in judged(measured).values()]
    return np.stack(own, -1)


def evidence(measured: dict[str, dict], reference: str, longer: dict | None) -> dict:
    """What the audit judges, from every city's measurements; `reference` is the ℓ∞ budget as a key,
    `longer` what `protocol.longer` found on the fullest tiles, None where no city is judged.
    """

    def pooled(measurements: Sequence[ArrayLike]) -> float | None:
        return pooled_iou(*np.concatenate([np.zeros((2, 0)), *map(np.array, measurements)], axis=1))

    cities = [*judged(measured).values()]
    worst = [
        [
            pooled_iou(*city["clean"]["tiles"]),
            *(_worst(list(found.values())) for key, found in city.items() if key.startswith(norm)),
        ]
        for city in cities
        for norm in ("linf", "l2")
    ]
    own = [_own(city, reference) for city in cities]
    scale_free = [
        _chosen([city["checks"][key] for key in ("cooled", "sharpened")]) for city in cities
    ]
    return {
        "excess": max(
            *(city["excess"]["value"] for city in measured.values()),
            longer["excess"] if longer else 0.0,
        ),
        "worst": worst,
        "steps": [
            pooled([city["checks"][key] for city in cities]) for key in ("half_steps", "steps")
        ],
        "white_box": pooled([_chosen(attacks) for attacks in own]),
        "scale_free": pooled(scale_free),
        **{key: pooled([city["checks"][key] for city in cities]) for key in ("transfer", "noise")},
        "clean": pooled([city["clean"]["tiles"] for city in cities]),
        "vanishing": [pooled_iou(*city["checks"]["vanishing"]) for city in cities],
        "ten_times": _fall(on_fullest(measured, reference), longer["tiles"]) if longer else 0.0,
    }


def _own(city: dict, reference: str) -> list[Measurement]:
    """What a city's own gradients found at the reference budget, nothing done included."""
    found = city[f"linf {reference}"]
    return [
        city["clean"]["tiles"],
        city["checks"]["steps"],
        *(found[name] for name in found if name != "noise"),
    ]


def _fall(before: np.ndarray, tiles: Measurement) -> float:
    """By how much one attack more, (2, cities), lowers the worst IoU of those `before`, (attacks, 2,
    cities).
    """
    after = np.concatenate([before, [tiles]])
    return (_worst(before) or 0.0) - (_worst(after) or 0.0)
