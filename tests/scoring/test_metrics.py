"""Metrics against answers known by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.params import Evaluate
from pipeline.scoring import metrics
from pipeline.scoring.evaluation import CityResult, city_metrics, summarise
from pipeline.training.calibration import best_threshold

masks = st.integers(0, 2**32 - 1).map(
    lambda s: np.random.default_rng(s).integers(0, 2, (2, 37, 53), np.uint8)
)


@given(masks, st.integers(1, 60))
def test_blocks_add_up_to_the_scene(pair, block):
    prediction, label = pair
    label[:5] = 255
    tp, fp, fn, tn = metrics.pixel_counts(prediction, label)
    inter, union = metrics.block_counts(prediction, label, block)
    assert (inter.sum(), union.sum()) == (tp, tp + fp + fn)
    assert tp + fp + fn + tn == (label != 255).sum()
    assert np.array_equal(metrics.class_counts(prediction, label, 1), [[tn, fp], [fn, tp]])


@given(masks, st.integers(0, 3))
def test_counts_of_tiles_are_of_any_building_in_either_library(pair, classes):
    prediction, label = pair = pair * np.uint8(classes)
    label[:, :5] = 255
    intersection, union = metrics.counts(prediction[None], label[None])
    tp, fp, fn, _ = metrics.pixel_counts(prediction > 0, np.where(label == 255, 255, label > 0))
    assert (intersection.tolist(), union.tolist()) == ([tp], [tp + fp + fn])
    for ours, theirs in zip(
        (intersection, union), metrics.counts(*torch.from_numpy(pair[:, None])), strict=True
    ):
        assert theirs.tolist() == ours.tolist()
    assert metrics.iou(prediction, label) == ((tp / (tp + fp + fn)) if tp + fn else None)


def test_ignored_pixels_count_nowhere():
    prediction, label = np.ones((2, 8, 8), np.uint8)
    label[:4] = 255
    assert metrics.pixel_counts(prediction, label).tolist() == [32, 0, 0, 0]
    assert metrics.confidence_counts(prediction * 255, label).sum() == 32


def published_boundary(mask, distance):
    """Cheng et al.'s own lines, in words of their own: pad by 0, erode by 3 × 3 `distance`
    times, subtract.
    """
    eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
    return mask.astype(bool) & ~eroded


@given(masks, st.integers(1, 6))
def test_boundaries_are_the_published_ones(pair, distance):
    prediction, label = (
        ndimage.binary_opening(mask, np.ones((4, 4))).astype(np.uint8) for mask in pair
    )
    found, truth = published_boundary(prediction, distance), published_boundary(label, distance)
    assert metrics.boundary_counts(prediction, label, distance).tolist() == [
        (found & truth).sum(),
        (found | truth).sum(),
    ]


def test_boundary_is_hurt_by_a_shift_that_area_forgives():
    label = np.zeros((100, 100), np.uint8)
    label[20:80, 20:80] = 1
    shifted = np.roll(label, 2, 1)
    tp, fp, fn, _ = metrics.pixel_counts(shifted, label)
    area, edge = tp / (tp + fp + fn), np.divide(*metrics.boundary_counts(shifted, label, 2))
    assert area > 0.9 > 0.6 > edge
    assert np.divide(*metrics.boundary_counts(label, label, 2)) == 1
    # The inner boundary of a 60² square, 2 thick: 60² − 56² pixels.
    assert metrics.boundary_counts(label, label, 2)[0] == 60**2 - 56**2


def test_boundary_does_not_run_along_ignored_pixels():
    """A building cut by 255 has no edge there, whatever is found behind it."""
    label, prediction = np.zeros((2, 100, 100), np.uint8)
    label[20:80, 20:80] = 1
    prediction[25:85, 20:80] = 1
    whole = metrics.boundary_counts(prediction, label, 3)
    label[:, 50:] = 255
    assert (2 * metrics.boundary_counts(prediction, label, 3) == whole).all()


def test_the_thickness_of_a_boundary_is_in_metres_or_the_published_share_of_the_diagonal():
    assert metrics.boundary_distance((300, 400), 0.5, 1.5) == 3
    assert metrics.boundary_distance((300, 400), 0.5, None) == 10
    assert metrics.boundary_distance((300, 400), 5, 1.5) == 1


def drawn(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """(40, 40) of numbers from 1 on, in boxes of top, left, height and width."""
    which = np.zeros((40, 40), int)
    for i, (top, left, height, width) in enumerate(boxes, 1):
        which[top : top + height, left : left + width] = i
    return which


def test_objects_are_matched_above_half():
    truth = drawn((0, 0, 10, 10), (20, 20, 10, 10))
    found = drawn((0, 0, 10, 8), (20, 20, 4, 10), (35, 0, 3, 3))  # IoU .8, IoU .4, and of nothing
    o = metrics.match_objects(found, truth, found / 4)
    assert (
        o.best_iou.tolist() == [0.8, 0.4]
        and o.match.tolist() == [0.8, 0, 0]
        and o.area.tolist() == [100, 100]
    )
    assert o.confidence.tolist() == [0.25, 0.5, 0.75] and (o.merged, o.split) == (0, 0)
    quality, recognition, segmentation = o.quality
    assert (
        recognition == pytest.approx(2 / 5)
        and segmentation == 0.8
        and quality == pytest.approx(0.32)
    )
    assert o.average_precision == pytest.approx(1 / 3 / 2)  # the surest two are wrong


def test_numbers_with_gaps_are_the_same_buildings():
    truth, found = drawn((0, 0, 10, 10), (20, 20, 10, 10)), drawn((0, 0, 10, 9), (20, 20, 10, 9))
    once, gaps = (metrics.match_objects(k * found, k * truth, found) for k in (1, 7))
    for key, value in vars(once).items():
        assert np.array_equal(value, getattr(gaps, key))


def test_merged_and_split_buildings_are_counted():
    terrace, halls = (
        [(0, 0, 10, 6), (0, 6, 10, 6), (0, 12, 10, 6)],
        [(20, 0, 10, 10), (20, 10, 10, 10)],
    )
    truth = drawn(*terrace, (20, 0, 10, 20))
    found = drawn((0, 0, 10, 18), *halls)
    o = metrics.match_objects(found, truth, np.ones(truth.shape))
    assert (o.merged, o.split) == (1, 1)
    back = metrics.match_objects(truth, found, np.ones(truth.shape))
    assert (back.merged, back.split) == (1, 1)
    # a half is not more than a half
    assert not any(np.count_nonzero(way.match) for way in (o, back))
    both = o + back + metrics.Objects.none()
    assert (both.merged, both.split, len(both.area), len(both.match)) == (2, 2, 7, 7)


def test_average_precision_is_the_area_of_the_envelope():
    """Right, wrong, right, wrong, by falling confidence, of four true ones: 1/4 · (1 + 2/3)."""
    o = metrics.Objects(
        np.ones(4), np.zeros(4), np.array([0.6, 0.9, 0.7, 0.8]), np.array([0, 0.9, 0.6, 0])
    )
    assert o.average_precision == pytest.approx((1 + 2 / 3) / 4)
    assert metrics.Objects.none().average_precision is None and metrics.Objects.none().quality == (
        None,
        None,
        None,
    )
    unfound = metrics.Objects(np.ones(2), np.zeros(2), np.zeros(0), np.zeros(0))
    assert unfound.average_precision == 0 and unfound.quality == (0, 0, None)


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has():
    random = np.random.default_rng(0)
    p = random.random((1000, 1000))
    label = (random.random(p.shape) < p).astype(np.uint8)
    honest = metrics.confidence_counts(np.rint(p * 255).astype(np.uint8), label)
    sure = metrics.confidence_counts(np.where(p > 0.5, 255, 0).astype(np.uint8), label)
    assert metrics.calibration_error(honest) < 0.005
    assert metrics.calibration_error(sure) == pytest.approx(0.25, abs=0.005)


def test_the_calibration_error_is_of_the_predicted_class():
    """Of 100 sure backgrounds (probability 0.1) 80 are right, of 100 sure buildings (0.9) 70:
    errors .1 and .2.
    """
    counts = np.zeros((2, 256), int)
    counts[:, 51 // 2] = 80, 20
    counts[:, 255 - 51 // 2] = 30, 70
    assert metrics.calibration_error(counts) == pytest.approx(0.9 - 0.75, abs=0.005)


def test_precision_and_recall_at_each_threshold():
    counts = metrics.confidence_counts(
        np.array([0, 100, 200], np.uint8), np.array([0, 1, 1], np.uint8)
    )
    curve = metrics.precision_recall(counts)
    assert curve["recall"][0] == 1 and curve["precision"][0] == pytest.approx(2 / 3)
    assert curve["precision"][-1] == 1 and curve["recall"][-1] == 0.5


def test_the_best_threshold_is_the_one_of_a_search_by_hand():
    random = np.random.default_rng(1)
    label = random.integers(0, 2, 5000).astype(np.uint8)
    confidence = np.clip(random.normal(90 + 50 * label, 30), 0, 255).astype(np.uint8)
    t = best_threshold(metrics.confidence_counts(confidence, label))

    def iou(threshold):
        found = confidence / 255 > threshold
        return (found & (label > 0)).sum() / (found | (label > 0)).sum()

    assert iou(t) == max(iou(x) for x in np.linspace(0.01, 0.99, 981))


def test_pooled_is_over_pixels_and_the_mean_over_cities():
    def city(name, tp, fp, fn, tn):
        cells = np.array([tp, tp + fp + fn, 1000]).reshape(3, 1, 1)
        return CityResult(name, 0.5, np.array([tp, fp, fn, tn]), cells={name: [cells]})

    cities = [
        city("a", 90, 5, 5, 900),
        city("b", 1, 5, 4, 10),
        city("bare", 0, 0, 0, 50),
        city("field", 0, 10, 0, 40),
    ]
    s = summarise(cities, Evaluate())
    # what is invented in the field counts here
    assert s["pooled"]["iou"] == pytest.approx(91 / 120)
    assert s["mean_city"]["iou"] == pytest.approx((0.9 + 0.1) / 2)
    unknown = {"iou_low": None, "iou_high": None}
    assert (
        s["worst_city"] == {"iou": 0.1, "city": "b"} | unknown
        and s["mean_city"].items() >= unknown.items()
    )
    # one scene says nothing of another
    assert s["city"]["a"]["units"] == 1 and s["city"]["a"]["iou_low"] is None
    for bare, accuracy in (("bare", 1), ("field", 0.8)):
        row = s["city"][bare]
        assert row["iou"] is row["iou_low"] is row["iou_high"] is None
        assert row["accuracy"] == accuracy


def test_a_city_by_hand():
    """Two buildings of 100 m² and of 25 m² at 0.5 m, one found at IoU .8; classes 1 and 2."""
    label, prediction = np.zeros((2, 40, 40), np.uint8)
    label[0:20, 0:20], label[30:40, 30:40] = 1, 2  # 400 and 100 pixels
    prediction[0:20, 0:16], prediction[30:40, 30:34] = 1, 2
    confidence = np.where(prediction > 0, 255, 0).astype(np.uint8)
    counts = metrics.confidence_counts(confidence, label)
    city = CityResult(
        "x", 0.5, metrics.pixel_counts(prediction, label),
        metrics.class_counts(prediction, label, 2), metrics.boundary_counts(prediction, label, 3),
        counts, counts, [metrics.match_objects(prediction, label, confidence)],
    )  # fmt: skip
    found = city_metrics(city, Evaluate(size_bins=[50]))
    assert found["iou"] == pytest.approx(360 / 500)
    assert found["class_iou"] == {"1": pytest.approx(0.8), "2": pytest.approx(0.4)}
    assert found["object_f1"] == pytest.approx(2 / 4)
    assert found["size"] == {
        "0-50": {"buildings": 1, "recall": 0, "iou": pytest.approx(0.4)},
        "50+": {"buildings": 1, "recall": 1, "iou": pytest.approx(0.8)},
    }
    assert found["recall"] == pytest.approx(360 / 500) and found["precision"] == 1
    assert summarise([city], Evaluate())["pooled"]["iou"] == pytest.approx(360 / 500)
