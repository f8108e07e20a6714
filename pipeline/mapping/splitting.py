"""Touching buildings apart in a mask that arrives band of rows by band of rows.

Blocks of the scene's own rows and columns are told apart one by one, each with as much around it as
can matter, so that a line between two buildings runs on across their seams, and where it runs does
not depend on the bands.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.scoring.apart import surroundings, tell_apart

ROWS, COLUMNS = 128, 2048  # of a block
Band = tuple[np.ndarray, np.ndarray]  # mask (rows, W) uint8 and confidence (rows, W)


class Splitter:
    """Bands in, and out again, later and in other portions, with 0 on the lines between buildings.

    pixel: a pixel's side in metres. What a contact is: see scoring/apart.py.

    >>> for mask, confidence, contact in bands:
    ...     for band in splitter.add(mask, confidence, contact): ...
    >>> for band in splitter.finish(): ...
    """

    def __init__(self, width: int, pixel: float):
        self.pixel, self.around = pixel, surroundings(pixel)
        self.mask, self.confidence = (
            np.empty((0, width), np.uint8),
            np.empty((0, width), np.float32),
        )
        self.contact = np.empty((0, width), bool)
        self.above = 0  # rows of these that are out already, and only around the next block

    def add(self, mask: np.ndarray, confidence: np.ndarray, contact: np.ndarray) -> Iterator[Band]:
        self.mask = np.concatenate([self.mask, mask])
        self.confidence = np.concatenate([self.confidence, confidence])
        self.contact = np.concatenate([self.contact, contact])
        while len(self.mask) >= self.above + ROWS + self.around:
            yield self._block(ROWS)

    def finish(self) -> Iterator[Band]:
        while len(self.mask) > self.above:
            yield self._block(min(ROWS, len(self.mask) - self.above))

    def _block(self, rows: int) -> Band:
        """The next rows, whose surroundings are there."""
        inside = slice(self.above, self.above + rows)
        parts = [self._apart(inside, left) for left in range(0, self.mask.shape[1], COLUMNS)]
        confidence, keep = self.confidence[inside], max(0, inside.stop - self.around)
        self.mask, self.confidence, self.contact = (
            rows[keep:].copy() for rows in (self.mask, self.confidence, self.contact)
        )
        self.above = inside.stop - keep
        return np.concatenate(parts, axis=1), confidence

    def _apart(self, inside: slice, left: int) -> np.ndarray:
        """A block of these rows and COLUMNS columns, told apart with what is around it."""
        first = max(0, left - self.around)
        seen = np.s_[: inside.stop + self.around, first : left + COLUMNS + self.around]
        return tell_apart(self.mask[seen], self.contact[seen], self.pixel)[inside, left - first :][
            :, :COLUMNS
        ]
