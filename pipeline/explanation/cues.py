"""One cue taken from the images, all else left as it was: what the map loses is what it rested on.

A cue takes a city's tiles, images (N, H, W, C) float32 in [0, 1] and labels (N, H, W) uint8, and a
generator, and returns both without the cue. Labels change in one case only: where another tile's
ground is laid around the roofs, that tile's own buildings become 255.

An image without a cue is also an image unlike any that was trained on. So a fall says that the map
needs the cue in place; that a cue may go without a fall is the stronger finding of the two.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from pipeline.labels import IGNORE

Rng = np.random.Generator
Tiles = tuple[np.ndarray, np.ndarray]
GRAIN = 16  # pixels along the squares of ground within which texture is scrambled
DARK = 0.55  # of the ground's median lightness: darker ground lies in shadow


def roofs(label: np.ndarray) -> np.ndarray:
    """(H, W) int: 1, 2, … on each building (4-connected), 0 elsewhere."""
    return ndimage.label((label > 0) & (label != IGNORE))[0]


def without_colour(image: np.ndarray, label: np.ndarray, _: Rng) -> np.ndarray:
    """Each pixel keeps its lightness (the mean of red, green, blue) and takes the tile's mean tint.

    Bands after the third are no colour and stay.
    """
    lightness = image[..., :3].mean(-1, keepdims=True)
    tint = (image[..., :3] - lightness)[label != IGNORE].mean(0)
    return np.concatenate([lightness + tint, image[..., 3:]], -1)


def shuffled(image: np.ndarray, places: np.ndarray, rng: Rng) -> np.ndarray:
    """The pixels of each place (H, W) int are shuffled among themselves; those of place 0 stay."""
    inside = np.flatnonzero(places)
    place = places.ravel()[inside]
    home, away = np.argsort(place, kind="stable"), np.lexsort((rng.random(len(place)), place))
    pixels = image.reshape(-1, image.shape[-1]).copy()
    pixels[inside[home]] = pixels[inside[away]]
    return pixels.reshape(image.shape)


def without_roof_texture(image: np.ndarray, label: np.ndarray, rng: Rng) -> np.ndarray:
    """Each roof keeps its pixels and its outline, in no order."""
    return shuffled(image, roofs(label), rng)


def without_ground_texture(image: np.ndarray, label: np.ndarray, rng: Rng) -> np.ndarray:
    """Each square of ground keeps its pixels, in no order: what lies where is
    kept, its grain is not.
    """
    row, column = np.indices(label.shape) // GRAIN
    squares = 1 + row * label.shape[1] + column
    return shuffled(image, np.where(label == 0, squares, 0), rng)


def shape_alone(image: np.ndarray, label: np.ndarray, _: Rng) -> np.ndarray:
    """Every roof in its mean colour, all ground in its own: outlines and their
    contrast are left.
    """
    places = np.where(label == IGNORE, 0, 1 + roofs(label)).ravel()
    pixels = image.reshape(-1, image.shape[-1])
    number = np.maximum(np.bincount(places), 1)
    means = np.stack([np.bincount(places, band) / number for band in pixels.T], -1)
    flat = np.where((places > 0)[:, None], means[places], pixels)
    return flat.astype(image.dtype).reshape(image.shape)


def without_shadow(image: np.ndarray, label: np.ndarray, _: Rng) -> np.ndarray:
    """Ground in shadow is lit: each band times what makes its mean that of the lit ground."""
    lightness, ground = image[..., :3].mean(-1), label == 0
    if not ground.any():
        return image
    dark = ground & (lightness < DARK * np.median(lightness[ground]))
    if not dark.any():
        return image
    gain = image[ground & ~dark].mean(0) / np.maximum(image[dark].mean(0), 1 / 255)
    return np.where(dark[..., None], image * gain, image)


def without_surroundings(images: np.ndarray, labels: np.ndarray, _: Rng) -> Tiles:
    """The roofs of each tile on the ground of the next; where that tile's roofs
    show nothing is scored.
    """
    ground, theirs = np.roll(images, 1, 0), np.roll(labels, 1, 0)
    roof = (labels > 0) & (labels != IGNORE)
    elsewhere = np.where((theirs != 0) | (labels == IGNORE), IGNORE, 0).astype(labels.dtype)
    return np.where(roof[..., None], images, ground), np.where(roof, labels, elsewhere)


def of_each(change: Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]):
    """A change of one tile as one of many, whose labels stay."""

    def of_all(images: np.ndarray, labels: np.ndarray, rng: Rng) -> Tiles:
        pairs = zip(images, labels, strict=True)
        changed = [change(i, y, rng) if (y != IGNORE).any() else i for i, y in pairs]
        return np.stack(changed).clip(0, 1).astype(np.float32), labels

    return of_all


CUES: dict[str, Callable[[np.ndarray, np.ndarray, Rng], Tiles]] = {
    "colour": of_each(without_colour),
    "roof texture": of_each(without_roof_texture),
    "ground texture": of_each(without_ground_texture),
    "shadow": of_each(without_shadow),
    "surroundings": without_surroundings,
    "all but shape": of_each(shape_alone),
}


def taken(name: str, images: np.ndarray, labels: np.ndarray, seed: int) -> Tiles | None:
    """The tiles without a cue; None where they have none to take: one band has no colour, and a
    single tile no other's ground."""
    if name == "colour" and images.shape[-1] < 3 or name == "surroundings" and len(images) < 2:
        return None
    return CUES[name](images, labels, np.random.default_rng(seed))
