"""Bounds on linear forms of a network's outputs over a box of images: CROWN's backward pass over
IBP's intervals (Zhang et al. 2018, "CROWN", and 2020, "CROWN-IBP"), ℓ∞.

A form Σ c·y of a layer's outputs becomes one of its inputs that is never greater,
and so on back to the image:

    affine        its adjoint, less what float32 may round: a share of |c| · Σ|product|
    ReLU          where c < 0 the chord above, else a line through 0 below
    max pooling   where c < 0 the largest upper bound, else the input with the best lower bound

Output pixels whose receptive fields are disjoint share one backward pass, so a whole tile costs as
many passes as a receptive field has pixels. A pass in float32 gives up what its own adjoints may
round, and sums in float64.
"""

import math
from typing import Literal

import torch
from torch import Tensor, fx
from torch.func import vjp

from pipeline.certificates.bounds import Affine, Bounds, Box, MaxPool, ReLU
from pipeline.networks.decision import leading

Boxes = dict[fx.Node, Box]


def linear_lower(
    bounds: Bounds,
    boxes: Boxes,
    node: fx.Node,
    spec: Tensor,
    *,
    relaxation: Literal["crown", "parallel"] = "crown",
    where: Tensor | None = None,
    chunk: int = 32,
) -> Tensor:
    """Lower bounds (H, W) of Σ_c spec[c, y, x] · node[c, y, x] for one image, given
    `boxes` of the nodes before.

    One backward pass substitutes linear bounds from `node` to the image, where the box concretises
    them. relaxation: "crown" takes the lower line of a ReLU from {0, x}, whichever leaves the
    smaller area; "parallel" gives it the chord's slope (Wong and Kolter 2018). `where` (H, W)
    limits the pixels (others are −inf), `chunk` the passes held at once: memory is chunk × the
    widest feature map.
    """
    height, width = spec.shape[-2:]
    extent = boxes[bounds.input].lower.shape[-2:]
    if _even(bounds, boxes):
        step, reach = extent[0] // height, _reach(bounds, boxes, node)
    # a layer's pixels are no whole number of image pixels: each output pixel gets a pass of its own
    else:
        step, reach = 1, max(*extent, height, width)
    # pixels that share a pass: receptive fields are disjoint
    spacing = math.ceil((2 * reach + 1) / step)
    rows, columns = min(spacing, height), min(spacing, width)
    result = spec.new_full((height, width), -torch.inf, dtype=torch.float64)
    offsets = [
        (y, x)
        for y in range(rows)
        for x in range(columns)
        if where is None or where[y::spacing, x::spacing].any()
    ]
    for start in range(0, len(offsets), chunk):
        group = offsets[start : start + chunk]
        seeds = spec.new_zeros(len(group), *spec.shape)
        for seed, (y, x) in zip(seeds, group, strict=True):
            seed[:, y::spacing, x::spacing] = spec[:, y::spacing, x::spacing]
        owners = _Owners(group, spacing, (height, width), step, extent)
        total = _substitute(bounds, boxes, node, seeds, relaxation, owners)
        for bound, (y, x) in zip(total, group, strict=True):
            cells = result[y::spacing, x::spacing]
            cells.copy_(bound[: cells.shape[0], : cells.shape[1]])
    if where is not None:
        result = result.masked_fill(~where, -torch.inf)
    nearest = result.to(spec.dtype)
    below = nearest.detach().nextafter(torch.full_like(nearest, -torch.inf))
    # down, and differentiable
    return torch.where(nearest > result, nearest - (nearest.detach() - below), nearest)


def _substitute(
    bounds: Bounds, boxes: Boxes, node: fx.Node, seeds: Tensor, relaxation: str, owners
) -> Tensor:
    """Σ of each seed's constants, down to the box of the image: (passes, cells
    down, cells across).
    """
    forms, total = {node: seeds}, torch.zeros((), dtype=seeds.dtype)
    for current in reversed(bounds.nodes[: bounds.nodes.index(node) + 1]):
        if current not in forms:
            continue
        form, rule = forms.pop(current), bounds.rules.get(current)
        inputs = current.all_input_nodes
        match rule:
            case None:  # the image: the least value of a linear form over a box
                box = boxes[current]
                total = total + owners.sum(
                    form.clamp_min(0) * box.lower + form.clamp_max(0) * box.upper
                )
                continue
            case Affine():
                total = total - owners.sum(
                    form.abs() * (rule.rounding_back * rule.size(*(boxes[i] for i in inputs)))
                )
                if rule.bias is not None:
                    total = total + owners.sum(form * rule.bias)
                zeros = [
                    torch.zeros_like(boxes[i].lower).expand(len(form), -1, -1, -1) for i in inputs
                ]
                parts = vjp(lambda *x, rule=rule: rule.linear(rule.weight, *x), *zeros)[1](form)
            case ReLU():
                lower, upper = boxes[inputs[0]]
                chord = upper.clamp_min(0) / (upper.clamp_min(0) - lower.clamp_max(0)).clamp_min(
                    1e-30
                )
                # else 0: the smaller area
                identity = ((lower >= 0) | (upper > -lower)).to(form.dtype)
                below = chord if relaxation == "parallel" else identity
                positive, negative = form.clamp_min(0), form.clamp_max(0)
                total = total + owners.sum(negative * chord * -lower.clamp_max(0))
                parts = [positive * below + negative * chord]
            case MaxPool():
                lower, upper = boxes[inputs[0]]
                total = total + owners.sum(form.clamp_max(0) * rule.module(upper))
                best = rule.best(lower).expand_as(form).flatten(2)
                flat = form.new_zeros(len(form), *lower.shape[1:]).flatten(2)
                flat.scatter_add_(2, best, form.clamp_min(0).flatten(2))
                parts = [flat.unflatten(2, lower.shape[2:])]
        for i, part in zip(inputs, parts, strict=True):
            forms[i] = forms[i] + part if i in forms else part
    return total


