"""Which building is which, where labels alone run together: a number a pixel,
different between neighbours.

Footprints that touch are one blob as labels. Beside them lies a map of numbers, 1..254, that differ
between buildings whose pixels may touch, as colours do between countries: a byte a pixel, and the
same whatever the windows it is drawn in. An instance is a connected component of one number. Label
rasters have no footprints and no numbers: their instances are the components of the labels.
"""

from itertools import count

import cv2
import numpy as np
import shapely
from scipy import ndimage

from pipeline.labels import IGNORE

NEAR = 3  # pixels between footprints within which their pixels may touch, all_touched or not
MOST = 254  # numbers


def number_apart(polygons: np.ndarray, near: float) -> np.ndarray:
    """(N,) uint8 in 1..254 that differ between polygons (N,) within `near`, in
    their units, of each other.

    Greedy colouring; where more than 254 lie so near that no number is free, numbers repeat.
    """
    numbers = np.zeros(len(polygons), np.uint8)
    first, second = shapely.STRtree(polygons).query(polygons, predicate="dwithin", distance=near)
    order = np.argsort(first, kind="stable")
    begins = np.searchsorted(first[order], np.arange(len(polygons) + 1))
    for i in range(len(polygons)):
        taken = set(numbers[second[order[begins[i] : begins[i + 1]]]].tolist())
        numbers[i] = (next(k for k in count(1) if k not in taken) - 1) % MOST + 1
    return numbers


def instances(label: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
    """(H, W) int32, 0 or which building: 4-connected components of the buildings of label (H, W)
    uint8 that bear one number; numbers (H, W) uint8, None = the same for all.
    """
    building = (label > 0) & (label != IGNORE)
    if numbers is None:
        return ndimage.label(building)[0]
    found, total = np.zeros(label.shape, np.int32), 0
    for number in np.unique(numbers[building]):
        own, n = ndimage.label(building & (numbers == number))
        found += np.where(own > 0, own + total, 0)
        total += n
    return found


def contacts(instance: np.ndarray, reach: float) -> np.ndarray:
    """(H, W) bool: pixels within `reach` pixels of two buildings or more, on a wall that they share
    or in the gap between them. Where U-Net's border weight is large (Ronneberger et al. 2015,
    equation 2: d₁ and d₂ are small).
    """
    r = max(1, round(reach))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
    which = instance.astype(np.float32)  # whole numbers up to 2²⁴
    most = cv2.dilate(which, disc)
    least = cv2.erode(np.where(instance > 0, which, np.float32(np.inf)), disc, borderValue=np.inf)
    return (most > 0) & (least < most)
