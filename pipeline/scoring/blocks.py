"""What tells of others: a city's scenes, or the blocks of its single scene, where
these can tell anything.

Errors next to each other are alike: a district is mapped well or badly as a whole. Blocks must be
as long as that reaches, and many. How far it reaches is measured as geostatistics does, by the
distance at which the correlogram of the errors (a variogram turned over) has come down: its range.

What stays correlated across the borders of blocks is missing from their spread. Of a variogram of
range r, the blocks of side b hold a share of about (1 − r / 3b)² of the variance, be it Gaussian,
exponential or spherical (.44, .44, .54 at b = r): intervals are widened by as much.

Blocks speak for more ground of the same scene. How other scenes differ from it they cannot know.
"""

from dataclasses import dataclass

import numpy as np

CELL = 64  # pixels along the squares that errors are counted in
FEW = 60  # blocks under which a scene, less than eight ranges wide, does not let its range be seen


@dataclass(frozen=True)
class Units:
    """Pixel counts (units,) of intersection and union, and the share of the variance that lies
    between the units.
    """

    intersection: np.ndarray
    union: np.ndarray
    held: float = 1.0
    blocks: bool = False  # of a single scene, not scenes

    def as_one(self) -> "Units":
        return Units(
            *(n.sum(keepdims=True) for n in (self.intersection, self.union)), blocks=self.blocks
        )


def units(cells: dict[str, list[np.ndarray]], least: int, reach: float | None = None) -> Units:
    """Scenes where there are several, else blocks of at least `least` pixels.

    `cells` are the regions of each scene as (≥ 3, R, C) intersection, union and valid pixels of
    each CELL; `reach` is measured on them where it is not given.
    """
    if len(cells) == 1:
        return blocks(next(iter(cells.values())), least, reach)
    sums = [
        np.sum([region[:2].sum((1, 2)) for region in scene], axis=0) for scene in cells.values()
    ]
    intersection, union = np.array(sums, np.int64).reshape(-1, 2).T
    return Units(intersection, union)


def blocks(regions: list[np.ndarray], least: int, reach: float | None = None) -> Units:
    """Blocks as long as the errors' correlation of one scene, which is a single
    unit where they would be FEW.
    """
    reach = correlated_over(regions) if reach is None else reach
    cells = max(1, round(max(least, reach) / CELL))
    counts = np.concatenate([merged(region, cells) for region in regions], axis=1)
    counts = counts[:2, counts[2] > 0]
    if np.count_nonzero(counts[1]) < FEW:
        return Units(*counts, blocks=True).as_one()
    return Units(*counts, held=(1 - min(1.0, reach / (cells * CELL)) / 3) ** 2, blocks=True)


def merged(region: np.ndarray, side: int) -> np.ndarray:
    """(K, blocks) sums over side × side cells of a (K, R, C) region."""
    rows, columns = (np.arange(0, length, side) for length in region.shape[1:])
    return np.add.reduceat(np.add.reduceat(region, rows, 1), columns, 2).reshape(len(region), -1)


def _correlated(part: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Σ of products of cells by how far apart they lie, of a region padded to `shape`
    (Wiener-Khinchin).
    """
    return np.fft.irfft2(np.abs(np.fft.rfft2(part, shape)) ** 2, shape)


def correlated_over(regions: list[np.ndarray]) -> float:
    """Pixels from which on errors are not alike: the correlogram is under 5 % of its first value,
    or lost in noise.

    The error of a cell is I − IoU · U; pairs of cells are counted by their
    distance, whatever their direction.
    """
    intersection, union, *_ = np.sum([region.sum((1, 2)) for region in regions], axis=0)
    height, width = (2 * max(region.shape[axis] for region in regions) for axis in (1, 2))
    errors = [region[0] - intersection / max(1, union) * region[1] for region in regions]
    if max(np.abs(part).max() for part in errors) < 0.5:  # pixels
        return float(CELL)
    products, pairs = (
        sum((_correlated(part, (height, width)) for part in parts), np.zeros((height, width)))
        for parts in (errors, [region[2] > 0 for region in regions])
    )
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) for n in (height, width))
    distance = np.rint(np.hypot(rows[:, None], columns)).astype(int).ravel()
    products, pairs = (
        np.bincount(distance, part.ravel())[: min(height, width) // 4 + 1]
        for part in (products, pairs)
    )
    correlation = products / np.maximum(pairs, 1) / (products[0] / pairs[0])
    noise = 2 / np.sqrt(np.maximum(pairs, 1) / 2)
    gone = correlation[1:] < np.maximum(0.05 * correlation[1:2], noise[1:])
    return float(CELL * (1 + np.argmax(np.append(gone, True))))
