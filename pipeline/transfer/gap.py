"""Leave one city out: how much of a city's IoU is owed to its own scenes being in the training set.

gap = IoU(trained on all cities) − IoU(trained on all but this one), both on this city's test
scenes: the reference is "in-distribution" on the *target*, because another city's IoU also differs
by how hard that city is (WILDS, Koh et al., ICML 2021, section 4, "mixed-to-test"). Scenes are
resampled in pairs, each city within itself; the models are held fixed, so an interval says what
other scenes of the city would show (of a city of one scene: more ground like it), not what another
training would.

Every mean has an interval with degrees of freedom of its own (Satterthwaite): where the gap is
known well, the unseen IoU need not be. The worst city is not known to be the worst: its interval is
one of the least IoU of all cities.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import shapely

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.networks.card import Card
from pipeline.scoring.bootstrap import (
    Estimate,
    degrees_of_freedom,
    iou_of,
    mean_of,
    resample,
    satterthwaite,
    shown,
    unmet,
    worst_of,
)
from pipeline.tiles.store import Cities

SAME_GROUND = 0.02  # share of the smaller of two scenes above which they show the same ground


@dataclass(frozen=True)
class Fold:
    held_out: str
    training: tuple[str, ...]


def folds(cities: Iterable[str]) -> list[Fold]:
    """One fold a city, in the order of the names; a single city leaves nothing
    to train on, hence no fold.
    """
    ordered = sorted(cities)
    if len(ordered) < 2:
        return []
    return [Fold(city, tuple(c for c in ordered if c != city)) for city in ordered]


def check_fold(fold: Fold, card: Card, reference: Card) -> None:
    """Raise InputError unless a fold's model was trained on its cities, on no label of the held-out
    one, and as the `reference` on all cities was. Both are the models' cards.
    """
    folder, again = (
        f"models/folds/without-{fold.held_out}",
        f"run `python -m pipeline train --without {fold.held_out}` again",
    )
    if fold.held_out in card.cities:
        raise InputError(f"{folder}: its card says it was trained on {fold.held_out}; {again}")
    if fold.held_out in card.inherited:
        raise InputError(
            f"{folder}: train.init started it from a model that had been trained on "
            f"{fold.held_out}; "
            f"start from one that has not, or from `python -m pipeline pretrain`, and {again}"
        )
    if set(card.cities) != set(fold.training):
        raise InputError(
            f"{folder}: trained on {', '.join(card.cities)}, not "
            f"{', '.join(fold.training)}; {again}"
        )
    ours, theirs = card.params["train"], reference.params["train"]
    if different := sorted(
        key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)
    ):
        raise InputError(
            f"{folder}: train.{different[0]} is {ours.get(different[0])!r}, of the model on all "
            f"cities "
            f"{theirs.get(different[0])!r}: their gap would say nothing; {again}"
        )


def check_ground(tiles: Cities) -> None:
    """Raise InputError where the ground of a city's test scenes was trained or tuned on.

    A city of few scenes is split by strips of them: of one scene, no ground on both sides. Two
    cities may be one ground flown twice; a hair's breadth between neighbours is no matter.
    """
    for city, of_city in tiles.items():
        learned = [r for r in of_city.regions if r.split != "test"]
        for test in of_city.of_split("test"):
            if any(test.parent == r.parent and overlap(test.grid, r.grid) for r in learned):
                raise InputError(
                    f"data/tiles/{city}: {test.parent} is in training and test; run "
                    f"the tile stage again"
                )
    placed = [
        (city, r) for city, of_city in tiles.items() for r in of_city.regions if r.crs is not None
    ]
    outlines = np.array([r.grid.outlines()[0] for _, r in placed], object)
    for i, j in shapely.STRtree(outlines).query(outlines, predicate="intersects").T.tolist():
        (city, test), (other, learned) = placed[i], placed[j]
        if city != other and test.split == "test" and learned.split != "test":
            shared = outlines[i].intersection(outlines[j]).area / min(
                outlines[i].area, outlines[j].area
            )
            if shared > SAME_GROUND:
                raise InputError(
                    f"{city}: its test scene {test.parent} shares {100 * shared:.0f} % of its "
                    f"ground with "
                    f"{learned.parent} of {other}: a model without {city} has seen it; drop one, "
                    f"or make them one city"
                )


def overlap(a: Grid, b: Grid) -> bool:
    """Whether two parts of one scene's grid share a pixel: b's corners in pixels of a, where a
    is [0, W] × [0, H].
    """
    columns, rows = zip(*(~a.transform @ tuple(corner) for corner in b.corners()[0]), strict=True)
    across = min(max(columns), a.width) - max(min(columns), 0)
    down = min(max(rows), a.height) - max(min(rows), 0)
    return min(across, down) > 0.5


@dataclass(frozen=True)
class Pair:
    """One city's test units under both models: pixel counts (seeds, units), the
    seen model's and the unseen's.

    `held` is the share of the errors' variance that lies between the units (see
    pipeline/scoring/blocks.py).
    """

    seen_intersection: np.ndarray
    seen_union: np.ndarray
    unseen_intersection: np.ndarray
    unseen_union: np.ndarray
    held: float = 1.0

    @property
    def units(self) -> int:
        return self.seen_union.shape[1]

    @property
    def with_buildings(self) -> "Pair":
        """Without the units in which neither labels nor models know a building: they say
        nothing of an IoU.
        """
        some = ((self.seen_union > 0) | (self.unseen_union > 0)).any(axis=0)
        return replace(self, **{name: getattr(self, name)[:, some] for name in COUNTS})

    def ious(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """IoU (seeds, draws) seen and unseen under the same resampling `weights` (draws, units)."""
        seen = zip(self.seen_intersection, self.seen_union, strict=True)
        unseen = zip(self.unseen_intersection, self.unseen_union, strict=True)
        return np.stack([iou_of(weights, *s) for s in seen]), np.stack(
            [iou_of(weights, *u) for u in unseen]
        )


COUNTS = ("seen_intersection", "seen_union", "unseen_intersection", "unseen_union")
NAMES = ("seen", "unseen", "gap")
Estimates = dict[str, Estimate]  # by NAMES


def gap_table(pairs: dict[str, Pair], draws: int, seed: int) -> dict:
    """{"city": {CITY: row}, "mean_city": row, "pooled": row, "worst_city": the least unseen IoU and
    its city's name}.

    A row: units (their number), seen, unseen, gap (means over seeds), their 95 % intervals *_low
    and *_high over test units (the models held fixed; None where nothing can be said, as of a
    single unit), and the spread over training seeds. Cities without any building in their test
    units are left out; the mean's and the pool's intervals resample each city's units within the
    city. Without any pair, there is an empty "city" and nothing else.
    """
    known = {city: pair.with_buildings for city, pair in sorted(pairs.items())}
    kept = {
        c: pair
        for c, pair in known.items()
        if pair.units and not np.isnan(pair.ious(once(pair))).any()
    }
    if not kept:
        if pairs:
            raise InputError(
                "no city has a building in its test scenes; enlarge tile.test or add "
                "labelled scenes"
            )
        return {"city": {}}
    drawn = {
        city: resample(pair.units, draws, np.random.default_rng([seed, i]))
        for i, (city, pair) in enumerate(known.items())
        if city in kept
    }
    of_city = {city: estimates(pair, drawn[city]) for city, pair in kept.items()}
    values = {city: [iou[:, 0] for iou in pair.ious(once(pair))] for city, pair in kept.items()}
    units = sum(pair.units for pair in kept.values())
    mean = {name: mean_of(city[name] for city in of_city.values()) for name in NAMES}
    table = {city: _row(of_city[city], values[city], kept[city].units) for city in kept}
    worst = min(table, key=lambda city: table[city]["unseen"])
    low, high = shown(worst_of(city["unseen"] for city in of_city.values()))
    plain = {name: table[worst][name] for name in NAMES}
    return {
        "city": table,
        "mean_city": _row(mean, np.mean(list(values.values()), axis=0), units),
        "pooled": _row(pooled(kept, drawn), _pooled_values(kept), units),
        "worst_city": {"city": worst, **plain, "unseen_low": low, "unseen_high": high},
    }


def once(pair: Pair) -> np.ndarray:
    """The weights of the test as it is: every unit once, (1, units)."""
    return np.ones((1, pair.units))


def estimates(pair: Pair, weights: np.ndarray) -> Estimates:
    """A city's IoUs and their gap, with the error that its resampled units show."""
    seen, unseen = (iou.mean() for iou in pair.ious(once(pair)))
    drawn = dict(zip(NAMES, (iou.mean(0) for iou in pair.ious(weights)), strict=False))
    drawn["gap"] = drawn["seen"] - drawn["unseen"]
    sizes = (pair.seen_union + pair.unseen_union).mean(0)
    freedom = degrees_of_freedom(sizes) if pair.units > 1 else 0.0
    errors = {name: float(np.nanstd(draws) / np.sqrt(pair.held)) for name, draws in drawn.items()}
    return {
        "seen": Estimate(seen, errors["seen"], freedom, unmet(seen, sizes)),
        "unseen": Estimate(unseen, errors["unseen"], freedom, unmet(unseen, sizes)),
        "gap": Estimate(seen - unseen, errors["gap"], freedom, seen - unseen, (-1.0, 1.0)),
    }


def pooled(pairs: dict[str, Pair], drawn: dict[str, np.ndarray]) -> Estimates:
    """ΣI/ΣU over all cities. A city's part in its error: what its resampled units move ΣI − IoU
    · ΣU by, over ΣU.
    """
    values = dict(zip(("seen", "unseen"), _pooled_values(pairs), strict=True))
    parts: dict[str, list[float]] = {name: [] for name in NAMES}
    for city, pair in pairs.items():
        moved = {}
        for side, value in values.items():
            total = sum(getattr(other, f"{side}_union").sum(1) for other in pairs.values())
            residual = getattr(pair, f"{side}_intersection") - value[:, None] * getattr(
                pair, f"{side}_union"
            )
            moved[side] = ((residual / total[:, None]) @ drawn[city].T).mean(0)
        moved["gap"] = moved["seen"] - moved["unseen"]
        for name in NAMES:
            parts[name].append(moved[name].std() / np.sqrt(pair.held))
    sizes = {c: (pair.seen_union + pair.unseen_union).mean(0) for c, pair in pairs.items()}
    freedoms = np.array([degrees_of_freedom(s) if len(s) > 1 else 0.0 for s in sizes.values()])
    seen, unseen = (float(value.mean()) for value in values.values())
    every, found = np.concatenate(list(sizes.values())), {}
    for name, value in zip(NAMES, (seen, unseen, seen - unseen), strict=True):
        errors = np.array(parts[name])
        error, freedom = float(np.sqrt((errors**2).sum())), satterthwaite(errors, freedoms)
        least, limits = (value, (-1.0, 1.0)) if name == "gap" else (unmet(value, every), (0.0, 1.0))
        found[name] = Estimate(value, error, freedom, least, limits)
    return found


def _pooled_values(pairs: dict[str, Pair]) -> list[np.ndarray]:
    """ΣI/ΣU over all cities, (seeds,), seen and unseen."""
    sums = [sum(getattr(pair, name).sum(1) for pair in pairs.values()) for name in COUNTS]
    return [sums[0] / np.maximum(sums[1], 1), sums[2] / np.maximum(sums[3], 1)]


def _row(found: Estimates, values: Iterable[np.ndarray], units: int) -> dict:
    """One row, of the estimates and of the seeds' values, seen and unseen."""
    seen, unseen = values
    row: dict = {"units": units}
    for name, of_seeds in zip(NAMES, (seen, unseen, seen - unseen), strict=True):
        low, high = found[name].shown()
        row |= {
            name: found[name].value,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_spread": _spread(of_seeds),
        }
    return row


def _spread(values: np.ndarray) -> float | None:
    """Standard deviation over seeds; None for a single seed, which has none to show."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
