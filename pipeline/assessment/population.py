"""All frames of a city, and what a model says of each: the population that a few
labelled frames stand for.

A frame is a piece of a scene on the model's grid, about `side` pixels long; the frames of a scene
cover it once. The map's building probability is kept in LEVELS steps, 255 being no data, and each
frame as a histogram of them: what the map shows and the errors it expects follow for every
threshold.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.imagery.grid import Window
from pipeline.imagery.raster import Raster
from pipeline.labels import IGNORE
from pipeline.mapping.flow import window_side
from pipeline.mapping.read_ahead import ReadAhead
from pipeline.scoring.inference import infer

LEVELS = 255  # of probability: 0 … 254 for 0 … 1
PROBABILITY = np.arange(LEVELS) / (LEVELS - 1)
LEAST_DATA = 0.25  # share of a frame with data under which nobody is asked to label it
# of a frame, and of what is mapped in it, that may be wrong where no doubt is
FLOOR, MAPPED = 0.03, 0.15


@dataclass(frozen=True)
class Frames:
    """N frames: the scene's number (N,), the window (N, 4) top, left, height, width
    on the model's grid of it, pixels of each probability level (N, LEVELS), mean
    and deviation of each band (N, 2C).
    """

    scene: np.ndarray
    window: np.ndarray
    histogram: np.ndarray
    colour: np.ndarray

    def __len__(self) -> int:
        return len(self.scene)

    def place(self, i: int) -> Window:
        return Window(*self.window[i].tolist())


def frame_windows(height: int, width: int, side: int) -> list[Window]:
    """Windows of nearly equal sides that cover a scene once, row by row: no sliver at its edges."""

    def edges(length: int) -> np.ndarray:
        return np.rint(np.linspace(0, length, max(1, round(length / side)) + 1)).astype(int)

    rows, columns = edges(height), edges(width)
    return [
        Window(int(top), int(left), int(bottom - top), int(right - left))
        for top, bottom in zip(rows, rows[1:], strict=False)
        for left, right in zip(columns, columns[1:], strict=False)
    ]


def map_scene(
    segmenter, raster: Raster, twin: Raster, path: Path, window: int, batch_size: int
) -> np.memmap:
    """Write a scene's probability of building, in levels, to PATH (.npy) a band of rows at a time;
    returns it, mapped.

    twin: the same scene opened once more, for where it holds data.
    """
    levels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=raster.shape[:2])
    with ExitStack() as stack:
        rows = stack.enter_context(ReadAhead(raster))
        bands = infer(
            segmenter, rows, window=window_side(window, raster.shape[1] * segmenter.classes),
            batch_size=batch_size, temperature=segmenter.decision.temperature, empty=rows.empty,
        )  # fmt: skip
        for top, p in bands:
            band = levels[top : top + len(p)]
            band[:] = to_levels(1 - p[..., 0])
            _, valid = twin.read(Window(top, 0, *band.shape))
            if valid is not None:
                band[~valid] = IGNORE
    return levels


def to_levels(probability: np.ndarray) -> np.ndarray:
    return np.rint((LEVELS - 1) * np.clip(probability, 0, 1)).astype(np.uint8)


def of_scene(number: int, levels: np.ndarray, image, windows: list[Window]) -> Frames:
    """The frames of one scene that hold enough data; `image` (H, W, C) can be
    sliced by rows and columns.
    """
    kept, histogram, colour = [], [], []
    for w in windows:
        counts = np.bincount(levels[w.slices].ravel(), minlength=256)
        if counts[:LEVELS].sum() >= LEAST_DATA * w.height * w.width:
            pixels = np.asarray(image[w.slices]).reshape(w.height * w.width, -1)
            kept.append(w)
            histogram.append(counts[:LEVELS])
            colour.append([*pixels.mean(0), *pixels.std(0)])
    if not kept:
        return Frames(
            *(np.empty((0, *rest), int) for rest in ((), (4,), (LEVELS,), (2 * image.shape[2],)))
        )
    return Frames(
        np.full(len(kept), number), np.array(kept), np.array(histogram, np.int32), np.array(colour)
    )


def together(parts: list[Frames]) -> Frames:
    names = ("scene", "window", "histogram", "colour")
    return Frames(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def shown(threshold: float) -> np.ndarray:
    """(LEVELS,) bool: the levels that a map of this threshold draws as building."""
    return threshold < PROBABILITY


def expected(histogram: np.ndarray, threshold: float) -> np.ndarray:
    """(N, 3) pixels of true positives, false positives and false negatives, were the
    probabilities true.
    """
    drawn = shown(threshold)
    building = histogram * PROBABILITY
    inside, outside = building[:, drawn].sum(1), building[:, ~drawn].sum(1)
    return np.stack([inside, histogram[:, drawn].sum(1) - inside, outside], 1)


def auxiliaries(histogram: np.ndarray, threshold: float) -> np.ndarray:
    """(N, 2) what is known of every frame and tells of its counts: expected pixels of the union of
    map and truth, and of their differences."""
    tp, fp, fn = expected(histogram, threshold).T
    return np.stack([tp + fp + fn, fp + fn], 1)


def doubt(histogram: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) > 0 pixels that are likely to be wrong: those the model expects, and
    a few that it does not.
    """
    tp, fp, fn = expected(histogram, threshold).T
    return fp + fn + MAPPED * (tp + fp) + FLOOR * histogram.sum(1)


def features(frames: Frames) -> np.ndarray:
    """(N, 8 + 2C) what frames are alike by: shares of pixels by probability, in
    eighths, and colours.
    """
    eighths = np.add.reduceat(frames.histogram, np.arange(0, LEVELS, 32), axis=1)
    return np.concatenate([eighths / eighths.sum(1, keepdims=True), frames.colour], 1)


def counts(levels: np.ndarray, label: np.ndarray, threshold: float) -> np.ndarray:
    """(3,) TP, FP and FN pixels of a frame's levels and label (h, w); 255 in either is left out."""
    valid = (levels != IGNORE) & (label != IGNORE)
    drawn, truth = shown(threshold)[np.minimum(levels, LEVELS - 1)], label > 0
    return np.array(
        [np.count_nonzero(valid & a) for a in (drawn & truth, drawn & ~truth, ~drawn & truth)],
        float,
    )


def building_levels(levels: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(LEVELS,) a frame's building pixels by the level that the map gives them."""
    valid = (levels != IGNORE) & (label != IGNORE) & (label > 0)
    return np.bincount(levels[valid], minlength=LEVELS)[:LEVELS]


def crop(image, window: Window, margin: int) -> tuple[np.ndarray, Window]:
    """A window of an image (H, W, C) with `margin` more on each side as far as there is any;
    and the window in it.
    """
    top, left = max(0, window.top - margin), max(0, window.left - margin)
    part = np.array(
        image[top : window.top + window.height + margin, left : window.left + window.width + margin]
    )
    return part, window.shifted(-top, -left)


def check_place(raster: Raster, scene: str) -> None:
    if raster.grid.crs is None:
        raise InputError(
            f"{scene}: carries no CRS, so nobody could draw on it; give it one (gdal_edit -a_srs, "
            f"-a_ullr)"
        )
