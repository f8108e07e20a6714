"""Outlines of numbered components of pixels, all of them at once: rings are cycles of corners.

Walk along the pixels' edges with the component on the right. A wall goes on while the pixel ahead
is the component's and the one to the left of that is not. Where it ends is a corner: to the left if
that one is the component's too, else to the right. So a yard that touches the ground outside in a
point alone is a ring of its own, as valid polygons have it.
"""

import numpy as np
import shapely

# of walls along +x, +y, -x, -y: where they end, seen from the upper left corner of their last pixel
ENDS = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])


def outlines(labels: np.ndarray, row: int = 0) -> np.ndarray:
    """Polygons (n,) of the 4-connected components that labels (H, W) int32 number from 1 to n, in
    pixel coordinates; `row` is the first row's number. Their points are their corners.
    """
    width = labels.shape[1] + 2
    flat = np.pad(labels, 1).ravel()
    pixel, direction, following = _corners(flat, width)
    order, ends = _rings(following)
    starts = np.concatenate([[0], ends])[:-1]
    top, left = np.divmod(pixel[order], width)
    xy = np.stack([left - 1, top - 1 + row], 1) + ENDS[direction[order]]
    component, yard = flat[pixel[order[starts]]], _area(xy, ends) < 0
    sorting = np.lexsort((yard, component))  # a polygon's outer ring comes first
    offsets = np.concatenate([[0], np.cumsum((ends - starts)[sorting])])
    moved = np.repeat(starts[sorting] - offsets[:-1], np.diff(offsets))
    points = xy[np.arange(len(xy)) + moved].astype(float)
    of_polygon = np.cumsum(np.bincount(component, minlength=1))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (offsets, of_polygon))


def _corners(flat: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each wall (c,): its last pixel, its direction, 0 to 3, and the number of the wall after
    it. flat: labels row by row, `width` a row, with a 0 all round.
    """
    ahead = np.array([1, width, -1, -width])
    aside = np.roll(ahead, 1)  # to the left
    height = len(flat) // width
    right = np.flatnonzero(flat[1:] != flat[:-1])  # pixels with another to the right, and below
    below = np.flatnonzero(flat[width:] != flat[:-width])

    def along(direction: int, pixels: np.ndarray) -> np.ndarray:
        """Numbers that grow row by row where walls lie along x, column by column else."""
        return pixels if direction % 2 == 0 else pixels % width * height + pixels // width

    ends, turns_left = [], []
    for direction, pixels in enumerate((below + width, right, below, right + 1)):
        walls = pixels[flat[pixels] > 0]
        step = ahead[direction]
        on, left = (flat[walls + to] == flat[walls] for to in (step, step + aside[direction]))
        last, left = walls[~on | left], left[~on | left]
        by = np.argsort(along(direction, last), kind="stable")
        ends.append(last[by])
        turns_left.append(left[by])
    first = np.cumsum([0] + [len(last) for last in ends])

    def wall_of(direction: int, pixels: np.ndarray) -> np.ndarray:
        """The walls in this direction whose first pixels these are: the next to end there."""
        side, back = ("right", 1) if direction > 1 else ("left", 0)
        order, place = along(direction, ends[direction]), along(direction, pixels)
        return first[direction] + np.searchsorted(order, place, side) - back

    following = [
        np.where(
            left,
            wall_of((direction - 1) % 4, last + ahead[direction] + aside[direction]),
            wall_of((direction + 1) % 4, last),
        )
        for direction, (last, left) in enumerate(zip(ends, turns_left, strict=True))
    ]
    return np.concatenate(ends), np.repeat(np.arange(4), np.diff(first)), np.concatenate(following)


def _rings(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cycles of a permutation (c,), one after another, each closed by its first member; and
    where each of them ends.
    """
    after, order, ends = following.tolist(), [], []
    seen = bytearray(len(after))
    for begin in range(len(after)):
        if seen[begin]:
            continue
        at = begin
        while not seen[at]:
            seen[at] = 1
            order.append(at)
            at = after[at]
        order.append(begin)
        ends.append(len(order))
    return np.array(order, int), np.array(ends, int)


def _area(xy: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(r,) twice the area of closed rings of points (p, 2), negative where it lies on their left."""
    crosses = xy[:-1, 0] * xy[1:, 1] - xy[1:, 0] * xy[:-1, 1]
    sums = np.concatenate([[0], np.cumsum(np.append(crosses, 0))])
    return sums[ends - 1] - sums[np.concatenate([[0], ends])[:-1]]
