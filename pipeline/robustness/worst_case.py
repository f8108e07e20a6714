"""The exact worst case over attacks: one attack a tile, chosen so that the pooled IoU is least."""

import numpy as np


def pooled_iou(intersections: np.ndarray, unions: np.ndarray) -> float:
    """ΣI/ΣU; 1 where there is nothing to find and nothing was found."""
    total = float(np.sum(unions))
    return float(np.sum(intersections)) / total if total > 0 else 1.0


def worst_case(intersections: np.ndarray, unions: np.ndarray) -> tuple[float, np.ndarray]:
    """The least ΣI/ΣU over every choice of one attack a tile, and that choice.

    intersections, unions: (attacks, tiles) pixel counts. Returns the IoU and the attack (tiles,) chosen for each tile.

    Croce, Singh & Hein (2024, section 3.3) call this combinatorial. For one foreground it is a linear-fractional
    program over independent choices, so Dinkelbach (1967) solves it exactly: given λ, every tile takes its least I −
    λU; the ratio of that choice is the next λ; it falls strictly until it is the optimum.
    """
    intersections, unions = np.asarray(intersections, np.float64), np.asarray(unions, np.float64)
    tiles = np.arange(intersections.shape[1])
    choice = np.zeros(len(tiles), int)
    ratio = pooled_iou(intersections[0], unions[0])
    while True:
        candidate = np.argmin(intersections - ratio * unions, axis=0)
        improved = pooled_iou(intersections[candidate, tiles], unions[candidate, tiles])
        if not improved < ratio:
            return ratio, choice
        ratio, choice = improved, candidate
