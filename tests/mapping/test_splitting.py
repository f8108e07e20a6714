"""What comes out of the bands is what the whole scene told apart would be."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from pipeline.mapping import splitting
from pipeline.mapping.splitting import Necks, Splitter
from pipeline.scoring.apart import necks, surroundings, tell_apart

PIXEL = 1.0


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of houses wall to wall, 300 × 130 pixels; contacts along their walls, with holes that
    no house reaches another through: what hangs together further away is another matter.
    """
    rng = np.random.default_rng(seed)
    mask, contact = np.zeros((300, 130), np.uint8), np.zeros((300, 130), bool)
    for top in range(3, 290, 24):
        mask[top : top + 20, 4:126] = 1
        for wall in np.cumsum(rng.integers(6, 14, 12)) + 4:
            contact[top : top + 20, wall - 1 : wall + 1] = True
    holes = rng.random(contact.shape) >= 0.97
    contact &= ~holes | np.roll(holes, 1, axis=1)
    return mask, rng.random(mask.shape).astype(np.float32), contact


def banded(step: int, layers) -> tuple[np.ndarray, np.ndarray]:
    splitter, bands = Splitter(layers[0].shape[1], PIXEL), []
    for top in range(0, len(layers[0]), step):
        bands += splitter.add(*(layer[top : top + step] for layer in layers))
    bands += splitter.finish()
    return tuple(np.concatenate(parts) for parts in zip(*bands, strict=True))


@pytest.mark.parametrize("step", [1, 37, 300])
def test_a_scene_in_bands_and_blocks_is_the_scene_as_a_whole(step, monkeypatch):
    monkeypatch.setattr(splitting, "ROWS", 40)
    monkeypatch.setattr(splitting, "COLUMNS", 50)
    mask, confidence, contact = layers = scene()
    whole = tell_apart(mask, contact, PIXEL)
    apart, same = banded(step, layers)
    assert np.array_equal(apart, whole) and np.array_equal(same, confidence)
    assert ndimage.label(whole)[1] > 2 * ndimage.label(mask)[1]


def test_rows_that_are_held_are_those_of_a_block_and_its_surroundings():
    mask, confidence, contact = (np.concatenate([layer] * 4) for layer in scene())
    splitter, most = Splitter(mask.shape[1], PIXEL), 0
    for top in range(0, len(mask), 10):
        for _ in splitter.add(
            mask[top : top + 10], confidence[top : top + 10], contact[top : top + 10]
        ):
            pass
        most = max(most, len(splitter.mask))
    assert most <= splitting.ROWS + 2 * surroundings(PIXEL) + 10 < len(mask) / 4


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("step", [1, 37, 300])
def test_necks_of_bands_and_blocks_are_those_of_the_scene_as_a_whole(step, told, monkeypatch):
    monkeypatch.setattr(splitting, "ROWS", 30)
    monkeypatch.setattr(splitting, "PIXELS", 0)
    monkeypatch.setattr(splitting, "COLUMNS", 50)
    rng = np.random.default_rng(4)
    probability = cv2.GaussianBlur(rng.random((300, 130), np.float32), (0, 0), 4)[..., None]
    contact = (rng.random(probability.shape) / 2).astype(np.float32)
    rows = np.concatenate([probability, contact], -1) if told else probability
    narrowing = Necks(PIXEL, 0.5, lambda p: (p[..., 0] > 0.51).astype(np.uint8), told)
    bands = []
    for top in range(0, 300, step):
        bands += narrowing.add(rows[top : top + step])
    found = np.concatenate([*bands, *narrowing.finish()])
    narrow = necks((probability[..., 0] > 0.51).astype(np.uint8), PIXEL, 0.5)
    assert narrow.any() and np.array_equal(found[..., :1], probability)
    assert np.array_equal(found[..., 1], np.maximum(narrow, contact[..., 0] if told else 0))