def _even(bounds: Bounds, boxes: Boxes) -> bool:
    """Whether a pixel of every layer is a square of whole image pixels."""
    extent = boxes[bounds.input].lower.shape[-2:]
    sizes = torch.tensor([boxes[n].lower.shape[-2:] for n in bounds.nodes])
    steps = torch.tensor(extent) // sizes
    return bool(
        (steps * sizes == torch.tensor(extent)).all() and (steps[:, 0] == steps[:, 1]).all()
    )


def _reach(bounds: Bounds, boxes: Boxes, node: fx.Node) -> int:
    """How far, in image pixels, a pixel of `node` looks: measured by sending ones
    back from its centre.

    Where they reach the border, a pixel elsewhere may look further: the answer is then the image's
    size. A pixel looks as far as another at the same place within the widest stride, so that one of
    each place is asked.
    """
    height, width = boxes[node].lower.shape[-2:]
    extent = boxes[bounds.input].lower.shape[-2]
    step = extent // height
    period = max(1, max(extent // boxes[n].lower.shape[-2] for n in bounds.nodes) // step)
    places = [
        (height // 2 + y, width // 2 + x) for y in range(period) for x in range(period)
        if height // 2 + y < height and width // 2 + x < width
    ]  # fmt: skip
    seeds = boxes[node].lower.new_zeros(len(places), *boxes[node].lower.shape[1:])
    for seed, (y, x) in zip(seeds, places, strict=True):
        seed[:, y, x] = 1
    marks, reach = {node: seeds}, 0
    for current in reversed(bounds.nodes[: bounds.nodes.index(node) + 1]):
        if current not in marks:
            continue
        mark, scale = (marks.pop(current) > 0).to(seeds), extent // boxes[current].lower.shape[-2]
        for place, seed in zip(mark, places, strict=True):
            touched = place.any(0)
            if touched[[0, -1]].any() or touched[:, [0, -1]].any():
                return max(boxes[bounds.input].lower.shape[-2:])
            away = touched.nonzero().cpu() * scale - torch.tensor(seed) * step
            reach = max(reach, int(away.abs().max()))
        if current is bounds.input:
            continue
        rule, inputs = bounds.rules[current], current.all_input_nodes
        zeros = [torch.zeros_like(boxes[i].lower).expand(len(mark), -1, -1, -1) for i in inputs]
        parts = [mark] if isinstance(rule, ReLU) else vjp(rule.reach, *zeros)[1](mark)
        for i, part in zip(inputs, parts, strict=True):
            marks[i] = marks[i] + part if i in marks else part
    return reach


class _Owners:
    """Which seed each pixel of a feature map belongs to: seeds stand `spacing` apart, each owns
    the pixels nearest.
    """

    def __init__(self, offsets, spacing, shape, step, extent):
        self.offsets, self.extent, self.period = offsets, extent, spacing * step
        self.cells = [math.ceil(n / spacing) for n in shape]
        self.step = step

    def sum(self, terms: Tensor) -> Tensor:
        """Σ over channels and owned pixels of terms (passes, C, h, w): (passes, cells down,
        cells across), float64.
        """
        return self._owned(terms, 0) @ terms.double().sum(1) @ self._owned(terms, 1).mT

    def _owned(self, terms: Tensor, axis: int) -> Tensor:
        """One-hot (passes, cells, rows or columns of the map)."""
        size = terms.shape[2 + axis]
        places = torch.arange(size, device=terms.device) * (self.extent[axis] // size)
        starts = (
            torch.tensor([o[axis] for o in self.offsets], device=terms.device)[:, None] * self.step
        )
        owner = torch.div(
            2 * (places - starts) + self.period, 2 * self.period, rounding_mode="floor"
        )
        cells = torch.arange(self.cells[axis], device=terms.device)
        return (owner[:, None, :] == cells[:, None]).double()


def crown_ibp_margins(bounds: Bounds, box: Box, *, chunk: int = 32) -> Tensor:
    """Worst margins (N, K, H, W): IBP's, improved by one backward linear pass where
    IBP does not certify.

    Only the class that leads at the box's centre is bounded again: no other can be
    certified. Never below IBP.
    """
    margins = []
    for lower, upper in zip(box.lower.split(1), box.upper.split(1), strict=True):
        image = Box(lower, upper)
        boxes = bounds.intervals(image)
        centre = bounds.intervals(Box((lower + upper) / 2, (lower + upper) / 2))[
            bounds.logits
        ].lower
        lead = leading(centre if bounds.decision is None else bounds.decision.logits(centre))[0]
        differences, classes = bounds.differences(boxes), centre.shape[1]
        where = bounds.margins(boxes, differences)[0].amax(0) <= 0
        unit = torch.eye(classes, dtype=centre.dtype, device=centre.device)
        pairs = [(i, j) for i in range(classes) for j in range(classes) if i != j]
        for i, j in pairs:  # logit i − logit j, where one of the two leads
            use = where & (
                (lead == i) | (bounds.decision is not None) & (lead > 0) & (j == 0) & (i > 0)
            )
            if use.any():
                spec = (unit[i] - unit[j])[:, None, None].expand_as(centre[0])
                bound = linear_lower(bounds, boxes, bounds.logits, spec, where=use, chunk=chunk)
                differences[0, i, j] = torch.maximum(differences[0, i, j], bound)
        margins.append(bounds.margins(boxes, differences)[0])
    return torch.stack(margins)
