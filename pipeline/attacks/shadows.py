"""Does every building of a map cast a shadow on the side that the sun asks for? What stands casts
one; a parking lot, a painted court and a pool, which a map takes for buildings, do not (Lin and
Nevatia 1998 verify rooftops by it).

A building's score is the ground's brightness beside it away from the sun over that towards the sun:
well below 1 in shadow, about 1 without. It is flagged where the score is above what nine in ten
labelled buildings of a few of the city's training scenes have. Ground that other buildings stand on
is not looked at, and a building without ground on both sides is not judged.
"""

import math

import numpy as np
from scipy import ndimage

from pipeline.labels import IGNORE
from pipeline.scoring.metrics import ratio

WALL = 3.0  # metres: the height whose shadow is looked at
LEAST = 10.0  # m²: smaller objects are not judged
SPARED = 0.9  # share of true buildings that the threshold lets pass
Sun = tuple[float, float]  # azimuth clockwise from north and elevation, degrees


def toward(sun: Sun, transform: tuple[float, ...]) -> tuple[float, float]:
    """The sun's direction as a unit step (rows, columns) of a grid with this
    affine transform a..f.
    """
    a, b, _, d, e, _ = transform
    east, north = math.sin(math.radians(sun[0])), math.cos(math.radians(sun[0]))
    columns, rows = np.linalg.solve(np.array([[a, b], [d, e]]), [east, north])
    length = math.hypot(rows, columns)
    return rows / length, columns / length


def scores(
    image: np.ndarray, classes: np.ndarray, gsd: float, sun: Sun, transform
) -> tuple[np.ndarray, np.ndarray]:
    """Buildings of a map, (H, W) int: 0 none, and the score (n,) of each, NaN where
    it is not judged.

    image (H, W, C), classes (H, W): a building is a 4-connected component of class
    > 0 that is not IGNORE.
    """
    built = (classes > 0) & (classes != IGNORE)
    components, number = ndimage.label(built)
    open_ground, step = ~built & (classes != IGNORE), toward(sun, transform)
    reach = max(1, round(min(WALL / math.tan(math.radians(sun[1])), 2 * WALL) / gsd))
    grey = image.mean(-1, dtype=np.float64)

    def beside(sign: int) -> np.ndarray:
        """Mean brightness of the ground that each building's outline sweeps
        within `reach` pixels.
        """
        owner = np.zeros_like(components)
        for far in range(1, reach + 1):
            moved = _moved(components, *(round(sign * far * along) for along in step))
            owner = np.where(owner > 0, owner, moved)
        owner[~open_ground] = 0
        pixels = np.bincount(owner.ravel(), minlength=number + 1)[1:]
        light = np.bincount(owner.ravel(), grey.ravel(), number + 1)[1:]
        return np.where(pixels >= 3, light / np.maximum(pixels, 1), np.nan)

    large = np.bincount(components.ravel(), minlength=number + 1)[1:] * gsd**2 >= LEAST
    shade, sunlit = beside(-1), beside(1)
    return components, np.where(large, shade / np.maximum(sunlit, 1e-6), np.nan)


def _moved(array: np.ndarray, down: int, right: int) -> np.ndarray:
    """The array moved by whole pixels, zeros coming in."""
    out, (height, width) = np.zeros_like(array), array.shape
    if abs(down) >= height or abs(right) >= width:
        return out
    to = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
    source = (
        slice(max(0, -down), height + min(0, -down)),
        slice(max(0, -right), width + min(0, -right)),
    )
    out[to] = array[source]
    return out


def threshold(labelled: list[np.ndarray]) -> float | None:
    """The score that SPARED of labelled buildings do not exceed; None where none was judged."""
    known = np.concatenate([np.zeros(0), *labelled])
    known = known[np.isfinite(known)]
    return float(np.quantile(known, SPARED)) if len(known) else None


def is_true(components: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which buildings (n,) of a map stand on labelled ones, with at least half
    of their known pixels.
    """
    number = int(components.max())
    known = np.bincount(components[labels != IGNORE], minlength=number + 1)[1:]
    hit = np.bincount(components[(labels > 0) & (labels != IGNORE)], minlength=number + 1)[1:]
    return 2 * hit >= np.maximum(known, 1)


def verdict(found: list[tuple[np.ndarray, np.ndarray]], limit: float | None) -> dict:
    """Of the buildings of a city's maps, (scores, true) each: how many are flagged,
    of the true and of the false.

    auc: how often a false building scores above a true one.
    """
    score, true = (np.concatenate([np.zeros(0), *part]) for part in zip(*found, strict=True))
    judged, true = np.isfinite(score), true.astype(bool)
    flagged = judged & (score > (math.inf if limit is None else limit))
    real, false = score[judged & true], score[judged & ~true]
    above = (
        (false[:, None] > real).mean() + 0.5 * (false[:, None] == real).mean()
        if len(real) * len(false)
        else None
    )
    return {
        "threshold": limit,
        "true": len(real),
        "true_flagged": ratio((flagged & true).sum(), len(real)),
        "false": len(false),
        "false_flagged": ratio((flagged & ~true).sum(), len(false)),
        "auc": None if above is None else float(above),
        "unjudged": int((~judged).sum()),
    }
