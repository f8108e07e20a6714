import numpy as np
import pytest

from pipeline.course import tint
from pipeline.explanation import cues
from pipeline.explanation.city import drawn, explain_city
from pipeline.explanation.summary import summarise
from pipeline.labels import IGNORE
from pipeline.params import Explain

RNG = np.random.default_rng


@pytest.fixture
def tile():
    """Two roofs on ground, a corner without labels: image (32, 32, 3) and label (32, 32)."""
    label = np.zeros((32, 32), np.uint8)
    label[4:12, 4:12], label[18:28, 10:26], label[:4, -4:] = 1, 1, IGNORE
    return RNG(0).random((32, 32, 3), np.float32), label


def tinted(count: int = 24):
    """Tiles with the planted tint, as a stage gets them."""
    images, labels = (part.numpy() for part in tint.tiles(count, 5))
    return images.transpose(0, 2, 3, 1), doubtful(labels)


def doubtful(labels: np.ndarray) -> np.ndarray:
    """With a few wrong pixels: an IoU of 1 in every tile would not say how far
    others are from it.
    """
    labels[:, 0, ::2] ^= 1
    return labels.astype(np.uint8)


def shadowed(count: int = 12):
    """Roofs of eight by eight with a dark strip along their right side, on ground of one grey."""
    images, labels = (
        np.full((count, 48, 48, 3), 0.6, np.float32),
        np.zeros((count, 48, 48), np.uint8),
    )
    for image, label, (top, left) in zip(
        images, labels, RNG(1).integers(2, 30, (count, 2)), strict=True
    ):
        label[top : top + 8, left : left + 8] = 1
        image[top : top + 8, left + 8 : left + 11] = 0.1
    return images, labels


def summary_of(segmenter, tiles) -> dict:
    measured = dict(
        (name, numbers)
        for name, numbers, _ in explain_city(segmenter, *tiles, Explain(buildings=0))
    )
    return summarise({"here": measured}, {"here": 0.5})["city"]["here"]


def test_colour_goes_and_lightness_stays(tile):
    image, label = tile
    grey = cues.without_colour(image, label, RNG(0))
    np.testing.assert_allclose(grey.mean(-1), image.mean(-1), atol=1e-6)
    assert np.ptp(grey - grey.mean(-1, keepdims=True), axis=(0, 1)).max() < 1e-6
    np.testing.assert_allclose(cues.without_colour(grey, label, RNG(0)), grey, atol=1e-6)


def test_roofs_keep_their_pixels_in_no_order_and_the_ground_stays(tile):
    image, label = tile
    mixed = cues.without_roof_texture(image, label, RNG(0))
    np.testing.assert_array_equal(mixed[label != 1], image[label != 1])
    for roof in (np.s_[4:12, 4:12], np.s_[18:28, 10:26]):
        assert (mixed[roof] != image[roof]).any(-1).mean() > 0.9
        before, after = (np.sort(a[roof].reshape(-1, 3), axis=0) for a in (image, mixed))
        np.testing.assert_array_equal(after, before)


def test_the_ground_keeps_its_pixels_in_each_square_and_roofs_stay(tile):
    image, label = tile
    mixed = cues.without_ground_texture(image, label, RNG(0))
    np.testing.assert_array_equal(mixed[label != 0], image[label != 0])
    square = np.s_[: cues.GRAIN, : cues.GRAIN]
    np.testing.assert_allclose(mixed[square].sum((0, 1)), image[square].sum((0, 1)), rtol=1e-5)
    assert (mixed[label == 0] != image[label == 0]).any(-1).mean() > 0.9


def test_of_all_but_shape_each_roof_and_the_ground_are_one_colour(tile):
    image, label = tile
    flat = cues.shape_alone(image, label, RNG(0))
    for place in (np.s_[4:12, 4:12], np.s_[18:28, 10:26]):
        np.testing.assert_allclose(flat[place] - image[place].mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(flat[label == 0] - image[label == 0].mean(0), 0, atol=1e-6)
    np.testing.assert_array_equal(flat[label == IGNORE], image[label == IGNORE])


def test_a_shadow_is_lit_like_the_ground_and_roofs_stay():
    images, labels = shadowed(1)
    lit = cues.without_shadow(images[0], labels[0], RNG(0))
    np.testing.assert_allclose(lit, 0.6, atol=1e-4)
    np.testing.assert_array_equal(cues.without_shadow(lit, labels[0], RNG(0)), lit)  # none is left


def test_other_ground_around_the_same_roofs_and_its_roofs_are_not_scored(tile):
    image, label = tile
    other, theirs = np.zeros_like(image), np.zeros_like(label)
    theirs[0:6, 0:6] = 1
    images, labels = cues.without_surroundings(
        np.stack([image, other]), np.stack([label, theirs]), RNG(0)
    )
    roof = label == 1  # of the first, on the ground of the second
    np.testing.assert_array_equal(images[0][roof], image[roof])
    assert not images[0][~roof].any()
    assert (labels[0][roof] == 1).all()
    ignored = ((theirs == 1) | (label == IGNORE)) & ~roof
    np.testing.assert_array_equal(labels[0] == IGNORE, ignored)


def test_no_cue_is_taken_where_there_is_none():
    images, labels = np.zeros((2, 8, 8, 1), np.float32), np.zeros((2, 8, 8), np.uint8)
    assert cues.taken("colour", images, labels, 0) is None
    assert cues.taken("surroundings", images[:1], labels[:1], 0) is None
    labels[0] = IGNORE
    # a tile without labels or shadow or roofs does no harm
    for name in set(cues.CUES) - {"colour"}:
        assert np.isfinite(cues.taken(name, images, labels, 0)[0]).all()


def test_the_planted_tint_is_found_in_the_network_that_answers_from_it(by_colour):
    found = summary_of(by_colour, tinted())
    assert found["iou"] > 0.8 and found["leans_on"] == "colour"
    assert found["cue"]["colour"]["drop_low"] > 0.5
    assert abs(found["cue"]["all but shape"]["drop"]) < 0.01  # the flat roofs keep their tint
    assert found["support_radius"] == 0  # it looks at single pixels


def test_and_not_in_the_network_that_answers_from_brightness(by_brightness):
    found = summary_of(by_brightness, tinted())
    assert found["iou"] > 0.5 and found["leans_on"] != "colour"
    assert abs(found["cue"]["colour"]["drop"]) < 0.01


def test_the_network_that_answers_from_shadow_leans_on_shadow(by_shadow):
    tiles = shadowed()
    assert (drawn(by_shadow, tiles[0]) == tiles[1]).all()
    found = summary_of(by_shadow, (tiles[0], doubtful(tiles[1])))
    assert found["cue"]["shadow"]["iou"] == 0 and found["cue"]["colour"]["drop"] == 0
    # another tile's ground has its shadow elsewhere
    assert found["leans_on"] in {"shadow", "surroundings"}


def test_a_city_without_buildings_leans_on_nothing(by_colour):
    images, labels = tinted(3)
    found = summary_of(by_colour, (images, 0 * labels))
    assert found["leans_on"] is None and found["iou"] is None
    assert not any(found["cue"].values())
