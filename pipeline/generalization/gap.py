"""Leave one city out: how much of a city's IoU is owed to its own scenes being in the training set.

gap = IoU(trained on all cities) − IoU(trained on all but this one), both on this city's test scenes: the reference is
"in-distribution" on the *target*, because another city's IoU also differs by how hard that city is (WILDS, Koh et al.,
ICML 2021, section 4, "mixed-to-test"). Scenes are resampled in pairs, each city within itself; the models are held
fixed, so an interval says what other scenes of the city would show, not what another training would.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import shapely

from pipeline.errors import InputError
from pipeline.geo.grid import Grid
from pipeline.geo.tiles import Cities
from pipeline.learning.bootstrap import interval, iou_of, resample

SAME_GROUND = 0.02  # share of the smaller of two scenes above which they show the same ground


@dataclass(frozen=True)
class Fold:
    held_out: str
    training: tuple[str, ...]


def folds(cities: Iterable[str]) -> list[Fold]:
    """One fold a city, in the order of the names; a single city leaves nothing to train on, hence no fold."""
    ordered = sorted(cities)
    if len(ordered) < 2:
        return []
    return [Fold(city, tuple(c for c in ordered if c != city)) for city in ordered]


def check_fold(fold: Fold, card: dict, reference: dict) -> None:
    """Raise InputError unless a fold's model was trained on its cities, on no label of the held-out one, and as the
    `reference` on all cities was. Both are the models' cards."""
    folder, again = f"models/without-{fold.held_out}", f"run `python -m pipeline train --without {fold.held_out}` again"
    if fold.held_out in card["cities"]:
        raise InputError(f"{folder}: its card says it was trained on {fold.held_out}; {again}")
    if fold.held_out in card.get("inherited", []):
        raise InputError(
            f"{folder}: train.init started it from a model that had been trained on {fold.held_out}; "
            f"start from one that has not, or from `python -m pipeline pretrain`, and {again}"
        )
    if set(card["cities"]) != set(fold.training):
        raise InputError(f"{folder}: trained on {', '.join(card['cities'])}, not {', '.join(fold.training)}; {again}")
    ours, theirs = card["params"]["train"], reference["params"]["train"]
    if different := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        raise InputError(
            f"{folder}: train.{different[0]} is {ours.get(different[0])!r}, of the model on all cities "
            f"{theirs.get(different[0])!r}: their gap would say nothing; {again}"
        )


