"""Whole buildings, by size: which are still found, and which were never there."""

import numpy as np
from scipy import ndimage

from pipeline.labels import IGNORE
from pipeline.scoring.metrics import ratio


def size_names(edges: list[float]) -> list[str]:
    """Names of the bins between areas in m²: `<50`, `50-150`, `>150`."""
    between = [f"{a:g}-{b:g}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return [f"<{edges[0]:g}", *between, f">{edges[-1]:g}"]


def recall_by_size(
    predictions: np.ndarray, labels: np.ndarray, gsd: float, edges: list[float]
) -> np.ndarray:
    """(2, bins): true buildings found and true buildings, by area in m².

    predictions, labels: (N, H, W). A building is a 4-connected component of label > 0; it is found
    when at least half of its pixels are predicted as building, of whatever class.
    """
    counts = np.zeros((2, len(edges) + 1), int)
    for prediction, label in zip(predictions, labels, strict=True):
        components, number = ndimage.label((label > 0) & (label != IGNORE))
        area = np.bincount(components.ravel(), minlength=number + 1)[1:]
        hit = np.bincount(components[prediction > 0], minlength=number + 1)[1:]
        size = np.digitize(area * gsd**2, edges)
        counts += np.stack([np.bincount(size[2 * hit >= area], minlength=len(edges) + 1),
                            np.bincount(size, minlength=len(edges) + 1)])  # fmt: skip
    return counts


def false_by_size(
    predictions: np.ndarray, labels: np.ndarray, gsd: float, edges: list[float]
) -> np.ndarray:
    """(bins,): predicted buildings by area in m² of which less than half stands on true ones.
    Ignored pixels count as neither predicted nor true.
    """
    counts = np.zeros(len(edges) + 1, int)
    for prediction, label in zip(predictions, labels, strict=True):
        components, number = ndimage.label((prediction > 0) & (label != IGNORE))
        area = np.bincount(components.ravel(), minlength=number + 1)[1:]
        true = np.bincount(components[label > 0], minlength=number + 1)[1:]
        counts += np.bincount(
            np.digitize(area[2 * true < area] * gsd**2, edges), minlength=len(edges) + 1
        )
    return counts


def recalls(edges: list[float], before: np.ndarray, after: np.ndarray) -> dict:
    """Object recall before and after erasing, of all buildings and by size in m²."""
    number = before[1]
    return {
        "objects": int(number.sum()),
        "clean": ratio(before[0].sum(), number.sum()),
        "attacked": ratio(after[0].sum(), number.sum()),
        "by_size": {
            name: {"objects": int(n), "clean": ratio(b, n), "attacked": ratio(a, n)}
            for name, n, b, a in zip(size_names(edges), number, before[0], after[0], strict=True)
        },
    }


def falses(edges: list[float], before: np.ndarray, after: np.ndarray) -> dict:
    """False objects before and after inventing, in all and by size in m²."""
    return {
        "clean": int(before.sum()),
        "attacked": int(after.sum()),
        "by_size": {
            n: {"clean": int(b), "attacked": int(a)}
            for n, b, a in zip(size_names(edges), before, after, strict=True)
        },
    }
