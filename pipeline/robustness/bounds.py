"""Bounds on a network's logits over a box of images: interval bounds (IBP) and linear bounds (CROWN-IBP), ℓ∞.

The network's torch.fx graph is read once. Every operation is one of three kinds, with a rule forth
(intervals, Gowal et al. 2018) and a rule back (linear forms, Zhang et al. 2018 "CROWN" and 2020 "CROWN-IBP"):

    affine        convolution, transposed convolution, batch norm, average pooling, upsampling, concatenation,
    ...
                  forth: centre through the operation, radius through its absolute value; back: its adjoint
    ReLU          forth: monotone; back: the chord above, a line through 0 below
    max pooling   forth: monotone; back: the largest upper bound above, the window's best lower bound below

Output pixels whose receptive fields are disjoint share one backward pass, so a whole tile costs as many passes as a
receptive field has pixels. Bounds hold for the network as float32 computes it (UNIT, SLACK); TF32 must be off.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import vjp
from torch.nn import functional as F

from pipeline.errors import InputError

ABSTAIN = -1  # the class of a pixel without a certificate
PIXEL_SLACK = 2e-6  # of the pixel range: rounding of x ± ε and of the normalisation
UNIT = 2.0**-24  # float32's unit roundoff: a sum of n products is off by at most n · UNIT · Σ|product|
SLACK = 1e-5  # of Σ|term| of a linear bound: a hundred times what float64 shows

REARRANGED = (nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d)
SUMS = {torch.add, operator.add}


class Box(NamedTuple):
    """Element by element lower ≤ value ≤ upper, both (N, ...)."""

    lower: Tensor
    upper: Tensor

    def largest(self) -> Tensor:
        return torch.maximum(self.lower.abs(), self.upper.abs())


def image_box(segmenter: nn.Module, images: Tensor, epsilon: float) -> Box:
    """The ℓ∞ ball of radius ε (pixel range [0,1]) around images (N, C, H, W), cut at [0,1], past the normalisation."""
    lower = (images - epsilon).clamp_min(0) - PIXEL_SLACK
    upper = (images + epsilon).clamp_max(1) + PIXEL_SLACK
    return Box((lower - segmenter.mean) / segmenter.std, (upper - segmenter.mean) / segmenter.std)


@dataclass(frozen=True)
class Affine:
    """x ↦ linear(weight, x) + bias; a None weight means a fixed operation with weights ≥ 0 that sum to 1 at most."""

    linear: Callable[..., Tensor]  # of the weight and the input tensors, linear in either
    weight: Tensor | None = None
    bias: Tensor | None = None  # (C, 1, 1)
    terms: int = 16  # products an output sums
    dense: bool = False  # the weight's first axis is the output channel, and every input channel reaches it

    def __call__(self, *inputs: Tensor) -> Tensor:
        out = self.linear(self.weight, *inputs)
        return out if self.bias is None else out + self.bias

    def interval(self, *boxes: Box) -> Box:
        """Centre and radius; the radius also takes the rounding of float32, of the bound and of the network itself."""
        rounding = 4 * (self.terms + 4) * UNIT
        centres = [(box.lower + box.upper) / 2 for box in boxes]
        spans = [(b.upper - b.lower) / 2 + rounding * b.largest() for b in boxes]
        centre = self(*centres)
        radius = self.linear(None if self.weight is None else self.weight.abs(), *spans)
        if self.bias is not None:
            radius = radius + rounding * self.bias.abs()
        return Box(centre - radius, centre + radius)

    def reach(self, *inputs: Tensor) -> Tensor:
        """Positive where an output depends on a positive input."""
        return self.linear(None if self.weight is None else torch.ones_like(self.weight), *inputs)


class ReLU:
    def interval(self, box: Box) -> Box:
        return Box(box.lower.relu(), box.upper.relu())


@dataclass(frozen=True)
class MaxPool:
    module: nn.MaxPool2d

    def interval(self, box: Box) -> Box:
        return Box(self.module(box.lower), self.module(box.upper))

    def best(self, lower: Tensor) -> Tensor:
        """Flat index (N, C, H', W') of each window's largest lower bound."""
        m = self.module
        window = m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode
        return F.max_pool2d(lower, *window, return_indices=True)[1]

    def reach(self, x: Tensor) -> Tensor:
        m = self.module
        return F.avg_pool2d(x, m.kernel_size, m.stride, m.padding, m.ceil_mode)


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> Affine | ReLU | MaxPool:
    """The rule of a graph node. Raises InputError, naming the operation, where there is none."""
    module = modules[node.target] if node.op == "call_module" else None
    match module:
        case nn.Conv2d(padding_mode="zeros") as m:
            return Affine(
                lambda w, x: F.conv2d(x, w, None, m.stride, m.padding, m.dilation, m.groups),
                m.weight, None if m.bias is None else m.bias[:, None, None], m.weight[0].numel(), m.groups == 1,
            )  # fmt: skip
        case nn.ConvTranspose2d(output_padding=extra) as m:
            return Affine(
                lambda w, x: F.conv_transpose2d(x, w, None, m.stride, m.padding, extra, m.groups, m.dilation),
                m.weight, None if m.bias is None else m.bias[:, None, None], m.weight[:, 0].numel(),
            )  # fmt: skip
        case nn.BatchNorm2d(training=False, track_running_stats=True) as m:
            scale = (m.running_var + m.eps).rsqrt() * (m.weight if m.affine else 1)
            bias = (m.bias if m.affine else 0) - m.running_mean * scale
            return Affine(lambda s, x: x * s[:, None, None], scale, bias[:, None, None])
        case nn.ReLU():
            return ReLU()
        case nn.MaxPool2d() as m if m.dilation in (1, (1, 1)):
            return MaxPool(m)
        case nn.Upsample(mode="nearest" | "bilinear", align_corners=None | False) as m:
            return Affine(lambda _, x: m(x))
        case nn.AvgPool2d() as m:
            side = m.kernel_size if isinstance(m.kernel_size, int) else max(m.kernel_size)
            return Affine(lambda _, x: m(x), terms=side**2)
        case m if isinstance(m, REARRANGED):
            return Affine(lambda _, x: m(x))
    if node.op == "call_function" and node.target in {F.relu, torch.relu}:
        return ReLU()
    of_nodes = all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs  # not x + 1, not x + 2 · y
    if node.op == "call_function" and (node.target is torch.cat or node.target in SUMS and of_nodes):

        def call(_, *inputs):
            known = dict(zip(node.all_input_nodes, inputs, strict=True))
            return node.target(*fx.map_arg(node.args, known.get), **node.kwargs)

        return Affine(call)
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
    raise InputError(
        f"certify: no sound bound is known for layer {name} ({node.name}); use convolutions, "
        "transposed convolutions, ReLU, pooling, nearest or bilinear upsampling, "
        "batch norm in eval mode and concatenation"
    )


