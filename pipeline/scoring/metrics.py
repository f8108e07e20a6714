"""What is counted on a scene: pixels, boundaries, objects and confidence. Counts
add up; a ratio comes last.

IoU is Σ∩ / Σ∪ over all valid pixels of all scenes (Maggiori et al. 2017), of any building class
against background: of a map, of a certificate and of a map under attack alike. Where the labels
know no building there is nothing to find, and an IoU, which asks how much of it was found, is None.
"""

from dataclasses import dataclass
from typing import Any, SupportsFloat

import cv2
import numpy as np
from scipy import ndimage

from pipeline.labels import IGNORE
from pipeline.scoring.blocks import CELL, blocks

Array = Any  # of NumPy or of torch: what comes out is of the kind that went in


def ratio(part: SupportsFloat, whole: SupportsFloat) -> float | None:
    """part / whole, or None where nothing was there to be counted (never 0 and never 1)."""
    return float(part) / float(whole) if whole else None


def counts(classes: Array, labels: Array) -> tuple[Array, Array]:
    """Intersection and union (…,) of the buildings of class maps and labels (…, H,
    W), both NumPy or both torch.

    A negative class stands where nothing is proven (see certificates/lipschitz.py). Such a pixel
    counts against us on either side: the least intersection and the greatest union of all maps that
    agree with the certificate.
    """
    intersection, union = overlap(classes, labels)
    return intersection.sum((-2, -1)), union.sum((-2, -1))


def overlap(classes: Array, labels: Array) -> tuple[Array, Array]:
    """Which pixels (…, H, W) are of the intersection and of the union that `counts` sums."""
    valid = labels != IGNORE
    truth = (labels > 0) & valid
    return (classes > 0) & truth, truth | (classes != 0) & valid


def buildings(labels: Array) -> Array:
    """Building pixels (…,) of labels (…, H, W)."""
    return ((labels > 0) & (labels != IGNORE)).sum((-2, -1))


def iou(classes: Array, labels: Array) -> float | None:
    """ΣI/ΣU of class maps (…, H, W) and labels; None where the labels know no building."""
    return ratio(*(n.sum() for n in counts(classes, labels))) if buildings(labels).any() else None


def pixel_counts(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """[TP, FP, FN, TN] of building against background over valid pixels; arrays (H, W) uint8."""
    (tp, union), truth = counts(prediction, label), buildings(label)
    return np.array(
        [tp, union - truth, truth - tp, np.count_nonzero(label != IGNORE) - union], np.int64
    )


def class_counts(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) pixels by true class (row) and predicted class (column), K = classes + 1."""
    k, valid = classes + 1, label != IGNORE
    index = label[valid].astype(np.int64) * k + prediction[valid]
    return np.bincount(index, minlength=k * k).reshape(k, k)


def cell_counts(prediction: np.ndarray, label: np.ndarray, cell: int = CELL) -> np.ndarray:
    """(4, R, C) intersection, union, valid and building pixels of each cell × cell square."""
    rows, columns = np.arange(0, label.shape[0], cell), np.arange(0, label.shape[1], cell)

    def add(mask: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(mask, rows, 0, dtype=np.int64), columns, 1)

    valid = label != IGNORE
    return np.stack([*map(add, overlap(prediction, label)), add(valid), add((label > 0) & valid)])


def block_counts(
    prediction: np.ndarray, label: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of the blocks of one scene, at least `block` pixels
    long and as long as its errors are correlated; of the whole scene where it is
    too small to tell of others (see blocks.py).
    """
    units = blocks([cell_counts(prediction, label)], block)
    return units.intersection, units.union


def boundary_counts(prediction: np.ndarray, label: np.ndarray, distance: int) -> np.ndarray:
    """Intersection and union of the two inner boundaries, `distance` pixels thick
    (Cheng et al., CVPR 2021).

    As published: a mask less its erosion, `distance` times by 3 × 3, and the image's border is an
    edge. Pixels to ignore, which the paper does not know, are none: what lies there is unknown.
    """
    valid = label != IGNORE

    def boundary(mask: np.ndarray) -> np.ndarray:
        padded = np.pad((mask | ~valid).astype(np.uint8), 1)
        inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
        return mask & ~inside.astype(bool) & valid

    found, truth = boundary(prediction > 0), boundary(label > 0)
    return np.array([np.count_nonzero(found & truth), np.count_nonzero(found | truth)], np.int64)


def boundary_distance(shape: tuple[int, int], gsd: float, metres: float | None) -> int:
    """Pixels of the boundary's thickness; without metres, as published, 2 % of
    the image's diagonal.
    """
    return max(1, round(metres / gsd if metres else 0.02 * np.hypot(*shape)))


# IoU above which a predicted building is a true one: at most one is, so that no
# assignment is needed
MATCH = 0.5


@dataclass(frozen=True)
class Objects:
    """Buildings one by one, of a scene or, added up, of several."""

    area: np.ndarray  # pixels of each true building
    best_iou: np.ndarray  # of each true building with any predicted one
    confidence: np.ndarray  # of each predicted building
    match: np.ndarray  # IoU of each predicted building with its true one; 0 where it has none
    merged: int = 0  # predicted buildings that hold most of each of two true ones or more
    split: int = 0  # true buildings in which two predicted ones or more lie for the most part
    # code of each true building, where the user's footprints tell groups apart
    group: np.ndarray | None = None

    @classmethod
    def none(cls) -> "Objects":
        return cls(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))

    def __add__(self, other: "Objects") -> "Objects":
        """Without their groups."""
        arrays = ("area", "best_iou", "confidence", "match")
        both = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in arrays
        }
        return Objects(**both, merged=self.merged + other.merged, split=self.split + other.split)

    @property
    def quality(self) -> tuple[float | None, float | None, float | None]:
        """Panoptic quality and its factors, recognition quality (the F1) and segmentation quality
        (the mean IoU of the matches): Kirillov et al., CVPR 2019, equation 2. None where there is
        nothing to recognise.
        """
        matched = np.count_nonzero(self.match)
        recognition = ratio(2 * matched, len(self.area) + len(self.match))
        segmentation = ratio(self.match.sum(), matched)
        return recognition and recognition * (segmentation or 0), recognition, segmentation

    @property
    def average_precision(self) -> float | None:
        """AP50: the area under precision over recall, the surest buildings first,
        where precision is the best at that recall or above (Everingham et al.
        2010). None where there is no true building.
        """
        if not len(self.area):
            return None
        hits = (self.match > 0)[np.argsort(-self.confidence, kind="stable")]
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(best[hits].sum() / len(self.area))


