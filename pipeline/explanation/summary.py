"""metrics/explain.json from what was measured in each city."""

import numpy as np

from pipeline.explanation.attribution import DEPTHS
from pipeline.explanation.cues import CUES
from pipeline.scoring.bootstrap import TILE_DRAWS, Estimate, drop_estimate
from pipeline.scoring.metrics import ratio

LEVEL = 0.95
LEAST = 0.05  # of IoU that must be lost for certain: less may be beyond doubt and still not matter
KEPT = "all but shape"  # asks what is left by one cue alone, not what is lost without one


def summarise(measured: dict[str, dict], gsd: dict[str, float]) -> dict:
    """Of each city's measurements by name (see city.py) and its metres a pixel."""
    tests = sum(known(row[cue]) for row in measured.values() for cue in CUES)
    level = 1 - (1 - LEVEL) / max(1, tests)  # Bonferroni: the sentence picks the largest of all
    cities = {city: summary(row, gsd[city], level) for city, row in measured.items()}
    every = [building for row in measured.values() for building in of_buildings(row)]
    return {"city": cities, "buildings": len(every), "attribution": gains(every)}


def known(pair: dict | None) -> bool:
    """Whether there is an IoU to fall: a cue to take, and a building."""
    return pair is not None and pair["buildings"] > 0


def summary(row: dict, gsd: float, level: float) -> dict:
    """One city's entry."""
    intersection, union = row["clean"]["counts"]
    cue = {name: fall(row[name], level) if known(row[name]) else None for name in CUES}
    found = of_buildings(row)
    effective, support = row["receptive"]
    return {
        "iou": ratio(sum(intersection), sum(union)) if row["clean"]["buildings"] else None,
        "tiles": len(union),
        "cue": cue,
        "leans_on": leans_on(cue),
        "attribution": {
            name: dict(zip(("deletion", "insertion"), mean_of(found, "areas", name), strict=True))
            for name in (found[0]["areas"] if found else {})
        },
        "bands": np.mean([b["bands"] for b in found], 0).tolist() if found else None,
        "inside": float(np.mean([b["inside"] for b in found])) if found else None,
        "randomised": {depth: likeness(found, depth) for depth in DEPTHS} if found else {},
        "effective_radius": None if effective is None else effective * gsd,
        "support_radius": None if support is None else support * gsd,
    }


def fall(pair: dict, level: float) -> dict:
    """The IoU without a cue, and how much less that is on the same tiles."""
    estimate = drop_estimate(pair["before"], pair["after"], TILE_DRAWS, seed=0)
    low, high = estimate.shown(level)
    after = ratio(*(sum(n) for n in pair["after"]))
    return {"iou": after, "drop": estimate.value, "drop_low": low, "drop_high": high}


def leans_on(cue: dict[str, dict | None]) -> str | None:
    """The cue whose loss costs most for certain: of the low ends above LEAST the highest."""
    sure = {
        name: row["drop_low"] for name, row in cue.items() if row and row["drop_low"] is not None
    }
    sure = {name: low for name, low in sure.items() if name != KEPT and low > LEAST}
    return max(sure, key=sure.__getitem__, default=None)


def of_buildings(row: dict) -> list[dict]:
    return [numbers for name, numbers in row.items() if name.startswith("building ")]


def mean_of(found: list[dict], *keys: str) -> list[float]:
    """The mean over buildings of a list of numbers that lies under these keys."""
    values: list = found
    for key in keys:
        values = [value[key] for value in values]
    return np.mean(values, 0).tolist()


def likeness(found: list[dict], depth: str) -> dict[str, float | None]:
    """Mean rank correlations over the buildings that have one."""
    pairs = [b["randomised"][depth] for b in found]
    values = {
        kind: [p[kind] for p in pairs if p[kind] is not None] for kind in ("signed", "absolute")
    }
    return {kind: float(np.mean(numbers)) if numbers else None for kind, numbers in values.items()}


def gains(every: list[dict]) -> dict[str, dict]:
    """By how much each method's order beats a random one, on the same buildings: lower under
    deletion, higher under insertion.
    """
    found = {}
    for name in every[0]["areas"] if every else ():
        if name != "random":
            pairs = np.array([[b["areas"][name], b["areas"]["random"]] for b in every])
            difference = pairs[:, 1] - pairs[:, 0]
            found[name] = {
                **interval("deletion_gain", difference[:, 0]),
                **interval("insertion_gain", -difference[:, 1]),
            }
    return found


def interval(name: str, values: np.ndarray) -> dict[str, float | None]:
    """A mean with Student's interval."""
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    mean = float(values.mean())
    low, high = Estimate(mean, error, n - 1.0, mean, (-1.0, 1.0)).shown(LEVEL)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
