"""Touching buildings come apart where contacts are, and nowhere else."""

import numpy as np
from scipy import ndimage

from pipeline.labels import IGNORE
from pipeline.scoring.apart import flood, lines, tell_apart


def terrace() -> tuple[np.ndarray, np.ndarray]:
    """Three houses of 12 × 10 pixels wall to wall, and contacts along the two
    walls; nodata beside them.
    """
    mask, contact = np.zeros((30, 50), np.uint8), np.zeros((30, 50), bool)
    mask[8:20, 5:35] = 1
    mask[:, 45:] = IGNORE
    contact[:, 13:17] = contact[:, 23:27] = True
    return mask, contact


def test_a_terrace_comes_apart_at_its_walls():
    mask, contact = terrace()
    apart = tell_apart(mask, contact, 0.5)
    houses, count = ndimage.label(apart == 1)
    # two lines, a pixel thin
    assert count == 3 and (mask == 1).sum() - (apart == 1).sum() == 2 * 12
    assert [np.ptp(np.flatnonzero((houses == k).any(0))) + 1 for k in (1, 2, 3)] == [9, 9, 10]
    assert np.array_equal(apart == IGNORE, mask == IGNORE)


def test_without_contacts_and_all_contacts_nothing_changes():
    mask, _ = terrace()
    for contact in (np.zeros(mask.shape, bool), np.ones(mask.shape, bool)):
        assert np.array_equal(tell_apart(mask, contact, 0.5), mask)


def test_classes_are_kept():
    mask, contact = terrace()
    mask[8:20, 20:35] *= 2
    apart = tell_apart(mask, contact, 0.5)
    assert np.array_equal(np.where(apart, mask, 0), apart) and set(np.unique(apart)) == {
        0,
        1,
        2,
        IGNORE,
    }


def test_a_flood_is_the_geodesic_distance_from_its_marker():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 40)) < 0.7
    markers = np.zeros((40, 40), np.int32)
    mask[20, 20], markers[20, 20] = True, 5
    cross, expected = ndimage.generate_binary_structure(2, 1), markers > 0
    for reach in range(12):
        assert np.array_equal(flood(markers, mask, reach) == 5, expected)
        expected = ndimage.binary_dilation(expected, cross) & mask


def test_a_line_parts_its_floods():
    rng = np.random.default_rng(1)
    markers = ndimage.label(rng.random((60, 60)) < 0.03)[0]
    whole = np.ones(markers.shape, bool)
    floods = flood(markers, whole, 60)
    assert (floods > 0).all()
    parted, _ = ndimage.label(~lines(floods))
    for part in range(1, parted.max() + 1):
        assert len(np.unique(floods[parted == part])) == 1
