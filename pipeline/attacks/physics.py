"""Attacks that the sun, the sky and the camera can make: few bounded numbers
instead of a change of every pixel.

    gain      every band's own gain and offset: exposure, sensor, processing
    haze      t·x + (1 − t)·A with t = exp(−βd) (Koschmieder 1924); from above the depth d is constant
    colour    the light's colour temperature: gains that Planck's law gives red, green and blue
    blur      the optics' point spread, a Gaussian
    shift     of the pixel grid against the ground: resampled, bilinear
    turn      small rotation and scale: resampled, and the labels with it
    shadow    of one cloud: a disc of bounded darkness whose edge has a least softness

A family is searched by grid, then by gradient from each tile's worst point of it (Engstrom et al.
2019, "Exploring the landscape of spatial robustness", found the grid stronger for turns). The
neutral point is always among the attempts, so that no worst case is above the clean IoU. All act on
pixels as stored, in [0, 1]; none is rounded to 8 bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attacks.losses import AttackLoss
from pipeline.labels import IGNORE
from pipeline.params import Physics
from pipeline.training.perturb import valid_mean

KELVIN = 5500  # of the light that images were taken in
WAVELENGTHS = (610e-9, 545e-9, 465e-9)  # metres: red, green, blue
PLANCK = 1.4388e-2  # m·K: hc / k
ENCODED = 1 / 2.2  # stored values are about this power of the light
STEP = 0.25  # of a parameter's range, at first


@dataclass(frozen=True)
class Family:
    """Images (N, C, H, W) seen under numbers (N, P) between `low` and `high` (P,); `neutral`
    (P,) changes nothing.
    """

    names: tuple[str, ...]
    low: Tensor
    high: Tensor
    neutral: Tensor
    view: Callable[[Tensor, Tensor], Tensor]
    # labels (N, H, W), where the ground is
    truth: Callable[[Tensor, Tensor], Tensor] = lambda labels, numbers: labels

    def numbers(self, unit: Tensor) -> Tensor:
        """Of a point (…, P) of the unit cube."""
        return self.low.to(unit) + unit * (self.high - self.low).to(unit)


def families(settings: Physics, channels: int) -> dict[str, Family]:
    """Those of physics.families that its bounds leave room, and that images of
    so many channels can have.
    """
    s, bands = settings, range(channels)
    gains = {f"gain {c}": (1 - s.gain, 1, 1 + s.gain) for c in bands}
    offsets = {f"offset {c}": (-s.offset, 0, s.offset) for c in bands}
    where = {"right": (0, 0.5, 1), "down": (0, 0.5, 1), "radius": (0.2, 0.4, 0.8)}
    what = {"darkness": (0, 0, s.shadow), "softness": (s.softness, s.softness, 4 * s.softness)}
    sides = {side: (-s.shift, 0, s.shift) for side in ("right", "down")}
    turns = {"degrees": (-s.rotation, 0, s.rotation), "scale": (1 - s.scale, 1, 1 + s.scale)}
    every = {
        "gain": (s.gain or s.offset) and _family(gains | offsets, expose),
        "haze": s.haze and _family({"depth": (0, 0, s.haze), "airlight": (0.6, 0.8, 1)}, haze),
        "colour": channels == 3 and s.mired and _family({"mired": (-s.mired, 0, s.mired)}, tint),
        "blur": s.blur
        and _family({"sigma": (0, 0, s.blur)}, partial(blur, radius=math.ceil(3 * s.blur))),
        "shift": s.shift and _family(sides, shift, shift_labels),
        "turn": (s.rotation or s.scale) and _family(turns, turn, turn_labels),
        "shadow": s.shadow and _family(where | what, shadow),
    }
    return {name: family for name in s.families if isinstance(family := every[name], Family)}


def _family(ranges: Mapping[str, Sequence[float]], *how: Callable) -> Family:
    """ranges: low, neutral and high of each number."""
    low, neutral, high = (
        torch.tensor(ends, dtype=torch.float32) for ends in zip(*ranges.values(), strict=True)
    )
    return Family(tuple(ranges), low, high, neutral, *how)


def expose(images: Tensor, numbers: Tensor) -> Tensor:
    """A gain of every band, then an offset of every band."""
    gain, offset = numbers[:, :, None, None].chunk(2, 1)
    return (gain * images + offset).clamp(0, 1)


def haze(images: Tensor, numbers: Tensor) -> Tensor:
    depth, airlight = numbers[:, :, None, None].split(1, 1)
    through = torch.exp(-depth)
    return through * images + (1 - through) * airlight


def tint(images: Tensor, numbers: Tensor) -> Tensor:
    """Red, green and blue in a light of 1e6 / (1e6/5500 + mired) kelvin, green held."""
    waves = torch.tensor(WAVELENGTHS, dtype=images.dtype, device=images.device)
    kelvin = 1e6 / (1e6 / KELVIN + numbers)  # (N, 1)
    # of radiances
    ratio = torch.expm1(PLANCK / (waves * KELVIN)) / torch.expm1(PLANCK / (waves * kelvin))
    gain = (ratio / ratio[:, 1:2]) ** ENCODED
    return (gain[:, :, None, None] * images).clamp(0, 1)


def blur(images: Tensor, numbers: Tensor, radius: int) -> Tensor:
    """A Gaussian of standard deviation σ pixels, cut at `radius` and normalised; edges mirrored."""
    radius = min(radius, min(images.shape[-2:]) - 1)
    at = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-(at**2) / (2 * numbers.square() + 1e-6))
    # (N·C, 1, 2r+1)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[
        :, None
    ]
    padded = F.pad(images, [radius] * 4, mode="reflect").flatten(0, 1)[None]
    down = F.conv2d(padded, weights[..., None], groups=len(weights))
    return F.conv2d(down, weights[:, :, None], groups=len(weights))[0].view_as(images)


def shadow(images: Tensor, numbers: Tensor) -> Tensor:
    """A disc, its place and radius in sides of the image, that takes a share `darkness` from the
    pixels, over an edge of `softness` pixels.
    """
    height, width = images.shape[-2:]
    right, down, radius, darkness, softness = numbers[:, :, None, None].unbind(1)
    rows = torch.arange(height, device=images.device)[:, None] + 0.5 - down * height
    columns = torch.arange(width, device=images.device) + 0.5 - right * width
    away = (rows.square() + columns.square() + 1e-6).sqrt()
    shade = torch.sigmoid((radius * min(height, width) - away) / softness)
    return images * (1 - darkness * shade)[:, None]


def shift(images: Tensor, numbers: Tensor) -> Tensor:
    return _resampled(images, _shifted(images, numbers), "bilinear")


def shift_labels(labels: Tensor, numbers: Tensor) -> Tensor:
    return _moved(labels, _shifted(labels, numbers))


def turn(images: Tensor, numbers: Tensor) -> Tensor:
    return _resampled(images, _turned(images, numbers), "bilinear")


def turn_labels(labels: Tensor, numbers: Tensor) -> Tensor:
    return _moved(labels, _turned(labels, numbers))


def _shifted(like: Tensor, numbers: Tensor) -> Tensor:
    """Maps (N, 2, 3) from a place of the result to one of the image; the
    image's sides are 2 there.
    """
    right, down = -2 * numbers[:, 0] / like.shape[-1], -2 * numbers[:, 1] / like.shape[-2]
    one, none = torch.ones_like(right), torch.zeros_like(right)
    return torch.stack([one, none, right, none, one, down], 1).view(-1, 2, 3)


def _turned(like: Tensor, numbers: Tensor) -> Tensor:
    angle, scale = torch.deg2rad(numbers[:, 0]), numbers[:, 1]
    aspect = like.shape[-2] / like.shape[-1]
    cos, sin, none = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(scale)
    return torch.stack([cos, -sin * aspect, none, sin / aspect, cos, none], 1).view(-1, 2, 3)


def _resampled(images: Tensor, maps: Tensor, mode: str, outside: str = "reflection") -> Tensor:
    grid = F.affine_grid(maps.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode=outside, align_corners=False)


def _moved(labels: Tensor, maps: Tensor) -> Tensor:
    """Labels (N, H, W) at the nearest pixel, IGNORE from outside the image."""
    known = _resampled((labels.float() - IGNORE)[:, None], maps.float(), "nearest", "zeros")
    return known[:, 0].round().to(labels.dtype) + IGNORE


def grid(family: Family, points: int) -> Tensor:
    """At most so many points of the unit cube (G, P): a regular grid, ends included, or, where it
    has no two points an axis, a Sobol sequence.
    """
    axes = len(family.low)
    levels = int(points ** (1 / axes) + 1e-9)
    if levels >= 2:
        return torch.tensor(list(product(torch.linspace(0, 1, levels).tolist(), repeat=axes)))
    return torch.quasirandom.SobolEngine(axes).draw(points)


@dataclass(frozen=True)
class Seen:
    """A point of the search: whether the grid or the gradient chose it, and
    what the tiles then look like.
    """

    by: str
    numbers: Tensor  # (N, P)
    logits: Tensor  # (N, K, H, W)
    labels: Tensor  # (N, H, W), where the ground then is


def search(
    family: Family, segmenter: torch.nn.Module, images: Tensor, labels: Tensor, loss: AttackLoss,
    harm: Callable[[Tensor, Tensor], Tensor], points: int, steps: int,
) -> Iterator[Seen]:  # fmt: skip
    """Every point tried, the grid's first, on all tiles at once: images (N, C, H, W) in [0, 1],
    labels (N, H, W).

    harm: of logits and labels, (N,): where a tile's is greatest on the grid, its
    ascent begins. Its steps are the signs of the gradient of `loss`, a quarter of
    each range at first, falling along a cosine.
    """

    def look(unit: Tensor, by: str) -> Seen:
        numbers = family.numbers(unit)
        logits = segmenter(family.view(images, numbers)).float()
        return Seen(by, numbers.detach(), logits, family.truth(labels, numbers.detach()))

    best, most = (
        images.new_zeros(len(images), len(family.low)),
        images.new_full((len(images),), -math.inf),
    )
    for point in grid(family, points).to(images):
        with torch.no_grad():
            seen = look(point.expand_as(best), "grid")
        now = harm(seen.logits, seen.labels)
        best, most = torch.where((now > most)[:, None], point, best), torch.maximum(now, most)
        yield seen
    for step in range(steps):
        with torch.enable_grad():
            seen = look(best.requires_grad_(), "gradient")
            value = valid_mean(loss(seen.logits, seen.labels, step / steps), seen.labels).sum()
            (slope,) = torch.autograd.grad(value, best)
        if step:  # the first is of the grid
            yield replace(seen, logits=seen.logits.detach())
        size = STEP * (1 + math.cos(math.pi * step / steps)) / 2
        best = (best.detach() + size * slope.sign()).clamp(0, 1)
    if steps:
        with torch.no_grad():
            yield look(best, "gradient")
