"""From counts by scene to what the metrics say: scores of each sequence, means over orders,
intervals over scenes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.incremental.scores import summary
from pipeline.incremental.sequence import Counts, Tests
from pipeline.params import Incremental
from pipeline.scoring.bootstrap import Estimate, degrees_of_freedom, iou_of, mean_of, resample

# intersection and union (S,) of a city's scenes, one a network
Pairs = list[tuple[np.ndarray, np.ndarray]]


def pairs(of: list[Counts], city: str) -> Pairs:
    return [(np.array(counts[city][0]), np.array(counts[city][1])) for counts in of]


def estimate(after: Pairs, before: Pairs, draws: int, seed: int) -> Estimate:
    """Mean IoU over networks, less that of the networks `before` them if there
    are any; scenes drawn in pairs.
    """
    sizes = np.mean([union for _, union in [*after, *before]], axis=0)
    some = sizes > 0
    after, before = ([(i[some], u[some]) for i, u in side] for side in (after, before))

    def of(weights: np.ndarray) -> np.ndarray:
        lost = [iou_of(weights, *pair) for pair in before] or [np.zeros(len(weights))]
        return np.mean([iou_of(weights, *pair) for pair in after], axis=0) - np.mean(lost, axis=0)

    value, units = float(of(np.ones((1, some.sum())))[0]), int(some.sum())
    limits = (-1.0, 1.0) if before else (0.0, 1.0)
    if units < 2:
        return Estimate(value, np.nan, 0.0, value, limits)
    error = float(np.nanstd(of(resample(units, draws, np.random.default_rng(seed)))))
    return Estimate(value, error, degrees_of_freedom(sizes[some]), value, limits)


def row(name: str, estimates: list[Estimate]) -> dict:
    """The mean over cities, with its interval; null where there is none to average."""
    if not estimates:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    mean = mean_of(estimates)
    return {
        name: mean.value,
        **dict(zip((f"{name}_low", f"{name}_high"), mean.shown(), strict=True)),
    }


def matrix(of: list[Counts], order: list[str], built: Callable[[str], bool]) -> np.ndarray:
    """(T, cities) IoU, NaN where a city has no building."""
    sums = [[[sum(part) for part in counts[city]] for city in order] for counts in of]
    return np.array([
        [i / u if u and built(city) else np.nan for (i, u), city in zip(line, order, strict=True)] for line in sums
    ])  # fmt: skip


def sequence_table(
    found: dict, untrained: list[Counts], orders: list[list[str]], s: Incremental, tests: Tests
) -> dict:
    """The sections method, joint and order; `found` holds counts by (method, *order)."""
    known = [city for city in orders[0] if tests.built(city)]
    of_order: list[dict] = []
    for order in orders:
        nothing, rows = matrix(untrained, order, tests.built)[0], {}
        for method in s.methods:
            r = matrix(found[method, *order], order, tests.built)
            nulls = [[None if np.isnan(v) else float(v) for v in line] for line in r]
            rows[method] = {"matrix": nulls, **summary(r, nothing)}
        of_order.append({"cities": order, **rows})
    methods = {}
    for method in s.methods:
        last = [found[method, *order][-1] for order in orders]
        average = [estimate(pairs(last, city), [], s.bootstrap, s.seed) for city in known]
        later = {city: [o for o in orders if o[-1] != city] for city in known}
        backward = [
            estimate(
                pairs([found[method, *order][-1] for order in of], city),
                pairs([found[method, *order][order.index(city)] for order in of], city),
                s.bootstrap,
                s.seed,
            )
            for city, of in later.items()
            if of
        ]
        plain = {
            score: mean_known([o[method][score] for o in of_order])
            for score in ("forgetting", "forward")
        }
        methods[method] = {**row("average", average), **row("backward", backward), **plain}
    ceiling = [estimate(pairs(found[("joint",)], city), [], s.bootstrap, s.seed) for city in known]
    return {"method": methods, "joint": row("average", ceiling), "order": of_order}


def mean_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def class_table(found: dict[str, list[Counts]], s: Incremental, tests: Tests) -> dict:
    """{METHOD: old and new, with intervals, and before}; classes are counted
    each alone, and averaged.
    """
    kinds = range(1, len(found["before"]) + 1)

    def of(name: str, method: str, some: Sequence[int]) -> dict:
        each = [
            estimate(pairs([found[method][kind - 1]], city), [], s.bootstrap, s.seed)
            for city in tests.tiles for kind in some if tests.built(city, kind)
        ]  # fmt: skip
        return row(name, each)

    before = of("before", "before", kinds[:-1])["before"]
    return {
        method: {"before": before, **of("old", method, kinds[:-1]), **of("new", method, kinds[-1:])}
        for method in found
        if method != "before"
    }
