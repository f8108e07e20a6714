"""Pixels through the model into a map: reading, forward passes and mapping
overlap, a band of rows at a time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch

from pipeline.console import progress_bar
from pipeline.mapping.mapper import CONFIDENCE, Mapper, Totals
from pipeline.networks.decision import Decision
from pipeline.networks.glance import Glance
from pipeline.networks.models import Segmenter
from pipeline.networks.precision import direct_sums, without_cudnn
from pipeline.params import Predict, proof_of
from pipeline.scoring.disagreement import Disagreement
from pipeline.scoring.expected_iou import Thresholds, expected_iou, thresholded_iou
from pipeline.scoring.inference import Image, infer

BAND, LEAST_WINDOW = 24_000_000, 128  # values of a band of windows; rows it never goes below


class Glimpses:
    """Which windows a glance finds worth a pass, and what share it did not."""

    def __init__(self, glance: Glance):
        self.glance, self.windows, self.skipped = glance, 0, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        worth = self.glance.sees(images)
        self.windows += len(worth)
        self.skipped += len(worth) - int(worth.sum())
        return worth

    @property
    def share(self) -> float:
        return self.skipped / max(1, self.windows)


def fill(
    segmenter: Segmenter,
    image: Image,
    mapper: Mapper,
    settings: Predict,
    name: str = "",
    empty: Callable[[slice, slice], bool] | None = None,
    worth: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Totals:
    """Run `image` through the segmenter and push its bands into `mapper`, which works in a thread.

    empty, worth: see `infer`.
    """
    network, temperature, augment = (
        segmenter,
        Decision.of(segmenter.card).temperature,
        settings.augment,
    )
    if settings.uncertainty:
        network, temperature, augment = Disagreement(segmenter, temperature), 1.0, False
    proven = proof_of(segmenter.card.model) is not None
    if proven:  # what is drawn is what is proven, in its arithmetic
        direct_sums()
    window = window_side(settings.window, image.shape[1] * (network.classes + mapper.contacts))
    bands = infer(
        network, image, window=window, overlap=settings.overlap,
        batch_size=settings.batch_size, augment=augment, temperature=temperature,
        contacts=mapper.contacts, empty=empty, worth=worth,
        precision="fp32" if proven else "auto",
    )  # fmt: skip
    with (
        without_cudnn() if proven else nullcontext(),
        progress_bar() as bar,
        ThreadPoolExecutor(1, thread_name_prefix="map") as worker,
    ):
        rows, mapping = bar.add_task(f"mapping {name}", total=image.shape[0]), None
        for top, probabilities in bands:
            bar.update(rows, completed=top + len(probabilities))
            buildings = np.ascontiguousarray(probabilities[..., 1:])
            # a band of a wide scene is hundreds of megabytes: hold no more of them than needed
            del probabilities
            if settings.uncertainty:
                buildings[..., : network.classes] = Disagreement.split(
                    buildings[..., : network.classes]
                )
            if mapping:
                mapping.result()
            mapping = worker.submit(mapper.add, buildings)
        if mapping:
            mapping.result()
    return mapper.finish()


def window_side(window: int, width: int) -> int:
    """The window of a scene so wide, its layers side by side, that a band of
    whole ones exceeds BAND is lower.
    """
    return min(window, max(LEAST_WINDOW, BAND // width // 32 * 32))


def label_free_iou(totals: Totals, confidence: dict[str, float] | None) -> float | None:
    """The IoU to expect of a map, from its building probabilities alone. None where
    nothing is built.

    By the thresholds of `confidence` that training left in the card; without them, as if
    probabilities were true. It is that of buildings above 0.5, which the thresholds were fitted to,
    whatever threshold the map is drawn at.
    """
    if not totals.histogram[CONFIDENCE > 0.5].any():
        return None
    if confidence:
        return thresholded_iou(CONFIDENCE, Thresholds(**confidence), totals.histogram)
    return expected_iou(CONFIDENCE, totals.histogram)
