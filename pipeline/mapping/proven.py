"""What is proven of a whole scene's map, as it is drawn from blended windows.

A perturbation is one of the pixels as the model reads them, in [0, 1]. The probability of a pixel
is a mean over the windows that hold it, and over turns. Where each of them says class k, whatever
the perturbation, so does the mean: kinds of building whose probabilities exceed the threshold, or
the others', in every term do so in the mean. A scene of another ground sample distance is drawn
from resampled probabilities, means again.

The classes of the whole scene are held in memory: certifying them takes far longer than their size.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.certificates.bounds import ABSTAIN, Bounds, certified_classes, image_box
from pipeline.certificates.crown import crown_ibp_margins
from pipeline.certificates.lipschitz import at_radius
from pipeline.certificates.ordering import lipschitz_certificate
from pipeline.console import progress
from pipeline.errors import InputError
from pipeline.imagery.grid import Grid, Window
from pipeline.imagery.raster import Resampler
from pipeline.imagery.writer import cloud_optimised
from pipeline.labels import IGNORE
from pipeline.mapping.flow import window_side
from pipeline.mapping.inputs import class_names, decision
from pipeline.networks.card import Card
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import direct_sums, without_cudnn
from pipeline.params import METHODS, UNITS, Convex, Predict, proof_of
from pipeline.scoring.inference import layout, symmetries
from pipeline.tiles.tensors import to_float

UNPROVEN = 254  # as a map stores it
ROWS = 512  # written at a time
UNSEEN = -2  # a pixel that no window has held yet
CROP = 64  # pixels along the side of a crop, which certify.convex.chunk is meant for
CertifyWindow = Callable[[Tensor, float], Tensor]  # (image (1, C, h, w), stretch) to classes (h, w)


def prove(segmenter, image, scene: Grid, settings: Predict, path: Path, validity: Callable) -> dict:
    """Write what is proven of the map that `predict` draws of `image` (a Raster),
    on the scene's grid; `validity` as Raster.source_validity. Returns what is
    certified, and how much of the scene.
    """
    method = method_of_drawn(segmenter, "the model")
    section: Any = METHODS[method]()
    radius = settings.radius or min(section.radii)
    drawn = copy.copy(segmenter)  # whose decision is the settings'
    drawn.decision = decision(settings, segmenter.card)
    window = window_of(drawn, method, radius)
    classes = proven_classes(
        drawn, image, settings, window, lambda steps: progress(steps, "certifying")
    )
    found = write_proven(path, scene, classes, validity, segmenter.card)
    norm = METHODS[method].norm
    return {
        "method": method,
        "norm": norm,
        "radius": radius,
        "unit": UNITS[norm],
        "arithmetic": "float32",
        **found,
    }


def method_of_drawn(segmenter, name: str) -> str:
    """The method that certifies the map this model draws. Raises InputError where none does."""
    model = segmenter.card.model
    method = proof_of(model)
    if method and isinstance(segmenter, Segmenter):
        check_kinds(segmenter, name)
        return method
    folder = "" if isinstance(segmenter, Segmenter) else ", exported,"
    raise InputError(
        f"--certified: {name}{folder} is of architecture {model.architecture}, of whose map "
        f"nothing is proven; take a "
        "folder with a small_fcn, small_unet or lipschitz model, or vote under noise: certify "
        "--scene"
    )


def check_kinds(segmenter, name: str) -> None:
    if segmenter.classes >= UNPROVEN:
        raise InputError(
            f"{name}: has {segmenter.classes} classes; a map of proofs holds {UNPROVEN - 1}"
        )


def window_of(
    segmenter: Segmenter, method: str, radius: float, chunk: int = Convex().chunk
) -> CertifyWindow:
    """How a window is certified by convex or lipschitz, at a radius in the method's unit."""
    direct_sums()
    return (
        convex_window(segmenter, radius / 255, chunk)
        if method == "convex"
        else lipschitz_window(segmenter, radius)
    )


def convex_window(segmenter: Segmenter, epsilon: float, chunk: int) -> CertifyWindow:
    """Classes proven in the ℓ∞ ball of radius ε (pixel range [0, 1]); a repeated edge moves as
    far as its pixel.
    """
    bounds = Bounds(segmenter.network, segmenter.decision)

    @without_cudnn()  # whose convolutions may be no direct sums
    def classes(image: Tensor, stretch: float) -> Tensor:
        passes = max(1, int(chunk * CROP**2 / math.prod(image.shape[-2:])))
        return certified_classes(
            crown_ibp_margins(bounds, image_box(segmenter, image, epsilon), chunk=passes)
        )[0]

    return classes


