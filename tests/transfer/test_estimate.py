import numpy as np
import pytest
import torch
from torch import nn

from pipeline.networks.decision import Decision
from pipeline.networks.models import Segmenter
from pipeline.scoring.expected_iou import (
    Thresholds,
    expected_iou,
    fit_threshold,
    fit_thresholds,
    soft_dice_confidence,
    thresholded_iou,
)
from pipeline.scoring.metrics import iou
from pipeline.tiles.tensors import to_float
from pipeline.transfer.estimate import feature_distance, mean_error
from pipeline.transfer.predictions import building_probability, maps


@pytest.fixture(scope="module")
def planted(toy_segmenter, make_tiles):
    """Five cities, each with fainter buildings than the one before: probabilities, true IoU,
    feature distance.
    """
    probability, labels = (
        building_probability(toy_segmenter, make_tiles(20)[0]),
        make_tiles(20)[1],
    )
    thresholds = fit_thresholds(probability, labels)
    rows = []
    for contrast in (0.25, 0.2, 0.15, 0.11, 0.08):
        images, labels = make_tiles(21, contrast=contrast)
        p = building_probability(toy_segmenter, images)
        rows.append((iou(p > 0.5, labels), thresholded_iou(p, thresholds), expected_iou(p),
                     feature_distance(toy_segmenter, images)))  # fmt: skip
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_scores_fall_with_the_truth_on_a_planted_ladder(planted):
    truth, thresholded, expected, distance = planted
    assert (np.diff(truth) < 0).all() and truth[0] - truth[-1] > 0.3
    assert (np.diff(thresholded) < 0).all()
    assert (np.diff(expected) < 0).all()
    assert (np.diff(distance) > 0).all()


def test_the_estimate_is_exact_where_it_was_fitted(toy_segmenter, make_tiles):
    images, labels = make_tiles(22, contrast=0.13)  # faint: the model errs on both classes
    probability = building_probability(toy_segmenter, images)
    estimate = thresholded_iou(probability, fit_thresholds(probability, labels))
    assert estimate == pytest.approx(iou(probability > 0.5, labels), abs=0.005)


def test_the_estimate_is_of_the_map_whose_iou_is_measured():
    """Of three classes a building may be likelier than not where background is
    the likeliest of all.
    """
    rng = np.random.default_rng(3)
    p = rng.dirichlet([1.5, 1, 1], (8, 64, 64))
    labels = (p.cumsum(-1) < rng.random((8, 64, 64, 1))).sum(-1).astype(np.uint8)
    probability, found = 1 - p[..., 0], p.argmax(-1) > 0
    truth = iou(found, labels)
    assert abs(truth - iou(probability > 0.5, labels)) > 0.02
    thresholds = fit_thresholds(probability, labels, found)
    assert thresholded_iou(probability, thresholds, found=found) == pytest.approx(truth, abs=0.005)
    assert expected_iou(probability, found=found) == pytest.approx(truth, abs=0.01)


def test_ignored_pixels_do_not_move_the_thresholds():
    rng = np.random.default_rng(0)
    probability, labels = rng.random((2, 32, 32)), rng.integers(0, 2, (2, 32, 32)).astype(np.uint8)
    wider = (
        np.concatenate([probability, np.ones((2, 32, 32))]),
        np.concatenate([labels, labels * 0 + 255]),
    )
    assert fit_thresholds(*wider) == fit_thresholds(probability, labels)


def test_true_probabilities_give_the_true_iou():
    rng = np.random.default_rng(1)
    probability = rng.beta(0.5, 1.5, (64, 64, 64))
    labels = (rng.random(probability.shape) < probability).astype(np.uint8)
    assert expected_iou(probability) == pytest.approx(iou(probability > 0.5, labels), abs=0.005)
    assert thresholded_iou(np.zeros((1, 4, 4)), Thresholds(0.5, 0.5)) == 0


def test_the_published_threshold_gives_the_accuracy_where_it_was_fitted():
    rng = np.random.default_rng(4)
    probability = rng.beta(0.4, 0.6, (16, 64, 64))
    labels = (rng.random(probability.shape) < probability**2).astype(
        np.uint8
    )  # overconfident of buildings
    one = fit_threshold(probability, labels)
    confidence, right = np.maximum(probability, 1 - probability), (probability > 0.5) == labels
    assert one.building == one.background
    assert (confidence >= one.building).mean() == pytest.approx(right.mean(), abs=1e-4)


def test_soft_dice_confidence_is_the_dice_score_of_true_probabilities():
    p, found = np.array([0.9, 0.6, 0.3]), np.array([True, True, False])
    assert soft_dice_confidence(p, found=found) == pytest.approx(2 * 1.5 / (1.8 + 2))
    assert expected_iou(p, found=found) == pytest.approx(1.5 / (2 + 0.3))  # Σ p ŷ / Σ (ŷ or p)
    assert soft_dice_confidence(np.zeros(3)) == expected_iou(np.zeros(3)) == 0


def test_of_several_kinds_calibrated_is_the_sum_of_their_tempered_probabilities():
    torch.manual_seed(0)
    segmenter = Segmenter(nn.Conv2d(3, 3, 1), 3, 2).eval()
    segmenter.decision = Decision(2.5, 0.4)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    classes, trained, calibrated = maps(segmenter, images)
    with torch.no_grad():
        z = segmenter(to_float(torch.from_numpy(images)))
    for found, logits in ((trained, z), (calibrated, z / 2.5)):
        np.testing.assert_allclose(found, logits.softmax(1)[:, 1:].sum(1), atol=0.01)
    assert ((classes > 0) == (calibrated > 0.4)).mean() > 0.97


def test_a_histogram_is_as_good_as_its_pixels():
    rng = np.random.default_rng(2)
    probability, pixels = rng.random(50), rng.integers(0, 9, 50)
    thresholds, each = Thresholds(0.8, 0.7), np.repeat(probability, pixels)
    assert thresholded_iou(probability, thresholds, pixels) == pytest.approx(
        thresholded_iou(each, thresholds)
    )
    assert expected_iou(probability, pixels) == pytest.approx(expected_iou(each))


def test_features_of_the_training_cities_are_near(toy_segmenter, make_tiles, make_dim):
    images, _ = make_tiles(23)
    near, far = (
        feature_distance(toy_segmenter, images),
        feature_distance(toy_segmenter, make_dim(images)),
    )
    assert 2 * near < far


def test_the_mean_error_is_over_the_folds_that_have_a_guess():
    rows = {
        "a": {"iou": 0.5, "guess": 0.7},
        "b": {"iou": 0.5, "guess": 0.4},
        "c": {"iou": 0.1, "guess": None},
    }
    assert mean_error(rows, "guess") == pytest.approx(0.15)
    assert mean_error({}, "guess") is None
