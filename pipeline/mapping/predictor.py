"""Maps from Python: `pipeline.load_model(path).predict(array_or_path)`, held in memory."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from pipeline.errors import InputError
from pipeline.imagery.grid import Grid
from pipeline.imagery.raster import grid_of
from pipeline.labels import IGNORE
from pipeline.mapping.flow import fill
from pipeline.mapping.inputs import Task, decision, open_scene
from pipeline.mapping.mapper import STEPS, Mapper
from pipeline.mapping.read_ahead import ReadAhead
from pipeline.mapping.scene_list import list_scenes
from pipeline.networks.card import Card
from pipeline.params import Predict, parse_section
from pipeline.scoring.inference import Image


@dataclass(frozen=True)
class Map:
    """A map in memory: mask (H, W) uint8, probability (H, W, k) float32, and
    polygons with their columns.
    """

    mask: np.ndarray
    probability: np.ndarray
    transform: Affine
    crs: object | None
    columns: dict[str, np.ndarray]
    geometry: np.ndarray

    @property
    def polygons(self):
        """A GeoDataFrame: id, label, area_m2, confidence, regularised; in pixel coordinates
        where there is no CRS.
        """
        import geopandas

        return geopandas.GeoDataFrame(self.columns, geometry=self.geometry, crs=self.crs)


@dataclass(frozen=True)
class Predictor:
    """A model, ready to map: what `pipeline.load_model` answers."""

    segmenter: Any  # a Segmenter or an OnnxSegmenter

    @property
    def card(self) -> Card:
        return self.segmenter.card

    def predict(
        self,
        image: np.ndarray | str | Path,
        *,
        gsd: float | None = None,
        bands: list[int] | None = None,
        value_range: tuple[float, float] | None = None,
        **settings,
    ) -> Map:
        """The map of an array (H, W, C) uint8 or of a raster's path or URL;
        `settings` as params.Predict.

        An array has the model's bands and ground sample distance; a raster is read as the predict
        stage reads it, and as its map is held in memory, larger scenes are for that. Raises
        InputError on an image that does not fit the model.
        """
        chosen = parse_section(Predict, settings)
        with ExitStack() as stack:
            if isinstance(image, np.ndarray):
                pixels: Image = image
                scene = model = _check_array(image, self.card)
                native, validity, empty = (self.card.gsd, self.card.gsd), lambda window: None, None
                if not gsd is bands is value_range is None:
                    raise InputError(
                        "gsd, bands and value_range tell how to read a raster; an "
                        "array is the model's"
                    )
            else:
                task = Task(
                    _one_scene(str(image)),
                    "",
                    "",
                    chosen,
                    gsd,
                    tuple(bands) if bands else None,
                    value_range,
                )
                raster, twin = open_scene(stack, task, self.card)
                scene, model, native = grid_of(raster.dataset), raster.grid, raster.native
                pixels = rows = stack.enter_context(ReadAhead(raster))
                validity, empty = twin.source_validity, rows.empty
            mask = np.zeros((1, *scene.shape), np.uint8)
            probability = np.zeros((self.card.classes, *scene.shape), np.uint8)
            batches: list[tuple[dict, np.ndarray]] = []

            def into(array: np.ndarray):
                return lambda row, pixels: np.copyto(array[:, row : row + pixels.shape[1]], pixels)

            mapper = Mapper(
                model, scene, native, chosen, decision(chosen, self.card).of_probabilities,
                {"mask": into(mask), "probability": into(probability)},
                lambda *batch: batches.append(batch), validity, contacts=self.segmenter.contacts,
            )  # fmt: skip
            fill(self.segmenter, pixels, mapper, chosen, empty=empty)
        columns = {
            name: np.concatenate([c[name] for c, _ in batches] or [[]])
            for name in ("id", "label", "area_m2", "confidence", "regularised")
        }
        geometry = np.concatenate([g for _, g in batches] or [np.empty(0, object)])
        values = np.where(mask == IGNORE, np.nan, probability / np.float32(STEPS))
        return Map(
            mask[0], np.moveaxis(values, 0, -1), scene.transform, scene.crs, columns, geometry
        )


def _one_scene(path: str) -> str:
    found = list(list_scenes([path]).values())
    if len(found) != 1:
        raise InputError(
            f"{path}: names {len(found)} scenes; one is mapped in memory, the predict "
            f"stage maps many"
        )
    return found[0]


def _check_array(image: np.ndarray, card: Card) -> Grid:
    if (
        image.ndim != 3
        or image.shape[2] != card.channels
        or image.dtype != np.uint8
        or not image.size
    ):
        wanted = f"(H, W, {card.channels}) uint8"
        raise InputError(f"an image is {wanted} for this model, not {image.shape} {image.dtype}")
    return Grid(*image.shape[:2], Affine.identity(), None)
