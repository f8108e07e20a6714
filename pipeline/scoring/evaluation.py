"""A model against a city's labelled scenes: counts a scene, then the city's
metrics with intervals.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from pipeline.labels import IGNORE, Split
from pipeline.networks.folding import folded
from pipeline.networks.models import Segmenter
from pipeline.params import Evaluate, Predict
from pipeline.scoring import blocks, metrics
from pipeline.scoring.apart import necks, tell_apart
from pipeline.scoring.bootstrap import Estimate, iou_estimate, mean_of, shown, worst_of
from pipeline.scoring.fairness import SceneCounts, fairness, size_names
from pipeline.scoring.inference import infer
from pipeline.scoring.metrics import ratio
from pipeline.tiles.store import CityTiles, Region

DEFAULTS = Predict()


@dataclass(frozen=True)
class SceneResult:
    """One region's building map, uint8: `prediction` (H, W) classes, `apart` (H, W) with 0 between
    touching buildings, `confidence` (H, W) in 1/255 of probability.
    """

    region: Region
    prediction: np.ndarray
    apart: np.ndarray
    confidence: np.ndarray
    pixels: np.ndarray  # TP, FP, FN, TN


@dataclass
class CityResult:
    """A city's counts. `iou` is None where the labels know no building."""

    city: str
    gsd: float
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    classes: np.ndarray | None = None
    boundary: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    confidence: np.ndarray = field(default_factory=lambda: np.zeros((2, 256), np.int64))
    calibrated: np.ndarray = field(default_factory=lambda: np.zeros((2, 256), np.int64))
    objects: list[metrics.Objects] = field(default_factory=list)
    # (4, R, C) of each region, by scene
    cells: dict[str, list[np.ndarray]] = field(default_factory=dict)
    scenes: list[SceneCounts] = field(default_factory=list)  # of each region, for its groups

    @property
    def iou(self) -> float | None:
        return self.of_buildings(self.pixels[0], self.pixels[:3].sum())

    def of_buildings(self, intersection: int, union: int) -> float | None:
        """Their ratio; None where the labels know no building."""
        tp, _, fn, _ = self.pixels
        return ratio(intersection, union) if tp + fn else None

    @property
    def buildings(self) -> metrics.Objects:
        """Of all its scenes."""
        return sum(self.objects, metrics.Objects.none())

    def units(self, e: Evaluate, reach: float | None = None) -> blocks.Units:
        """Its scenes, or the blocks of its only one; `reach`: how far errors are correlated,
        where that is known.
        """
        return blocks.units(self.cells, e.block, reach)

    @property
    def reach(self) -> float:
        """How far its errors are correlated, in pixels; 0 of a city of several scenes, where it
        does not matter.
        """
        return blocks.correlated_over(*self.cells.values()) if len(self.cells) == 1 else 0.0

    def estimate(self, e: Evaluate) -> Estimate:
        """Its IoU, of a city that has one, with what its units know of others."""
        units = self.units(e)
        return iou_estimate(units.intersection, units.union, e.bootstrap, seed=0, held=units.held)


class Both(nn.Module):
    """A segmenter's class probabilities p = softmax(z / T), T its card's, and its building
    probability b as trained.

    It has the interface of a Segmenter of k + 1 classes, so that both are blended as ever, in one
    pass. Its logits are the logarithms of (rest, p₁/2, …, p_k/2, b/2), which softmax leaves as they
    are; `split` undoes the halving.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter, self.temperature = segmenter, segmenter.decision.temperature
        self.contacts = segmenter.contacts
        self.classes, self.stride = segmenter.classes + 1, segmenter.stride

    def forward(self, images: torch.Tensor, contacts: bool = False) -> torch.Tensor:
        answer = self.segmenter(images, contacts=contacts).float()
        logits, contact = answer[:, : self.classes], answer[:, self.classes :]
        kinds, building = (
            (logits / self.temperature).softmax(1)[:, 1:],
            1 - logits.softmax(1)[:, :1],
        )
        halves = torch.cat([kinds, building], 1) / 2
        answer = torch.cat([1 - halves.sum(1, keepdim=True), halves], 1).clamp_min(1e-12).log()
        return torch.cat([answer, contact], 1)

    @staticmethod
    def split(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Blended (…, k + 2) to p₁ … p_k (…, k) and b (…,)."""
        return 2 * p[..., 1:-1], 2 * p[..., -1]


