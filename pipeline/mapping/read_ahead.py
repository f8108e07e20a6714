"""A raster read once from top to bottom, the next rows being read while the last ones are used."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.imagery.grid import Window
from pipeline.imagery.raster import STRIP, Raster


class ReadAhead:
    """`raster` as an array (H, W, C) uint8 whose `image[a:b]` is asked with a and b
    never decreasing.

    An answer lives until the next question: it is a view of one buffer, which is
    the only one there is.
    """

    def __init__(self, raster: Raster):
        self.raster, self.shape = raster, raster.shape
        # read and still needed, then room for more
        self.rows = np.empty((0, *self.shape[1:]), np.uint8)
        self.top = self.end = 0  # the first and the last of them
        # first row, end and validity of what was read
        self.strips: list[tuple[int, int, np.ndarray | None]] = []
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
        self._keep_from(first)
        while self.end < last and self.next:
            strip, valid = self.next.result()
            self.strips.append((self.end, self.end + len(strip), valid))
            self.next = self._submit(self.end + len(strip))
            self._append(strip, last)
        return self.rows[: last - first]

    def empty(self, rows: slice, columns: slice) -> bool:
        """Whether no pixel of these rows, which the last answer held, holds data."""
        asked = [
            (top, valid) for top, end, valid in self.strips if top < rows.stop and rows.start < end
        ]
        return not any(
            valid is None or valid[max(0, rows.start - top) : rows.stop - top, columns].any()
            for top, valid in asked
        )

    def _keep_from(self, first: int) -> None:
        """Move the rows from `first` on to the buffer's beginning, a strip at a time."""
        gone, count = first - self.top, self.end - first
        step = max(1, STRIP // self.shape[1])
        for row in range(0, max(0, count) if gone else 0, step):
            part = slice(row, min(row + step, count))
            self.rows[part] = self.rows[part.start + gone : part.stop + gone]
        self.top, self.end = first, max(first, self.end)
        self.strips = [strip for strip in self.strips if strip[1] > first]

    def _append(self, strip: np.ndarray, last: int) -> None:
        begin, end = self.end - self.top, self.end - self.top + len(strip)
        if end > len(self.rows):
            grown = np.empty((max(end, last - self.top + len(strip)), *self.shape[1:]), np.uint8)
            grown[:begin] = self.rows[:begin]
            self.rows = grown
        self.rows[begin:end] = strip
        self.end += len(strip)