class Bounds:
    """The bounds of one network (N, C, H, W) → (N, K, H, W). Raises InputError on a layer without a sound rule."""

    def __init__(self, network: nn.Module):
        traced = fx.symbolic_trace(nn.Sequential(network))
        modules = dict(traced.named_modules())
        *self.nodes, output = traced.graph.nodes
        self.input, self.logits = self.nodes[0], output.args[0]
        self.rules = {node: _operation(node, modules) for node in self.nodes[1:]}

    # forth: intervals

    def intervals(self, box: Box) -> dict[fx.Node, Box]:
        """IBP: a box for every node, differentiable in the network's parameters."""
        boxes = {self.input: box}
        for node in self.nodes[1:]:
            boxes[node] = self.rules[node].interval(*(boxes[i] for i in node.all_input_nodes))
        return boxes

    def differences(self, boxes: dict[fx.Node, Box]) -> Tensor:
        """IBP lower bounds (N, K, K, H, W) of logit k − logit j; the last convolution subtracts before it bounds."""
        rule, classes = self.rules[self.logits], boxes[self.logits].lower.shape[1]
        unit = torch.eye(classes, device=boxes[self.logits].lower.device)
        pairs = (unit[:, None] - unit[None, :]).flatten(0, 1)
        if isinstance(rule, Affine) and rule.dense:
            bias = None if rule.bias is None else (pairs @ rule.bias.flatten())[:, None, None]
            weight = torch.einsum("pk,k...->p...", pairs, rule.weight)
            last = Affine(rule.linear, weight, bias, rule.terms)
            box = last.interval(*(boxes[i] for i in self.logits.all_input_nodes))
        else:
            last = Affine(lambda w, x: torch.einsum("pk,nkhw->nphw", w, x), pairs, None, 2)
            box = last.interval(boxes[self.logits])
        return box.lower.unflatten(1, (classes, classes))

    # back: linear forms

    def linear_lower(
        self,
        boxes: dict[fx.Node, Box],
        node: fx.Node,
        spec: Tensor,
        *,
        relaxation: Literal["crown", "parallel"] = "crown",
        where: Tensor | None = None,
        chunk: int = 64,
        alone: bool = False,
    ) -> Tensor:
        """Lower bounds (H, W) of Σ_c spec[c, y, x] · node[c, y, x] for one image, given `boxes` of the nodes before.

        One backward pass substitutes linear bounds from `node` to the image, where the box concretises them.
        relaxation: "crown" takes the lower line of a ReLU from {0, x}, whichever leaves the smaller area; "parallel"
        gives it the chord's slope (Wong and Kolter 2018). `where` (H, W) limits the pixels (others are −inf), `chunk`
        the passes held at once: memory is chunk × the widest feature map. `alone` gives each pixel a pass of its own.
        """
        height, width = spec.shape[-2:]
        extent = boxes[self.input].lower.shape[-2:]
        step = extent[0] // height  # image pixels a pixel of `node`
        sizes = torch.tensor([boxes[n].lower.shape[-2:] for n in self.nodes])
        even = not (torch.tensor(extent) % sizes).any()  # else no layer's pixels have one size in image pixels
        reach = self._reach(boxes, node) if even and not alone else max(extent)
        spacing = math.ceil((2 * reach + 1) / step)  # pixels that share a pass: receptive fields are disjoint
        rows, columns = min(spacing, height), min(spacing, width)
        result = spec.new_full((height, width), -torch.inf)
        offsets = [
            (y, x) for y in range(rows) for x in range(columns) if where is None or where[y::spacing, x::spacing].any()
        ]
        for start in range(0, len(offsets), chunk):
            group = offsets[start : start + chunk]
            seeds = spec.new_zeros(len(group), *spec.shape)
            for seed, (y, x) in zip(seeds, group, strict=True):
                seed[:, y::spacing, x::spacing] = spec[:, y::spacing, x::spacing]
            owners = _Owners(group, spacing, (height, width), step, extent)
            total = self._substitute(boxes, node, seeds, relaxation, owners)
            for bound, (y, x) in zip(total, group, strict=True):
                cells = result[y::spacing, x::spacing]
                cells.copy_(bound[: cells.shape[0], : cells.shape[1]])
        return result if where is None else result.masked_fill(~where, -torch.inf)

    def _substitute(self, boxes, node, seeds, relaxation, owners) -> Tensor:
        """Σ of each seed's constants, down to the box of the image: (passes, cells down, cells across)."""
        forms, total, size = {node: seeds}, 0, 0

        def constant(terms: Tensor) -> None:
            nonlocal total, size
            total, size = total + owners.sum(terms), size + owners.sum(terms.abs())

        for current in reversed(self.nodes[: self.nodes.index(node) + 1]):
            if current not in forms:
                continue
            form, rule = forms.pop(current), self.rules.get(current)
            inputs = current.all_input_nodes
            match rule:
                case None:  # the image: the least value of a linear form over a box
                    box = boxes[current]
                    constant(form.clamp_min(0) * box.lower + form.clamp_max(0) * box.upper)
                    continue
                case Affine():
                    if rule.bias is not None:
                        constant(form * rule.bias)
                    zeros = [torch.zeros_like(boxes[i].lower).expand(len(form), -1, -1, -1) for i in inputs]
                    parts = vjp(lambda *x, rule=rule: rule.linear(rule.weight, *x), *zeros)[1](form)
                case ReLU():
                    lower, upper = boxes[inputs[0]]
                    chord = upper.clamp_min(0) / (upper.clamp_min(0) - lower.clamp_max(0)).clamp_min(1e-30)
                    identity = ((lower >= 0) | (upper > -lower)).to(form.dtype)  # else 0: the smaller area
                    below = chord if relaxation == "parallel" else identity
                    positive, negative = form.clamp_min(0), form.clamp_max(0)
                    constant(negative * chord * -lower.clamp_max(0))
                    parts = [positive * below + negative * chord]
                case MaxPool():
                    lower, upper = boxes[inputs[0]]
                    constant(form.clamp_max(0) * rule.module(upper))
                    best = rule.best(lower).expand_as(form).flatten(2)
                    flat = form.new_zeros(len(form), *lower.shape[1:]).flatten(2)
                    flat.scatter_add_(2, best, form.clamp_min(0).flatten(2))
                    parts = [flat.unflatten(2, lower.shape[2:])]
            for i, part in zip(inputs, parts, strict=True):
                forms[i] = forms[i] + part if i in forms else part
        return total - SLACK * size

    def _reach(self, boxes, node) -> int:
        """How far, in image pixels, a pixel of `node` looks: measured by sending ones back from its centre.

        Where they reach the border, a pixel elsewhere may look further: the answer is then the image's size.
        """
        height, width = boxes[node].lower.shape[-2:]
        extent = boxes[self.input].lower.shape[-2]
        step = extent // height
        period = max(1, max(extent // boxes[n].lower.shape[-2] for n in self.nodes) // step)
        places = [
            (height // 2 + y, width // 2 + x) for y in range(period) for x in range(period)
            if height // 2 + y < height and width // 2 + x < width
        ]  # fmt: skip
        seeds = torch.zeros(len(places), *boxes[node].lower.shape[1:], device=boxes[node].lower.device)
        for seed, (y, x) in zip(seeds, places, strict=True):
            seed[:, y, x] = 1
        marks, reach = {node: seeds}, 0
        for current in reversed(self.nodes[: self.nodes.index(node) + 1]):
            if current not in marks:
                continue
            mark, scale = (marks.pop(current) > 0).float(), extent // boxes[current].lower.shape[-2]
            for place, seed in zip(mark, places, strict=True):
                touched = place.any(0)
                if touched[[0, -1]].any() or touched[:, [0, -1]].any():
                    return max(boxes[self.input].lower.shape[-2:])
                away = touched.nonzero().cpu() * scale - torch.tensor(seed) * step
                reach = max(reach, int(away.abs().max()))
            if current is self.input:
                continue
            rule, inputs = self.rules[current], current.all_input_nodes
            zeros = [torch.zeros_like(boxes[i].lower).expand(len(mark), -1, -1, -1) for i in inputs]
            parts = [mark] if isinstance(rule, ReLU) else vjp(rule.reach, *zeros)[1](mark)
            for i, part in zip(inputs, parts, strict=True):
                marks[i] = marks[i] + part if i in marks else part
        return reach


class _Owners:
    """Which seed each pixel of a feature map belongs to: seeds stand `spacing` apart, each owns the pixels nearest."""

    def __init__(self, offsets, spacing, shape, step, extent):
        self.offsets, self.extent, self.period = offsets, extent, spacing * step
        self.cells = [math.ceil(n / spacing) for n in shape]
        self.step = step

    def sum(self, terms: Tensor) -> Tensor:
        """Σ over channels and owned pixels of terms (passes, C, h, w): (passes, cells down, cells across)."""
        return self._owned(terms, 0) @ terms.sum(1) @ self._owned(terms, 1).mT

    def _owned(self, terms: Tensor, axis: int) -> Tensor:
        """One-hot (passes, cells, rows or columns of the map)."""
        size = terms.shape[2 + axis]
        places = torch.arange(size, device=terms.device) * (self.extent[axis] // size)
        starts = torch.tensor([o[axis] for o in self.offsets], device=terms.device)[:, None] * self.step
        owner = torch.div(2 * (places - starts) + self.period, 2 * self.period, rounding_mode="floor")
        cells = torch.arange(self.cells[axis], device=terms.device)
        return (owner[:, None, :] == cells[:, None]).to(terms.dtype)


def worst_margins(differences: Tensor) -> Tensor:
    """(N, K, H, W): lower bound of logit k minus the largest other logit; positive for at most one class."""
    own = torch.eye(differences.shape[1], dtype=torch.bool, device=differences.device)[None, :, :, None, None]
    return differences.masked_fill(own, torch.inf).amin(2)


def certified_classes(margins: Tensor) -> Tensor:
    """(N, H, W) int64: the class whose worst margin is positive, ABSTAIN where there is none."""
    best, cls = margins.max(1)
    return torch.where(best > 0, cls, ABSTAIN)


def interval_margins(bounds: Bounds, box: Box, chunk: int = 16) -> Tensor:
    """IBP worst margins (N, K, H, W) over a box of images (N, C, H, W), `chunk` images at a time."""
    parts = zip(box.lower.split(chunk), box.upper.split(chunk), strict=True)
    return torch.cat([worst_margins(bounds.differences(bounds.intervals(Box(*part)))) for part in parts])


def crown_ibp_margins(bounds: Bounds, box: Box, *, chunk: int = 64, everywhere: bool = False) -> Tensor:
    """Worst margins (N, K, H, W): IBP's, improved by one backward linear pass where IBP does not certify.

    Only the class that leads at the box's centre is bounded again: no other can be certified. Never below IBP.
    """
    margins = []
    for lower, upper in zip(box.lower.split(1), box.upper.split(1), strict=True):
        image = Box(lower, upper)
        boxes = bounds.intervals(image)
        centre = bounds.intervals(Box((lower + upper) / 2, (lower + upper) / 2))[bounds.logits].lower[0]
        margin = worst_margins(bounds.differences(boxes))[0]
        lead = centre.argmax(0)
        where = torch.ones_like(lead, dtype=torch.bool) if everywhere else margin.amax(0) <= 0
        one_hot = F.one_hot(lead, len(centre)).permute(2, 0, 1).to(centre.dtype)
        linear = torch.full_like(centre[0], torch.inf)
        for other in range(len(centre)):
            spec = one_hot.clone()
            spec[other] -= 1
            use = where & (lead != other)
            if use.any():
                bound = bounds.linear_lower(boxes, bounds.logits, spec, where=use, chunk=chunk)
                linear = torch.where(use, torch.minimum(linear, bound), linear)
        linear = torch.where(where, linear, -torch.inf)
        margins.append(torch.where(one_hot > 0, torch.maximum(margin, linear), margin))
    return torch.stack(margins)
