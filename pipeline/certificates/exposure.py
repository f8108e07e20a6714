"""What a network draws whatever the exposure: every gain of every band and every offset within
bounds, together.

The image gain_c · x_c + offset_c is linear in 2C numbers, and so is every layer but for its ReLUs.
A layer's values are centre + Σ_p form_p · e_p ± rest, |e_p| ≤ 1: the forms follow the numbers
exactly, and a ReLU adds to `rest` what its chord and the parallel through 0 leave open (a zonotope:
Singh et al. 2018, "Fast and effective robustness certification"). The range of the numbers is cut
into cells, each bounded by itself: branch and bound with a fixed budget, halving where the cell is
felt most. As bounds.py's, the bounds hold for the network as float32 computes it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.certificates.bounds import (
    ABSTAIN,
    PIXEL_SLACK,
    UNIT,
    Affine,
    Bounds,
    Box,
    ReLU,
    certified_classes,
    decided_margins,
    worst_margins,
)
from pipeline.errors import InputError
from pipeline.networks.models import Segmenter


class Zonotope(NamedTuple):
    """centre + Σ_p forms_p · e_p ± rest, element by element."""

    centre: Tensor  # (N, …)
    forms: Tensor  # (P, N, …)
    rest: Tensor  # (N, …)

    def box(self) -> Box:
        radius = (self.forms.abs().sum(0) + self.rest) * (
            1 + 8 * UNIT
        ) + 4 * UNIT * self.centre.abs()
        return Box(self.centre - radius, self.centre + radius)


@torch.no_grad()
def exposure_classes(
    segmenter: Segmenter, images: Tensor, gain: float, offset: float, cells: int
) -> Tensor:
    """Classes (N, H, W) that the deployed map keeps under every gain in [1 − gain, 1 + gain] and
    every offset in [−offset, offset] of each band, ABSTAIN where that is not proven. Images (N, C,
    H, W) in [0, 1].

    Raises InputError on a layer that is neither affine nor ReLU.
    """
    bounds = Bounds(segmenter.network, segmenter.decision)
    return torch.cat(
        [_of_one(bounds, segmenter, image, gain, offset, cells) for image in images.split(1)]
    )


def _of_one(
    bounds: Bounds, segmenter: Segmenter, image: Tensor, gain: float, offset: float, cells: int
) -> Tensor:
    channels = image.shape[1]
    reach, kept = torch.tensor([gain] * channels + [offset] * channels).to(image), torch.empty(0)
    for lower, upper in _cells(bounds, segmenter, image, -reach, reach, cells):
        classes = certified_classes(
            _margins(bounds, _network(bounds, _exposed(segmenter, image, lower, upper)))
        )
        kept = torch.where(kept == classes, kept, ABSTAIN) if kept.numel() else classes
        if (kept == ABSTAIN).all():
            break
    return kept


def _cells(bounds, segmenter, image, low: Tensor, high: Tensor, count: int):
    """Boxes (lower, upper) of the numbers, at most `count`, that cover [low, high]: halved along
    the number whose form is the largest at the logits, again and again.
    """
    felt = _network(bounds, _exposed(segmenter, image, low, high)).forms.abs().flatten(1).mean(1)
    parts = torch.ones_like(felt)
    while 2 * parts.prod() <= count and (felt / parts).max() > 0:
        parts[(felt / parts).argmax()] *= 2
    for index in torch.cartesian_prod(*(torch.arange(int(n)) for n in parts)).to(low):
        width = (high - low) / parts
        yield low + index * width - UNIT, low + (index + 1) * width + UNIT  # no gap by rounding


def _exposed(segmenter: Segmenter, image: Tensor, lower: Tensor, upper: Tensor) -> Zonotope:
    """The image past the normalisation, its numbers (2C,), of 1 and 0, between lower and upper."""
    channels = image.shape[1]
    middle, reach = ((lower + upper) / 2)[:, None, None], ((upper - lower) / 2)[:, None, None]
    centre = image + middle[:channels] * image + middle[channels:]
    bands = torch.eye(channels).to(image)[:, None, :, None, None]  # form p is of its band alone
    forms = torch.cat(
        [bands * (reach[:channels] * image), bands * reach[channels:].expand_as(image)]
    )
    rest = torch.full_like(image, PIXEL_SLACK)
    low, high = Zonotope(centre, forms, rest).box()
    cut = (low < 0) | (high > 1)  # where the sensor saturates nothing is linear
    centre = torch.where(cut, (low.clamp(0, 1) + high.clamp(0, 1)) / 2, centre)
    rest = torch.where(cut, (high.clamp(0, 1) - low.clamp(0, 1)) / 2 + PIXEL_SLACK, rest)
    forms = torch.where(cut, 0, forms)
    return Zonotope(
        (centre - segmenter.mean) / segmenter.std, forms / segmenter.std, rest / segmenter.std
    )


def _network(bounds: Bounds, image: Zonotope) -> Zonotope:
    """The logits."""
    found = {bounds.input: image}
    for node, rule in bounds.rules.items():
        inputs = [found[i] for i in node.all_input_nodes]
        match rule:
            case Affine():
                found[node] = _affine(rule, inputs)
            case ReLU():
                found[node] = _relu(inputs[0])
            case _:
                raise InputError(
                    f"certify: no exposure is bounded through {node.name}; use "
                    f"convolutions and ReLU"
                )
    return found[bounds.logits]


def _affine(rule: Affine, inputs: list[Zonotope]) -> Zonotope:
    forms = rule.linear(rule.weight, *(z.forms.flatten(0, 1) for z in inputs))
    rest = rule.absolute(*(z.rest for z in inputs)) + rule.rounding * rule.size(
        *(z.box() for z in inputs)
    )
    return Zonotope(
        rule(*(z.centre for z in inputs)), forms.unflatten(0, inputs[0].forms.shape[:2]), rest
    )


def _relu(z: Zonotope) -> Zonotope:
    """Between slope · z and its chord slope · (z − l): half their distance joins `rest`."""
    lower, upper = z.box()
    low, high = lower.clamp_max(0), upper.clamp_min(0)
    slope = high / (high - low).clamp_min(1e-30)
    half = -slope * low / 2
    # the rounding of the three lines above
    unsure = (half > 0) * (8 * UNIT * torch.maximum(high, -low))
    return Zonotope(slope * z.centre + half, slope * z.forms, slope * z.rest + half + unsure)


def _margins(bounds: Bounds, z: Zonotope) -> Tensor:
    """What each class is ahead by in the whole cell, at least: (N, K, H, W)."""
    size = z.box().largest()
    lead = (
        z.centre[:, :, None]
        - z.centre[:, None]
        - (z.forms[:, :, :, None] - z.forms[:, :, None]).abs().sum(0)
    )
    lead = (
        lead
        - (z.rest[:, :, None] + z.rest[:, None])
        - 16 * UNIT * (size[:, :, None] + size[:, None])
    )
    if bounds.decision is None:
        return worst_margins(lead)
    return decided_margins(lead, bounds.decision, size.amax(1, keepdim=True))
