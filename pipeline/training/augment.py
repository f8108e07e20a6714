"""The only module that knows albumentations (2.0.8, the last MIT release)."""

import os
from functools import cache

import numpy as np

# its import asks the network for news otherwise
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations  # noqa: E402

from pipeline.labels import IGNORE  # noqa: E402


# The optical faults of transfer/corruptions.py, each of one strength.
def defocus(radius: int) -> albumentations.BasicTransform:
    return albumentations.Defocus(radius=(radius, radius), alias_blur=(0.1, 0.1), p=1)


def motion_blur(length: int) -> albumentations.BasicTransform:
    return albumentations.MotionBlur(blur_limit=(length, length), allow_shifted=False, p=1)


def compression(quality: int) -> albumentations.BasicTransform:
    return albumentations.ImageCompression(quality_range=(quality, quality), p=1)


class _Visible(albumentations.ImageOnlyTransform):
    """A change of colours: of the first three bands, which are the ones shown. Other bands have
    none to be changed.
    """

    def apply(self, img: np.ndarray, *args, **parameters) -> np.ndarray:
        if img.shape[-1] < 3:
            return img
        seen = super().apply(np.ascontiguousarray(img[..., :3]), *args, **parameters)
        return np.concatenate([seen, img[..., 3:]], axis=-1)


class _Hue(_Visible, albumentations.HueSaturationValue): ...


class _Planck(_Visible, albumentations.PlanckianJitter): ...


class _Grey(_Visible, albumentations.ToGray): ...


@cache
def _pipeline(level: str) -> albumentations.Compose:
    a = albumentations
    # the eight symmetries of a square: from above, no direction is special
    turns: list = [a.D4(p=1)]
    colour = [
        a.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=0.7),
        _Hue(hue_shift_limit=12, sat_shift_limit=30, val_shift_limit=0, p=0.5),
        a.RandomGamma(gamma_limit=(75, 130), p=0.3),
    ]
    hard = [
        a.Affine(scale=(0.75, 1.33), rotate=(-45, 45), fill=0, fill_mask=IGNORE, p=0.6),
        _Planck(p=0.3),
        a.OneOf([a.GaussianBlur(blur_limit=(3, 5)), a.Downscale(scale_range=(0.5, 0.9))], p=0.3),
        # RandomFog takes 230 ms a crop, everything here under 2
        a.GaussNoise(std_range=(0.01, 0.05), p=0.3),
        _Grey(p=0.05),
    ]
    levels = {
        "none": [],
        "flips": turns,
        "standard": turns + colour,
        "strong": turns + hard[:1] + colour + hard[1:],
    }
    return a.Compose(levels[level])


def augment(
    level: str, image: np.ndarray, label: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """One random view of image (S, S, C) uint8 and label (S, S) or (S, S, L) uint8; the same seed
    gives the same view.

    Light, contrast, blur and noise change all bands, hue and saturation the first three, where
    there are three.
    """
    if level == "none":
        return image, label
    pipeline = _pipeline(level)
    pipeline.set_random_seed(seed)
    out = pipeline(image=image, mask=label)
    return out["image"], out["mask"]
