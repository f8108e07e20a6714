"""Touching buildings come apart where contacts are or the mask narrows, and nowhere else."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from pipeline.labels import IGNORE
from pipeline.scoring.apart import around_necks, flood, lines, necks, tell_apart


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


def dumb_bell(joint: int, scale: int = 1) -> np.ndarray:
    """Two houses of 20 × 20 pixels, the 10 pixels between them bridged by a joint."""
    mask = np.zeros((40, 70), np.uint8)
    mask[10:30, 10:30] = mask[10:30, 40:60] = 1
    mask[20 - joint // 2 : 20 + joint // 2, 30:40] = 1
    return np.kron(mask, np.ones((scale, scale), np.uint8))


@pytest.mark.parametrize("scale,pixel", [(1, 0.5), (2, 0.25)])
@pytest.mark.parametrize("joint,houses", [(4, 2), (8, 2), (14, 1), (18, 1)])
def test_a_joint_parts_two_houses_where_it_is_narrow_for_them(scale, pixel, joint, houses):
    mask = dumb_bell(joint, scale)
    apart = tell_apart(mask, necks(mask, pixel, 0.55), pixel)
    parts, count = ndimage.label(apart)
    assert count == houses and ndimage.label(mask)[1] == 1
    # a line, and no more, is taken out: as long as the joint is high
    assert (mask - apart).sum() == (houses - 1) * joint * scale
    if houses == 2:
        assert abs(int((parts == 1).sum()) - int((parts == 2).sum())) <= joint * scale


def test_one_building_of_wings_and_a_thin_one_stay_whole():
    courtyard = np.zeros((80, 80), np.uint8)
    courtyard[10:70, 10:70] = 1
    courtyard[28:52, 28:52] = 0  # four wings of 9 m around it
    hall = np.zeros((40, 200), np.uint8)
    hall[10:26, 5:195] = 1  # 95 m long
    rough = hall.copy()  # as a network draws it
    rough[9, 5:195] = np.random.default_rng(0).integers(0, 2, 190)
    thin = np.zeros((40, 60), np.uint8)
    thin[10:16, 5:25] = thin[10:16, 30:50] = thin[12:14, 5:50] = 1  # 3 m: slimmer than a house
    for mask in (courtyard, hall, rough, thin):
        assert not necks(mask, 0.5, 0.6).any()


def test_no_data_and_an_empty_mask_have_no_necks():
    mask = dumb_bell(6)
    assert not necks(np.where(mask, IGNORE, 0).astype(np.uint8), 0.5, 0.5).any()
    assert not necks(np.zeros_like(mask), 0.5, 0.5).any()


def test_necks_depend_on_what_is_around_them_and_no_more():
    rng = np.random.default_rng(3)
    mask = (cv2.GaussianBlur(rng.random((300, 300)), (0, 0), 4) > 0.51).astype(np.uint8)
    around = around_necks(1.0)
    whole = necks(mask, 1.0, 0.5)
    seen = np.s_[100 - around : 200 + around]
    assert whole.any()
    part = necks(mask[seen, seen], 1.0, 0.5)[around:-around, around:-around]
    assert np.array_equal(part, whole[100:200, 100:200])
