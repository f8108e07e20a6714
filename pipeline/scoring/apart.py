"""Buildings that touch in a mask, told apart: a marker-controlled watershed whose
line is taken out of the mask.

The markers are what hangs together in the mask without its contacts: the walls and the ground that
the network holds for close to two buildings at once (train.model.contact). From them the mask is
flooded again, a pixel a step (Meyer and Beucher 1990, of the distance to the marker). Where two
floods meet, a line one pixel thin is no building any more, so that buildings are the mask's
connected components as ever. The mask itself, and with it every IoU of pixels, stays as it is.

What a pixel becomes depends on REACH metres around it alone, but for markers that hang together
further away: so a scene may be told apart block by block.
"""

from math import ceil

import numpy as np
from scipy import ndimage

from pipeline.labels import IGNORE

REACH = 8.0  # metres that a flood runs at most


def tell_apart(mask: np.ndarray, contact: np.ndarray, pixel: float) -> np.ndarray:
    """The mask (H, W) uint8 with 0 on the lines between its buildings.

    contact: (H, W) bool; pixel: metres along its side.
    """
    building = (mask > 0) & (mask != IGNORE)
    markers, _ = ndimage.label(building & ~contact)
    return np.where(lines(flood(markers, building, ceil(REACH / pixel))), 0, mask)


def surroundings(pixel: float) -> int:
    """Pixels around a block that can matter to it."""
    return ceil(REACH / pixel) + 1


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
