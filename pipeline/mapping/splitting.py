"""Touching buildings apart in a mask that arrives band of rows by band of rows.

Blocks of the scene's own rows and columns are told apart one by one, each with as much around it as
can matter, so that a line between two buildings runs on across their seams, and where it runs does
not depend on the bands.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.scoring.apart import around_necks, necks, surroundings, tell_apart

ROWS, COLUMNS = 64, 2048  # of a block
PIXELS = 2**20  # of a band of necks where the scene is narrow: less is seen twice
Band = tuple[np.ndarray, np.ndarray]  # mask (rows, W) uint8 and confidence (rows, W)


class Waiting:
    """Arrays of rows in, as many rows as are asked for out again; no copy of those that wait."""

    def __init__(self):
        self.parts: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        self.parts.append(rows)

    def take(self, count: int) -> np.ndarray:
        taken = []
        while count:
            part, rest = np.split(self.parts.pop(0), [count])
            taken.append(part)
            count -= len(part)
            if len(rest):
                self.parts.insert(0, rest)
        return np.concatenate(taken)


class Splitter:
    """Bands in, and out again, later and in other portions, with 0 on the lines between buildings.

    pixel: a pixel's side in metres. What a contact is: see scoring/apart.py.

    >>> for mask, confidence, contact in bands:
    ...     for band in splitter.add(mask, confidence, contact): ...
    >>> for band in splitter.finish(): ...
    """

    def __init__(self, width: int, pixel: float):
        self.pixel, self.around = pixel, surroundings(pixel)
        self.mask, self.contact = np.empty((0, width), np.uint8), np.empty((0, width), bool)
        self.confidence = Waiting()
        self.above = 0  # rows of these that are out already, and only around the next block

    def add(self, mask: np.ndarray, confidence: np.ndarray, contact: np.ndarray) -> Iterator[Band]:
        self.mask = np.concatenate([self.mask, mask])
        self.confidence.add(np.ascontiguousarray(confidence))
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
        keep = max(0, inside.stop - self.around)
        self.mask, self.contact = self.mask[keep:].copy(), self.contact[keep:].copy()
        self.above = inside.stop - keep
        return np.concatenate(parts, axis=1), self.confidence.take(rows)

    def _apart(self, inside: slice, left: int) -> np.ndarray:
        """A block of these rows and COLUMNS columns, told apart with what is around it."""
        first = max(0, left - self.around)
        seen = np.s_[: inside.stop + self.around, first : left + COLUMNS + self.around]
        return tell_apart(self.mask[seen], self.contact[seen], self.pixel)[inside, left - first :][
            :, :COLUMNS
        ]


class Necks:
    """Bands of probabilities (rows, W, k) float32 on the model's grid in, and out again, later and
    in other portions, with contacts where their mask narrows.

    decide: from probabilities of classes (rows, W, c) to a mask; told: whether their last channel
    is the network's own contacts, otherwise one is added. neck: see scoring/apart.py.

    >>> for rows in bands:
    ...     for band in narrowing.add(rows): ...
    >>> for band in narrowing.finish(): ...
    """

    def __init__(
        self, pixel: float, neck: float, decide: Callable[[np.ndarray], np.ndarray], told: bool
    ):
        self.pixel, self.neck, self.decide, self.told = pixel, neck, decide, told
        self.around, self.above = around_necks(pixel), 0
        self.waiting, self.mask = Waiting(), np.empty((0, 0), np.uint8)

    def add(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        mask = self.decide(rows[..., :-1] if self.told else rows)
        self.waiting.add(rows)
        self.mask = np.concatenate([self.mask, mask]) if self.mask.size else mask
        while len(self.mask) >= self.above + self.rows + self.around:
            yield self._block(self.rows)

    def finish(self) -> Iterator[np.ndarray]:
        while len(self.mask) > self.above:
            yield self._block(min(self.rows, len(self.mask) - self.above))

    @property
    def rows(self) -> int:
        """Of a block."""
        return max(ROWS, PIXELS // self.mask.shape[1])

    def _block(self, rows: int) -> np.ndarray:
        """The next rows, whose surroundings are there."""
        inside = slice(self.above, self.above + rows)
        parts = [self._narrow(inside, left) for left in range(0, self.mask.shape[1], COLUMNS)]
        contact, band = np.concatenate(parts, axis=1), self.waiting.take(rows)
        keep = max(0, inside.stop - self.around)
        self.mask, self.above = self.mask[keep:].copy(), inside.stop - keep
        if self.told:
            band[..., -1] = np.maximum(band[..., -1], contact)
            return band
        return np.concatenate([band, contact[..., None].astype(np.float32)], axis=-1)

    def _narrow(self, inside: slice, left: int) -> np.ndarray:
        first = max(0, left - self.around)
        seen = np.s_[: inside.stop + self.around, first : left + COLUMNS + self.around]
        return necks(self.mask[seen], self.pixel, self.neck)[inside, left - first :][:, :COLUMNS]
