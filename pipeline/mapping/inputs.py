"""What a map is made from: a model, and a scene that fits it."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from pipeline.errors import InputError
from pipeline.imagery.raster import (
    Raster,
    check_colours,
    declared_bands,
    open_raster,
    robust_range,
    unplaced,
)
from pipeline.networks.card import Card
from pipeline.networks.decision import Decision
from pipeline.networks.folding import folded
from pipeline.networks.models import read_model
from pipeline.networks.onnx_file import load_onnx
from pipeline.networks.precision import device
from pipeline.params import Predict

NO_RANGE = (0.0, 1.0)  # of a scene without a single value: its map is no data everywhere


@dataclass(frozen=True)
class Task:
    """One scene to map; `gsd`, `bands` and `range` are what its file does not say itself.

    Raises InputError where one of the three cannot be.
    """

    scene: str
    name: str
    out: str
    settings: Predict = Predict()
    gsd: float | None = None  # metres on the ground, where the scene has no CRS
    bands: tuple[int, ...] | None = None  # 1-based; None = the model's
    # values mapped to 0 and 255; None = estimated where they are not uint8
    range: tuple[float, ...] | None = None
    known: str | None = None  # a file of the footprints that one has

    def __post_init__(self):
        if self.gsd is not None and not self.gsd > 0:
            raise InputError(
                f"a ground sample distance of {self.gsd:g} m: state more than 0 "
                f"metres a pixel with --gsd"
            )
        if self.bands is not None and min(self.bands) < 1:
            raise InputError(
                f"--bands {','.join(map(str, self.bands))}: a scene's bands count from 1"
            )
        ends = self.range
        if ends is not None and not (len(ends) == 2 and -inf < ends[0] < ends[1] < inf):
            raise InputError(
                f"--range {','.join(f'{v:g}' for v in ends)}: write LOW,HIGH with LOW < HIGH, "
                f"both finite"
            )


def load(model: str | Path, on=None):
    """A model folder, or an ONNX file that `export` wrote; `on` None = a GPU where there is one."""
    if Path(model).suffix == ".onnx":
        return load_onnx(model)
    return folded(read_model(model, on or device()))


def open_scene(stack: ExitStack, task: Task, card: Card) -> tuple[Raster, Raster]:
    """The scene on the model's grid, a handle for each of two threads, open as long as `stack` is.

    Raises InputError where it cannot be read or does not fit the model.
    """
    image = _open(stack, task, card)
    return image, _open(stack, replace(task, range=image.range), card)


def _open(stack: ExitStack, task: Task, card: Card) -> Raster:
    dataset = stack.enter_context(open_raster(task.scene))
    check_colours(dataset)  # before more bands than its one are asked for
    bands = list(task.bands or declared_bands(dataset, card.scene_bands))
    if len(bands) != card.channels:
        raise InputError(f"--bands names {len(bands)} bands; the model reads {card.channels}")
    if max(bands) > dataset.count:
        asked = ", ".join(map(str, bands))
        raise InputError(
            f"{task.scene}: has {dataset.count} band{'s' * (dataset.count > 1)}, but the model "
            f"reads bands "
            f"{asked}; say which of the scene's bands to read with --bands"
        )
    if task.gsd is None and (reason := unplaced(dataset)):
        raise InputError(
            f"{task.scene}: {reason}, so its ground sample distance is unknown; state it with --gsd"
        )
    scale = task.range
    if scale is None and dataset.dtypes[bands[0] - 1] != "uint8":
        scale = (
            robust_range([Raster(dataset, bands, card.gsd, task.gsd, (0, 1)).sample()]) or NO_RANGE
        )
    return Raster(dataset, bands, card.gsd, task.gsd, scale)


def decision(settings: Predict, card: Card) -> Decision:
    """Which class a pixel is drawn as: the card's rule, from validation, or
    with the threshold that is stated.
    """
    own = Decision.of(card)
    return replace(own, threshold=settings.threshold or own.threshold)


def class_names(card: Card) -> list[str]:
    return ["building"] if card.classes == 1 else [f"class {k}" for k in range(1, card.classes + 1)]
