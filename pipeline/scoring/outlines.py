"""How well outlines are drawn, of the buildings that were found: polygons against a
city's own footprints.

A pair is an outline and a footprint of an IoU above one half: no other of either can be its
partner. Of each pair:

    iou           of the two
    polis         metres from the corners of one to the outline of the other, both ways (Avbelj et al., GRSL 2015)
    tangent       degrees, the largest angle between the outline and the nearest stretch of the footprint's
                  (Girard et al., CVPR 2021)
    rotation      degrees between their dominant directions, modulo 90° (Microsoft's building footprints)
    vertex_ratio  corners drawn for each corner of the footprints
    c_iou         the IoU, less what the number of corners is off by (Zorzi et al., CVPR 2022)
"""

import numpy as np
import shapely
from scipy.special import stdtrit

from pipeline.scoring.bootstrap import Estimate, degrees_of_freedom, resample
from pipeline.scoring.metrics import ratio

# and their ends
METRICS = {"iou": 1, "polis": None, "tangent": 90, "rotation": 45, "vertex_ratio": None, "c_iou": 1}
STEP = 0.25  # metres between the points at which tangents are compared
# where a stretch of one projects to one this much longer or shorter, they do not belong together
STRETCH = 2.0
DIRECTED = 0.3  # of a footprint's length must agree on a direction, else it has none to compare


def pairs(
    outlines: np.ndarray, footprints: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of outlines (k,) and of footprints (k,) that match, and their IoU (k,)."""
    i, j = shapely.STRtree(footprints).query(outlines, predicate="intersects")
    both = shapely.area(shapely.intersection(outlines[i], footprints[j]))
    iou = both / (shapely.area(outlines[i]) + shapely.area(footprints[j]) - both)
    return i[iou > 0.5], j[iou > 0.5], iou[iou > 0.5]


def compare(outlines: np.ndarray, footprints: np.ndarray) -> dict[str, tuple[float, float]]:
    """Each of METRICS as a sum over the pairs and what to divide it by;
    polygons (n,) and (m,) in metres.
    """
    i, j, iou = pairs(outlines, footprints)
    one, other = outlines[i], footprints[j]
    drawn, known = _corners(one), _corners(other)
    (drawn_at, _), (known_at, agreed) = map(dominant_direction, (one, other))
    # an outline without a direction counts by what its edges come to: it is no mapper's wall
    directed = agreed > DIRECTED
    rotation = np.abs((drawn_at - known_at + 45) % 90 - 45)[directed]
    fewer = iou * (1 - np.abs(drawn - known) / (drawn + known))
    means = {
        "iou": iou,
        "polis": _polis(one, other),
        "tangent": _tangent(one, other),
        "rotation": rotation,
    }
    found = {
        name: (float(values.sum()), len(values))
        for name, values in {**means, "c_iou": fewer}.items()
    }
    return found | {"vertex_ratio": (float(drawn.sum()), float(known.sum()))}


def summary(scenes: list[dict[str, tuple[float, float]]], draws: int) -> dict[str, float | None]:
    """A city's `pairs` and METRICS, each with NAME_low and NAME_high; scenes are the units, and
    no pair is null.
    """
    found = {"pairs": sum(scene["iou"][1] for scene in scenes)}
    for name, end in METRICS.items():
        sums, counts = np.array([scene[name] for scene in scenes], float).reshape(-1, 2).T
        found[name] = ratio(float(sums.sum()), float(counts.sum()))
        found[f"{name}_low"], found[f"{name}_high"] = _interval(
            sums[counts > 0], counts[counts > 0], end, draws
        )
    return found


def _interval(
    sums: np.ndarray, counts: np.ndarray, end: float | None, draws: int
) -> tuple[float | None, float | None]:
    """The 95 % interval of Σ sums / Σ counts over units, within 0 and `end`; of
    fewer than two units none.
    """
    if len(counts) < 2 or not sums.any():
        return None, None
    weights = resample(len(counts), draws, np.random.default_rng(0))
    value, error = sums.sum() / counts.sum(), float(((weights @ sums) / (weights @ counts)).std())
    freedom = degrees_of_freedom(counts)
    if end is not None:
        return Estimate(float(value), error, freedom, float(value), (0.0, float(end))).shown()
    factor = np.exp(stdtrit(freedom, 0.975) * error / value)  # no end above: symmetric as a ratio
    return float(value / factor), float(value * factor)


def dominant_direction(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) degrees modulo 90 of the mean edge, by length, and the share of the length that
    agrees on it (n,).
    """
    rings, owner = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    within = ring[1:] == ring[:-1]
    edges = np.diff(points[:, 0] + 1j * points[:, 1])[within]
    owner, length = owner[ring[1:][within]], np.abs(edges)
    fourfold = edges**4 / np.maximum(length, 1e-9) ** 3
    real, imaginary, total = (
        np.bincount(owner, p, len(polygons)) for p in (fourfold.real, fourfold.imag, length)
    )
    mean = (real + 1j * imaginary) / np.maximum(total, 1e-9)
    return np.degrees(np.angle(mean)) / 4, np.abs(mean)


def _corners(polygons: np.ndarray) -> np.ndarray:
    return shapely.get_num_coordinates(polygons) - 1 - shapely.get_num_interior_rings(polygons)


def _polis(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (_from_corners(one, other) + _from_corners(other, one)) / 2


def _from_corners(polygons: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) mean distance from a polygon's corners to the outline of its partner."""
    rings, owner = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    # the last point of a ring is its first
    corner = np.append(ring[1:] == ring[:-1], False)[: len(ring)]
    owner, points = owner[ring[corner]], shapely.points(points[corner])
    far = shapely.distance(points, shapely.boundary(others)[owner])
    return np.bincount(owner, far, len(polygons)) / np.maximum(
        np.bincount(owner, minlength=len(polygons)), 1
    )


def _tangent(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) degrees, the largest along the outer rings."""
    rings, partners = shapely.get_exterior_ring(one), shapely.get_exterior_ring(other)
    steps = np.maximum(8, np.ceil(shapely.length(rings) / STEP)).astype(int)
    owner = np.repeat(np.arange(len(one)), steps + 1)
    along = np.arange(len(owner)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    points = shapely.line_interpolate_point(rings[owner], along / steps[owner], normalized=True)
    near = shapely.line_interpolate_point(
        partners[owner], shapely.line_locate_point(partners[owner], points)
    )
    a, b = (
        np.diff(shapely.get_coordinates(p), axis=0)[owner[1:] == owner[:-1]] for p in (points, near)
    )
    owner, lengths = owner[1:][owner[1:] == owner[:-1]], [np.hypot(*edges.T) for edges in (a, b)]
    fit = (lengths[1] * STRETCH > lengths[0]) & (lengths[1] < STRETCH * lengths[0])
    cosine = np.abs((a * b).sum(1))[fit] / (lengths[0] * lengths[1])[fit]
    largest = np.zeros(len(one))
    np.maximum.at(largest, owner[fit], np.degrees(np.arccos(np.clip(cosine, 0, 1))))
    return largest
