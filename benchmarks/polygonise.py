"""Polygons from bands of a mask against GDAL's polygons of the whole mask at once, in one run.

    python -m benchmarks.polygonise [SIDE]

Bands also measure areas and confidences and leave no seams, so half of GDAL's speed is the goal. The memory printed is
the peak of Python's allocations: of bands it does not grow with the scene.
"""

import statistics
import sys
import time
import tracemalloc

import numpy as np
import shapely
from rasterio.features import shapes

from benchmarks.ratio import report
from pipeline.mapping.polygons import Polygoniser

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


if __name__ == "__main__":
    mask = draw(int(sys.argv[1]) if len(sys.argv) > 1 else 4096)
    count = banded(mask)
    assert count == whole(mask)
    print(f"{count} buildings, peak {peak(banded, mask):.0f} MB in bands, {peak(whole, mask):.0f} MB whole")
    pairs = [(seconds(whole, mask), seconds(banded, mask)) for _ in range(ROUNDS)]
    rate = count / statistics.median(bands for _, bands in pairs)
    ratio = statistics.median(at_once / bands for at_once, bands in pairs)
    report("GDAL's polygons at once / in bands", ratio, 0.5, f"{rate:.0f} buildings/s")