def match_objects(
    found: np.ndarray, truth: np.ndarray, confidence: np.ndarray, groups: np.ndarray | None = None
) -> Objects:
    """Match predicted and true buildings, (H, W) whole numbers, 0 = none;
    confidence (H, W) of pixels.

    Numbers may leave gaps. What lies on pixels to ignore must be in neither. groups: (H, W) a code
    on each building's pixels, its highest counts.
    """
    area_found, area_truth = (
        np.bincount(found.ravel(), minlength=1),
        np.bincount(truth.ravel(), minlength=1),
    )
    both = (found > 0) & (truth > 0)
    pair, shared = np.unique(
        truth[both].astype(np.int64) * len(area_found) + found[both], return_counts=True
    )
    t, f = np.divmod(pair, len(area_found))
    iou = shared / (area_truth[t] + area_found[f] - shared)
    best, match = np.zeros(len(area_truth)), np.zeros(len(area_found))
    np.maximum.at(best, t, iou)
    match[f[iou > MATCH]] = iou[iou > MATCH]
    # true buildings that a predicted one holds
    held = np.bincount(f[2 * shared > area_truth[t]], minlength=1)
    parts = np.bincount(t[2 * shared > area_found[f]], minlength=1)
    mean = np.bincount(found.ravel(), confidence.ravel()) / np.maximum(area_found, 1)
    area_found[0] = area_truth[0] = 0
    is_found, is_true = area_found > 0, area_truth > 0
    merged, split = int(np.count_nonzero(held > 1)), int(np.count_nonzero(parts > 1))
    group = (
        None
        if groups is None
        else ndimage.maximum(groups, truth, np.flatnonzero(is_true)).astype(int)
    )
    return Objects(
        area_truth[is_true], best[is_true], mean[is_found], match[is_found], merged, split, group
    )


def confidence_counts(confidence: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(2, 256): background and building pixels by predicted building
    probability in 1/255 (uint8).
    """
    valid = label != IGNORE
    truth = label[valid] > 0
    return np.stack(
        [np.bincount(confidence[valid][truth == y], minlength=256) for y in (False, True)]
    )


def reliability(counts: np.ndarray, bins: int = 15) -> dict[str, list]:
    """Mean predicted probability and true share of buildings in equal-width bins of
    `confidence_counts`.
    """
    level = np.arange(256) / 255
    place = np.minimum((level * bins).astype(int), bins - 1)
    number = np.bincount(place, counts.sum(0), bins)
    keep = number > 0
    return {
        "probability": (
            np.bincount(place, counts.sum(0) * level, bins)[keep] / number[keep]
        ).tolist(),
        "frequency": (np.bincount(place, counts[1], bins)[keep] / number[keep]).tolist(),
        "pixels": number[keep].astype(int).tolist(),
    }


def calibration_error(counts: np.ndarray) -> float | None:
    """Expected calibration error (Guo et al. 2017, equation 3): of the likelier of building and
    background, how far its probability is from how often it is right, in 15 bins of equal width.
    """
    upper = counts.shape[1] // 2
    right = counts[1, upper:] + counts[0, upper - 1 :: -1]  # by confidence, from just above ½ to 1
    wrong = counts[0, upper:] + counts[1, upper - 1 :: -1]
    sure = np.zeros_like(counts)
    sure[:, upper:] = wrong, right
    r = reliability(sure)
    gaps = np.abs(np.subtract(r["probability"], r["frequency"]))
    return ratio(gaps @ np.array(r["pixels"], float), sum(r["pixels"])) if r["pixels"] else None


def precision_recall(counts: np.ndarray) -> dict[str, list]:
    """Precision and recall where pixels of at least a probability are called
    building, over 256 thresholds.
    """
    fp, tp = counts[:, ::-1].cumsum(1)[:, ::-1]
    keep = tp > 0
    return {
        "threshold": (np.arange(256)[keep] / 255).tolist(),
        "precision": (tp[keep] / (tp + fp)[keep]).tolist(),
        "recall": (tp[keep] / max(1, tp[0])).tolist(),
    }
