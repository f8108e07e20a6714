"""Is the map as good for everybody? Groups of ground and of buildings, the worst of them, and how
far apart they lie.

    city           its pixels
    density        of squares of `evaluate.neighbourhood` metres with buildings, the third that is built up least
                   (sparse), the middle and the third that is built up most (dense), over all cities; squares without
                   buildings are sparse
    size           buildings by ground area
    a column       buildings by what a column of the user's own footprints says of them (`fetch.groups`)

Of ground, IoU and recall are those of pixels. Of buildings, recall is the share
found (IoU > 0.5 with a predicted one), and IoU the mean best one: what is invented
belongs to no building's group. (In the manner of Zhang et al. 2022, arXiv
2204.04358, who compare urban with rural ground class by class.)

A group counts in units, its scenes, which intervals draw. The worst group's and the gap's are
simultaneous over the groups: the worst of many looks worst by chance too.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pipeline.params import Evaluate
from pipeline.scoring.bootstrap import Estimate, gap_of, iou_estimate, shown, worst_of
from pipeline.scoring.metrics import Objects

DENSITIES = ("sparse", "middle", "dense")
KINDS = ("iou", "recall")
Group = dict[str, np.ndarray]  # scene: [∩, ∪, found, there] (4,)
Groups = dict[str, Group]


@dataclass
class SceneCounts:
    """What one scene adds: squares (4, R, C) of [∩, ∪, valid, building] pixels,
    and its buildings.
    """

    city: str
    scene: str
    gsd: float
    squares: np.ndarray
    objects: Objects
    names: list[str] = field(default_factory=list)  # of the user's groups, by code from 1

    @property
    def ground(self) -> np.ndarray:
        """(4, squares) of [∩, ∪, found, there]; a found pixel is one of the intersection."""
        intersection, union, _, building = self.squares.reshape(4, -1)
        return np.stack([intersection, union, intersection, building])


def by_city(scenes: Iterable[SceneCounts]) -> Groups:
    groups: Groups = {}
    for scene in scenes:
        add(groups, scene.city, scene, scene.ground.sum(1))
    return groups


def by_density(scenes: list[SceneCounts]) -> Groups:
    built = [built_share(scene) for scene in scenes]
    every = np.concatenate(built)
    if not (every > 0).any():
        return {}
    thirds = np.quantile(every[every > 0], [1 / 3, 2 / 3])
    groups: Groups = {name: {} for name in DENSITIES}
    for scene, share in zip(scenes, built, strict=True):
        place = np.searchsorted(thirds, share)
        for i, name in enumerate(DENSITIES):
            add(groups, name, scene, scene.ground[:, place == i].sum(1))
    return groups


def built_share(scene: SceneCounts) -> np.ndarray:
    """(squares,) of the valid pixels the share that is building; 0 where nothing is valid."""
    _, _, valid, building = scene.squares.reshape(4, -1)
    return building / np.maximum(valid, 1)


def size_names(edges: list[float]) -> list[str]:
    """Of the bins between areas in m²: 0-50, 50-150, 150+."""
    lows = [0, *edges]
    return [f"{a:g}-{b:g}" for a, b in zip(lows, edges, strict=False)] + [f"{lows[-1]:g}+"]


def by_size(scenes: Iterable[SceneCounts], edges: list[float]) -> Groups:
    groups: Groups = {name: {} for name in size_names(edges)}
    for scene in scenes:
        place = np.digitize(scene.objects.area * scene.gsd**2, edges)
        for i, name in enumerate(groups):
            add(groups, name, scene, buildings(scene.objects, place == i))
    return groups


def by_column(scenes: Iterable[SceneCounts]) -> Groups:
    groups: Groups = {}
    for scene in scenes:
        for code, name in enumerate(scene.names, 1):
            add(groups, name, scene, buildings(scene.objects, scene.objects.group == code))
    return groups


def buildings(objects: Objects, which: np.ndarray | bool) -> np.ndarray:
    """[Σ best IoU, number, found, number] of some of a scene's buildings."""
    best = objects.best_iou[which]
    return np.array([best.sum(), len(best), np.count_nonzero(best > 0.5), len(best)])


def add(groups: Groups, name: str, scene: SceneCounts, counts: np.ndarray) -> None:
    """Add to a group's unit, which is a scene; a scene in blocks comes in several parts."""
    group, unit = groups.setdefault(name, {}), f"{scene.city}/{scene.scene}"
    group[unit] = group.get(unit, 0) + np.asarray(counts, float)


def compare(groups: Groups, e: Evaluate) -> dict | None:
    """One kind of group's entry: each group's numbers, and of IoU and recall the worst group and
    the gap. None where there are no two groups with buildings, which nothing can lie between.
    """
    known = {name: np.array(list(group.values())).T for name, group in groups.items() if group}
    known = {name: counts for name, counts in known.items() if counts[3].sum()}
    if len(known) < 2:
        return None
    of = {name: estimates(counts, e) for name, counts in known.items()}
    rows = {name: row(of[name], known[name]) for name in of}
    return {
        "group": rows,
        **{kind: spread({name: found[kind] for name, found in of.items()}) for kind in KINDS},
    }


def estimates(counts: np.ndarray, e: Evaluate) -> dict[str, Estimate]:
    """IoU and recall of (4, units)."""
    part, whole, found, there = counts
    return {
        "iou": iou_estimate(part, whole, e.bootstrap, seed=0),
        "recall": iou_estimate(found, there, e.bootstrap, seed=0),
    }


def row(of: dict[str, Estimate], counts: np.ndarray) -> dict:
    """A group's IoU and recall with intervals of its own, and how many scenes
    have a building of it.
    """
    found = {"units": int(np.count_nonzero(counts[3]))}
    for kind, estimate in of.items():
        low, high = estimate.shown()
        found |= {kind: estimate.value, f"{kind}_low": low, f"{kind}_high": high}
    return found


def spread(of: dict[str, Estimate]) -> dict:
    """The worst group and the best, the least true value of all, and the gap
    between the true extremes.
    """
    worst, best = (pick(of, key=lambda name: of[name].value) for pick in (min, max))
    low, high = shown(worst_of(of.values()))
    gap_low, gap_high = shown(gap_of(of.values()))
    return {
        "worst": of[worst].value, "worst_group": worst, "worst_low": low, "worst_high": high,
        "best_group": best, "gap": of[best].value - of[worst].value, "gap_low": gap_low,
        "gap_high": gap_high,
    }  # fmt: skip


def fairness(scenes: list[SceneCounts], e: Evaluate, column: str | None = None) -> dict:
    """The section "fairness" of metrics/evaluate.json; kinds that know fewer than
    two groups are left out.

    size_within_city {CITY: ...} says of each city how recall depends on a building's size there.
    """
    kinds = {
        "city": by_city(scenes),
        "density": by_density(scenes) if scenes else {},
        "size": by_size(scenes, e.size_bins),
    }
    if column:
        kinds[column] = by_column(scenes)
    found = {name: compare(groups, e) for name, groups in kinds.items()}
    within = {}
    for city in dict.fromkeys(scene.city for scene in scenes):
        own = compare(by_size([scene for scene in scenes if scene.city == city], e.size_bins), e)
        within |= {city: own["recall"]} if own else {}
    return {
        "by": {name: entry for name, entry in found.items() if entry},
        "size_within_city": within,
    }
