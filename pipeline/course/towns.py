"""What the course learns from: scenes of the demo's invented cities, drawn on
the spot and kept in memory.
"""

import zlib
from functools import cache
from pathlib import Path

import torch

from pipeline import params
from pipeline.sources.demo.layout import draw_plan
from pipeline.sources.demo.render import render
from pipeline.sources.demo.schema import Manifest, find_city
from pipeline.sources.demo.source import MANIFEST

ROOT = Path(__file__).parents[2]  # the checkout: the course is run from any folder


@cache
def manifest() -> Manifest:
    return params.load_section(Manifest, ROOT / MANIFEST, MANIFEST)


@cache
def scene(city: str, number: int, size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (3, S, S) in [0, 1] and labels (S, S) of scene `number` of a demo city; size at
    most 1,024 pixels.
    """
    about = find_city(manifest(), city)
    plan = draw_plan(
        about, manifest().materials, size * about.gsd, [0, zlib.crc32(city.encode()), number]
    )
    (picture,) = render(plan, about, size, number)
    image = torch.from_numpy(picture.image).movedim(-1, 0).float() / 255
    return image, torch.from_numpy(picture.roofs > 0.5).long()


def tiles(city: str, numbers, size: int = 64, side: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, size, size) and labels (N, size, size): scenes of `side` pixels, cut."""
    images, labels = zip(*(scene(city, number, side) for number in numbers), strict=True)
    return cut(torch.stack(images), size), cut(torch.stack(labels)[:, None], size)[:, 0]


def cut(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures (N, C, H, W) to squares (N · H/size · W/size, C, size, size), row by row."""
    squares = pictures.unfold(2, size, size).unfold(3, size, size)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
