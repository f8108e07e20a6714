"""Class probabilities on a model's grid, band of rows by band of rows, into a map
on the scene's own grid.

A map is a mask (0 background, 1..k classes, 255 no data), optional layers of probability and
uncertainty, and polygons. Memory is that of a band.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import shapely

from pipeline.imagery.grid import Grid, Window
from pipeline.imagery.raster import Resampler
from pipeline.imagery.writer import WriteFootprints, WriteRows
from pipeline.labels import IGNORE
from pipeline.mapping.polygons import Buildings, Polygoniser, identifiers, pixel_areas
from pipeline.mapping.regular import Outlines
from pipeline.mapping.splitting import Necks, Splitter
from pipeline.params import Predict

CHUNK = 2**22  # pixels mapped at a time, of the scene's grid or of the model's, whichever is finer
ROWS = 256  # of the scene mapped at a time: more would wait for its last passes to be over
STEPS = 254  # a stored layer's steps from 0 to its largest value; 255 is no data
LAYERS = {"mask": 1.0, "probability": 1.0, "uncertainty": 0.5}  # and their largest values
# building probabilities are counted by their logit: 0.999 is not 0.9999
LOGITS = np.linspace(-8, 8, 256)
CONFIDENCE = 1 / (1 + np.exp(-LOGITS))


@dataclass
class Totals:
    """What a map holds, summed over its pixels with data."""

    area: float = 0.0  # m² on the ground
    buildings: int = 0
    built_area: float = 0.0  # m²
    # pixels by CONFIDENCE
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(LOGITS), np.int64))


def pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """(rows, W, k) in turn, no more than CHUNK pixels or a row at a time."""
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


class Mapper:
    """Push bands of probabilities, from the top, into `add`; call `finish` after the last one.

    model, scene: the two grids, one outline; native: metres of the scene's pixels (along a row,
    along a column); decide: from probabilities (h, W, k) to the classes drawn (h, W) uint8; layers:
    where the rows of LAYERS go; footprints: where polygons go, None = none are made; validity:
    where the scene holds data (see Raster.source_validity); contacts: whether the model tells them,
    and touching buildings can come apart.
    """

    def __init__(
        self,
        model: Grid,
        scene: Grid,
        native: tuple[float, float],
        settings: Predict,
        decide: Callable[[np.ndarray], np.ndarray],
        layers: dict[str, WriteRows],
        footprints: WriteFootprints | None = None,
        validity: Callable[[Window], np.ndarray | None] = lambda window: None,
        name: str = "",
        contacts: bool = False,
    ):
        self.scene, self.native, self.settings, self.decide = scene, native, settings, decide
        self.layers, self.footprints, self.validity, self.name = layers, footprints, validity, name
        self.resample = Resampler(model.shape, scene.shape)
        self.band = np.empty((0, model.width, 0), np.float32)  # model rows still needed
        self.top = 0  # the first of them
        self.row = 0  # the scene's next row
        # its rows mapped at a time
        self.step = min(ROWS, max(1, int(CHUNK / max(1, self.resample.density)) // scene.width))
        self.contacts = contacts and footprints is not None and settings.split < 1
        pixel = float(np.sqrt(np.prod(native)))
        self.splitter = Splitter(scene.width, pixel)
        enlarged = float(np.sqrt(np.prod(np.divide(scene.shape, model.shape))))
        self.necks = (
            Necks(pixel * enlarged, settings.neck, self._decided, self.contacts)
            if settings.neck and footprints is not None
            else None
        )
        # whether the last channel of a band is of contacts, and from which probability on
        self.apart = self.contacts or self.necks is not None
        self.contact = settings.split if self.contacts else 0.5
        self.polygoniser = Polygoniser(scene.width, self._least_pixels())
        self.outlines = Outlines(settings.outlines, scene.shape, native)
        self.totals = Totals()

    def _least_pixels(self) -> int:
        """Fewer pixels than these are less than the least area anywhere in the
        scene, with a tenth to spare.
        """
        nine = np.stack(
            np.meshgrid(*(np.linspace(0, side, 3) for side in self.scene.shape[::-1])), -1
        ).reshape(-1, 2)
        largest = np.nanmax(pixel_areas(self.scene, nine, self.native))
        return max(1, int(0.9 * self.settings.min_area / largest))

    def add(self, probabilities: np.ndarray) -> None:
        """The next model rows (rows, W, k) float32: k classes, then the uncertainty where it is
        mapped, then the probability of a contact with `contacts`.
        """
        for piece in pieces(probabilities):
            for rows in self.necks.add(piece) if self.necks else [piece]:
                self._take(rows)

    def _take(self, rows: np.ndarray) -> None:
        for piece in pieces(rows):
            self.band = np.concatenate([self.band, piece]) if len(self.band) else piece
            self._advance()

    def _decided(self, rows: np.ndarray) -> np.ndarray:
        """The mask (h, W) of classes and, where it is mapped, the uncertainty."""
        return self.decide(rows[..., :-1] if "uncertainty" in self.layers else rows)

    def _advance(self) -> None:
        """Map the scene's rows that the model's rows so far decide."""
        height, width = self.scene.shape
        while self.row < height:
            window = Window(self.row, 0, min(self.step, height - self.row), width)
            reach = self.resample.source_window(window)
            if reach.top + reach.height > self.top + len(self.band):
                return
            rows = self.band[reach.top - self.top : reach.top - self.top + reach.height]
            if not self.resample.same:
                channels = [self.resample(rows[..., k], window) for k in range(rows.shape[-1])]
                rows = np.stack(channels, axis=-1)
            self._map(rows, window)
            self.row += window.height
            self.band, self.top = self.band[reach.top - self.top :], reach.top

    def finish(self) -> Totals:
        for rows in self.necks.finish() if self.necks else []:
            self._take(rows)
        if self.footprints:
            for band in self.splitter.finish():
                self._emit(self.polygoniser.add(*band))
            self._emit(self.polygoniser.finish())
        return self.totals

    def _map(self, rows: np.ndarray, window: Window) -> None:
        """Scene rows (h, W, k to k + 2): decide, write, trace."""
        if self.apart:
            rows, contact = rows[..., :-1], rows[..., -1] >= self.contact
        uncertainty = rows[..., -1] if "uncertainty" in self.layers else None
        classes = rows if uncertainty is None else rows[..., :-1]
        single = classes.shape[-1] == 1
        building = classes[..., 0] if single else classes.sum(-1)
        mask = self.decide(classes)
        valid = self.validity(window)
        nowhere = None if valid is None else ~valid
        if nowhere is not None:
            mask[nowhere] = IGNORE
        self.layers["mask"](window.top, mask[None])
        if "probability" in self.layers:
            self._write("probability", np.moveaxis(classes, -1, 0), nowhere, window)
        if uncertainty is not None:
            self._write("uncertainty", uncertainty[None], nowhere, window)
        if self.footprints:
            band = mask, building if single else classes.max(-1)
            for apart in self.splitter.add(*band, contact) if self.apart else [band]:
                self._emit(self.polygoniser.add(*apart))
        self._count(building, valid, window)

    def _write(
        self, layer: str, values: np.ndarray, nowhere: np.ndarray | None, window: Window
    ) -> None:
        stored = np.rint(np.clip(values * (STEPS / LAYERS[layer]), 0, STEPS)).astype(np.uint8)
        if nowhere is not None:
            stored[:, nowhere] = IGNORE
        self.layers[layer](window.top, stored)

    def _count(self, building: np.ndarray, valid: np.ndarray | None, window: Window) -> None:
        rows = np.arange(window.top, window.top + window.height)
        pixels = (
            np.full(window.height, window.width)
            if valid is None
            else np.count_nonzero(valid, axis=1)
        )
        centres = np.stack([np.full(len(rows), window.width / 2), rows + 0.5], axis=1)
        self.totals.area += float(pixels @ pixel_areas(self.scene, centres, self.native))
        sample = np.s_[::4, ::4]  # plenty for a histogram
        p = building[sample] if valid is None else building[sample][valid[sample]]
        p = np.clip(p, CONFIDENCE[0], CONFIDENCE[-1])
        level = np.rint((np.log(p / (1 - p)) - LOGITS[0]) / (LOGITS[1] - LOGITS[0])).astype(
            np.uint8
        )
        self.totals.histogram += np.bincount(level.ravel(), minlength=len(LOGITS))

    def _emit(self, buildings: Buildings) -> None:
        """Drop what is too small, give the rest its shape, area and id, and
        write it in the scene's CRS.
        """
        if self.footprints is None or not len(buildings):
            return
        ground = pixel_areas(
            self.scene, shapely.get_coordinates(shapely.centroid(buildings.geometry)), self.native
        )
        kept = buildings.pixels * ground >= self.settings.min_area
        buildings, ground = buildings.where(kept), ground[kept]
        polygons, regular = self.outlines.add(
            buildings.geometry, self.polygoniser.row, self.polygoniser.opened
        )
        some = ~shapely.is_empty(polygons)
        buildings, ground, polygons, regular = (
            buildings.where(some),
            ground[some],
            polygons[some],
            regular[some],
        )
        if not len(buildings):
            return
        ids = identifiers(buildings, self.scene, self.name)
        areas = np.round(shapely.area(polygons) * ground, 3)
        # blending windows leaves noise in the eighth digit
        confidence = np.round(buildings.confidence, 4)
        columns = {"id": ids, "label": buildings.label, "area_m2": areas, "confidence": confidence,
                   "regularised": regular}  # fmt: skip
        place = self.scene.transform
        self.footprints(
            columns,
            shapely.transform(polygons, lambda xy: np.stack(place @ (xy[:, 0], xy[:, 1]), 1)),
        )
        self.totals.buildings += len(buildings)
        self.totals.built_area += float(areas.sum())
