"""Leave one city out: how much of a city's IoU is owed to its own scenes being in the training set.

gap = IoU(trained on all cities) − IoU(trained on all but this one), both on this city's test scenes: the reference is
"in-distribution" on the *target*, because another city's IoU also differs by how hard that city is (WILDS, Koh et al.,
ICML 2021, section 4, "mixed-to-test"). Scenes are resampled in pairs, each city within itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.geo.grid import Grid
from pipeline.geo.tiles import CityTiles
from pipeline.learning.bootstrap import interval, iou_of, resample


@dataclass(frozen=True)
class Fold:
    held_out: str
    training: tuple[str, ...]


def folds(cities: Sequence[str]) -> list[Fold]:
    """One fold a city, in the order of the names: the folds depend on nothing but the set of cities."""
    ordered = sorted(cities)
    if len(ordered) < 2:
        raise InputError("fetch.cities has one city; leaving it out leaves nothing to train on: name at least two")
    return [Fold(city, tuple(c for c in ordered if c != city)) for city in ordered]


def check_disjoint(fold: Fold, card: dict, tiles: dict[str, CityTiles]) -> None:
    """Raise InputError where a fold's model has seen its city, or a city's test pixels lie in training as well.

    `card` is the model's card. A city of few scenes is split by strips of them: of one scene, no ground on both sides.
    """
    if fold.held_out in card["cities"]:
        folder = f"models/without-{fold.held_out}"
        raise InputError(f"{folder}: its card says it was trained on {fold.held_out}; train it again")
    for city, of_city in tiles.items():
        learned = [r for r in of_city.regions if r.split in ("train", "validation")]
        for test in of_city.of_split("test"):
            if any(test.parent == r.parent and overlap(test.grid, r.grid) for r in learned):
                raise InputError(f"data/tiles/{city}: {test.parent} is in training and test; run the tile stage again")


def overlap(a: Grid, b: Grid) -> bool:
    """Whether two parts of one scene's grid share a pixel: b's corners in pixels of a, where a is [0, W] × [0, H]."""
    columns, rows = zip(*(~a.transform @ tuple(corner) for corner in b.corners()[0]), strict=True)
    across = min(max(columns), a.width) - max(min(columns), 0)
    down = min(max(rows), a.height) - max(min(rows), 0)
    return min(across, down) > 0.5


@dataclass(frozen=True)
class Pair:
    """One city's test units under both models: pixel counts (seeds, units), the seen model's and the unseen's."""

    seen_intersection: np.ndarray
    seen_union: np.ndarray
    unseen_intersection: np.ndarray
    unseen_union: np.ndarray

    @property
    def units(self) -> int:
        return self.seen_union.shape[1]

    def ious(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """IoU (seeds, draws) seen and unseen under the same resampling `counts` (draws, units)."""
        seen = zip(self.seen_intersection, self.seen_union, strict=True)
        unseen = zip(self.unseen_intersection, self.unseen_union, strict=True)
        return np.stack([iou_of(counts, *s) for s in seen]), np.stack([iou_of(counts, *u) for u in unseen])


def _spread(values: np.ndarray) -> float | None:
    """Standard deviation over seeds; None for a single seed, which has none to show."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def gap_table(pairs: dict[str, Pair], draws: int, seed: int) -> dict:
    """{"city": {CITY: row}, "mean_city": row, "pooled": row, "worst_city": row and the city's name}.

    A row: seen, unseen, gap (means over seeds), their 95 % intervals *_low and *_high over test units (the
    models held fixed), and the spread over training seeds. Cities without any building in their test units
    are left out; the mean's and the pool's intervals resample each city's units within the city.
    """
    drawn, table = {}, {}
    for i, (city, pair) in enumerate(sorted(pairs.items())):
        counts = resample(pair.units, draws, np.random.default_rng([seed, i]))
        once = [iou[:, 0] for iou in pair.ious(np.ones((1, pair.units), int))]
        if np.isnan(once).any():
            continue
        drawn[city] = counts
        table[city] = _row(*once, *(iou.mean(0) for iou in pair.ious(counts)), pair.units)
    if not table:
        raise InputError("no city has a building in its test scenes; enlarge tile.test or add labelled scenes")
    kept = {city: pairs[city] for city in table}
    worst = min(table, key=lambda city: table[city]["unseen"])
    return {
        "city": table,
        "mean_city": _combined(kept, drawn, "mean"),
        "pooled": _combined(kept, drawn, "pooled"),
        "worst_city": {"city": worst, **table[worst]},
    }


def _row(seen: np.ndarray, unseen: np.ndarray, seen_draws, unseen_draws, units: float) -> dict:
    row: dict = {"units": round(units, 1)}
    for name, values, draws, widest in (
        ("seen", seen, seen_draws, (0.0, 1.0)),
        ("unseen", unseen, unseen_draws, (0.0, 1.0)),
        ("gap", seen - unseen, seen_draws - unseen_draws, (-1.0, 1.0)),
    ):
        low, high = interval(draws, units) or widest
        row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        row[f"{name}_spread"] = _spread(values)
    return row


def _combined(pairs: dict[str, Pair], drawn: dict[str, np.ndarray], how: str) -> dict:
    """The row of all cities together: the mean of their IoU, or ΣI/ΣU over all of them."""

    def reduce(counts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if how == "mean":
            seen, unseen = zip(*(pairs[city].ious(counts[city]) for city in pairs), strict=True)
            return np.mean(seen, axis=0), np.mean(unseen, axis=0)
        parts = [
            [counts[c] @ getattr(pair, f"{side}_{kind}").T for c, pair in pairs.items()]
            for side in ("seen", "unseen")
            for kind in ("intersection", "union")
        ]
        i_seen, u_seen, i_unseen, u_unseen = (np.sum(part, axis=0).T for part in parts)
        return i_seen / np.maximum(u_seen, 1), i_unseen / np.maximum(u_unseen, 1)

    once = {city: np.ones((1, pair.units), int) for city, pair in pairs.items()}
    seen, unseen = (iou[:, 0] for iou in reduce(once))
    return _row(seen, unseen, *(iou.mean(0) for iou in reduce(drawn)), _effective_units(pairs, drawn))


def _effective_units(pairs: dict[str, Pair], drawn: dict[str, np.ndarray]) -> float:
    """Welch–Satterthwaite: the number of units whose mean would be known as well as the mean of these cities' gaps."""
    fewest = min(pair.units for pair in pairs.values())
    if fewest < 2:
        return fewest
    variances, freedoms = [], []
    for city, pair in pairs.items():
        seen, unseen = (iou.mean(0) for iou in pair.ious(drawn[city]))
        variances.append(np.nanvar(seen - unseen))
        freedoms.append(pair.units - 1)
    squares = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return 1 + sum(variances) ** 2 / squares if squares else fewest
