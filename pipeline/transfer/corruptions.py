"""What the next flight may look like: a frozen table of corruptions at five severities, in the
manner of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), chosen for imagery from above.

A corruption depends on its name, its severity, a tile's place in the batch and a
seed, on nothing else. The table is frozen: numbers measured with it stay
comparable, so a change of any entry is a new table.

Most corruptions leave the ground where it is. Three do not, and move labels with it or on purpose:
    coarser, finer     the same camera higher or lower: image and label are resampled by the same factor and
                       IoU is counted on the new grid (finer shows the tile's centre, at the tile's own size)
    misregistration    the label is shifted against the image by metres on the ground, as volunteers'
                       footprints are: a perfect model loses too. Pixels left without a label become 255
"""

import zlib
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from pipeline.labels import IGNORE
from pipeline.training.augment import compression, defocus, motion_blur

SEVERITIES = (1, 2, 3, 4, 5)
# (H, W, C) float in [0, 1] and back
Corrupt = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def _smooth_field(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) in [0, 1], uniform in rank: what clouds and haze do not share between neighbours."""
    coarse = rng.normal(size=[max(2, round(side / scale) + 2) for side in shape]).astype(np.float32)
    field = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return field.ravel().argsort().argsort().reshape(shape) / (field.size - 1)


def gaussian_noise(image, sigma, rng):
    return image + rng.normal(0, sigma, image.shape)


def shot_noise(image, photons, rng):
    return rng.poisson(image * photons) / photons


def salt_and_pepper(image, share, rng):
    hit = rng.random(image.shape[:2]) < share
    return np.where(hit[..., None], rng.integers(0, 2, (*image.shape[:2], 1)), image)


def striping(image, amplitude, rng):
    """Detector columns of a push-broom scanner with gains of their own."""
    return image * (1 + amplitude * rng.normal(size=(1, image.shape[1], 1)))


def haze(image, share, rng):
    """Koschmieder's law with a bright, slightly blue airlight and a
    transmission that varies by ±20 %.
    """
    airlight = np.resize([0.80, 0.83, 0.87], image.shape[-1])
    veil = share * (0.8 + 0.4 * _smooth_field(image.shape[:2], 64, rng))[..., None]
    return image * (1 - veil) + airlight * veil


def cloud_shadow(image, darkness, rng):
    """Half of the ground lies in the soft-edged shade of clouds."""
    shade = np.clip((_smooth_field(image.shape[:2], 48, rng) - 0.4) / 0.2, 0, 1)
    return image * (1 - darkness * shade)[..., None]


def gain(image, factor, _):
    return image * factor


def contrast(image, factor, _):
    mean = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def gamma(image, exponent, _):
    return image**exponent


def saturation(image, factor, _):
    grey = image[..., :3].mean(axis=-1, keepdims=True)
    return np.concatenate([grey + factor * (image[..., :3] - grey), image[..., 3:]], axis=-1)


def colour_cast(image, strength, _):
    """Gains that warm (> 0) or cool (< 0) the light: red up as blue goes down, green and
    further bands unchanged.
    """
    gains = np.ones(image.shape[-1])
    gains[[0, min(2, len(gains) - 1)]] = 1 + strength, 1 - strength
    return image * gains


def band_shift(image, pixels, rng):
    """Bands out of register: the first and third move apart, the others stay with the label."""
    turn = rng.uniform(0, 2 * np.pi)
    moved = [*image.transpose(2, 0, 1)]
    for band, sign in ((0, 1), (min(2, len(moved) - 1), -1)):
        dx, dy = sign * pixels * np.cos(turn), sign * pixels * np.sin(turn)
        matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        moved[band] = cv2.warpAffine(
            moved[band], matrix, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT
        )
    return np.stack(moved, axis=-1)


def _optical(fault: Callable, image, level, rng):
    """`fault` builds a transform of 8-bit images."""
    transform = fault(level)
    transform.set_random_seed(int(rng.integers(2**31)))
    out = transform(image=np.clip(np.rint(image * 255), 0, 255).astype(np.uint8))["image"]
    return out.astype(np.float32) / 255


TABLE: dict[str, tuple[Corrupt, tuple[float, float, float, float, float]]] = {
    "gaussian_noise": (gaussian_noise, (0.02, 0.04, 0.07, 0.11, 0.16)),  # σ
    "shot_noise": (shot_noise, (300, 120, 50, 25, 12)),  # photons at white
    "salt_and_pepper": (salt_and_pepper, (0.005, 0.01, 0.03, 0.06, 0.12)),  # share of pixels
    "striping": (striping, (0.02, 0.05, 0.09, 0.14, 0.2)),  # σ of a column's gain
    "defocus": (partial(_optical, defocus), (1, 2, 3, 4, 6)),  # pixels, radius
    "motion_blur": (partial(_optical, motion_blur), (3, 5, 9, 13, 17)),  # pixels
    "compression": (partial(_optical, compression), (60, 40, 25, 15, 8)),  # JPEG quality
    "haze": (haze, (0.12, 0.25, 0.4, 0.55, 0.7)),  # share of airlight
    "cloud_shadow": (cloud_shadow, (0.2, 0.35, 0.5, 0.65, 0.8)),  # light lost
    "darker": (gain, (0.85, 0.7, 0.55, 0.4, 0.28)),
    "brighter": (gain, (1.15, 1.35, 1.6, 1.9, 2.3)),  # overexposed: values beyond 1 are lost
    "low_contrast": (contrast, (0.8, 0.6, 0.45, 0.3, 0.2)),
    "gamma": (gamma, (1.2, 1.45, 1.75, 2.1, 2.6)),
    "grey": (saturation, (0.8, 0.6, 0.4, 0.2, 0.0)),
    "warm_light": (colour_cast, (0.06, 0.12, 0.2, 0.3, 0.42)),
    "cool_light": (colour_cast, (-0.06, -0.12, -0.2, -0.3, -0.42)),
    "band_shift": (band_shift, (0.5, 1, 1.5, 2.25, 3)),  # pixels
}
# factor on the ground sample distance
RESAMPLED: dict[str, tuple[float, float, float, float, float]] = {
    "coarser": (1.15, 1.3, 1.5, 1.75, 2.0),
    "finer": (0.87, 0.77, 0.67, 0.57, 0.5),
}
# metres
SHIFTED: dict[str, tuple[float, float, float, float, float]] = {
    "misregistration": (0.5, 1, 1.5, 2.25, 3)
}
NAMES = (*TABLE, *RESAMPLED, *SHIFTED)


def _resample(image: np.ndarray, label: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    if factor > 1:
        side = [round(s / factor) for s in label.shape]
        return (
            cv2.resize(image, side[::-1], interpolation=cv2.INTER_AREA).reshape(*side, -1),
            cv2.resize(label, side[::-1], interpolation=cv2.INTER_NEAREST_EXACT),
        )
    rows, columns = label.shape
    inside = [max(1, round(s * factor)) for s in label.shape]
    top, left = (rows - inside[0]) // 2, (columns - inside[1]) // 2
    window = slice(top, top + inside[0]), slice(left, left + inside[1])
    return (
        cv2.resize(image[window], (columns, rows), interpolation=cv2.INTER_CUBIC).reshape(
            rows, columns, -1
        ),
        cv2.resize(label[window], (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT),
    )


def _shift(label: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    turn = rng.uniform(0, 2 * np.pi)
    matrix = np.array([[1, 0, pixels * np.cos(turn)], [0, 1, pixels * np.sin(turn)]])
    return cv2.warpAffine(
        label, matrix, label.shape[::-1], flags=cv2.INTER_NEAREST, borderValue=IGNORE
    )


def corrupt(
    name: str, severity: int, images: np.ndarray, labels: np.ndarray, gsd: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt images (N, S, S, C) uint8 with labels (N, S, S) uint8; same shapes back, but for
    `coarser` smaller.

    Severity is 1 to 5; `gsd` (metres a pixel) turns metres into pixels. Raises
    KeyError on an unknown name.
    """
    out_images, out_labels = [], []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        rng = np.random.default_rng([zlib.crc32(name.encode()), severity, seed, i])
        if name in RESAMPLED:
            image, label = _resample(image, label, RESAMPLED[name][severity - 1])
        elif name in SHIFTED:
            label = _shift(label, SHIFTED[name][severity - 1] / gsd, rng)
        else:
            function, levels = TABLE[name]
            changed = function(image.astype(np.float32) / 255, levels[severity - 1], rng)
            image = np.clip(np.rint(changed * 255), 0, 255).astype(np.uint8)
        out_images.append(image)
        out_labels.append(label)
    return np.stack(out_images), np.stack(out_labels)