def check_ground(tiles: Cities) -> None:
    """Raise InputError where the ground of a city's test scenes was trained or tuned on.

    A city of few scenes is split by strips of them: of one scene, no ground on both sides. Two cities may be one ground
    flown twice; a hair's breadth between neighbours is no matter.
    """
    for city, of_city in tiles.items():
        learned = [r for r in of_city.regions if r.split != "test"]
        for test in of_city.of_split("test"):
            if any(test.parent == r.parent and overlap(test.grid, r.grid) for r in learned):
                raise InputError(f"data/tiles/{city}: {test.parent} is in training and test; run the tile stage again")
    placed = [(city, r) for city, of_city in tiles.items() for r in of_city.regions if r.crs is not None]
    outlines = np.array([r.grid.outlines()[0] for _, r in placed], object)
    for i, j in shapely.STRtree(outlines).query(outlines, predicate="intersects").T.tolist():
        (city, test), (other, learned) = placed[i], placed[j]
        if city != other and test.split == "test" and learned.split != "test":
            shared = outlines[i].intersection(outlines[j]).area / min(outlines[i].area, outlines[j].area)
            if shared > SAME_GROUND:
                raise InputError(
                    f"{city}: its test scene {test.parent} shares {100 * shared:.0f} % of its ground with "
                    f"{learned.parent} of {other}: a model without {city} has seen it; drop one, or make them one city"
                )


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

    @property
    def with_buildings(self) -> "Pair":
        """Without the units in which neither labels nor models know a building: they say nothing of an IoU."""
        some = ((self.seen_union > 0) | (self.unseen_union > 0)).any(axis=0)
        return Pair(*(getattr(self, f.name)[:, some] for f in fields(self)))

    def ious(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """IoU (seeds, draws) seen and unseen under the same resampling `weights` (draws, units)."""
        seen = zip(self.seen_intersection, self.seen_union, strict=True)
        unseen = zip(self.unseen_intersection, self.unseen_union, strict=True)
        return np.stack([iou_of(weights, *s) for s in seen]), np.stack([iou_of(weights, *u) for u in unseen])


def _spread(values: np.ndarray) -> float | None:
    """Standard deviation over seeds; None for a single seed, which has none to show."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def gap_table(pairs: dict[str, Pair], draws: int, seed: int) -> dict:
    """{"city": {CITY: row}, "mean_city": row, "pooled": row, "worst_city": row and the city's name}.

    A row: units (of the mean and the pool: as many as would be worth as much), seen, unseen, gap (means over seeds),
    their 95 % intervals *_low and *_high over test units (the models held fixed), and the spread over training seeds.
    Cities without any building in their test units are left out; the mean's and the pool's intervals resample each
    city's units within the city. Without any pair, there is an empty "city" and nothing else.
    """
    kept, drawn, table = {}, {}, {}
    for i, (city, pair) in enumerate(sorted(pairs.items())):
        pair = pair.with_buildings
        once = [iou[:, 0] for iou in pair.ious(np.ones((1, pair.units)))]
        if np.isnan(once).any():
            continue
        kept[city], drawn[city] = pair, resample(pair.units, draws, np.random.default_rng([seed, i]))
        table[city] = _row(*once, *(iou.mean(0) for iou in pair.ious(drawn[city])), pair.units)
    if not table:
        if pairs:
            raise InputError("no city has a building in its test scenes; enlarge tile.test or add labelled scenes")
        return {"city": {}}
    worst = min(table, key=lambda city: table[city]["unseen"])
    return {
        "city": table,
        "mean_city": _combined(kept, drawn, "mean"),
        "pooled": _combined(kept, drawn, "pooled"),
        "worst_city": {"city": worst, **table[worst]},
    }


def _row(seen: np.ndarray, unseen: np.ndarray, seen_draws, unseen_draws, units: float) -> dict:
    row: dict = {"units": round(units, 1)}
    for name, values, draws, limits in (
        ("seen", seen, seen_draws, (0.0, 1.0)),
        ("unseen", unseen, unseen_draws, (0.0, 1.0)),
        ("gap", seen - unseen, seen_draws - unseen_draws, (-1.0, 1.0)),
    ):
        mean = float(values.mean())
        low, high = interval(mean, draws, units, limits)
        row |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_spread": _spread(values)}
    return row


def _combined(pairs: dict[str, Pair], drawn: dict[str, np.ndarray], how: str) -> dict:
    """The row of all cities together: the mean of their IoU, or ΣI/ΣU over all of them."""

    def reduce(weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if how == "mean":
            seen, unseen = zip(*(pairs[city].ious(weights[city]) for city in pairs), strict=True)
            return np.mean(seen, axis=0), np.mean(unseen, axis=0)
        parts = [
            [weights[c] @ getattr(pair, f"{side}_{kind}").T for c, pair in pairs.items()]
            for side in ("seen", "unseen")
            for kind in ("intersection", "union")
        ]
        i_seen, u_seen, i_unseen, u_unseen = (np.sum(part, axis=0).T for part in parts)
        return i_seen / np.maximum(u_seen, 1), i_unseen / np.maximum(u_unseen, 1)

    once = {city: np.ones((1, pair.units)) for city, pair in pairs.items()}
    seen, unseen = (iou[:, 0] for iou in reduce(once))
    shares = {city: 1.0 if how == "mean" else float(pair.seen_union.sum()) for city, pair in pairs.items()}
    return _row(seen, unseen, *(iou.mean(0) for iou in reduce(drawn)), _effective_units(pairs, drawn, shares))


def _effective_units(pairs: dict[str, Pair], drawn: dict[str, np.ndarray], shares: dict[str, float]) -> float:
    """Welch–Satterthwaite: how many units would know their gap as well as the sum, by `shares`, of these cities' is."""
    fewest = min(pair.units for pair in pairs.values())
    if fewest < 2:
        return fewest
    variances, freedoms = [], []
    for city, pair in pairs.items():
        seen, unseen = (iou.mean(0) for iou in pair.ious(drawn[city]))
        variances.append(shares[city] ** 2 * np.nanvar(seen - unseen))
        freedoms.append(pair.units - 1)
    squares = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return 1 + sum(variances) ** 2 / squares if squares else fewest
