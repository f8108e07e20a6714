"""Polygons from bands of a mask against GDAL's polygons of the whole mask at once, in one run.

    python -m benchmarks.polygonise [SIDE]
    python -m benchmarks.polygonise [SIDE] --regular    the same of bands with regular outlines

Bands also measure areas and confidences and leave no seams, so half of GDAL's speed is the goal;
with regular outlines half of that. The memory printed is the peak of Python's allocations: of
bands it does not grow with the scene.
"""

import time
import tracemalloc

import numpy as np
import shapely
from rasterio.features import shapes

from benchmarks.ratio import arguments_of, medians, report
from pipeline.mapping.polygons import Polygoniser
from pipeline.mapping.regular import Outlines

ROUNDS = 3


def draw(side: int) -> np.ndarray:
    rng, mask = np.random.default_rng(0), np.zeros((side, side), np.uint8)
    for top, left in rng.integers(0, side - 40, (side * side // 1500, 2)):
        mask[top : top + rng.integers(5, 40), left : left + rng.integers(5, 40)] = 1
    return mask


def whole(mask: np.ndarray) -> int:
    return len([shapely.geometry.shape(s) for s, _ in shapes(mask, mask=mask > 0, connectivity=4)])


def banded(mask: np.ndarray, rows: int = 512) -> int:
    polygoniser = Polygoniser(mask.shape[1])
    bands = (mask[i : i + rows] for i in range(0, len(mask), rows))
    return sum(len(polygoniser.add(band, band)) for band in bands) + len(polygoniser.finish())


def regular(mask: np.ndarray, rows: int = 512) -> int:
    polygoniser, outlines, count = (
        Polygoniser(mask.shape[1]),
        Outlines("regular", mask.shape, (0.5, 0.5)),
        0,
    )
    for top in [*range(0, len(mask), rows), None]:
        band = None if top is None else mask[top : top + rows]
        buildings = polygoniser.finish() if band is None else polygoniser.add(band, band)
        shapes, _ = outlines.add(buildings.geometry, polygoniser.row, polygoniser.opened)
        count += len(shapes)
    return count


def seconds(function, mask: np.ndarray) -> float:
    begun = time.perf_counter()
    function(mask)
    return time.perf_counter() - begun


def peak(function, mask: np.ndarray) -> float:
    """MB of Python's allocations; tracing them is slow."""
    tracemalloc.start()
    function(mask)
    found = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return found


def compare(ours, limit, mask: np.ndarray, what: str, goal: float) -> None:
    count = ours(mask)
    assert count == limit(mask)
    names = f"{peak(ours, mask):.0f} MB by {ours.__name__}, {peak(limit, mask):.0f} MB by {limit.__name__}"
    print(f"{count} buildings, peak {names}")
    pairs = [(seconds(limit, mask), seconds(ours, mask)) for _ in range(ROUNDS)]
    _, own, ratio = medians(pairs)
    report(what, ratio, goal, f"{count / own:.0f} buildings/s")


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    arguments.add_argument("side", type=int, nargs="?", default=4096)
    arguments.add_argument("--regular", action="store_true")
    options = arguments.parse_args()
    mask = draw(options.side)
    if options.regular:
        compare(regular, whole, mask, "GDAL's polygons at once / in bands, regular", 0.25)
    else:
        compare(banded, whole, mask, "GDAL's polygons at once / in bands", 0.5)