def predict_region(segmenter: Segmenter, city: CityTiles, region: Region, e: Evaluate):
    """The building map of one region as `predict` draws it, its probability of
    building in 1/255, as trained and calibrated, and that of a contact (0 where the
    model knows none): all (H, W) uint8.
    """
    prediction = np.empty((region.height, region.width), np.uint8)
    confidence, calibrated, contact = (np.zeros_like(prediction) for _ in range(3))
    label = city.label(region)
    bands = infer(
        Both(segmenter), city.image(region), window=e.window, overlap=e.overlap,
        batch_size=e.batch_size, augment=e.augment, contacts=segmenter.contacts, empty=lambda rows,
        columns: bool((label[rows, columns] == IGNORE).all()),
    )  # fmt: skip
    for top, blended in bands:
        rows = slice(top, top + len(blended))
        if segmenter.contacts:
            blended, contact[rows] = blended[..., :-1], _in_255(blended[..., -1])
        kinds, building = Both.split(blended)
        prediction[rows] = segmenter.decision.of_probabilities(kinds)
        confidence[rows], calibrated[rows] = _in_255(building), _in_255(kinds.sum(-1))
    return prediction, confidence, calibrated, contact


def _in_255(probability: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(probability, 0, 1)).astype(np.uint8)


def delivered(judged: np.ndarray, label: np.ndarray, gsd: float, least: float) -> np.ndarray:
    """(H, W) int32: which building, of those of `least` m² or more on ground
    that the label knows.
    """
    found, _ = ndimage.label((judged > 0) & (label != IGNORE))
    return np.where(np.bincount(found.ravel())[found] * gsd**2 >= least, found, 0)


def evaluate_scenes(
    segmenter: Segmenter,
    city: CityTiles,
    e: Evaluate,
    split: Split = "test",
    predict: Predict = DEFAULTS,
) -> Iterator[tuple[SceneResult, CityResult]]:
    """Yield each region's map and the city's counts so far; after the last one the
    counts are the city's.

    predict: how those buildings are delivered that are counted one by one.
    """
    segmenter, regions = folded(segmenter), city.of_split(split)
    result = CityResult(city.city, city.gsd, classes=np.zeros((city.classes + 1,) * 2, np.int64))
    for region in regions:
        prediction, confidence, calibrated, contact = predict_region(segmenter, city, region, e)
        label = city.label(region)
        pixels = metrics.pixel_counts(prediction, label)
        result.pixels += pixels
        result.classes += metrics.class_counts(prediction, label, city.classes)
        thickness = metrics.boundary_distance(label.shape, city.gsd, e.boundary)
        result.boundary += metrics.boundary_counts(prediction, label, thickness)
        result.confidence += metrics.confidence_counts(confidence, label)
        result.calibrated += metrics.confidence_counts(calibrated, label)
        touching = np.zeros(prediction.shape, bool)
        if segmenter.contacts and predict.split < 1:
            touching |= contact >= 255 * predict.split
        if predict.neck:
            touching |= necks(prediction, city.gsd, predict.neck)
        apart = tell_apart(prediction, touching, city.gsd)
        # Label rasters know no wall between buildings that touch: there blobs match blobs.
        judged = prediction if city.numbers(region) is None else apart
        found = delivered(judged, label, city.gsd, predict.min_area)
        truth, sure = city.instances(region), calibrated / 255
        result.objects.append(metrics.match_objects(found, truth, sure, city.groups(region)))
        side = max(1, round(e.neighbourhood / city.gsd))
        squares = metrics.cell_counts(prediction, label, side)
        counted = SceneCounts(
            city.city, region.parent, city.gsd, squares, result.objects[-1], city.group_names
        )
        result.scenes.append(counted)
        result.cells.setdefault(region.parent, []).append(metrics.cell_counts(prediction, label))
        yield SceneResult(region, prediction, apart, confidence, pixels), result


def evaluate_city(
    segmenter: Segmenter,
    city: CityTiles,
    e: Evaluate,
    split: Split = "test",
    predict: Predict = DEFAULTS,
) -> CityResult:
    """The counts of all regions of a split. A city without regions in it gives
    zero counts and no units.
    """
    result = CityResult(city.city, city.gsd)
    for _, result in evaluate_scenes(segmenter, city, e, split, predict):  # noqa: B007 (the last one is whole)
        pass
    return result


