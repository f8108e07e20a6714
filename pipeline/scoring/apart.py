"""Buildings that touch in a mask, told apart: a marker-controlled watershed whose
line is taken out of the mask.

The markers are what hangs together in the mask without its contacts: the walls and the ground that
the network holds for close to two buildings at once (train.model.contact), and the necks of the
mask itself. From them the mask is flooded again, a pixel a step (Meyer and Beucher 1990, of the
distance to the marker). Where two floods meet, a line one pixel thin is no building any more, so
that buildings are the mask's connected components as ever. The mask itself, and with it every IoU
of pixels, stays as it is.

A neck lies between two cores: the places within whose NEAR metres, through ground deeper than
`neck` times their own depth, nothing deeper is found. That is the h-maxima transform (Soille 2003,
section 6.3.4) of the logarithm of the depth, within bounds: whether a joint is a neck does not
depend on how large the buildings are, only on how much narrower than the narrower of them.

What a pixel becomes depends on REACH metres around it alone, and a neck on four times NEAR, but for
what hangs together further away: so a scene may be told apart block by block.
"""

from math import ceil, log

import cv2
import numpy as np

from pipeline.labels import IGNORE

REACH = 8.0  # metres that a flood runs at most
NEAR = 8.0  # metres in which a core is the deepest, and which depth is counted to
SLIMMEST = 2.0  # metres, the depth of a core: a neck joins two parts of twice that width at least
LEVELS = 48  # of depth in a factor of e
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def tell_apart(mask: np.ndarray, contact: np.ndarray, pixel: float) -> np.ndarray:
    """The mask (H, W) uint8 with 0 on the lines between its buildings.

    contact: (H, W) bool; pixel: metres along its side.
    """
    if not contact.any():
        return mask
    building = (mask > 0) & (mask != IGNORE)
    _, markers = cv2.connectedComponents((building & ~contact).view(np.uint8), connectivity=4)
    return np.where(lines(flood(markers, building, ceil(REACH / pixel))), 0, mask)


def necks(mask: np.ndarray, pixel: float, neck: float) -> np.ndarray:
    """(H, W) bool: contacts, three pixels wide, where the mask narrows to less than `neck` times
    the narrower of two parts.
    """
    building = (mask > 0) & (mask != IGNORE)
    if not building.any():
        return building
    floods = flood(cores(building, pixel, neck), building, ceil(NEAR / pixel))
    return cv2.dilate(lines(floods).view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)


def cores(building: np.ndarray, pixel: float, neck: float) -> np.ndarray:
    """(H, W) int32: the cores of a mask (H, W) bool, numbered; 0 elsewhere.

    A core holds what is deepest near by, and what hangs together with it through ground deeper than
    `neck` times its depth, or through ground that no core is near.
    """
    steps, lower = ceil(NEAR / pixel), min(255, round(-LEVELS * log(neck)))
    depth = cv2.distanceTransform(building.view(np.uint8), cv2.DIST_L2, 5).clip(0, steps)
    level = np.rint(LEVELS * np.log(depth.clip(1)) + building).clip(0, 255).astype(np.uint8)
    deepest = level - _reached(np.maximum(level, lower) - np.uint8(lower), level, steps) >= lower
    deepest &= depth * pixel >= SLIMMEST
    domes = _reached(np.where(deepest, level - lower, 0).astype(np.uint8), level, steps)
    count, parts = cv2.connectedComponents((level > domes).view(np.uint8), connectivity=4)
    real, number = np.zeros(count, np.int32), parts[deepest]
    real[number] = number
    return np.take(real, parts.astype(np.int32, copy=False))


def _reached(marker: np.ndarray, level: np.ndarray, steps: int) -> np.ndarray:
    """Reconstruction of `level` from a marker below it by geodesic dilation, no further than
    `steps` pixels (Vincent 1993). Both (H, W) uint8.
    """
    for step in range(steps):
        before, marker = marker, cv2.min(cv2.dilate(marker, CROSS), level)
        if step % 8 == 7 and np.array_equal(before, marker):  # of a very fine grid it is soon so
            break
    return marker


def surroundings(pixel: float) -> int:
    """Pixels around a block that can matter to it."""
    return ceil(REACH / pixel) + 1


def around_necks(pixel: float) -> int:
    """Pixels around a block that can matter to its necks: for the depth, for what is deepest, for
    its dome, for the flood, and for the line.
    """
    return 4 * ceil(NEAR / pixel) + 2


def flood(markers: np.ndarray, mask: np.ndarray, reach: int) -> np.ndarray:
    """(H, W) int32: markers grown within the mask by at most `reach` steps to one
    of four neighbours.

    Where two arrive at once, the one from above is before those from the left, the right and below.
    """
    which = np.pad(markers, 1)
    flat, free = which.ravel(), np.pad(mask & (markers == 0), 1).ravel()
    edge, width = np.flatnonzero(flat), which.shape[1]
    for _ in range(reach):
        reached = []
        for step in (width, 1, -1, -width):
            to = edge + step
            new = free[to]
            flat[to[new]] = flat[edge[new]]
            free[to[new]] = False
            reached.append(to[new])
        edge = np.concatenate(reached)
        if not len(edge):
            break
    return which[1:-1, 1:-1]


def lines(floods: np.ndarray) -> np.ndarray:
    """(H, W) bool: of every two neighbours of different floods the one above or to the left."""
    line = np.zeros(floods.shape, bool)
    for here, there, on in (
        (floods[:, :-1], floods[:, 1:], line[:, :-1]),
        (floods[:-1], floods[1:], line[:-1]),
    ):
        on |= (here != there) & (here > 0) & (there > 0)
    return line
