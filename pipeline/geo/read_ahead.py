"""A raster read once from top to bottom, the next rows being read while the last ones are used."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.geo.grid import Window
from pipeline.geo.raster import Raster

STRIP = 2**22  # pixels read at a time


class ReadAhead:
    """`raster` as an array (H, W, C) uint8 whose `image[a:b]` is asked with a and b never decreasing."""

    def __init__(self, raster: Raster):
        self.raster, self.shape = raster, raster.shape
        self.rows = np.empty((0, *self.shape[1:]), np.uint8)  # read and still needed
        self.top = 0  # the first of them
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self.next = self._submit(0)

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_) -> None:
        self.reader.shutdown(cancel_futures=True)

    def _submit(self, row: int) -> Future | None:
        height, width, _ = self.shape
        strip = Window(row, 0, min(max(1, STRIP // width), height - row), width)
        return self.reader.submit(self.raster.read, strip) if strip.height > 0 else None

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        parts, end = [self.rows[first - self.top :]], self.top + len(self.rows)
        while end < last:
            strip, _ = self.next.result()
            parts.append(strip[max(0, first - end) :])
            end += len(strip)
            self.next = self._submit(end)
        self.rows, self.top = np.concatenate(parts) if len(parts) > 1 else parts[0], first
        return self.rows[: last - first]
