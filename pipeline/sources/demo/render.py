"""A demo plan seen from an aeroplane: deferred shading of height, slope and colour,
at twice the resolution.

Geometry first (`scenery`), light second: the sun as a direction, the sky as a share, shadows
marched through the height field, haze, lens and sensor. Roofs are drawn where they stand (no relief
displacement), so footprints match them. Every texture is a function of place, so a scene of any
size is rendered window by window without seams, and equal seeds give equal bytes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.sources.demo.noise import Grid, white
from pipeline.sources.demo.plan import Plan
from pipeline.sources.demo.scenery import Painter, Scenery, linear
from pipeline.sources.demo.schema import DemoCity

OVER = 2  # samples along a pixel's side
REACH = 14.0  # metres beyond a window from which things still throw shadows into it
WINDOW = 1024  # pixels along a window's side: bounds the memory of large scenes


def shadow_height(height: np.ndarray, toward: tuple[float, float], drop: float) -> np.ndarray:
    """Height up to which each place lies in shadow: max over t > 0 of height(p +
    t·toward) - t·drop.

    height: (H, W) metres; toward: unit step in pixels towards the sun (columns, rows); drop: metres
    the beam falls a pixel. The maximum over 2ⁿ steps takes n shifts: the reach doubles each time.
    """
    reach, shadow = 1.0, None
    top = float(height.max())
    while shadow is None or (reach < 1024 and reach * drop < top):
        source = height if shadow is None else shadow
        step = 1.0 if shadow is None else reach
        shift = np.array([[1, 0, step * toward[0]], [0, 1, step * toward[1]]])
        moved = cv2.warpAffine(
            source, shift, source.shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        moved = moved - step * drop
        shadow, reach = (moved, 1.0) if shadow is None else (np.maximum(shadow, moved), 2 * reach)
    return shadow


def illuminate(scenery: Scenery, city: DemoCity, pixel: float, azimuth: float) -> np.ndarray:
    """(3, rows, cols) linear light towards the camera; open level ground in the
    sun has its albedo.
    """
    light = city.light
    rise, turn = math.radians(light.elevation), math.radians(azimuth)
    toward = math.sin(turn), -math.cos(turn)
    sx, sy, sz = toward[0] * math.cos(rise), toward[1] * math.cos(rise), math.sin(rise)
    facing = (sz - scenery.slope_x * sx - scenery.slope_y * sy) / np.sqrt(
        1 + scenery.slope_x**2 + scenery.slope_y**2
    )
    shadow = shadow_height(scenery.height, toward, pixel * math.tan(rise))
    lit = np.clip(1 - (shadow - scenery.height - 0.12) / 0.35, 0, 1)
    lit = np.maximum(lit, 0.45 * scenery.canopy.astype(np.float32))  # leaves let light through
    direct = (1 - light.ambient) * lit * np.clip(facing, 0, None) / sz
    direct = direct / (1 + 0.22 * np.maximum(direct - 1, 0))  # film's shoulder
    size = max(3, int(7 / pixel) | 1)
    open_sky = np.clip(
        1 - 0.05 * np.maximum(cv2.blur(scenery.height, (size, size)) - scenery.height, 0), 0.45, 1
    )
    ambient = light.ambient * open_sky
    radiance = scenery.albedo
    for band, sun, sky in zip(radiance, (1.04, 1.0, 0.95), (0.90, 0.99, 1.14), strict=True):
        band *= direct * sun + ambient * sky
    return radiance


def expose(
    radiance: np.ndarray, city: DemoCity, seed: int, row: int, col: int, size: int
) -> np.ndarray:
    """Haze, lens and sensor: linear (3, H, W) at row, col of a scene of `size`
    to (H, W, 3) uint8, from 1.
    """
    camera, light = city.camera, city.light
    rows, cols = radiance.shape[1:]
    y = (np.arange(row, row + rows, dtype=np.float32) - size / 2)[:, None] / size
    x = (np.arange(col, col + cols, dtype=np.float32) - size / 2)[None] / size
    lens = camera.exposure * (1 - light.haze) * (1 - 2 * camera.vignette * (x * x + y * y))
    common = 0.7 * white(row, col, rows, cols, seed + 24)
    image = np.empty((rows, cols, 3), np.uint8)
    for band in range(3):
        seen = radiance[band] * lens + light.haze * float(linear(light.air[band] / 255))
        grey = 255 * camera.cast[band] * np.sqrt(np.clip(seen, 0, None))
        # whites are not cut off
        grey = np.where(grey > 210, 210 + 45 * np.tanh((grey - 210) / 45), grey)
        dots = common + 0.7 * white(row, col, rows, cols, seed + 20 + band)
        grey += camera.noise * dots * (0.6 + grey / 320)
        image[..., band] = np.clip(np.rint(grey), 1, 255)
    return image


@dataclass(frozen=True)
class Picture:
    row: int
    col: int
    image: np.ndarray  # (H, W, 3) uint8, 1 to 255
    roofs: np.ndarray  # (H, W) float32, share of the pixel that a building covers


def render(plan: Plan, city: DemoCity, size: int, seed: int) -> Iterator[Picture]:
    """The scene of size×size pixels, window by window."""
    azimuth = city.light.azimuth + 4 * math.sin(seed)  # a few minutes between flight lines
    pixel, margin = city.gsd / OVER, int(REACH / city.gsd)
    for row in range(0, size, WINDOW):
        for col in range(0, size, WINDOW):
            rows, cols = min(WINDOW, size - row), min(WINDOW, size - col)
            high, wide = rows + 2 * margin, cols + 2 * margin
            grid = Grid(
                (row - margin) * OVER, (col - margin) * OVER, high * OVER, wide * OVER, pixel
            )
            scenery = Painter(plan, city, seed, grid).scenery()

            def pooled(field: np.ndarray, high=high, wide=wide) -> np.ndarray:
                field = field.astype(np.float32, copy=False)
                return cv2.resize(field, (wide, high), interpolation=cv2.INTER_AREA)

            inner = np.s_[margin : high - margin, margin : wide - margin]
            roofs = pooled(scenery.building)[inner]
            radiance = illuminate(scenery, city, pixel, azimuth)
            spread = max(city.camera.blur, 0.2)
            seen = np.stack(
                [cv2.GaussianBlur(pooled(band), (0, 0), spread)[inner] for band in radiance]
            )
            yield Picture(row, col, expose(seen, city, seed, row, col, size), roofs)
