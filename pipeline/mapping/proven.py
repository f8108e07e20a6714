"""What is proven of a whole scene's map, as it is drawn from blended windows.

The probability of a pixel is a mean over the windows that hold it, and over turns. Where each of them says class k,
whatever the perturbation, so does the mean: kinds of building whose probabilities exceed the threshold, or the
others', in every term do so in the mean.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.certificates.bounds import ABSTAIN, Bounds, certified_classes, image_box
from pipeline.certificates.crown import crown_ibp_margins
from pipeline.certificates.lipschitz import at_radius
from pipeline.certificates.ordering import lipschitz_certificate
from pipeline.mapping.flow import window_side
from pipeline.networks.models import Segmenter
from pipeline.params import Predict
from pipeline.scoring.inference import layout, symmetries
from pipeline.tiles.tensors import to_float

UNSEEN = -2  # a pixel that no window has held yet
CROP = 64  # pixels along the side of a crop, which certify.convex.chunk is meant for
CertifyWindow = Callable[[Tensor, float], Tensor]  # (image (1, C, h, w), stretch) to classes (h, w)


def convex_window(segmenter: Segmenter, epsilon: float, chunk: int) -> CertifyWindow:
    """Classes proven in the ℓ∞ ball of radius ε (pixel range [0, 1]); a repeated edge moves as far as its pixel."""
    bounds = Bounds(segmenter.network, segmenter.decision)

    @torch.backends.cudnn.flags(enabled=False)  # whose convolutions may be no direct sums
    def classes(image: Tensor, stretch: float) -> Tensor:
        passes = max(1, int(chunk * CROP**2 / math.prod(image.shape[-2:])))
        return certified_classes(crown_ibp_margins(bounds, image_box(segmenter, image, epsilon), chunk=passes))[0]

    return classes


def lipschitz_window(segmenter: Segmenter, radius: float) -> CertifyWindow:
    """Classes proven in the ℓ2 ball, of which a window holds a part; an edge repeated `stretch` times is longer."""

    def classes(image: Tensor, stretch: float) -> Tensor:
        prediction, reach = lipschitz_certificate(segmenter, image)
        return at_radius(prediction, reach, radius * stretch)[0]

    return classes


@torch.no_grad()
def proven_classes(
    segmenter: Segmenter, image, settings: Predict, window: CertifyWindow, watch: Callable = iter
) -> np.ndarray:
    """Classes (H, W) int16 of the map that `predict` draws of image (H, W, C) uint8, ABSTAIN where a window does not
    prove what the others do. `image` is read a window at a time; `watch` is given the windows, to show progress.
    """
    height, width = image.shape[:2]
    found = np.full((height, width), UNSEEN, np.int16)
    on = next(segmenter.buffers()).device
    for rows, columns, tall, wide in watch(_windows(segmenter, height, width, settings)):
        pixels = np.ascontiguousarray(image[rows, columns])
        below, right = tall - pixels.shape[0], wide - pixels.shape[1]
        pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
        stretch = math.sqrt((1 + below) * (1 + right))  # of ‖δ‖₂, where a perturbed edge is repeated
        part = to_float(torch.from_numpy(pixels)[None].to(on))
        views = symmetries(part) if settings.augment or settings.uncertainty else [(part, lambda p: p)]
        for view, upright in views:
            classes = upright(window(view, stretch)[None, None])[0, 0].cpu().numpy()
            seen = found[rows, columns]
            found[rows, columns] = _agreed(seen, classes[: seen.shape[0], : seen.shape[1]])
    return found


def _windows(segmenter, height: int, width: int, settings: Predict) -> list[tuple[slice, slice, int, int]]:
    """Rows and columns of each window inside the scene, and its sides with the repeated edge: as `infer` lays them."""
    side = window_side(settings.window, width * (segmenter.classes + settings.uncertainty))
    tall, wide, tops, lefts = layout(height, width, side, settings.overlap, segmenter.stride)
    return [
        (slice(top, min(top + tall, height)), slice(left, min(left + wide, width)), tall, wide)
        for top in tops for left in lefts
    ]  # fmt: skip


def _agreed(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    return np.where((before == UNSEEN) | (before == now), now, ABSTAIN)