def lipschitz_window(segmenter: Segmenter, radius: float) -> CertifyWindow:
    """Classes proven in the ℓ2 ball, of which a window holds a part; an edge repeated `stretch`
    times is longer.
    """

    def classes(image: Tensor, stretch: float) -> Tensor:
        prediction, reach = lipschitz_certificate(segmenter, image)
        return at_radius(prediction, reach, radius * stretch)[0]

    return classes


@torch.no_grad()
def proven_classes(
    segmenter: Segmenter, image, settings: Predict, window: CertifyWindow, watch: Callable = iter
) -> np.ndarray:
    """Classes (H, W) int16 of the map that `predict` draws of image (H, W, C) uint8, ABSTAIN where
    a window does not prove what the others do. `image` is read a window at a time; `watch` is given
    the windows, to show progress.
    """
    height, width = image.shape[:2]
    found = np.full((height, width), UNSEEN, np.int16)
    on = next(segmenter.buffers()).device
    for rows, columns, tall, wide in watch(_windows(segmenter, height, width, settings)):
        pixels = np.ascontiguousarray(image[rows, columns])
        below, right = tall - pixels.shape[0], wide - pixels.shape[1]
        pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
        # of ‖δ‖₂, where a perturbed edge is repeated
        stretch = math.sqrt((1 + below) * (1 + right))
        part = to_float(torch.from_numpy(pixels)[None].to(on))
        views = (
            symmetries(part) if settings.augment or settings.uncertainty else [(part, lambda p: p)]
        )
        for view, upright in views:
            classes = upright(window(view, stretch)[None, None])[0, 0].cpu().numpy()
            seen = found[rows, columns]
            found[rows, columns] = _agreed(seen, classes[: seen.shape[0], : seen.shape[1]])
    return found


def _windows(
    segmenter, height: int, width: int, settings: Predict
) -> list[tuple[slice, slice, int, int]]:
    """Rows and columns of each window inside the scene, and its sides with the repeated edge:
    as `infer` lays them.
    """
    side = window_side(settings.window, width * (segmenter.classes + settings.uncertainty))
    tall, wide, tops, lefts = layout(height, width, side, settings.overlap, segmenter.stride)
    return [
        (slice(top, min(top + tall, height)), slice(left, min(left + wide, width)), tall, wide)
        for top in tops for left in lefts
    ]  # fmt: skip


def _agreed(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    return np.where((before == UNSEEN) | (before == now), now, ABSTAIN)


def write_proven(
    path: Path, grid: Grid, classes: np.ndarray, validity: Callable, card: Card
) -> dict:
    """The GeoTIFF of classes (H, W) on `grid`, ABSTAIN where nothing is proven, of which
    `validity(window)` says where there is data. Returns pixels with data, how many of them are
    proven of each class, and the share that is.
    """
    resample, counts = Resampler(classes.shape, grid.shape), np.zeros(IGNORE + 1, np.int64)
    band = f"proven: 0 background, {', '.join(class_names(card))}, {UNPROVEN} not proven"
    with cloud_optimised(path, grid, [band]) as write:
        for top in range(0, grid.height, ROWS):
            window = Window(top, 0, min(ROWS, grid.height - top), grid.width)
            found, known = _resampled(classes, resample, window), validity(window)
            stored = np.where(found < 0, UNPROVEN, found).astype(np.uint8)
            if known is not None:
                stored[~known] = IGNORE
            counts += np.bincount(stored.ravel(), minlength=len(counts))
            write(top, stored[None])
    proven = {str(k): int(counts[k]) for k in range(card.classes + 1)}
    pixels = int(counts[:IGNORE].sum())
    return {"pixels": pixels, "proven": proven, "share": sum(proven.values()) / max(1, pixels)}


def _resampled(classes: np.ndarray, resample: Resampler, window: Window) -> np.ndarray:
    """A class where all pixels that a resampled one is a mean of prove it."""
    part = classes[resample.source_window(window).slices]
    if resample.same:
        return part
    found = np.full((window.height, window.width), ABSTAIN, np.int16)
    for k in np.unique(part[part >= 0]):
        # weights are positive: no other class has a share
        found[resample(part != k, window) == 0] = k
    return found