# A line more is a metric more, of a city's counts: in metrics/evaluate.json, in
# `compare --of NAME` and its CSV.
MEASURES: dict[str, Callable[[CityResult], float | None]] = {
    "accuracy": lambda r: ratio(r.pixels[0] + r.pixels[3], r.pixels.sum()),
    "precision": lambda r: ratio(r.pixels[0], r.pixels[0] + r.pixels[1]),
    "recall": lambda r: ratio(r.pixels[0], r.pixels[0] + r.pixels[2]),
    "f1": lambda r: ratio(2 * r.pixels[0], r.pixels[0] + r.pixels[:3].sum()),
    "boundary_iou": lambda r: ratio(*r.boundary),
    "object_f1": lambda r: r.buildings.quality[1],
    "ap50": lambda r: r.buildings.average_precision,
    "panoptic_quality": lambda r: r.buildings.quality[0],
    "segmentation_quality": lambda r: r.buildings.quality[2],
    "buildings": lambda r: len(r.buildings.area),
    "buildings_found": lambda r: len(r.buildings.match),
    "merged": lambda r: r.buildings.merged,
    "split": lambda r: r.buildings.split,
    "ece": lambda r: metrics.calibration_error(r.confidence),
    "ece_calibrated": lambda r: metrics.calibration_error(r.calibrated),
}


def city_metrics(result: CityResult, e: Evaluate) -> dict:
    """One city's entry of metrics/evaluate.json."""
    known = result.iou is not None and bool(result.cells)
    low, high = result.estimate(e).shown() if known else (None, None)
    units = result.units(e)
    area, best = result.buildings.area, result.buildings.best_iou
    edges = [0, *e.size_bins, np.inf]
    sizes = {}
    for name, lo, hi in zip(size_names(e.size_bins), edges, edges[1:], strict=False):
        inside = (area * result.gsd**2 >= lo) & (area * result.gsd**2 < hi)
        count = int(inside.sum())
        sizes[name] = {
            "buildings": count,
            "recall": ratio((best[inside] > metrics.MATCH).sum(), count),
            "iou": ratio(best[inside].sum(), count),
        }
    entry = {
        "iou": result.iou,
        "iou_low": low,
        "iou_high": high,
        "units": int(np.count_nonzero(units.union)),
        "blocks": units.blocks,
        **{name: measure(result) for name, measure in MEASURES.items()},
        "size": sizes,
    }
    if result.classes is not None and len(result.classes) > 2:
        c = result.classes
        entry["class_iou"] = {
            str(k): ratio(c[k, k], c[k].sum() + c[:, k].sum() - c[k, k]) for k in range(1, len(c))
        }
    return entry


def summarise(results: list[CityResult], e: Evaluate, column: str | None = None) -> dict:
    """metrics/evaluate.json: pooled over all pixels, mean and worst over cities, each city, and
    groups across them (see fairness.py; `column` names the user's own).

    A city without buildings is in the pool, where what is invented there counts, and in no mean.
    """
    whole = CityResult("", 0, sum((r.pixels for r in results), np.zeros(4, np.int64)))
    cities = {r.city: city_metrics(r, e) for r in results}
    known = {name: c["iou"] for name, c in cities.items() if c["iou"] is not None}
    worst = min(known, key=known.__getitem__, default=None)
    estimates = [r.estimate(e) for r in results if r.iou is not None and r.cells]
    mean, least = (
        (mean_of(estimates).shown(), shown(worst_of(estimates)))
        if estimates
        else ((None, None),) * 2
    )
    return {
        "pooled": {
            "iou": whole.iou,
            "accuracy": ratio(whole.pixels[0] + whole.pixels[3], whole.pixels.sum()),
        },
        "mean_city": {
            "iou": ratio(sum(known.values()), len(known)),
            "iou_low": mean[0],
            "iou_high": mean[1],
        },
        "worst_city": {
            "iou": known.get(worst),
            "iou_low": least[0],
            "iou_high": least[1],
            "city": worst,
        },
        "city": cities,
        "fairness": fairness([scene for result in results for scene in result.scenes], e, column),
    }
