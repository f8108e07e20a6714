"""The exact worst case over attacks: one attack a tile, chosen so that the pooled IoU is least."""

import numpy as np
from numpy.typing import ArrayLike

from pipeline.scoring.metrics import ratio


def pooled_iou(intersections: ArrayLike, unions: ArrayLike) -> float | None:
    """ΣI/ΣU; None where nothing was there to be found and nothing was found."""
    return ratio(np.sum(intersections), np.sum(unions))


def worst_case(intersections: ArrayLike, unions: ArrayLike) -> tuple[float | None, np.ndarray]:
    """The least ΣI/ΣU over every choice of one attack a tile, and that choice.

    intersections, unions: (attacks, tiles) pixel counts. Returns the IoU and the attack (tiles,)
    chosen for each tile.

    Croce, Singh & Hein (2024, section 3.3) call this combinatorial. For one foreground it is a
    linear-fractional program over independent choices, so Dinkelbach (1967) solves it exactly:
    given λ, every tile takes its least I − λU; the ratio of that choice is the next λ; it falls
    strictly until it is the optimum.
    """
    intersections, unions = np.asarray(intersections, np.float64), np.asarray(unions, np.float64)
    tiles = np.arange(intersections.shape[1])
    choice = np.zeros(len(tiles), int)
    least = pooled_iou(intersections[0], unions[0])
    while True:
        candidate = np.argmin(intersections - (1 if least is None else least) * unions, axis=0)
        improved = pooled_iou(intersections[candidate, tiles], unions[candidate, tiles])
        if improved is None or least is not None and not improved < least:
            return least, choice
        least, choice = improved, candidate
