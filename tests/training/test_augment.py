"""Views of a crop: geometry moves all bands and the label, colours are those of the first three."""

import numpy as np
import pytest

from pipeline.training.augment import _Grey, _Hue, _Planck, augment


def crop(bands: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (64, 64, bands), dtype=np.uint8), (
        rng.random((64, 64)) < 0.3
    ).astype(np.uint8)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("level", ["standard", "strong"])
def test_every_number_of_bands_is_changed_and_turned_as_its_label_is(level, bands):
    image, label = crop(bands)
    image[..., -1] = 60 * label + 90  # what its label is, it stays
    views = [np.rot90(a, k) for a in (image, image[:, ::-1]) for k in range(4)]
    changed = 0
    for seed in range(20):
        seen, truth = augment(level, image, label, seed)
        assert seen.shape == image.shape and seen.dtype == np.uint8
        changed += not any(np.array_equal(seen, view) for view in views)
        inside = truth != 255
        if level == "standard" and (truth[inside] > 0).any():
            band = seen[..., -1].astype(int)
            assert band[truth == 1].mean() > band[truth == 0].mean() + 10
    assert changed > 10


@pytest.mark.parametrize(
    "change", [_Grey(p=1), _Hue(12, (20, 30), 0, p=1), _Planck(p=1)], ids=lambda c: type(c).__name__
)
def test_colours_are_those_of_the_first_three_bands(change):
    image, _ = crop(5)
    seen = change(image=image)["image"]
    assert not np.array_equal(seen[..., :3], image[..., :3]) and np.array_equal(
        seen[..., 3:], image[..., 3:]
    )
    change.set_random_seed(0)
    whole = change(image=image)["image"]
    change.set_random_seed(0)
    assert np.array_equal(change(image=image[..., :3])["image"], whole[..., :3])
    assert np.array_equal(change(image=image[..., :1])["image"], image[..., :1])
