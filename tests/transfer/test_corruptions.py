import json
from hashlib import sha256

import numpy as np
import pytest

from pipeline.scoring.metrics import iou
from pipeline.transfer.corruptions import NAMES, RESAMPLED, SEVERITIES, SHIFTED, TABLE, corrupt
from pipeline.transfer.predictions import tile_iou


@pytest.fixture(scope="module")
def city(make_tiles):
    return make_tiles(30, count=8)


def test_the_table_is_complete():
    assert len(NAMES) >= 12 and len(set(NAMES)) == len(NAMES)
    assert all(len(levels) == len(SEVERITIES) for _, levels in TABLE.values())


def test_the_table_is_frozen():
    """Numbers measured with it stay comparable. Another table is another benchmark: say so
    where numbers are shown.
    """
    levels = {name: levels for name, (_, levels) in TABLE.items()} | RESAMPLED | SHIFTED
    assert tuple(levels) == NAMES
    assert sha256(json.dumps(levels).encode()).hexdigest()[:16] == "d9b029c97a835e50"


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_is_a_function_of_name_severity_and_seed(city, name):
    first, second, other = (corrupt(name, 3, *city, gsd=0.5, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.uint8
    fixed = {
        "defocus",
        "compression",
        "darker",
        "brighter",
        "low_contrast",
        "gamma",
        "grey",
        "warm_light",
        "cool_light",
        *RESAMPLED,
    }
    assert (name in fixed) == all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    few = corrupt(name, 3, city[0][:2], city[1][:2], gsd=0.5, seed=1)
    # a tile's corruption does not depend on its company
    np.testing.assert_array_equal(few[0], first[0][:2])


@pytest.mark.parametrize("name", sorted(TABLE))
def test_severity_grows_and_labels_stay(city, name):
    images, labels = city
    changes = []
    for severity in SEVERITIES:
        changed, same = corrupt(name, severity, images, labels, gsd=0.5)
        np.testing.assert_array_equal(same, labels)
        changes.append(np.abs(changed.astype(int) - images).mean())
    assert all(np.diff(changes) > 0) and changes[0] > 0


def test_iou_falls_with_severity_on_average(toy_segmenter, city):
    mean = []
    for severity in SEVERITIES:
        pairs = [corrupt(name, severity, *city, gsd=0.5) for name in NAMES]
        mean.append(np.mean([tile_iou(toy_segmenter, *pair) for pair in pairs]))
    clean = tile_iou(toy_segmenter, *city)
    assert all(np.diff([clean, *mean]) < 0)


@pytest.mark.parametrize("name", sorted(RESAMPLED))
def test_resampling_moves_image_and_label_together(city, name):
    """A tile whose image is its label stays one."""
    labels = city[1]
    images = np.repeat(255 * labels[..., None], 3, axis=-1)
    for severity, factor in zip(SEVERITIES, RESAMPLED[name], strict=True):
        seen, truth = corrupt(name, severity, images, labels, gsd=0.5)
        assert seen.shape[:3] == truth.shape
        assert truth.shape[1] == (round(48 / factor) if factor > 1 else 48)
        assert iou(seen[..., 0] > 127, truth) > 0.8


@pytest.mark.parametrize("name", sorted(SHIFTED))
def test_misregistration_moves_the_label_by_metres(city, name):
    images, _ = city
    labels = np.zeros(images.shape[:3], np.uint8)
    labels[:, 24, 24] = 1
    for severity, metres in zip(SEVERITIES, SHIFTED[name], strict=True):
        same, moved = corrupt(name, severity, images, labels, gsd=0.25)
        np.testing.assert_array_equal(same, images)
        for label in moved:
            (row,), (column,) = np.nonzero(label == 1)
            assert np.hypot(row - 24, column - 24) == pytest.approx(metres / 0.25, abs=0.8)
            assert (label == 255).any()


def test_one_and_four_bands_are_corrupted_too(city):
    images, labels = city[0][:1], city[1][:1]
    for bands in (1, 4):
        wide = np.resize(images[..., :1], (*images.shape[:3], bands))
        for name in NAMES:
            assert corrupt(name, 5, wide, labels, gsd=0.5)[0].shape[-1] == bands
