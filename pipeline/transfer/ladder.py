"""The adaptation ladder on every held-out city, and which rung one would have
chosen without its labels.
"""

from typing import Any

import numpy as np

from pipeline.console import progress
from pipeline.networks.models import Segmenter
from pipeline.params import Params
from pipeline.scoring.evaluation import evaluate_city
from pipeline.tiles.store import Cities
from pipeline.transfer.adaptation import adapt
from pipeline.transfer.gap import Fold
from pipeline.transfer.predictions import unlabelled

# IoU by which a model that has seen the city must be better, for there to be anything to repair
CLEAR = 0.05
REPAIRED = 0.25  # share of that difference that an adaptation must make good to count as a repair


def adapted(
    params: Params, cities: Cities, fold: Fold, segmenter: Segmenter, unadapted: float | None
) -> dict[str, float | None]:
    """{METHOD: IoU} of a held-out city: fitted on its unlabelled training
    scenes, tested on its test ones.
    """
    ladder, city = {}, fold.held_out
    for method in progress(params.generalize.adaptation, f"{city}: adaptation"):
        if method == "none":
            ladder[method] = unadapted
        else:
            ladder[method] = evaluate_city(
                adapt_to(params, cities, fold, method, segmenter), cities[city], params.evaluate
            ).iou
    return ladder


def adapt_to(
    params: Params, cities: Cities, fold: Fold, method: str, segmenter: Segmenter
) -> Segmenter:
    """Adapt to the held-out city by its images alone, in crops the size of the
    windows it will be mapped by.
    """
    g, size = params.generalize, params.tile.size
    sides = [min(r.height, r.width) for r in cities[fold.held_out].of_split("test")]
    side = max(32, min(params.evaluate.window, *sides) // 32 * 32)
    count = max(4, g.adaptation_tiles * size**2 / side**2)
    batch = max(2, round(params.train.batch_size * params.train.crop**2 / side**2))
    target = unlabelled(cities[fold.held_out], count, side, g.seed)
    source = np.concatenate(
        [unlabelled(cities[c], count / len(fold.training), side, g.seed) for c in fold.training]
    )
    return adapt(
        method, segmenter, source, target, steps=g.adaptation_steps, batch_size=batch, seed=g.seed
    )


def choose(ladder: dict[str, dict[str, Any]], matrix: dict[str, dict[str, Any]]) -> dict:
    """For each city the method that was best on average on the *other* cities, and
    beside it the oracle's.

    The choice borrows one thing: the other cities' folds, which rank the methods, have trained on
    this city. It never sees the IoU of a model that has not, which is what it predicts.

    beyond_adaptation: cities that some model of the `matrix` maps clearly better for having seen
    them, and where no method, not even the oracle's, makes good a share REPAIRED of that
    difference: what a roof looks like has shifted, not the light. One model that has seen the city
    is enough to show that it can be mapped.
    """
    cities = [
        c for c in next(iter(ladder.values())) if all(ladder[m][c] is not None for m in ladder)
    ]
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
        unadapted = matrix[f"without-{city}"][city]
        seen = max(row[city] for model, row in matrix.items() if model != f"without-{city}")
        if seen - unadapted > CLEAR and ladder[oracle][city] - unadapted < REPAIRED * (
            seen - unadapted
        ):
            beyond.append(city)
    return {"adaptation_choice": choice, "beyond_adaptation": beyond}
