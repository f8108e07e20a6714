"""The adaptation ladder on every held-out city, and which rung one would have chosen without its labels."""

import numpy as np

from pipeline.console import progress
from pipeline.generalization.adaptation import adapt
from pipeline.generalization.gap import Fold
from pipeline.generalization.predictions import unlabelled
from pipeline.geo.tiles import Cities
from pipeline.learning.evaluation import evaluate_city
from pipeline.learning.models import Segmenter
from pipeline.params import Params

REPAIRED = 0.25  # share of the way up to the model's seen cities that an adaptation must go to count as a repair


def adapted(params: Params, cities: Cities, held_out: list[Fold], unseen: dict[str, Segmenter], matrix: dict) -> dict:
    """The adaptation ladder on each held-out city: fitted on its unlabelled training scenes, tested on its
    test ones."""
    g = params.generalize
    ladder: dict[str, dict[str, float | None]] = {method: {} for method in g.adaptation}
    for fold, method in progress([(f, m) for f in held_out for m in g.adaptation], "adaptation"):
        city = fold.held_out
        if method == "none":
            ladder[method][city] = matrix[f"without-{city}"][city]
            continue
        segmenter = adapt_to(params, cities, fold, method, unseen[city])
        ladder[method][city] = evaluate_city(segmenter, cities[city], params.evaluate).iou
    return {
        "adaptation": ladder,
        **choose(ladder, {fold.held_out: matrix[f"without-{fold.held_out}"] for fold in held_out}),
    }


def adapt_to(params: Params, cities: Cities, fold: Fold, method: str, segmenter: Segmenter) -> Segmenter:
    """Adapt to the held-out city by its images alone, in crops the size of the windows it will be mapped by."""
    g, size = params.generalize, params.tile.size
    sides = [min(r.height, r.width) for r in cities[fold.held_out].of_split("test")]
    side = max(32, min(params.evaluate.window, *sides) // 32 * 32)
    count = max(4, g.adaptation_tiles * size**2 / side**2)
    batch = max(2, round(params.train.batch_size * params.train.crop**2 / side**2))
    target = unlabelled(cities[fold.held_out], count, side, g.seed)
    source = np.concatenate([unlabelled(cities[c], count / len(fold.training), side, g.seed) for c in fold.training])
    return adapt(method, segmenter, source, target, steps=g.adaptation_steps, batch_size=batch, seed=g.seed)


def choose(ladder: dict[str, dict[str, float | None]], unadapted: dict) -> dict:
    """For each city the method that was best on average on the *other* cities, and beside it the oracle's.

    beyond_adaptation: cities clearly under the mean of the model's own seen cities that no method, not even the
    oracle's, lifts by the share REPAIRED of that gap: a shift in what a roof looks like, not in the light.
    """
    cities = [c for c in next(iter(ladder.values())) if all(ladder[m][c] is not None for m in ladder)]
    choice, beyond = {}, []
    for city in cities:
        others = [c for c in cities if c != city]
        honest = max(ladder, key=lambda m: sum(ladder[m][c] for c in others))
        oracle = max(ladder, key=lambda m: ladder[m][city])
        choice[city] = {
            "method": honest,
            "iou": ladder[honest][city],
            "oracle": {"method": oracle, "iou": ladder[oracle][city]},
        }
        seen = [iou for c, iou in unadapted[city].items() if c != city and iou is not None]
        before = unadapted[city][city]
        gap = np.mean(seen) - before if seen else 0
        if gap > 0.02 and ladder[oracle][city] - before < REPAIRED * gap:
            beyond.append(city)
    return {"adaptation_choice": choice, "beyond_adaptation": beyond}
